# SPDX-License-Identifier: Apache-2.0
"""VFIO's rules: groups, containers, open devices, and what their ioctls mean, as functions of plain values.

No struct, no ioctl number, no FUSE: a front end decodes, and calls what is here.
"""
