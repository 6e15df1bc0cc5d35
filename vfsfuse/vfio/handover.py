# SPDX-License-Identifier: Apache-2.0
"""Ioctls whose answer has a descriptor: how the supervisor of `vfsfuse run` opens a file for its client.

A FUSE server cannot put a descriptor into its client, the supervisor can.  It makes a private ioctl,
HAND_OVER, on a copy of its client's descriptor, with the data that the client's pointer leads to.  The server
carries the client's ioctl out.  It answers with the data for the client, up to the place of the descriptor's
number, and with the name of an unlisted file at the root of the mount.  The thread that made HAND_OVER can
open this file once.  The kernel says which thread that is.  So who holds an open file may have what the file
gives, and nobody else.  The owner and the mode of the device files do not matter, as on Linux.

The server touches no memory of the client that is named: anybody may name any thread.

An open of that file is in use from the start.  The supervisor closes its own descriptors before its client
goes on, so that nothing of it keeps a device or a group in use.  What nobody opens is withdrawn.  An object
that only the client's answer names, such as a fault queue, can be named once the supervisor has said by
HANDED_OVER on the new file that the client has it; without that it ends with the file.

State: on the device lane; while somebody listens, on threads that a listener may hold up.  So it is under a
lock.
"""

from __future__ import annotations

import errno
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

from devmodel.iommu.api import MustWait
from ioctl_shim._native import ffi
from ioctl_shim.abi import HAND_OVER, HAND_OVER_FORMAT, Row, row_of
from ioctl_shim.lane import Opened, OpenRequest, SizedIoctl
from ioctl_shim.procfs import name_of
from vfsfuse.vfio.fops import Offer, Open, Request, VfioFops, Withdraw

log = logging.getLogger(__name__)

MAX_GIVEN = 256
"""How many files of one open file may wait to be opened.  Beyond that the oldest is withdrawn: a client
asks for as many as it likes and opens none."""
SILENT_SECONDS = 1.0
"""After a line in the log about a refused ioctl, until there may be another one about the same ioctl."""
_silent_until: dict[str, float] = {}
_MARK = "_vfio_gives"


@dataclass(frozen=True, slots=True)
class HandOver:
    """An ioctl `cmd` of a client, with what its pointer leads to, as the supervisor passes it on.

    `client` is the thread that the supervisor names, `supervisor` the one that the kernel names."""

    cmd: int
    data: bytes
    client: int
    supervisor: int

    @classmethod
    def decode(cls, call: SizedIoctl) -> HandOver | None:
        """What `call` asks for.  None for another ioctl."""
        if call.cmd != HAND_OVER:
            return None
        cmd, tid, _, size, data = HAND_OVER_FORMAT.unpack(call.data)
        return cls(cmd, data[:size], tid, call.tid)

    @property
    def text(self) -> str:
        """The data as a name, up to its end."""
        return self.data.split(b"\0")[0].decode("ascii", "replace")

    def struct_of(self, row: Row) -> Any:
        """The data as the struct of `row`, which is a copy.  Raises OSError(EINVAL) for too little data."""
        if len(self.data) < row.minsz:
            raise OSError(errno.EINVAL, f"{row.name}: {len(self.data)} bytes")
        value = ffi.new(row.pointer)
        ffi.memmove(value, self.data, min(len(self.data), row.size))
        return value


def answered(call: SizedIoctl) -> bytes:
    """The data in the reply to an ioctl: those that are stored in the client, for HAND_OVER."""
    if call.cmd != HAND_OVER or not call.reply:
        return call.reply
    _, _, _, size, data = HAND_OVER_FORMAT.unpack(call.reply)
    return bytes(data[:size])


class Given(NamedTuple):
    """The answer to an ioctl: `data` to store where the client's pointer leads, and a file, which `open`
    opens.  `discard` is called if it never is.  None: there is no file.  `device` is as for Offer."""

    data: bytes = b""
    open: Open | None = None
    discard: Callable[[], None] = lambda: None
    device: str = ""


@dataclass(frozen=True, slots=True)
class _Waiting:
    given: Given
    supervisor: int
    withdraw: Withdraw

    def end(self) -> None:
        """It is opened no more."""
        self.withdraw()
        self.given.discard()


class Handovers:
    """The files of one open file that are on their way to clients."""

    __slots__ = ("_closed", "_lock", "_offer", "_waiting")

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._closed = False

    def offer(self, given: Given, row: Row, supervisor: int) -> int:
        """The token of a file that thread `supervisor` can open, given by the ioctl of `row`; 0 if there is
        no file."""
        if given.open is None:
            return 0
        token = secrets.randbits(64) or 1
        withdraw = self._offer(f"{row.gives}{token}", partial(self._open, token), given.device)
        made, late = _Waiting(given, supervisor, withdraw), list[_Waiting]()
        with self._lock:
            if self._closed:
                late.append(made)
            else:
                self._waiting[token] = made
            while len(self._waiting) > MAX_GIVEN:
                late.append(self._waiting.pop(next(iter(self._waiting))))
        for each in late:
            each.end()
        return token

    def _open(self, token: int, opening: OpenRequest, closed: Callable[[], None]) -> Opened:
        with self._lock:
            found = self._waiting.get(token)
        if found is None or found.given.open is None:
            raise OSError(errno.ENXIO, "opened already, or withdrawn")
        if opening.tid != found.supervisor:
            raise OSError(errno.EACCES, f"thread {opening.tid} did not ask for this file")
        try:
            opened = found.given.open(opening, closed)
        except MustWait:  # this call is made once more
            raise
        except BaseException:
            if self._take(token):
                found.end()
            raise
        self._take(token)
        return opened

    def _take(self, token: int) -> bool:
        with self._lock:
            return self._waiting.pop(token, None) is not None

    def close(self) -> None:
        """The open file is closed: withdraw what nobody has opened."""
        with self._lock:
            self._closed = True
            left = list(self._waiting.values())
            self._waiting.clear()
        for each in left:
            each.end()


def refused(request: Request) -> OSError:
    """The error of an ioctl that gives a descriptor, of a client that no supervisor gives one to."""
    now, name = time.monotonic(), request.row.name
    if now >= _silent_until.get(name, 0.0):  # a client may ask as fast as it likes
        _silent_until[name] = now + SILENT_SECONDS
        why = "only `vfsfuse run` can put a descriptor into a program: run it there"
        log.warning("%s fails in %s: %s", name, name_of(request.tid), why)
    return OSError(errno.EOPNOTSUPP, "a FUSE server cannot give its client a descriptor")


F = TypeVar("F", bound="GivingFops")
Giver = Callable[[Any, HandOver], Given]


def gives(name: str) -> Callable[[Callable[[F, HandOver], Given]], Callable[[F, HandOver], Given]]:
    """Decorator for the method that carries out the ioctl called `name` for the supervisor, on files of the
    kind of its class.  It raises OSError as the ioctl."""

    def declare(giver: Callable[[F, HandOver], Given]) -> Callable[[F, HandOver], Given]:
        setattr(giver, _MARK, name)
        return giver

    return declare


class GivingFops(VfioFops):
    """One open VFIO file with ioctls whose answer has a descriptor.  Subclasses declare them by `gives`."""

    __slots__ = ("_handovers",)
    givers: ClassVar[dict[int, tuple[Row, Giver]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        members = [member for base in reversed(cls.__mro__) for member in vars(base).values()]
        giving = [(row_of(cls.kind, getattr(each, _MARK)), each) for each in members if hasattr(each, _MARK)]
        cls.givers = {row.cmd: (row, each) for row, each in giving}

    def __init__(self, offer: Offer) -> None:
        self._handovers = Handovers(offer)

    def sized_ioctl(self, call: SizedIoctl) -> int:
        asked = HandOver.decode(call)
        found = None if asked is None else self.givers.get(asked.cmd)
        if asked is None or found is None:
            return super().sized_ioctl(call)
        row, giver = found
        given = giver(self, asked)
        token = self._handovers.offer(given, row, asked.supervisor)
        call.reply = HAND_OVER_FORMAT.pack(asked.cmd, asked.client, token, len(given.data), given.data)
        return 0

    def release(self) -> None:
        self._handovers.close()
