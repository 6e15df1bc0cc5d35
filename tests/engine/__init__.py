# SPDX-License-Identifier: Apache-2.0
"""The command engine of vGPUs, on a real mount."""
