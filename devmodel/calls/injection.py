# SPDX-License-Identifier: Apache-2.0
"""What a listener has happen to a call: a delay, a hang, an errno, other data, nothing at all, or twice.

A listener (devmodel.calls) returns an :class:`Injection` for a call; the call point carries it out on the
:class:`Body` of the call.  A :class:`Hold` is what calls hang at.  A :class:`Wait` is the wait of one call,
for its delay and then for its hold.  It keeps no thread: it calls back when it is over.
Threads: any.  A Hold and a Wait each have a lock of their own, which is taken after every other one and held
for no call back.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from devmodel.calls.latecalls import Entry, LateCalls

log = logging.getLogger(__name__)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Hold:
    """What calls hang at until somebody releases it, which lets all of them go on in the order in which they
    came.  Any thread."""

    __slots__ = ("_lock", "_released", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._released = False
        self._waiting: dict[Callable[[], object], None] = {}

    @property
    def released(self) -> bool:
        """Whether calls hang at it no longer."""
        return self._released

    @property
    def held(self) -> int:
        """How many calls hang at it now."""
        return len(self._waiting)

    def release(self) -> None:
        """Let all calls go on, also those that are still to come."""
        with self._lock:
            self._released = True
            waiting, self._waiting = self._waiting, {}
        for call in waiting:
            try:
                call()
            except Exception:  # the others are still released
                log.exception("a call that was released failed")

    def when_released(self, call: Callable[[], object]) -> None:
        """Call ``call`` once it is released, at once if it has been.  ``call`` is short and waits for
        nothing."""
        with self._lock:
            if not self._released:
                self._waiting[call] = None
                return
        call()

    def forget(self, call: Callable[[], object]) -> None:
        """Undo :meth:`when_released`."""
        with self._lock:
            self._waiting.pop(call, None)


@dataclass(slots=True)
class Body(Generic[T_co]):
    """How a call is made.  The type is that of its result; on the trio thread, an awaitable of it."""

    function: Callable[..., T_co]
    """Makes the call.  It takes ``data``, if there are some."""
    data: bytes | None = None
    """The data that a listener may change before the call is made; None for a call without."""
    dropped: Callable[[], T_co] | None = None
    """Gives the result of the call if it is dropped; None for a call that cannot be dropped."""

    def make(self) -> T_co:
        """Make the call as if nobody listened."""
        return self.function() if self.data is None else self.function(self.data)


@dataclass(slots=True)
class Injection:
    """What a listener has happen to one call.  The fields take effect in this order."""

    rule: str = ""
    """The names of the rules that hit, separated by commas, for observers (``Call.fault``)."""
    delay: float = 0.0
    """Seconds before the call."""
    hold: Hold | None = None
    """The call hangs until this is released, or its caller gets a signal."""
    error: OSError | None = None
    """The call is not made, and its caller gets this errno."""
    drop: bool = False
    """The call is not made, and its caller is told that it was: a write, a store or an ioctl succeeds, an
    interrupt is lost, a read gives zeros.  Opens, pins and lifecycle changes cannot be dropped: they are
    made."""
    times: int = 1
    """So many times the call is made, one after the other.  Its result is that of the last one."""
    change: Callable[[bytes], bytes] | None = None
    """Gives other data of the same length: those of a write (to a region, by DMA, by a store) before it is
    made, those of a read (of a region, by DMA) after it."""
    after: Callable[[], None] | None = None
    """Is called when the call is over or refused, under no lock of the caller's: before the caller of an
    ioctl, an access of a region or a store gets its answer, so it is short; otherwise on the thread
    ``faults``."""

    @property
    def waits(self) -> bool:
        """Whether the call does not begin at once."""
        return self.delay > 0 or (self.hold is not None and not self.hold.released)

    @property
    def plain(self) -> bool:
        """Whether the call is made at once and once, and nothing comes after it: as if nothing happened to
        it, apart from its data."""
        return not (self.waits or self.error or self.drop or self.times != 1 or self.after)

    @property
    def delays_only(self) -> bool:
        """Whether it only has the call wait."""
        others = self.error or self.drop or self.times != 1 or self.change or self.after
        return not others and (self.delay > 0 or self.hold is not None)

    def make(self, body: Body[T]) -> T:
        """Make the call, once it has waited.  Raises :attr:`error`."""
        if self.error is not None:
            raise self.error
        if self.drop and body.dropped is not None:
            return body.dropped()
        function, data = body.function, body.data
        arguments = () if data is None else (self.changed(data),)
        for _ in range(self.times - 1):
            function(*arguments)
        result = function(*arguments)
        if data is None and type(result) is bytes:  # no subclass: it says that it is not what was read
            return self.changed(result)  # type: ignore[return-value, arg-type]
        return result

    def changed(self, data: bytes) -> bytes:
        """The data that take the place of ``data``."""
        if self.change is None:
            return data
        try:
            changed = self.change(data)
        except Exception:
            log.exception("a listener failed to change data")
            return data
        if len(changed) != len(data):
            log.error("a listener changed %d bytes into %d", len(data), len(changed))
            return data
        return changed


NOTHING = Injection()
"""Of a call that a listener attends to and leaves alone."""


class Wait:
    """The wait of one call, until the time of its :class:`Injection` is over and its hold is released.

    It is over once, by whatever comes first: that, or :meth:`end`."""

    __slots__ = ("_ended", "_entry", "_hold", "_late", "_lock", "_over", "_ready")

    def __init__(self, late: LateCalls, ended: Callable[[Wait], None]) -> None:
        """``ended`` is called with this when it is over, before who waits."""
        self._late, self._ended = late, ended
        self._lock = threading.Lock()
        self._over: OSError | bool = False
        self._ready: Callable[[], None] | None = None
        self._hold: Hold | None = None
        self._entry: Entry | None = None

    def start(self, injection: Injection, ready: Callable[[], None]) -> None:
        """Wait.  ``ready`` is called when this is over, on any thread, also on the caller's before this
        returns.  It is short and waits for nothing."""
        with self._lock:
            over = self._over
            self._hold, self._ready = injection.hold, ready
        if over:
            ready()
        elif injection.delay > 0:
            self._delay(injection.delay)
        else:
            self._delayed()

    def end(self, error: OSError | None = None) -> bool:
        """It is over.  With an ``error``, the call is not made, and fails with it (:meth:`check`).  False if
        it was over before."""
        with self._lock:
            if self._over:
                return False
            self._over = error or True
            ready, hold, entry = self._ready, self._hold, self._entry
        if entry is not None:
            self._late.forget(entry)
        if hold is not None:
            hold.forget(self.end)
        self._ended(self)
        if ready is not None:
            ready()
        return True

    def interrupt(self) -> bool:
        """The caller got a signal: its call fails with EINTR.  False if the wait was over before."""
        return self.end(OSError(errno.EINTR, "interrupted"))

    @property
    def over(self) -> bool:
        """Whether the call goes on."""
        return bool(self._over)

    @property
    def interrupted(self) -> bool:
        """Whether it has ended with an error."""
        return isinstance(self._over, OSError)

    def check(self) -> None:
        """Once it is over: raises the error with which it has ended."""
        if isinstance(self._over, OSError):
            raise self._over

    def _delay(self, seconds: float) -> None:
        try:
            self._entry = entry = self._late.add(seconds, self._delayed)
        except OSError as error:
            self.end(error)
            return
        if self._over:  # it has ended meanwhile
            self._late.forget(entry)

    def _delayed(self) -> None:
        hold = self._hold
        if hold is None:
            self.end()
        else:
            hold.when_released(self.end)
            if self._over:  # it has ended meanwhile
                hold.forget(self.end)
