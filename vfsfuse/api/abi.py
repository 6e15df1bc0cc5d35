# SPDX-License-Identifier: Apache-2.0
"""The ioctls of VFIO and iommufd that the client of the API makes, by the struct module: a program that uses
the API loads no native extension.  No state; any thread.

Source: <linux/vfio.h>, <linux/iommufd.h>.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_VFIO, _IOMMUFD = ord(";") << 8 | 100, ord(";") << 8 | 0x80

DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, DEVICE_RESET = (
    _VFIO + number for number in (7, 8, 9, 10, 11)
)
DEVICE_BIND_IOMMUFD, DEVICE_ATTACH_IOMMUFD_PT = _VFIO + 18, _VFIO + 19
IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP = _IOMMUFD + 1, _IOMMUFD + 5, _IOMMUFD + 6

MAP_FIXED_IOVA, MAP_WRITEABLE, MAP_READABLE = 1, 2, 4
REGION_READ, REGION_WRITE, REGION_MMAP = 1, 2, 4
IRQ_DATA_NONE, IRQ_DATA_EVENTFD, IRQ_MASK, IRQ_UNMASK, IRQ_TRIGGER = 1, 4, 8, 16, 32
CONFIG_REGION = 7


def call(fd: int, request: int, form: str, *values: int) -> tuple[int, ...]:
    """An ioctl with a struct whose first member is its size.  `form` and `values` are the others, as struct
    has them, without padding.  Returns those members as the call leaves them.  Raises OSError."""
    form = "=I" + form
    data = bytearray(struct.pack(form, struct.calcsize(form), *values))
    fcntl.ioctl(checked(fd), request, data)
    return struct.unpack(form, data)[1:]


def checked(fd: int) -> int:
    """The descriptor.  Raises OSError(EBADF) for one that is closed, which Python would call a ValueError."""
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return fd
