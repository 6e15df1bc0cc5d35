# SPDX-License-Identifier: Apache-2.0
"""VFIO ioctl by ioctl, against a real mount from real processes."""
