# SPDX-License-Identifier: Apache-2.0
"""Client memory that a device holds: shared memory by a window on it, private memory by its address.

Pages behind a window stay reachable after the process has ended, as the kernel's pins do. Private memory then
is gone.

State: none that changes; any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ioctl_shim._native import lib
from ioctl_shim.blank import new_bytes, view_of
from ioctl_shim.window import Window


class Held(NamedTuple):
    """Pinned memory within one mapping: at `offset` of a window, or at `vaddr` of the process."""

    vaddr: int
    size: int
    window: Window | None
    offset: int
    private: bool


class Owner(Protocol):
    """The call that pinned pages make on their process (ioctl_shim.process.Process)."""

    def move(self, parts: Sequence[tuple[int, int]], view: memoryview, flags: int) -> None:
        """Copy between `view` and its memory; `flags` are SHIM_MOVE_*.  Raises OSError(EFAULT, ESRCH)."""


class PinnedPages:
    """Memory a device holds (devmodel.client.Pages).  Any thread."""

    __slots__ = ("_pieces", "_process")

    def __init__(self, process: Owner, pieces: tuple[Held, ...]) -> None:
        self._process, self._pieces = process, pieces

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`.  Raises OSError(EFAULT, ESRCH)."""
        data: bytes = new_bytes(None, size)
        self.read_into(offset, view_of(data))
        return data

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes at `offset`.  Raises OSError(EFAULT, ESRCH)."""
        self._move(offset, view, write=False)

    def write_from(self, offset: int, view: memoryview) -> None:
        """Store `view` at `offset`.  Raises OSError(EFAULT, ESRCH)."""
        self._move(offset, view, write=True)

    def _move(self, offset: int, view: memoryview, write: bool) -> None:
        for piece in self._pieces:
            here = view[: max(piece.size - offset, 0)]
            if here and piece.window is not None:
                piece.window.move(piece.offset + offset, here, write)
            elif here:
                flags = write * lib.SHIM_MOVE_WRITE | piece.private * lib.SHIM_MOVE_PRIVATE
                self._process.move([(piece.vaddr + offset, len(here))], here, flags)
            view, offset = view[len(here) :], max(offset - piece.size, 0)
            if not view:
                return
