# SPDX-License-Identifier: Apache-2.0
"""The benchmark. bench/run.sh starts it."""
