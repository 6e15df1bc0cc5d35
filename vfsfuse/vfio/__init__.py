# SPDX-License-Identifier: Apache-2.0
"""The VFIO files: each decodes the ioctls of its kind (ioctl_shim.abi) and calls the semantics in
devmodel."""
