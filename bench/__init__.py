# SPDX-License-Identifier: Apache-2.0
"""The benchmark: bench/run.sh is how to start it."""
