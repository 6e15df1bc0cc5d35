# SPDX-License-Identifier: Apache-2.0
"""The memory behind a device's memory regions: one sparse memfd, in which each region is at its VFIO offset.

So an mmap of the device file can map the memfd, at the same offset.

State: the device's. Any thread may ask for ``fd``, which is made under a lock of its own.
Source: memfd_create(2), VFIO_GET_REGION_INFO's ``offset`` in <linux/vfio.h>.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Mapping

from devmodel.region.access import PLAIN

REGION_SHIFT = 40
"""VFIO convention of vfio-pci: the file offset of region ``index`` is ``index << REGION_SHIFT``."""

_BLOCK = 512
"""What stat(2) counts allocated bytes in."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def region_offset(index: int) -> int:
    """File offset in bytes of region ``index`` in a VFIO device file."""
    return index << REGION_SHIFT


class Backing:
    """A sparse memfd. It is made on first use, and its pages are allocated when something touches them."""

    __slots__ = ("_closed", "_fd", "_lock", "_size", "access")

    def __init__(self, sizes: Mapping[int, int]) -> None:
        """``sizes`` maps the index of each memory region to its size in bytes."""
        end = max((region_offset(index) + size for index, size in sizes.items()), default=0)
        self._size = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
        self._fd = -1
        self._closed = False
        self._lock = threading.Lock()
        self.access = PLAIN
        """How to touch mappings of it. A front end sets it before a client uses the device."""

    @property
    def fd(self) -> int:
        """The memfd, which stays this object's. ``OSError(ENODEV)`` once closed. Any thread."""
        with self._lock:
            if self._closed:
                raise OSError(errno.ENODEV, "the device is gone")
            if self._fd < 0:
                self._fd = self._create()
            return self._fd

    @property
    def created(self) -> bool:
        """Whether the memfd exists yet."""
        return self._fd >= 0

    @property
    def allocated(self) -> int:
        """Bytes of the pages that were touched. Any thread."""
        with self._lock:
            return os.fstat(self._fd).st_blocks * _BLOCK if self._fd >= 0 else 0

    def map(self, index: int, size: int) -> mmap.mmap:
        """Map ``size`` bytes of region ``index``, shared and writable; the caller closes the mapping.

        What may run while a client is served touches the mapping by :attr:`access` only.
        """
        return mmap.mmap(self.fd, size, offset=region_offset(index))

    def close(self) -> None:
        """Close our descriptor. Mappings of clients keep their pages."""
        with self._lock:
            self._closed = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _create(self) -> int:
        fd = os.memfd_create("vfio-device", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, self._size)
            # A client that holds this file must not shrink it: our own mappings would raise SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(fd)
            raise
        return fd
