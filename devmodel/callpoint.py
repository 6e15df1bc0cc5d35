# SPDX-License-Identifier: Apache-2.0
"""The point that every call on a lab passes: opens, ioctls, region accesses, DMA, interrupts, resets, stores,
lifecycle.

Observers see each call before and after it: a trace, counters.  They come and go at any time, also while
files are open.  One listener may delay or refuse calls as well: a fault rule, a recorder.  Whether a file's
calls pass the listener is chosen when the file is opened.  A call that nobody attends to runs the code that
it would run without a point.  To add an observer, a listener or a call: CONTRIBUTING.md, "Listening to
calls".

Threads: the main thread sets the listener, any thread adds and removes observers.  Their methods run on
whichever thread makes the call, several at once, and under that caller's locks; so they take no lock of the
lab.  ``CallPoint.lock`` guards who observes, and what has to know that.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import trio

from devmodel.latecalls import LateCalls

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
    OPEN = "open"
    RESET = "reset"


@dataclass(slots=True, eq=False)
class Call:
    """One call.  ``subject`` is the device, group, container or directory that it is on; ``name`` is what is
    done: an ioctl's name, "read", "write", "create", an attribute's name.

    ``tid`` is the thread of the client that waits for it, 0 where none does or it is not known.  ``begun`` is
    when it began, as time.monotonic() says.  ``device`` is the :class:`devmodel.device.base.Device` that it
    is on, if it is on one.

    Once it is over, ``error`` says why it failed, or else ``result`` what it gave; ``after`` is the struct of
    an ioctl as the client finds it then.  ``error`` is None again when those who attend have been told: an
    exception keeps all that its frames use.

    ============= ========================= ========================================================
    kind          name                      arguments; result
    ============= ========================= ========================================================
    IOCTL         the ioctl's               "arg" (the number or pointer), "before" (bytes of the struct
                                            behind it: empty for none, and while nobody attends); an int
    REGION        "read", "write"           "region" (index), "offset", "size", for a write "data"; the
                                            bytes read, or the number of bytes written
    DMA           "read", "write"           "iova", "size", for a write "data" (the first 64 bytes); the
                                            bytes read (the first 64 of those read to a buffer), or None
    DMA           "pin"                     "iova", "count"; the pin
    INTERRUPT     that of the index (MSIX)  "vector"; None
    STORE         the attribute's           "data"; the number of bytes taken
    LIFECYCLE     the method's              "arguments"; what the method gives
    OPEN          "open", "close"           "path" in the mount; None
    RESET         "reset"                   none; None
    ============= ========================= ========================================================
    """

    kind: CallKind
    subject: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tid: int = 0
    device: Any = None
    begun: float = 0.0
    result: Any = None
    error: BaseException | None = None
    after: bytes = b""


class Observer(Protocol):
    """Who sees calls.  Its methods run on any thread, the device lane included, and under the caller's locks:
    they are short, wait for nothing, take no lock of the lab, and neither add nor remove observers.  An
    exception is logged, once a kind, and the call goes on."""

    def began(self, call: Call) -> None:
        """The call is about to be made."""

    def ended(self, call: Call) -> None:
        """The call is over.  Comes once after each :meth:`began`, also when the observer has been removed
        meanwhile."""


Observers = tuple[Observer, ...]


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
    """The point of one lab.  ``listener`` is None while nobody listens, ``observers`` are those that
    :meth:`observe` has added."""

    __slots__ = ("_late", "_switches", "listener", "lock", "observers")

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.observers: Observers = ()
        self.lock = threading.RLock()
        """Held while an observer comes or goes, and while something new passes the point.  It is taken after
        a device's lock and before that of its interrupts."""
        self._switches: set[Callable[[], None]] = set()
        self._late = LateCalls()

    @property
    def attended(self) -> bool:
        """Whether somebody listens or observes. Any thread."""
        return self.listener is not None or bool(self.observers)

    def observe(self, observer: Observer) -> None:
        """Tell ``observer`` of each call from now on, also on files that are open.  Any thread; it waits for
        no client and no model."""
        with self.lock:
            self.observers += (observer,)
            self._switch()

    def unobserve(self, observer: Observer) -> None:
        """The opposite.  Calls under way may still end for the observer.  Any thread."""
        with self.lock:
            self.observers = tuple(each for each in self.observers if each is not observer)
            self._switch()

    def join(self, switch: Callable[[], None]) -> None:
        """Call ``switch`` now, and whenever an observer comes or goes.  It sees to it that calls pass the
        point while the point is :attr:`attended`.  It runs under :attr:`lock`, on any thread, and waits for
        nothing."""
        with self.lock:
            self._switches.add(switch)
            switch()

    def leave(self, switch: Callable[[], None]) -> None:
        """The opposite."""
        with self.lock:
            self._switches.discard(switch)

    def _switch(self) -> None:
        for switch in tuple(self._switches):
            switch()

    def begin(self, call: Call) -> Observers:
        """Tell the observers that the call begins, for callers that make it in parts.  The result is for
        :meth:`end`."""
        call.begun = time.monotonic()
        observers = self.observers
        for observer in observers:
            try:
                observer.began(call)
            except Exception as error:
                _complain(observer, error, call)
        return observers

    def end(self, observers: Observers, call: Call) -> None:
        """Tell those that were told of its begin that the call is over."""
        for observer in observers:
            try:
                observer.ended(call)
            except Exception as error:
                _complain(observer, error, call)
        call.error = None

    def tell(self, call: Call, function: Callable[[], T]) -> T:
        """Make a call that nobody delays or refuses.  Any thread; also a pump, and under locks."""
        observers = self.begin(call)
        try:
            call.result = result = function()
        except BaseException as error:
            call.error = error
            raise
        finally:
            self.end(observers, call)
        return result

    def run(self, call: Call, function: Callable[[], T], wait: Callable[[float], object] = time.sleep) -> T:
        """Make the call on a thread that may wait; ``wait`` waits for so many seconds."""
        listener = self.listener
        if listener is None:
            return self.tell(call, function) if self.observers else function()
        with self._told(listener, call):
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
        with _client_is(call.tid), self._told(listener, call):
            delay = 0.0 if listener is None else _begin(listener, call)
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
            self.tell(call, function)
            return
        observers = self.begin(call)
        try:
            delay = _begin(listener, call)
        except OSError as error:
            call.error = error
            self._end(listener, observers, call)
            return
        if delay > 0:
            self._late.add(delay, lambda: self._signal(listener, observers, call, function))
        else:
            self._signal(listener, observers, call, function)

    def _signal(
        self, listener: Listener, observers: Observers, call: Call, function: Callable[[], object]
    ) -> None:
        try:
            function()
        except BaseException as error:
            call.error = error
            raise
        finally:
            self._end(listener, observers, call)

    @contextlib.contextmanager
    def _told(self, listener: Listener | None, call: Call) -> Iterator[None]:
        """Tell observers of the call in the block, and the listener of its end, with its error."""
        observers = self.begin(call)
        try:
            yield
        except BaseException as error:
            call.error = error
            raise
        finally:
            self._end(listener, observers, call)

    def _end(self, listener: Listener | None, observers: Observers, call: Call) -> None:
        if listener is not None:
            _end(listener, call)
        self.end(observers, call)


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


_client: ContextVar[int] = ContextVar("client", default=0)
"""The thread of the client whose store the trio thread makes."""


@contextlib.contextmanager
def _client_is(tid: int) -> Iterator[None]:
    token = _client.set(tid)
    try:
        yield
    finally:
        _client.reset(token)


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
        if not calls.attended:
            return function(self, changed, *arguments, **named)
        subject = str(getattr(changed, "name", changed))
        said = [*map(str, arguments), *(f"{key}={value}" for key, value in named.items())]
        call = Call(CallKind.LIFECYCLE, subject, function.__name__, {"arguments": said}, _client.get())
        return calls.run_locked(call, lambda: function(self, changed, *arguments, **named))

    return change


_complained: set[tuple[type, type]] = set()


def _complain(observer: Observer, error: Exception, call: Call) -> None:
    """Log an observer's failure. It fails at each call as a rule, so each kind is logged once."""
    kind = type(observer), type(error)
    if kind not in _complained:
        _complained.add(kind)
        log.error("an observer failed at %s", call.name, exc_info=error)


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
