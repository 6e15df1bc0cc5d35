# SPDX-License-Identifier: Apache-2.0
"""Devices' own files, opened and bound by bare system calls."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

BIND_IOMMUFD = ord(";") << 8 | 118


def open_bound(cdev: Path | str) -> int:
    """Open a device's own file, and bind it to a new iommufd context, which ends when the file is closed.

    Returns the descriptor. One open file at a time binds a device, and none while its group is open."""
    device = os.open(cdev, os.O_RDWR | os.O_CLOEXEC)
    try:
        bind(device, Path(cdev).parents[2])
    except BaseException:
        os.close(device)
        raise
    return device


def bind(device: int, dev: Path) -> None:
    """Bind the open file of a device to a new iommufd context. `dev` is the folder dev of its mount."""
    with open(dev / "iommu", "r+b", buffering=0) as iommufd:
        fcntl.ioctl(device, BIND_IOMMUFD, struct.pack("=IIiIQ", 24, 0, iommufd.fileno(), 0, 0))
