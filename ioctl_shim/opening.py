# SPDX-License-Identifier: Apache-2.0
"""An open(2) of a file of the device lane: what is asked, and what answers it.

Threads: the pump calls an `Opener`, and a thread that may wait does where the pump must not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ioctl_shim import pumped
from ioctl_shim._native import ffi, lib
from ioctl_shim.heldcalls import Submit
from ioctl_shim.lanefile import LaneFile, Later, RegionAccess

WHOLE: int = lib.LANE_WHOLE
"""`Opened.region` of a file that has all of its memory, not one region of it."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """An open(2) of a device inode: `nodeid` is the inode number, `flags` the open flags (O_*).  `tid` is the
    client's thread; it `leads` if it is the first one of its process.  A pump must not wait: `on_pump`."""

    nodeid: int
    flags: int
    tid: int
    uid: int
    gid: int
    leads: bool
    on_pump: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """The answer to an open: the file, and the parts of it that the pump may answer or map by itself.

    If `regions` is set, it serves the reads and writes. A `stream` has no position: it cannot seek, and it
    has no pread. `submit` runs the ioctls that the file leaves to a thread that may wait, and all ioctls that
    have a size. None means the threads of the lane for the former, and the pump for the latter. `shut` says
    how long reads and writes are refused; None for never."""

    file: LaneFile
    memory: pumped.PumpRegions | None = None
    region: int = WHOLE
    backing_id: int = 0
    stream: bool = False
    regions: RegionAccess | None = None
    submit: Submit | None = None
    shut: Shut | None = None


class Shut:
    """Whether the reads and writes of one open file are refused with EINVAL, which the pump does by itself.
    The file keeps it."""

    __slots__ = ("native",)

    def __init__(self, shut: bool) -> None:
        self.native: Any = ffi.new("uint32_t *", shut)

    def open(self) -> None:
        """Refuse them no longer. Any thread."""
        self.native[0] = 0


Opener = Callable[[OpenRequest], Opened | None]
"""Answers opens.  Raises OSError as open(2) does.  On a pump it may return None: then a thread that may wait
calls it again."""
SteeredOpener = Callable[[OpenRequest], Opened | Later[Opened] | None]
"""As Opener.  On a thread that may wait it may return what holds the open up."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """The Python objects that an open file's `struct lane_file` points at; it keeps them until the
    release."""

    opened: Opened
    nodeid: int
    called: tuple[Callable[..., object], ...]
    submit: Submit
