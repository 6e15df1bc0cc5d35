# SPDX-License-Identifier: Apache-2.0
"""Calls on the device lane that are answered later: those that another thread makes, and those that are held
up first.

A call that is held up (`Later`) keeps no thread: it calls back when it may go on, and a thread of
`CallThreads` makes it then.  The client gets EINTR if a signal comes before.
Threads: the pump begins calls and passes signals on, other threads answer them.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ioctl_shim._native import ffi, lib
from ioctl_shim.lanefile import LaneFile, Later, PendingRequest, SizedIoctl, errno_of
from ioctl_shim.procfs import is_killed

log = logging.getLogger(__name__)
T = TypeVar("T")
Submit = Callable[[Callable[[], None], int], None]
"""A function that has a thread make a call of a client's thread (its number) soon, and returns at once.  The
thread that makes it may wait."""
Answer = tuple[int, bytes]
"""The result of an ioctl, or a negative errno, and the data to send."""
KILL_POLL = 0.5
"""Seconds after which a call that a signal has come for is looked at again."""


class Held(Generic[T]):
    """How a call goes on that is held up: it waits for `later`, and then `finish` makes it."""

    __slots__ = ("finish", "later")

    def __init__(self, later: Later[object], finish: Callable[[OSError | None], T | Held[T]]) -> None:
        self.later, self.finish = later, finish

    def go_on(self, run: Callable[[OSError | None], None], submit: Submit, tid: int) -> None:
        """Wait, then have a thread call `run(None)`.  Without one to be had, `run` gets the error."""

        def ready() -> None:
            if self.later.prompt:
                run(None)
                return
            try:
                submit(lambda: run(None), tid)
            except OSError as error:
                run(error)

        self.later.wait(ready)


def hold_request(
    pending: PendingRequest, later: Later[T], reply: Callable[[T], bool], submit: Submit
) -> None:
    """Answer a read or a write by `reply` once it has waited for `later`, which makes it."""

    def run(error: OSError | None) -> None:
        try:
            reply(later.finish(error))
        except BaseException as failure:  # the client waits for an answer, whatever a model does
            pending.fail(errno_of(failure))

    pending.when_interrupted(later.interrupt)
    Held(later, later.finish).go_on(run, submit, pending.tid)


class Deferred:
    """A call of thread `tid` that is answered on another thread.  It is in `table` until then, by its
    number."""

    __slots__ = ("_later", "_lock", "_signalled", "_submit", "_table", "tid", "unique")

    def __init__(self, table: dict[int, Deferred], unique: int, tid: int, submit: Submit) -> None:
        self._table, self.unique, self.tid, self._submit = table, unique, tid, submit
        self._lock = threading.Lock()
        self._later: Later[object] | None = None
        self._signalled = False
        table[unique] = self

    def hold(self, held: Held[T], run: Callable[[OSError | None], None]) -> None:
        """It waits now, and goes on by `run`."""
        with self._lock:
            self._later, signalled = held.later, self._signalled
        held.go_on(run, self._submit, self.tid)
        if signalled:
            held.later.interrupt()

    def interrupt(self) -> bool:
        """The client got a signal: whether that ends the call, because it is held up.  Pump thread."""
        with self._lock:
            self._signalled, later = True, self._later
        return later is not None and later.interrupt()

    def close(self) -> None:
        """The call has its answer, or gets it now."""
        self._table.pop(self.unique, None)


class DeferredIoctl(Deferred):
    """An ioctl.  `handle` is that of its file, with a reference which the answer gives back."""

    __slots__ = ("_handle",)

    def __init__(
        self, table: dict[int, Deferred], unique: int, tid: int, submit: Submit, handle: int
    ) -> None:
        super().__init__(table, unique, tid, submit)
        self._handle = handle

    def start(self, answer: Callable[[], Answer | Held[Answer]]) -> None:
        """Have a thread call `answer`.  Raises OSError(ENOMEM), with nothing begun."""
        try:
            self._submit(lambda: self._start(answer), self.tid)
        except BaseException:
            self.close()
            raise

    def _start(self, answer: Callable[[], Answer | Held[Answer]]) -> None:
        lib.lane_wait_for_releases()
        self._run(answer)

    def go_on(self, held: Held[Answer]) -> None:
        """It waits now."""
        self.hold(held, lambda error: self._run(lambda: held.finish(error)))

    def _run(self, answer: Callable[[], Answer | Held[Answer]]) -> None:
        found: Answer | Held[Answer] = (-errno.EIO, b"")
        try:
            found = answer()
        except BaseException as error:
            found = -errno_of(error), b""
        if isinstance(found, Held):
            self.go_on(found)
            return
        result, reply = found
        # The client has its answer only when the file is no longer in use here: then a close(2) that
        # follows releases it before any other call, as in Linux.
        self.close()
        lib.lane_file_put(self._handle)
        lib.lane_reply(self.unique, result, ffi.from_buffer(reply) if reply else ffi.NULL, len(reply))


def finish_sized(make: Callable[[], int | Later[int]], call: SizedIoctl, room: int) -> Answer | Held[Answer]:
    """The answer to an ioctl that has a size.  Any thread but the pump's."""
    try:
        result = make()
    except BaseException as error:  # the client waits for an answer, whatever a model raises
        result, call.reply = -errno_of(error), b""
    if not isinstance(result, int):
        return held_sized(result, call, room)
    return result, call.reply[:room]


def held_sized(later: Later[int], call: SizedIoctl, room: int) -> Held[Answer]:
    """How an ioctl that has a size goes on."""
    return Held(later, lambda error: finish_sized(lambda: later.finish(error), call, room))


def waiting_ioctl(file: LaneFile, cmd: int, arg: int, tid: int) -> int:
    """An ioctl on a thread that may wait."""
    result = file.ioctl(cmd, arg, tid, on_pump=0)
    if result is None:
        raise RuntimeError(f"ioctl {cmd:#x} is left to a thread by a thread that may wait")
    return result


def finish_ioctl(make: Callable[[], int | Later[int]]) -> Answer | Held[Answer]:
    """The answer to an ioctl that its file left to a thread that may wait.  Any thread except the pump's."""
    try:
        result = make()
        if not isinstance(result, int):
            return held_ioctl(result)
        if result >> 31:
            raise RuntimeError(f"an ioctl returned {result}")
    except BaseException as error:  # the client waits for an answer, whatever a model raises
        result = -errno_of(error)
    return result, b""


def held_ioctl(later: Later[int]) -> Held[Answer]:
    """How an ioctl without a size goes on."""
    return Held(later, lambda error: finish_ioctl(lambda: later.finish(error)))


def end_if_killed(unique: int, tid: int) -> None:
    """Answer an ioctl that is held up, if its client was killed.

    Its memory may be held by the client itself, which ends only when it has the answer. Our own late answer
    is dropped by the kernel. Another signal leaves the ioctl alone, as in Linux, and the kernel does not tell
    of a second one by itself.
    """
    if is_killed(tid):
        lib.lane_reply(unique, -errno.EINTR, ffi.NULL, 0)
        return
    again = threading.Timer(KILL_POLL, lib.lane_interrupt_again, (unique,))
    again.daemon = True
    again.start()
