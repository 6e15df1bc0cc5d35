# SPDX-License-Identifier: Apache-2.0
"""One call that the listener may steer, from its begin to its end.

Threads: any, and several after each other: one begins the call, another one may make it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TypeVar

from devmodel.calls.attending import Listener, Observers, begin, end, tell_begin, tell_end
from devmodel.calls.call import Call
from devmodel.calls.injection import NOTHING, Body, Wait
from devmodel.calls.stores import reason_of
from devmodel.calls.waits import Waits

log = logging.getLogger(__name__)
T = TypeVar("T")


class Steered:
    """A call between its begin and its end, for callers that make it in parts.  Nothing happens to it without
    a listener that attends to it.

    :meth:`wait` while it :attr:`waits`, then :meth:`make` it.  Any thread.  A maker that ends it on a
    thread without locks, before its caller is answered, sets ``unlocked``."""

    __slots__ = ("_listener", "_observers", "_wait", "_waits", "call", "injection", "unlocked")

    def __init__(self, waits: Waits, observers: Observers, listener: Listener | None, call: Call) -> None:
        """The call begins (:meth:`devmodel.calls.point.CallPoint.begin`)."""
        self._waits, self._observers, self._listener, self.call = waits, observers, listener, call
        self._wait: Wait | None = None
        self.unlocked = False
        call.begun = time.monotonic()
        self.injection = injection = NOTHING if listener is None else begin(listener, call)
        if injection is not NOTHING:
            call.fault, call.delayed = injection.rule, injection.delays_only
        tell_begin(observers, call)

    @property
    def waits(self) -> bool:
        """Whether it is to wait."""
        return self._wait is None and self.injection.waits

    def wait(self, ready: Callable[[], None]) -> None:
        """Have ``ready`` called when it has waited, or is interrupted (:meth:`Wait.start`)."""
        self._wait = wait = self._waits.new()
        wait.start(self.injection, ready)

    def interrupt(self) -> bool:
        """Its caller got a signal: it fails with EINTR.  False if it does not wait."""
        return self._wait is not None and self._wait.interrupt()

    @property
    def interrupted(self) -> bool:
        """Whether it was interrupted."""
        return self._wait is not None and self._wait.interrupted

    def make(self, body: Body[T]) -> T:
        """Make the call as :meth:`Injection.make`, and end it.  Raises OSError(EINTR) if it was
        interrupted."""
        try:  # every steered access comes here, and the block told() takes longer
            self.check()
            self.call.result = result = self.injection.make(body)
        except BaseException as error:
            self.call.error = reason_of(error)
            raise
        finally:
            self.end()
        return result

    def run(
        self,
        body: Body[T],
        waiting: Callable[[Steered], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> T:
        """Wait and :meth:`make` the call, on a thread that may wait.  While it waits, the block ``waiting``
        can interrupt it.  Raises OSError(ENOMEM) when too many threads wait."""
        if self.waits:
            try:
                with self._waits.on_thread():
                    over = threading.Event()
                    self.wait(over.set)
                    with waiting(self):
                        over.wait()
            except BaseException as error:
                with self.told():
                    raise error
        return self.make(body)

    def look_later(self, seconds: float, look: Callable[[], None]) -> None:
        """Call ``look`` after ``seconds`` if the call still waits then.  It is short."""
        wait = self._wait

        def due() -> None:
            if wait is not None and not wait.over:
                look()

        self._waits.call_late(seconds, due)

    def check(self) -> None:
        """Raise what has ended the wait, if it was not its time."""
        if self._wait is not None:
            self._wait.check()

    @contextlib.contextmanager
    def told(self) -> Generator[None]:
        """The rest of the call is made in the block: tell of its end, with its error."""
        try:
            yield
        except BaseException as error:
            self.call.error = reason_of(error)
            raise
        finally:
            self.end()

    def end(self) -> None:
        """The call is over."""
        if self._listener is not None:
            end(self._listener, self.call)
        tell_end(self._observers, self.call)
        after = self.injection.after
        if after is None:
            return
        if self.unlocked:
            try:
                after()
            except Exception:
                log.exception("what was to come after %s failed", self.call.name)
        else:
            self._waits.do_soon(after)
