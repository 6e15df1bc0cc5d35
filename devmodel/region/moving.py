# SPDX-License-Identifier: Apache-2.0
"""The memory of one region on its way from one memfd to another, a piece at a time.

A region's first bytes, as many as ``moved`` says, are in a memfd of its own, at offset 0. The rest is in the
device's memfd. So each byte has one place at any time, and whoever asks for the place under the device's lock
finds it, also half-way. A piece leaves a hole where it was: the memory is never used twice, and a hole is a
hole in both files.

State: under the device's lock. Source: lseek(2) (SEEK_DATA), fallocate(2) (FALLOC_FL_PUNCH_HOLE).
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

PIECE = 256 << 10
"""Most bytes that are copied at a time: some 100 us under the device's lock."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Place(NamedTuple):
    """Bytes of a memfd from ``offset`` on."""

    fd: int
    offset: int

    def after(self, size: int) -> "Place":
        """The place ``size`` bytes further on."""
        return Place(self.fd, self.offset + size)


class OwnFile:
    """The memfd of a region. ``fd`` stays this object's."""

    __slots__ = ("fd", "moved", "size")

    def __init__(self, fd: int, size: int) -> None:
        """``size`` bytes of the region are memory: whole pages."""
        self.fd, self.size = fd, size
        self.moved = 0

    @property
    def complete(self) -> bool:
        """Whether all of the region is here."""
        return self.moved == self.size

    def take_piece(self, device: Place) -> bool:
        """Move the next piece here; ``device`` is where the region begins in the device's memfd.

        True when all of the region is here. Raises ``OSError``, with nothing moved, when the host has no page
        left.
        """
        start = _next_data(device, self.moved, self.size)
        end = min(start + PIECE, self.size)
        _move(device.after(self.moved), Place(self.fd, self.moved), end - self.moved)
        self.moved = end
        return self.complete

    def give_piece(self, device: Place) -> bool:
        """Move the last piece that is here to the device's memfd. True when nothing is left here. Raises as
        :meth:`take_piece`."""
        start, own = 0, Place(self.fd, 0)
        while self.moved - start > PIECE and _next_data(own, start, self.moved) < self.moved:
            start += (self.moved - start) // 2 // mmap.PAGESIZE * mmap.PAGESIZE
        _move(own.after(start), device.after(start), self.moved - start)
        self.moved = start
        return not start


def _move(source: Place, target: Place, size: int) -> None:
    """Move ``size`` bytes, whole pages, most of which may be a hole. Whatever was in the target is lost."""
    if not size:
        return
    _punch(target, size)
    try:
        for start, end in _data(source, size):
            _copy(source.after(start), target.after(start), end - start)
    except OSError:
        _punch(target, size)
        raise
    _punch(source, size)


def _data(place: Place, size: int) -> Iterator[tuple[int, int]]:
    """The (start, end) of what is no hole within ``size`` bytes."""
    start = _next_data(place, 0, size)
    while start < size:
        end = min(os.lseek(place.fd, place.offset + start, os.SEEK_HOLE) - place.offset, size)
        yield start, end
        start = _next_data(place, end, size)


def _next_data(place: Place, start: int, end: int) -> int:
    """Where data begins, from ``start`` on: ``end`` if there is none before that."""
    if start == end:
        return end
    try:
        return min(os.lseek(place.fd, place.offset + start, os.SEEK_DATA) - place.offset, end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end


def _copy(source: Place, target: Place, size: int) -> None:
    done = 0
    while done < size:
        data = os.pread(source.fd, min(size - done, PIECE), source.offset + done)
        if not data:
            raise OSError(errno.EIO, "a memfd has become shorter")
        while data:
            taken = os.pwrite(target.fd, data, target.offset + done)
            data, done = data[taken:], done + taken


def _punch(place: Place, size: int) -> None:
    if _fallocate(place.fd, _PUNCH_HOLE | _KEEP_SIZE, place.offset, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
