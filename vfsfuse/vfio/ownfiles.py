# SPDX-License-Identifier: Apache-2.0
"""Which file each memory region of a device is in, so that resource<N> can be mapped.

The kernel maps a backing file at the client's own offset.  So the device's file in dev/vfio has a memfd with
each region at index << 40, and resource<N> needs one with region N at 0.  One page cannot be in both, so a
region moves (devmodel.region.moving):

- to a memfd of its own when its resource<N> is opened and no client has the device open through VFIO;
- back when a client opens the device through VFIO and nobody has resource<N> open or mapped.

What cannot move stays where it is, so all that see the region see the same memory.  A region that is in its
own memfd when the device is opened through VFIO has no VFIO_REGION_INFO_FLAG_MMAP for these opens.  A
resource<N> that is opened while its region is in the device's memfd cannot be mapped.  Region 0 is at 0 in
both and never moves.

A move takes as long as there is data, so threads that may wait make it.  The device works meanwhile.

State: under a lock of its own, which nobody holds for long.  `_turn` is the right to move, for threads that
may wait.  Source: Documentation/filesystems/fuse/fuse-passthrough.rst.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from devmodel.device.base import Device
from devmodel.iommu.api import MustWait
from devmodel.region.backing import is_used_elsewhere
from devmodel.region.region import Memory
from ioctl_shim import lane
from ioctl_shim.pumped import PumpRegions

log = logging.getLogger(__name__)
PAUSE = 50e-6
"""Seconds between two pieces of a move, for others to take the device's lock."""
PATIENCE, LOOK = 0.1, 0.005
"""Seconds that the kernel may take to close the files of a process that has ended, and between two looks."""

Piece = Callable[[int], bool]
"""Moves a piece of a region: Backing.take_piece or give_piece."""


class _Opens:
    """The open files of one inode: the kernel lets them have no more than one backing file."""

    __slots__ = ("backing_id", "count")

    def __init__(self, backing_id: int) -> None:
        self.backing_id, self.count = backing_id, 0


class OwnFiles:
    """The memory regions of one device and who has them open.  Any thread."""

    __slots__ = (
        "_can_map",
        "_checked",
        "_closed",
        "_device",
        "_ids",
        "_lock",
        "_moving",
        "_opens",
        "_regions",
        "_turn",
        "_users",
        "_uses",
    )

    def __init__(
        self, device: Device, regions: Callable[[], PumpRegions], can_map: Callable[[], bool]
    ) -> None:
        """`regions` gives those that the pump answers; `can_map` is whether the kernel maps backing files."""
        self._device, self._regions, self._can_map = device, regions, can_map
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._ids: dict[int, int] = {}
        """The backing id of each region that has a memfd of its own."""
        self._opens: dict[int, _Opens] = {}
        """The open files of resource<N>, by inode."""
        self._users = 0
        """Files that have the device open through VFIO."""
        self._uses = 0
        """How many there have been.  Each may have left a mapping, which outlives the file."""
        self._checked = 0
        """How many of these have certainly left none."""
        self._moving = self._closed = False

    # ---- the device through VFIO ----

    def open_device(self, may_wait: bool) -> None:
        """A client opens the device through VFIO.  Until `close_device` no region moves.

        Raises MustWait when there is something to move first and the thread must not wait, OSError(ENODEV)
        for a removed device.
        """
        with self._lock:
            self._check_open()
            if not self._moving and (self._users or not self._device.backing.away):
                self._use()
                return
        if not may_wait:
            raise MustWait
        with self._alone(lambda: not self._users) as alone:
            if alone:
                self._bring_back()
            with self._lock:
                self._use()

    def close_device(self) -> None:
        """The opposite of `open_device`."""
        with self._lock:
            self._users -= 1

    def look(self, may_wait: bool) -> None:
        """Somebody opens resource0, and the device's memfd is open for nobody else: find out whether a client
        of VFIO has left a mapping of it.  Later it could not be told from one of resource0.

        Raises MustWait, when it may have left one and the thread must not wait.
        """
        if not self._users and self._left_mapped(PATIENCE if may_wait else 0) and not may_wait:
            raise MustWait

    # ---- one region through resource<N> ----

    def open_one(self, index: int, inode: int, may_wait: bool) -> int:
        """Somebody opens the resource<N> of memory region `index`, above 0.  Returns the id of its backing
        file, 0 when it cannot be mapped.  `close_one` follows.

        Raises MustWait as `open_device`, OSError: ENODEV for a removed device, ENOMEM and what else may pass.
        """
        can_map = self._can_map()
        with self._lock:
            self._check_open()
            if not can_map or not (self._moving or self._moves(index, inode)):
                return self._enter(index, inode)
        if not may_wait:
            raise MustWait
        with self._alone(lambda: self._moves(index, inode)) as alone:
            if alone and not self._left_mapped(PATIENCE):
                self._move_out(index)
            with self._lock:
                return self._enter(index, inode)

    def close_one(self, inode: int) -> None:
        """The opposite of `open_one`."""
        with self._lock:
            opens = self._opens[inode]
            opens.count -= 1
            if not opens.count:
                del self._opens[inode]
                self._end_ids()

    def close(self) -> None:
        """The device is removed."""
        with self._lock:
            self._closed = True
            self._end_ids()

    # ---- under the lock ----

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.ENODEV, "removed")

    def _use(self) -> None:
        self._users += 1
        self._uses += 1

    def _moves(self, index: int, inode: int) -> bool:
        """Whether an open has the region moved first."""
        return not self._users and index not in self._ids and inode not in self._opens

    def _enter(self, index: int, inode: int) -> int:
        opens = self._opens.setdefault(inode, _Opens(self._ids.get(index, 0)))
        opens.count += 1
        return opens.backing_id

    def _has_files(self, backing_id: int) -> bool:
        return any(opens.backing_id == backing_id for opens in self._opens.values())

    def _end_ids(self) -> None:
        """Once the device is gone, an id stays registered until the last file with it is released."""
        if self._closed:
            for index, backing_id in list(self._ids.items()):
                if not self._has_files(backing_id):
                    lane.close_backing(self._ids.pop(index))

    # ---- with the right to move, and without the lock ----

    @contextmanager
    def _alone(self, wanted: Callable[[], bool]) -> Iterator[bool]:
        """Have the right to move, and keep others from opening anything meanwhile if it is `wanted`, which is
        called under the lock.  Gives whether it is."""
        with self._turn:
            with self._lock:
                self._check_open()
                self._moving = wanted()
            try:
                yield self._moving
            finally:
                with self._lock:
                    self._moving = False

    def _left_mapped(self, patience: float) -> bool:
        """Whether a client of VFIO may have left a mapping of the device's memfd.  A mapping of resource0
        looks the same."""
        uses = self._uses
        if self._checked != uses:
            if self._is_used(lambda: self._device.backing.fd, patience):
                return True
            self._checked = uses
        return False

    def _is_used(self, fd: Callable[[], int], patience: float) -> bool:
        """Whether a file that is open nowhere, as far as we know, is used nevertheless."""
        until = time.monotonic() + patience
        while True:
            with self._device.lock:  # nobody closes it meanwhile
                if not is_used_elsewhere(fd()):
                    return False
            if time.monotonic() >= until:
                return True
            time.sleep(LOOK)

    def _move_out(self, index: int) -> None:
        """Move the region to a memfd of its own.  Leaves it where it is if its model has mapped it.

        Raises OSError: ENODEV for a removed device, ENOMEM when the host has no page or descriptor left."""
        memory, backing = self._memory(index), self._device.backing
        with self._device.lock:
            if not backing.can_move(index):
                return
            backing_id = lane.open_backing(backing.own_fd(index, memory.backed))
        try:
            self._move(index, memory, backing.take_piece)
        except OSError as error:
            lane.close_backing(backing_id)
            raise OSError(
                errno.ENODEV if error.errno == errno.ENODEV else errno.ENOMEM, str(error)
            ) from error
        with self._lock:
            self._ids[index] = backing_id
            self._end_ids()

    def _bring_back(self) -> None:
        """Move the regions back whose own memfd nobody has open or mapped, as far as the host has pages."""
        for index in filter(self._device.backing.can_move, self._device.backing.away):
            with self._lock:
                self._check_open()
                backing_id = self._ids.get(index, 0)
                if backing_id and self._has_files(backing_id):
                    continue
            if self._is_used(partial(self._own_fd, index), PATIENCE):
                continue
            with self._lock:
                if self._ids.pop(index, 0):
                    lane.close_backing(backing_id)
            try:
                self._move(index, self._memory(index), self._device.backing.give_piece)
            except OSError as error:
                self._device.check_present()
                log.warning("%s: region %d cannot be mapped now: %s", self._device.name, index, error)

    def _own_fd(self, index: int) -> int:
        return self._device.backing.own_fd(index, self._memory(index).backed)

    def _move(self, index: int, memory: Memory, piece: Piece) -> None:
        """Call `piece` until it says that all of the region has been moved.

        Raises OSError as `piece`.  Then the region is in two files: everything works, but only by way of
        Python."""
        lock, backing = self._device.lock, self._device.backing
        regions = self._regions() if memory.direct else None
        if regions is not None:
            with lock:
                regions.withhold(index)
        while not self._one(index, piece):
            time.sleep(PAUSE)
        if regions is not None:
            with lock:
                place = backing.place(index)
                assert place is not None
                regions.map(index, *place, memory.backed)
                regions.give_back(index)

    def _one(self, index: int, piece: Piece) -> bool:
        with self._device.lock:
            return piece(index)

    def _memory(self, index: int) -> Memory:
        memory = self._device.region(index)
        assert isinstance(memory, Memory)
        return memory
