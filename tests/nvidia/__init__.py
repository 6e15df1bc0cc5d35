# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's vendor-specific VFIO: virtual functions that become vGPUs by files in their directory nvidia."""
