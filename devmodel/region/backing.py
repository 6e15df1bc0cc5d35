# SPDX-License-Identifier: Apache-2.0
"""The memory behind a device's memory regions: one sparse memfd, in which each region is at its VFIO offset.

So an mmap of the device file can map the memfd, at the same offset. A region other than the first can be in
a memfd of its own for a while (devmodel.region.moving), at offset 0, as a file of that region alone needs it.

State: the device's. Any thread may ask for ``fd``, which is made under a lock of its own. A region is moved
under the device's lock.
Source: memfd_create(2), VFIO_GET_REGION_INFO's ``offset`` in <linux/vfio.h>; fcntl(2) (F_SETLEASE).
"""

import errno
import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from devmodel.region.access import PLAIN
from devmodel.region.moving import OwnFile, Place

REGION_SHIFT = 40
"""VFIO convention of vfio-pci: the file offset of region ``index`` is ``index << REGION_SHIFT``."""

_NO_FILES: Mapping[int, OwnFile] = MappingProxyType({})
_NO_REGIONS: frozenset[int] = frozenset()
_BLOCK = 512
"""What stat(2) counts allocated bytes in."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def region_offset(index: int) -> int:
    """File offset in bytes of region ``index`` in a VFIO device file."""
    return index << REGION_SHIFT


class Backing:
    """A sparse memfd. It is made on first use, and its pages are allocated when something touches them."""

    __slots__ = ("_closed", "_fd", "_lock", "_mapped", "_own", "_size", "access")

    def __init__(self, sizes: Mapping[int, int]) -> None:
        """``sizes`` maps the index of each memory region to its size in bytes."""
        end = max((region_offset(index) + size for index, size in sizes.items()), default=0)
        self._size = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
        self._fd = -1
        self._closed = False
        self._lock = threading.Lock()
        self._own = _NO_FILES
        self._mapped = _NO_REGIONS
        self.access = PLAIN
        """How to touch mappings of it. A front end sets it before a client uses the device."""

    @property
    def fd(self) -> int:
        """The memfd, which stays this object's. ``OSError(ENODEV)`` once closed. Any thread."""
        with self._lock:
            if self._closed:
                raise OSError(errno.ENODEV, "the device is gone")
            if self._fd < 0:
                self._fd = self._create("vfio-device", self._size)
            return self._fd

    @property
    def created(self) -> bool:
        """Whether the memfd exists yet."""
        return self._fd >= 0

    @property
    def allocated(self) -> int:
        """Bytes of the pages that were touched. Any thread."""
        with self._lock:
            fds = [file.fd for file in self._own.values()] + ([self._fd] if self._fd >= 0 else [])
            return sum(os.fstat(fd).st_blocks for fd in fds) * _BLOCK

    def places(self, index: int, offset: int, size: int) -> Sequence[tuple[Place, int]]:
        """Where ``size`` bytes at ``offset`` of region ``index`` are now: places with their sizes, in order.
        Under the device's lock."""
        place = Place(self.fd, region_offset(index) + offset)
        own = self._own.get(index)
        here = 0 if own is None else min(max(own.moved - offset, 0), size)
        if own is None or not here:
            return ((place, size),)
        return ((Place(own.fd, offset), here), (place.after(here), size - here))[: 1 + (here < size)]

    def place(self, index: int) -> Place | None:
        """Where all of region ``index`` is now, None while it is in two files. Under the device's lock."""
        own = self._own.get(index)
        if own is None or not own.moved:
            return self._in_device(index)
        return Place(own.fd, 0) if own.complete else None

    def map(self, index: int, size: int) -> mmap.mmap:
        """Map ``size`` bytes of region ``index``, shared and writable; the caller closes the mapping.

        What may run while a client is served touches the mapping by :attr:`access` only. From then on the
        region cannot be moved. Any thread may map region 0, which never moves; others are mapped under the
        device's lock. ``OSError(EBUSY)`` while the region is being moved.
        """
        place = self.place(index)
        if place is None:
            raise OSError(errno.EBUSY, f"region {index} is being moved")
        self._mapped |= {index}
        return mmap.mmap(place.fd, size, offset=place.offset)

    # ---- a region in a memfd of its own ----

    @property
    def away(self) -> frozenset[int]:
        """The regions that are not in :attr:`fd`, or not wholly. Any thread."""
        return frozenset(self._own)

    def can_move(self, index: int) -> bool:
        """Whether region ``index`` can be moved: no model has mapped it. Under the device's lock."""
        return index not in self._mapped

    def own_fd(self, index: int, size: int) -> int:
        """The memfd of region ``index``, of which ``size`` bytes are memory; made if it has none yet.

        Raises ``OSError(ENODEV)`` once closed. Under the device's lock.
        """
        with self._lock:
            if self._closed:
                raise OSError(errno.ENODEV, "the device is gone")
            if index not in self._own:
                own = OwnFile(self._create("vfio-region", size), size)
                self._own = MappingProxyType({**self._own, index: own})
            return self._own[index].fd

    def take_piece(self, index: int) -> bool:
        """Move a piece of region ``index`` to the region's memfd. True at the end. Under the device's lock.

        Raises ``OSError``: ENODEV once closed, EBUSY for a region that a model has mapped, and as
        :meth:`OwnFile.take_piece`.
        """
        device = self._may_move(index)
        return self._own[index].take_piece(device)

    def give_piece(self, index: int) -> bool:
        """Move a piece of region ``index`` back. True at the end, when the region's memfd has been closed.
        Raises as :meth:`take_piece`, under the device's lock."""
        device = self._may_move(index)
        if not self._own[index].give_piece(device):
            return False
        with self._lock:
            os.close(self._own[index].fd)
            self._own = MappingProxyType({other: own for other, own in self._own.items() if other != index})
        return True

    def _may_move(self, index: int) -> Place:
        if not self.can_move(index):
            raise OSError(errno.EBUSY, f"region {index} is mapped by its model")
        return self._in_device(index)

    def _in_device(self, index: int) -> Place:
        return Place(self.fd, region_offset(index))

    def close(self) -> None:
        """Close our descriptors. Mappings of clients keep their pages."""
        with self._lock:
            self._closed = True
            for own in self._own.values():
                os.close(own.fd)
            self._own = _NO_FILES
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _create(self, name: str, size: int) -> int:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            # A client that holds this file must not shrink it: our own mappings would raise SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(fd)
            raise
        return fd


def is_used_elsewhere(fd: int) -> bool:
    """Whether somebody else has the memfd ``fd`` open, or a mapping of it that outlives its descriptor.

    The kernel grants a lease for writing only to the one who alone has a file open. For a moment after the
    last close(2) or munmap(2) of another process this may still be true. Any thread; waits for nobody.
    """
    try:
        alone = os.open(
            f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC
        )  # a memfd's first open does not count
    except OSError:
        return True  # as far as we know
    try:
        fcntl.fcntl(alone, fcntl.F_SETSIG, signal.SIGURG)  # tells of another open; SIGIO would end us
        fcntl.fcntl(alone, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return True
    finally:
        os.close(alone)  # with the lease
    return False
