# SPDX-License-Identifier: Apache-2.0
"""The point that every call on a lab passes: opens, ioctls, region accesses, DMA, interrupts, resets, stores,
lifecycle.

Observers see each call before and after it: a trace, counters, a recorder.  One listener steers calls: fault
rules.  It can have a call delayed, hung, refused, dropped, made twice or made with other data
(devmodel.calls.injection).  Both come and go at any time, also while files are open.  A call that nobody
attends to runs the code that it would run without a point.  To add an observer, a listener or a call:
CONTRIBUTING.md, "Listening to calls".

Threads: any thread adds and removes observers, and sets the listener.  Their methods run on whichever thread
makes the call, several at once, and under that caller's locks; so they take no lock of the lab.
``CallPoint.lock`` guards who observes and listens, and what has to know that.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from devmodel.calls.attending import Listener, Observer, Observers, attends, tell_begin, tell_end
from devmodel.calls.call import Call
from devmodel.calls.injection import Body
from devmodel.calls.steered import Steered
from devmodel.calls.stores import client_is, make_async, owe, reason_of, wait_async
from devmodel.calls.waits import Waits

T = TypeVar("T")
MOST_SIGNALS = 65_536
"""So many calls wait at once before further interrupts are lost that would have to wait."""


class CallPoint:
    """The point of one lab.  ``listener`` is None while nobody listens (:meth:`listen`), ``observers`` are
    those that :meth:`observe` has added."""

    __slots__ = (
        "_closed",
        "_switches",
        "_waits",
        "hides_mmap",
        "listener",
        "lock",
        "observers",
        "recorded",
    )

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.observers: Observers = ()
        self.recorded = False
        """Whether an observer keeps all data: it is told of whole DMA, and of devices that clients begin to
        use.  Observers set it, and :attr:`hides_mmap`; any thread."""
        self.hides_mmap = False
        """Whether VFIO says of devices that are opened from now on that no region can be mapped, so that each
        access passes the point."""
        self.lock = threading.RLock()
        """Held while an observer or a listener comes or goes, and while something new passes the point.  It
        is taken after a device's lock and before that of its interrupts."""
        self._switches: set[Callable[[], None]] = set()
        self._waits = Waits()
        self._closed = False

    @property
    def attended(self) -> bool:
        """Whether somebody listens or observes. Any thread."""
        return self.listener is not None or bool(self.observers)

    @property
    def held(self) -> int:
        """How many calls wait now because of the listener. Any thread."""
        return len(self._waits)

    def listen(self, listener: Listener | None) -> None:
        """Have ``listener`` steer each call from now on, also on files that are open; None: nobody.  Any
        thread; it waits for no client and no model.  Calls under way go on as they began; to let those go on
        that hang is up to who made their holds."""
        with self.lock:
            if not self._closed:
                self.listener = listener
                self._switch()

    def close(self) -> None:
        """The lab ends: nobody steers calls any more, and all that wait go on.  Any thread."""
        with self.lock:
            self.listener, self._closed = None, True
            self._switch()
        self._waits.close()

    def observe(self, observer: Observer) -> None:
        """Tell ``observer`` of each call from now on, also on files that are open.  Any thread; it waits for
        no client and no model."""
        with self.lock:
            self.observers += (observer,)
            self._switch()

    def unobserve(self, observer: Observer) -> None:
        """Tell it of no further call.  Calls under way may still end for the observer.  Any thread."""
        with self.lock:
            self.observers = tuple(each for each in self.observers if each is not observer)
            self._switch()

    def join(self, switch: Callable[[], None]) -> None:
        """Call ``switch`` now, and whenever an observer or a listener comes or goes.  It sees to it that
        calls pass the point while the point is :attr:`attended`.  It runs under :attr:`lock`, on any thread,
        and waits for nothing."""
        with self.lock:
            self._switches.add(switch)
            switch()

    def leave(self, switch: Callable[[], None]) -> None:
        """Undo :meth:`join`."""
        with self.lock:
            self._switches.discard(switch)

    def _switch(self) -> None:
        for switch in tuple(self._switches):
            switch()

    # ---- a call in parts ----

    def attends(self, call: Call) -> Listener | None:
        """The listener, if it attends to the call.  Any thread."""
        listener = self.listener
        return listener if listener is not None and attends(listener, call) else None

    def begin(self, listener: Listener | None, call: Call) -> Steered:
        """Begin the call under ``listener``, which :meth:`attends` gave.  The caller makes it and ends
        it."""
        return Steered(self._waits, self.observers, listener, call)

    def steer(self, call: Call) -> Steered | None:
        """Begin the call if the listener attends to it; None if not."""
        listener = self.attends(call)
        return None if listener is None else self.begin(listener, call)

    # ---- whole calls ----

    def tell(self, call: Call, function: Callable[[], T]) -> T:
        """Make a call that nobody steers.  Any thread; also a pump, and under locks."""
        observers = self._tell_begin(call)
        try:
            call.result = result = function()
        except BaseException as error:
            call.error = error
            raise
        finally:
            tell_end(observers, call)
        return result

    def run(self, call: Call, body: Body[T]) -> T:
        """Make the call on a thread that may wait."""
        steered = self.steer(call)
        if steered is not None:
            return steered.run(body)
        return self.tell(call, body.make) if self.observers else body.make()

    async def run_async(self, call: Call, body: Body[Awaitable[T]]) -> T:
        """As :meth:`run` on the trio thread, which goes on with other tasks meanwhile.  What cancels it ends
        the wait, too."""
        steered = self.steer(call)
        if steered is None:
            return await self.tell_async(call, body.make)
        steered.unlocked = True
        with client_is(call.tid), steered.told():
            if steered.waits:
                await wait_async(steered)
            call.result = result = await make_async(steered.injection, body)
        return result

    async def tell_async(self, call: Call, function: Callable[[], Awaitable[T]]) -> T:
        """Make a call on the trio thread that nobody steers."""
        observers = self._tell_begin(call)
        try:
            with client_is(call.tid):
                call.result = result = await function()
        except BaseException as error:
            call.error = reason_of(error)
            raise
        finally:
            tell_end(observers, call)
        return result

    def run_locked(self, call: Call, function: Callable[[], T]) -> T:
        """Make the call on the trio thread, within a store and under locks, where it cannot wait.

        Its wait is a debt of that store (:func:`owing`), whose answer waits for as long.
        """
        steered = self.steer(call)
        if steered is None:
            return self.tell(call, function) if self.observers else function()
        if steered.waits:
            owe(self._waits, steered.injection)
        return steered.make(Body(function))

    def signal(self, call: Call, function: Callable[..., object], data: bytes | None = None) -> None:
        """Make a call from any thread, which does not wait: another thread makes a delayed one.  It is an
        interrupt, which is lost if it is refused, or a write by an ioeventfd.  Nobody waits for it, so only
        MOST_SIGNALS keep a device from making ever more of them: one that would have to wait is lost then."""
        steered = self.steer(call)
        if steered is None:
            self.tell(call, function if data is None else functools.partial(function, data))
        elif steered.waits and len(self._waits) >= MOST_SIGNALS:
            with contextlib.suppress(OSError), steered.told():
                raise OSError(errno.ENOMEM, "too many calls wait")
        elif steered.waits:
            send = functools.partial(_send, steered, function, data)
            steered.wait(functools.partial(self._send_soon, send))
        else:
            _send(steered, function, data)

    def _send_soon(self, send: Callable[[], None]) -> None:
        self._waits.call_late(0, send)

    def _tell_begin(self, call: Call) -> Observers:
        call.begun = time.monotonic()
        observers = self.observers
        tell_begin(observers, call)
        return observers


def _send(steered: Steered, function: Callable[..., object], data: bytes | None) -> None:
    with contextlib.suppress(OSError):  # it is refused, or the device is gone: nobody waits for an answer
        steered.make(Body(function, data, _nothing))


def _nothing() -> None:
    """What becomes of an interrupt that is dropped."""
