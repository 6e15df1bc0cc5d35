# SPDX-License-Identifier: Apache-2.0
"""One physical engine, and the vGPUs that take turns on it, a slice at a time.

A worker thread enters, runs a slice, and leaves; whoever leaves decides who is next, so at most one slice
runs. One that does not come back in time loses the engine to the next: a watchdog thread, which runs while
the engine is in use, sees to that. State: under ``Scheduler``'s own lock, taken after every other; nothing is
called while it is held. Times are nanoseconds.
"""

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum

from devmodel.gpu.faults import EngineStopped
from devmodel.gpu.shares import EngineShare, FairQueue

log = logging.getLogger(__name__)

WATCHDOG_IDLE_SECONDS = 2.0
"""How long the watchdog stays when there is nothing to watch."""
_NANO = 10**9


Clock = Callable[[], int]


class TurnState(Enum):
    """Where a worker is: not there, waiting for a slice, running one, or sent away for good."""

    AWAY = 0
    WAITING = 1
    RUNNING = 2
    OVER = 3


class Turn:
    """A worker's place with the scheduler.

    ``expired`` is called, on the watchdog's thread without a lock, when a slice took longer than ``timeout``
    (nanoseconds; it may be changed between slices) and the turn is over for that reason. ``clock`` says what
    the worker has used so far, of which its share pays for what slices are; it is called on the worker's
    thread.
    """

    __slots__ = ("clock", "entered", "expired", "ready", "share", "state", "timeout")

    def __init__(
        self,
        lock: threading.Lock,
        share: EngineShare,
        timeout: int,
        expired: Callable[[], None],
        clock: Clock,
    ) -> None:
        """For :meth:`Scheduler.turn`."""
        self.share, self.timeout, self.expired, self.clock = share, timeout, expired, clock
        self.entered = 0
        self.state = TurnState.AWAY
        self.ready = threading.Condition(lock)


class Scheduler:
    """The engine's time."""

    __slots__ = ("_alarm", "_clock", "_current", "_lock", "_queue", "_since", "_wake", "_watching", "used")

    def __init__(self, clock: Clock = time.monotonic_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._alarm = threading.Condition(self._lock)
        self._queue: FairQueue[Turn] = FairQueue()
        self._current: Turn | None = None
        self._since = 0
        self._watching = False
        self._wake = 0  # when the watchdog will look again
        self.used = 0
        """Time for which anybody has had the engine."""

    def turn(
        self, share: EngineShare, timeout: int, expired: Callable[[], None], clock: Clock | None = None
    ) -> Turn:
        """A place for one worker, whose use is real time unless it has a ``clock`` of its own."""
        return Turn(self._lock, share, timeout, expired, clock or self._clock)

    def enter(self, turn: Turn) -> None:
        """Wait until it is this worker's turn. Raises :class:`EngineStopped` when that will not be."""
        with self._lock:
            if turn.state is TurnState.AWAY:
                self._wait(turn)
                self._next()
            while turn.state is TurnState.WAITING:
                turn.ready.wait()
            if turn.state is TurnState.OVER:
                raise EngineStopped
        turn.entered = turn.clock()

    def leave(self, turn: Turn, more: bool) -> None:
        """The slice is done; with ``more`` the worker enters again at once, and its place in the queue is
        kept for it. Raises :class:`EngineStopped` when the turn was over before."""
        with self._lock:
            if turn.state is TurnState.OVER:
                raise EngineStopped
            self._finish(TurnState.AWAY, turn.clock() - turn.entered)
            if more:
                self._wait(turn)
            self._next()

    def give_up(self, turn: Turn, over: bool = False) -> None:
        """The worker does not come for its slice, or never again (``over``), wherever it is. Any thread."""
        with self._lock:
            if turn.state is TurnState.RUNNING:
                self._finish(TurnState.AWAY)
            self._queue.remove(turn)
            if over or turn.state is not TurnState.OVER:
                turn.state = TurnState.OVER if over else TurnState.AWAY
            turn.ready.notify()
            self._next()

    def _wait(self, turn: Turn) -> None:
        turn.state = TurnState.WAITING
        self._queue.push(turn.share, turn)

    def _finish(self, state: TurnState, spent: int | None = None) -> None:
        """Take the engine from who has it and used it for so long, or for all the time that it had it."""
        turn, self._current = self._current, None
        if turn is not None:
            spent = self._clock() - self._since if spent is None else spent
            self.used += spent
            turn.share.charge(spent)
            turn.state = state

    def _next(self) -> None:
        """Give the engine to whoever is next, if nobody has it."""
        turn = self._queue.pop() if self._current is None else None
        if turn is None:
            return
        self._current, self._since = turn, self._clock()
        turn.state = TurnState.RUNNING
        turn.ready.notify()
        self._watch(self._since + turn.timeout)

    def _watch(self, deadline: int) -> None:
        if not self._watching:
            self._watching, self._wake = True, deadline
            threading.Thread(target=self._watchdog, name="engine-watchdog", daemon=True).start()
        elif deadline < self._wake:
            self._alarm.notify()

    def _watchdog(self) -> None:
        while (late := self._late()) is not None:
            try:
                late.expired()
            except Exception:
                log.exception("an engine that hangs could not be stopped")

    def _late(self) -> Turn | None:
        """Wait for a slice that takes too long, and end its turn; None when there is nothing to watch."""
        with self._lock:
            while True:
                now, turn = self._clock(), self._current
                if turn is not None and now >= self._since + turn.timeout:
                    self._finish(TurnState.OVER)
                    self._next()
                    return turn
                wait = WATCHDOG_IDLE_SECONDS * _NANO if turn is None else self._since + turn.timeout - now
                self._wake = now + int(wait)
                before = self.used
                self._alarm.wait(wait / _NANO)
                if turn is None and self._current is None and before == self.used:
                    self._watching = False
                    return None
