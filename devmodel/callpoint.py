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

import functools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
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

    ``tid`` is the thread of the client that waits for it, 0 where none does.  Once it is over, ``error`` says
    why it failed, or else ``result`` what it gave.
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

    __slots__ = ("_owed", "listener")

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self._owed = 0.0

    def run(self, call: Call, function: Callable[[], T], wait: Callable[[float], object] = time.sleep) -> T:
        """Make the call on a thread that may wait; ``wait`` waits for so many seconds."""
        listener = self.listener
        if listener is None:
            return function()
        try:
            delay = _begin(listener, call)
            if delay > 0:
                wait(delay)
            call.result = result = function()
        except BaseException as error:
            call.error = error
            raise
        finally:
            _end(listener, call)
        return result

    async def run_async(self, call: Call, function: Callable[[], Awaitable[T]]) -> T:
        """Make the call on the trio thread, which goes on with other tasks meanwhile."""
        listener = self.listener
        if listener is None:
            return await function()
        try:
            delay = _begin(listener, call)
            if delay > 0:
                await trio.sleep(delay)
            call.result = result = await function()
            await trio.sleep(self._take_owed())
        except BaseException as error:
            call.error = error
            raise
        finally:
            _end(listener, call)
        return result

    def run_locked(self, call: Call, function: Callable[[], T]) -> T:
        """Make the call on the trio thread, within a store and under ``Lab.lock``, where it cannot wait.

        The delay is owed: the answer to the store that asked for it waits for as long.
        """
        return self.run(call, function, self._owe)

    def signal(self, call: Call, function: Callable[[], object]) -> None:
        """Send an interrupt from any thread, which does not wait: a delayed one is sent by a timer's."""
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
            timer = threading.Timer(delay, _signal, (listener, call, function))
            timer.daemon = True
            timer.start()
        else:
            _signal(listener, call, function)

    def _owe(self, seconds: float) -> None:
        self._owed += seconds

    def _take_owed(self) -> float:
        owed, self._owed = self._owed, 0.0
        return owed


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
    try:
        function()
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
