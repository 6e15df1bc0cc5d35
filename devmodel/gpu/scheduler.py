# SPDX-License-Identifier: Apache-2.0
"""One physical engine, and the vGPUs that take turns on it, a slice at a time.

A worker thread enters, runs a slice, and leaves. Leaving gives the engine to the next worker, so at most one
slice runs at a time. A watchdog thread, which runs while the engine is in use, takes the engine away from a
worker that does not leave in time. State: under the lock of ``Scheduler``, which is taken after every other;
nothing is called while it is held. Times are nanoseconds.
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
"""A watchdog that had nothing to watch for so long ends."""
_NANO = 10**9


Clock = Callable[[], int]


class TurnState(Enum):
    """What a worker does: nothing here, wait for a slice, run one; OVER when it has no turn any more."""

    AWAY = 0
    WAITING = 1
    RUNNING = 2
    OVER = 3


class Turn:
    """A worker's place with the scheduler.

    When a slice takes longer than ``timeout``, which may be changed between slices, the turn is over, and
    ``expired`` is called on the watchdog's thread without a lock. ``clock`` gives the time that the worker
    has used so far, and its share is charged with what it used in slices; it is called on the worker's
    thread."""

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
    """Gives the engine to one worker at a time, by the weights of their shares."""

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
        """Time for which any worker has had the engine."""

    def turn(
        self, share: EngineShare, timeout: int, expired: Callable[[], None], clock: Clock | None = None
    ) -> Turn:
        """A turn for one worker. It is charged with real time, unless it has a ``clock`` of its own."""
        return Turn(self._lock, share, timeout, expired, clock or self._clock)

    def enter(self, turn: Turn) -> None:
        """Wait until it is this worker's turn. Raises :class:`EngineStopped` when its turn is over."""
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
        """The slice is done. With ``more`` the worker will enter again at once, and waits in the queue from
        now on. Raises :class:`EngineStopped` when its turn is over."""
        with self._lock:
            if turn.state is TurnState.OVER:
                raise EngineStopped
            self._finish(TurnState.AWAY, turn.clock() - turn.entered)
            if more:
                self._wait(turn)
            self._next()

    def give_up(self, turn: Turn, over: bool = False) -> None:
        """Take the worker off the engine and out of the queue, with ``over`` for good. Any thread."""
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
        """Take the engine from its worker, and charge ``spent``, or all the time for which it had the
        engine."""
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
