# SPDX-License-Identifier: Apache-2.0
"""VFIO's rules: groups, containers, open devices, and what their ioctls mean, as functions of plain values.

There is no struct, no ioctl number and no FUSE here. A front end decodes, and calls these functions.
"""
