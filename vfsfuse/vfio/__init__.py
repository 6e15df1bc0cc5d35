# SPDX-License-Identifier: Apache-2.0
"""The VFIO files. Each decodes the ioctls of its kind (ioctl_shim.abi), and calls the rules in
devmodel.vfio."""
