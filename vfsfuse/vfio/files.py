# SPDX-License-Identifier: Apache-2.0
"""What all VFIO files share: ioctl handlers declared by name, found by request number.

Handlers run on the device lane (the pump thread), or on its worker when their row says `blocking`.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from ioctl_shim.abi import BY_NAME, Argument, Kind, Row, native_rows
from ioctl_shim.client import Caller
from ioctl_shim.lane import IoctlCall, PlainFile

log = logging.getLogger(__name__)
F = TypeVar("F", bound="VfioFops")
A = TypeVar("A", bound="int | None")
_MARK = "_vfio_ioctl"


class Request:
    """One ioctl under way: its row, the raw argument and the thread `tid` that made it.

    `on_pump` says who answers it, the pump or its worker: the pump has fetched the struct already, and must
    not wait."""

    __slots__ = ("_argument", "_caller", "arg", "on_pump", "row", "tid")

    def __init__(self, row: Row, arg: int, tid: int, on_pump: bool) -> None:
        self.row, self.arg, self.tid, self.on_pump = row, arg, tid, on_pump
        self._caller: Caller | None = None
        self._argument: Argument | None = None

    @property
    def caller(self) -> Caller:
        """Who waits for the answer."""
        if self._caller is None:
            self._caller = Caller(self.tid)
        return self._caller

    @property
    def argument(self) -> Argument:
        """The struct behind the argument, decoded once.  Raises OSError(EFAULT, EINVAL)."""
        if self._argument is None:
            self._argument = Argument(self.row, self.tid, self.arg, self.on_pump)
        return self._argument


Handler = Callable[[Any, Request], int | None]
"""Gives what ioctl(2) returns, or None on the pump: let the worker do it (and then `defers` says so)."""
_rows = functools.cache(native_rows)


def answers(name: str) -> Callable[[Callable[[F, Request], A]], Callable[[F, Request], A]]:
    """Decorator: the method that answers the ioctl called `name` in ioctl_shim.abi."""

    def declare(handler: Callable[[F, Request], A]) -> Callable[[F, Request], A]:
        setattr(handler, _MARK, name)
        return handler

    return declare


class VfioFops(PlainFile):
    """One open VFIO file of `kind`.  Subclasses declare handlers with `answers`."""

    __slots__ = ()

    kind: ClassVar[Kind]
    handlers: ClassVar[dict[int, tuple[Row, Handler]]] = {}

    def __init_subclass__(cls) -> None:
        rows = [(BY_NAME[getattr(f, _MARK)], f) for f in vars(cls).values() if hasattr(f, _MARK)]
        inherited = [found for base in cls.__bases__ for found in getattr(base, "handlers", {}).values()]
        cls.handlers = {row.cmd: (row, handler) for row, handler in (*inherited, *rows)}
        foreign = [row.name for row, _ in cls.handlers.values() if row.kind is not cls.kind]
        if foreign:
            raise TypeError(f"{cls.__name__} is no {foreign[0]} file")
        cls.rows = _rows(cls.kind) if hasattr(cls, "kind") else None

    def control(self, cmd: int, arg: int, tid: int) -> int | None:
        found = self.handlers.get(cmd)
        if found is None:
            return self.unknown(cmd, tid)
        row, handler = found
        return None if row.blocking else handler(self, Request(row, arg, tid, True))

    def ioctl(self, call: IoctlCall) -> int:
        found = self.handlers.get(call.cmd)
        if found is None:
            return self.unknown(call.cmd, call.tid)
        row, handler = found
        result = handler(self, Request(row, call.arg, call.tid, False))
        if result is None:
            raise RuntimeError(f"{row.name} is left to a worker that it is on")
        return result

    def defers(self, cmd: int) -> bool:
        found = self.handlers.get(cmd)
        return found is not None and found[0].blocking

    def unknown(self, cmd: int, tid: int) -> int:
        """The answer to an ioctl without a row.  Raises OSError(ENOTTY)."""
        log.debug("%s: unknown ioctl %#x from thread %d", self.kind.value, cmd, tid)
        raise OSError(errno.ENOTTY, f"ioctl {cmd:#x}")
