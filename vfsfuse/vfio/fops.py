# SPDX-License-Identifier: Apache-2.0
"""The base of all VFIO and iommufd files: a handler for each ioctl, declared by name and found by number.

A handler decodes, calls one of the rules in devmodel.vfio or devmodel.iommufd, and encodes.  To add one:
CONTRIBUTING.md, "Adding an ioctl".
Threads: handlers run on the device lane (the pump), or on a thread that may wait (ioctl_shim.callthreads)
when their row says `blocking` or they have left a request to it.
"""

from __future__ import annotations

import errno
import functools
import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from devmodel.calls.point import CallPoint
from devmodel.irq.eventfd import Watcher
from devmodel.vfio.group import Group
from ioctl_shim.abi import Argument, Kind, Row, native_rows, row_of
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.client import CAP_SYS_RAWIO, Caller
from ioctl_shim.lane import LaneFile, Opened, OpenRequest, PlainFile, SizedIoctl

log = logging.getLogger(__name__)
F = TypeVar("F", bound="VfioFops")
A = TypeVar("A", bound="int | None")
_MARK = "_vfio_ioctl"


Open = Callable[[OpenRequest, Callable[[], None]], Opened]
"""Opens a file that an ioctl gives.  The second argument is called when the file is closed.  Raises OSError
as open(2), and MustWait when the thread must not wait."""
Withdraw = Callable[[], None]
Offer = Callable[[str, Open, str], Withdraw]
"""Makes an unlisted file at the root with a name, which an Open opens, once.  The last argument is the name
of the device whose regions the file has, empty for any other file.  Returns the function that removes the
file if it was not opened.  Any thread."""


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers need of the lab: `find_file` gives the open file of this mount behind a client's
    descriptor, None for any other file (not on a pump; raises OSError(EBADF)).  `watcher` waits for clients'
    eventfds.  Calls pass `calls`, on `threads`, if somebody listens there.  `offer` makes the files that
    ioctls give (vfsfuse.vfio.handover).  `cdevs` is whether devices have character devices of their own."""

    find_file: Callable[[Caller, int], LaneFile | None]
    watcher: Watcher
    calls: CallPoint
    threads: CallThreads
    offer: Offer
    cdevs: bool = True


class Request:
    """One ioctl under way: its row, the raw argument and the thread `tid` that made it.

    `on_pump` is the slot of the pump that answers it, and 0 on a thread that may wait.  A pump has fetched
    the struct already, and must not wait."""

    __slots__ = ("_argument", "_caller", "arg", "on_pump", "row", "tid")

    def __init__(self, row: Row, arg: int, tid: int, on_pump: int) -> None:
        self.row, self.arg, self.tid, self.on_pump = row, arg, tid, on_pump
        self._caller: Caller | None = None
        self._argument: Argument | None = None

    @property
    def caller(self) -> Caller:
        """The thread that waits for the answer."""
        if self._caller is None:
            self._caller = Caller(self.tid)
        return self._caller

    @property
    def argument(self) -> Argument:
        """The struct behind the argument, decoded once.  Raises OSError(EFAULT, EINVAL)."""
        if self._argument is None:
            self._argument = Argument(self.row, self.tid, self.arg, self.on_pump)
        return self._argument

    @property
    def room(self) -> int:
        """Bytes that argsz leaves behind the struct.  Raises OSError as `argument`."""
        return self.argument.argsz - self.row.minsz

    def read_behind(self, size: int) -> bytes:
        """`size` bytes behind the struct.  Raises OSError(EFAULT)."""
        return self.caller.read(self.arg + self.row.minsz, size)


Handler = Callable[[Any, Request], int | None]
"""Returns the result of ioctl(2).  On the pump it may return None: then another thread calls it again, and it
may wait."""
_rows = functools.cache(native_rows)


def answers(name: str) -> Callable[[Callable[[F, Request], A]], Callable[[F, Request], A]]:
    """Decorator for the method that answers the ioctl called `name` in ioctl_shim.abi, on files of the kind
    of its class."""

    def declare(handler: Callable[[F, Request], A]) -> Callable[[F, Request], A]:
        setattr(handler, _MARK, name)
        return handler

    return declare


class VfioFops(PlainFile):
    """One open VFIO file of `kind`.  Subclasses declare handlers with `answers`."""

    __slots__ = ()

    kind: ClassVar[Kind]
    index: ClassVar[None] = None
    """None: the file has no region of its own. Its reads and writes are at index << 40 of any region."""
    handlers: ClassVar[dict[int, tuple[Row, Handler]]] = {}

    def __init_subclass__(cls) -> None:
        if not hasattr(cls, "kind"):  # a base of files of several kinds
            return
        members = [member for base in reversed(cls.__mro__) for member in vars(base).values()]
        answering = [
            (row_of(cls.kind, getattr(each, _MARK)), each) for each in members if hasattr(each, _MARK)
        ]
        cls.handlers = {row.cmd: (row, handler) for row, handler in answering}
        cls.rows = _rows(cls.kind)

    def ioctl(self, cmd: int, arg: int, tid: int, on_pump: int) -> int | None:
        found = self.handlers.get(cmd)
        if found is None:
            return self.unknown(cmd, arg, tid)
        row, handler = found
        if on_pump and row.blocking:
            return None
        return handler(self, Request(row, arg, tid, on_pump))

    def sized_ioctl(self, call: SizedIoctl) -> int:
        return self.unknown(call.cmd, None, call.tid)  # all of VFIO's ioctls are without a size

    @property
    @abstractmethod
    def subject(self) -> str:
        """The container, group or device of the file's calls, by the name that listeners get."""

    def unknown(self, cmd: int, arg: int | None, tid: int) -> int:
        """The answer to an ioctl without a row.  `arg` is None if its number has a size.  Raises
        OSError(ENOTTY)."""
        log.debug("%s: unknown ioctl %#x from thread %d", self.kind.value, cmd, tid)
        raise OSError(errno.ENOTTY, f"ioctl {cmd:#x}")


def rawio(group: Group, tid: int) -> bool:
    """Whether thread `tid` may use a group without IOMMU.  Asks the kernel only for a noiommu group."""
    return group.noiommu and Caller(tid).capable(CAP_SYS_RAWIO)
