# SPDX-License-Identifier: Apache-2.0
"""What a VFIO device says of itself, asked on a copy of the descriptor of the program that has opened it.

Nothing here changes the device: GET_INFO, GET_REGION_INFO, GET_IRQ_INFO, and reads of configuration space.
The thread of the ptrace loop asks, while the thread that has opened the device is stopped.
Source: <linux/vfio.h>.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from bisect import bisect_right

from ioctl_shim._native import lib
from vfsfuse.recording.recording import (
    CONFIG_REGION,
    MOST_CONFIG,
    MOST_INDEXES,
    MOST_SIZE,
    MOST_STRUCT,
    Irq,
    RecordedDevice,
    Region,
)
from vfsfuse.recording.regioninfo import REGION_INFO

_DEVICE_INFO = struct.Struct("=5I")
_IRQ_INFO = struct.Struct("=4I")
_BASE = ord(";") << 8 | lib.VFIO_BASE
_GET_INFO, _GET_REGION_INFO, _GET_IRQ_INFO = _BASE + 7, _BASE + 8, _BASE + 9


class Layout:
    """Where the regions of a device are in its file, by their offsets there."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, int]] = []
        """Offset and index, by offset.  Regions of size 0 have places, too."""

    def add(self, index: int, offset: int) -> None:
        """Region `index` begins at `offset`."""
        self._regions = sorted([*self._regions, (offset, index)])

    def place(self, position: int) -> tuple[int, int]:
        """The region of an access at `position` of the file, and the offset in it.  A region that is not
        there may be beyond the last one: each has the same room in the file."""
        at = bisect_right(self._regions, (position, MOST_INDEXES))
        begin, index = self._regions[at - 1] if at else (0, 0)
        beyond, offset = divmod(position - begin, MOST_SIZE)
        return index + beyond, offset


def describe(fd: int, device: RecordedDevice) -> Layout:
    """Ask the device behind `fd` and note its answers in `device`.  Raises OSError when GET_INFO fails."""
    argument = bytearray(_DEVICE_INFO.pack(_DEVICE_INFO.size, 0, 0, 0, 0))
    fcntl.ioctl(fd, _GET_INFO, argument)
    _, device.flags, regions, irqs, _ = _DEVICE_INFO.unpack(argument)
    device.num_regions, device.num_irqs = min(regions, MOST_INDEXES), min(irqs, MOST_INDEXES)
    layout = Layout()
    for index in range(device.num_regions):
        with contextlib.suppress(OSError):
            offset, device.regions[index] = _region(fd, index)
            layout.add(index, offset)
            if index == CONFIG_REGION and device.flags & lib.VFIO_DEVICE_FLAGS_PCI:
                device.config = _contents(fd, offset, min(device.regions[index].size, MOST_CONFIG))
    for index in range(device.num_irqs):
        with contextlib.suppress(OSError):
            device.irqs[index] = _irq(fd, index)
    return layout


def _region(fd: int, index: int) -> tuple[int, Region]:
    """The offset of a region in the file, and what it says of itself.  Raises OSError."""
    argument = bytearray(REGION_INFO.size)
    while True:
        argument[:16] = struct.pack("=4I", len(argument), 0, index, 0)
        fcntl.ioctl(fd, _GET_REGION_INFO, argument)
        argsz, flags, _, at, size, offset = REGION_INFO.unpack_from(argument)
        if not len(argument) < argsz <= MOST_STRUCT:
            break
        argument = bytearray(argsz)
    chain = bytes(argument[REGION_INFO.size :]) if flags & lib.VFIO_REGION_INFO_FLAG_CAPS and at else b""
    return offset, Region(index, size, flags, chain)


def _irq(fd: int, index: int) -> Irq:
    argument = bytearray(_IRQ_INFO.pack(_IRQ_INFO.size, 0, index, 0))
    fcntl.ioctl(fd, _GET_IRQ_INFO, argument)
    _, flags, _, count = _IRQ_INFO.unpack(argument)
    return Irq(index, count, flags)


def _contents(fd: int, offset: int, size: int) -> bytes:
    """Configuration space, as far as it can be read."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < size and (part := os.pread(fd, size - len(data), offset + len(data))):
            data += part
    return data
