# SPDX-License-Identifier: Apache-2.0
"""The point that every call on a lab passes: ioctls, region accesses, DMA, interrupts, stores, lifecycle.

A listener sees each call before and after it, and may delay or refuse it: a trace, a fault rule, a recorder.
Whether calls pass the point is chosen when a file is opened, and when a client's IOMMU or eventfd is
connected to a device.  So a call that nobody listens to runs the code that it would run without a point.
To add a listener or a call: CONTRIBUTING.md, "Listening to calls".

Threads: the main thread sets the listener.  Its methods run on whichever thread makes the call, several at
once, and under that caller's locks; so a listener takes no lock of the lab.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import trio

log = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S", bound="HasCalls")
A = TypeVar("A")
P = ParamSpec("P")


class CallKind(Enum):
    """What a call is."""

    IOCTL = "ioctl"
    REGION = "region"
    DMA = "dma"
    INTERRUPT = "interrupt"
    STORE = "store"
    LIFECYCLE = "lifecycle"


@dataclass(slots=True, eq=False)
class Call:
    """One call.  ``subject`` is the device, group, container or directory that it is on; ``name`` is what is
    done: an ioctl's name, "read", "write", "create", an attribute's name.

    ``tid`` is the thread of the client that waits for it, 0 where none does or it is not known.  Once it is
    over, ``error`` says why it failed, or else ``result`` what it gave.
    """

    kind: CallKind
    subject: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tid: int = 0
    result: Any = None
    error: BaseException | None = None


class Listener(Protocol):
    """Who listens.  An exception other than ``OSError`` is logged, and the call goes on without it."""

    def begin(self, call: Call) -> float:
        """The call is about to be made: for how many seconds is it delayed?

        Raises ``OSError`` to refuse it: the caller gets that errno, and nothing happens.  A refused interrupt
        is lost.
        """

    def end(self, call: Call) -> None:
        """The call is over, or was refused."""


class CallPoint:
    """The point of one lab.  ``listener`` is None while nobody listens."""

    __slots__ = ("_late", "listener")

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self._late = LateCalls()

    def run(self, call: Call, function: Callable[[], T], wait: Callable[[float], object] = time.sleep) -> T:
        """Make the call on a thread that may wait; ``wait`` waits for so many seconds."""
        listener = self.listener
        if listener is None:
            return function()
        with _told(listener, call):
            delay = _begin(listener, call)
            if delay > 0:
                wait(delay)
            call.result = result = function()
        return result

    async def run_async(
        self,
        call: Call,
        function: Callable[[], Awaitable[T]],
        wait: Callable[[float], Awaitable[object]] = trio.sleep,
    ) -> T:
        """Make the call on the trio thread, which goes on with other tasks meanwhile."""
        listener = self.listener
        if listener is None:
            return await function()
        with _told(listener, call):
            delay = _begin(listener, call)
            if delay > 0:
                await wait(delay)
            call.result = result = await function()
        return result

    def run_locked(self, call: Call, function: Callable[[], T]) -> T:
        """Make the call on the trio thread, within a store and under locks, where it cannot wait.

        The delay is a debt of that store (:func:`owing`), whose answer waits for as long.
        """
        return self.run(call, function, _owe)

    def signal(self, call: Call, function: Callable[[], object]) -> None:
        """Send an interrupt from any thread, which does not wait: another thread sends a delayed one."""
        listener = self.listener
        if listener is None:
            function()
            return
        try:
            delay = _begin(listener, call)
        except OSError as error:
            call.error = error
            _end(listener, call)
            return
        if delay > 0:
            self._late.add(delay, lambda: _signal(listener, call, function))
        else:
            _signal(listener, call, function)


class Debt:
    """The seconds for which the answer to a store is to wait."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0


_debt: ContextVar[Debt | None] = ContextVar("debt", default=None)


@contextlib.contextmanager
def owing() -> Iterator[Debt]:
    """What the lifecycle changes within owe, for a store on the trio thread.  The store pays when it has
    succeeded and when it has failed."""
    debt = Debt()
    token = _debt.set(debt)
    try:
        yield debt
    finally:
        _debt.reset(token)


def _owe(seconds: float) -> None:
    debt = _debt.get()
    if debt is not None:
        debt.seconds += seconds


class LateCalls:
    """Makes calls at a later time, on one thread of its own, which ends when there are none.  Any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._added = 0
        self._runs = False

    def add(self, seconds: float, call: Callable[[], None]) -> None:
        """Make the call in so many seconds."""
        with self._changed:
            self._added += 1
            heapq.heappush(self._calls, (time.monotonic() + seconds, self._added, call))
            if not self._runs:
                threading.Thread(target=self._run, name="late-calls", daemon=True).start()
                self._runs = True
            self._changed.notify()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except BaseException:  # the calls after it are still made, whatever a model raises
                log.exception("a late call failed")

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while self._calls:
                left = self._calls[0][0] - time.monotonic()
                if left <= 0:
                    return heapq.heappop(self._calls)[2]
                self._changed.wait(left)
            self._runs = False
            return None


class HasCalls(Protocol):
    """What makes lifecycle changes."""

    @property
    def calls(self) -> CallPoint:
        """The call point of its lab."""


def lifecycle_change(
    function: Callable[Concatenate[S, A, P], T],
) -> Callable[Concatenate[S, A, P], T]:
    """Decorator of a method that makes a lifecycle change: what it changes is its first argument.

    For the trio thread, within a store.
    """

    @functools.wraps(function)
    def change(self: S, changed: A, /, *arguments: P.args, **named: P.kwargs) -> T:
        calls = self.calls
        if calls.listener is None:
            return function(self, changed, *arguments, **named)
        subject = str(getattr(changed, "name", changed))
        said = [*map(str, arguments), *(f"{key}={value}" for key, value in named.items())]
        call = Call(CallKind.LIFECYCLE, subject, function.__name__, {"arguments": said})
        return calls.run_locked(call, lambda: function(self, changed, *arguments, **named))

    return change


def _signal(listener: Listener, call: Call, function: Callable[[], object]) -> None:
    with _told(listener, call):
        function()


@contextlib.contextmanager
def _told(listener: Listener, call: Call) -> Iterator[None]:
    """Tell the listener of the end of a call, with its error."""
    try:
        yield
    except BaseException as error:
        call.error = error
        raise
    finally:
        _end(listener, call)


def _begin(listener: Listener, call: Call) -> float:
    try:
        return listener.begin(call)
    except OSError:
        raise
    except Exception:
        log.exception("a listener failed at the begin of %s", call.name)
        return 0


def _end(listener: Listener, call: Call) -> None:
    try:
        listener.end(call)
    except Exception:
        log.exception("a listener failed at the end of %s", call.name)
