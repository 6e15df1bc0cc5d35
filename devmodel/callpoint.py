# SPDX-License-Identifier: Apache-2.0
"""The point that every call on a lab passes: opens, ioctls, region accesses, DMA, interrupts, resets, stores,
lifecycle.

Observers see each call before and after it: a trace, counters.  One listener steers calls: fault rules, a
recorder.  It has a call delayed, hung, refused, dropped, made twice or made with other data
(devmodel.injection).  Both come and go at any time, also while files are open.  A call that nobody attends to
runs the code that it would run without a point.  To add an observer, a listener or a call: CONTRIBUTING.md,
"Listening to calls".

Threads: any thread adds and removes observers, and sets the listener.  Their methods run on whichever thread
makes the call, several at once, and under that caller's locks; so they take no lock of the lab.
``CallPoint.lock`` guards who observes and listens, and what has to know that.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import trio

from devmodel.injection import NOTHING, Injection, Wait
from devmodel.latecalls import LateCalls

log = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S", bound="HasCalls")
A = TypeVar("A")
P = ParamSpec("P")
MOST_THREADS = 256
"""So many threads wait at once for calls that are delayed or hang.  More calls on such threads fail with
ENOMEM.  Only DMA needs a thread; a model has four of them (devmodel.device.tasks)."""


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
    DEVICE = "device"


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

    ``fault`` has the names of the rules that have hit it (``Injection.rule``), ``delayed`` says that they do
    nothing but have it wait.  Observers find both set when it begins.

    ============= ========================= ========================================================
    kind          name                      arguments; result
    ============= ========================= ========================================================
    IOCTL         the ioctl's               "arg" (the number or pointer), "before" (bytes of the struct
                                            behind it: empty for none, and while nobody attends); an int
    REGION        "read", "write"           "region" (index), "offset", "size", for a write "data"; the
                                            bytes read, or the number of bytes written
    DMA           "read", "write"           "iova", "size", for a write "data" (the first 64 bytes,
                                            or 4 MiB while somebody records); the bytes read (as
                                            many of those read to a buffer), or None
    DMA           "pin"                     "iova", "count"; the pin
    INTERRUPT     that of the index (MSIX)  "vector"; None
    STORE         the attribute's           "data"; the number of bytes taken
    LIFECYCLE     the method's              "arguments"; what the method gives
    OPEN          "open", "close"           "path" in the mount; None
    RESET         "reset"                   none; None
    DEVICE        "describe"                what VFIO says of a device that a client begins to use
                                            (vfsfuse.vfio.described), while somebody records; None
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
    fault: str = ""
    delayed: bool = False


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
    """Who listens.  Its methods run on any thread, as those of an :class:`Observer`: they are short, wait for
    nothing, take no lock of the lab, and do not change who listens.  An exception is logged, and the call
    goes on without it."""

    def attends(self, call: Call) -> bool:
        """Whether :meth:`begin` and :meth:`end` are to be called for a call.  It has no effect, and may be
        asked twice.  A call that the listener does not attend to goes as if it were only observed: on the
        thread that makes it when nobody listens."""

    def begin(self, call: Call) -> Injection | None:
        """The call is about to be made: what happens to it?  None: nothing."""

    def end(self, call: Call) -> None:
        """The call is over, or was refused.  Comes once after each :meth:`begin`, also when another one
        listens now."""


class Steered:
    """A call between its begin and its end, for callers that make it in parts.  Nothing happens to it without
    a listener that attends to it.

    :meth:`wait` while it :attr:`waits`, then :meth:`make` it.  Any thread.  Whoever ends it on a thread that
    holds no lock, before its caller is answered, says so (``unlocked``)."""

    __slots__ = ("_listener", "_observers", "_point", "_wait", "call", "injection", "unlocked")

    def __init__(self, point: CallPoint, listener: Listener | None, call: Call) -> None:
        """The call begins."""
        self._point, self._listener, self.call = point, listener, call
        self._wait: Wait | None = None
        self.unlocked = False
        call.begun = time.monotonic()
        self.injection = injection = NOTHING if listener is None else _begin(listener, call)
        if injection is not NOTHING:
            call.fault, call.delayed = injection.rule, injection.delays_only
        self._observers = point.begin(call)

    @property
    def waits(self) -> bool:
        """Whether it is to wait."""
        return self._wait is None and self.injection.waits

    def wait(self, ready: Callable[[], None]) -> None:
        """Have ``ready`` called when it has waited, or is interrupted (:meth:`Wait.start`)."""
        self._wait = wait = self._point.waiting()
        wait.start(self.injection, ready)

    def interrupt(self) -> bool:
        """Its caller got a signal: it fails with EINTR.  False if it does not wait."""
        return self._wait is not None and self._wait.interrupt()

    @property
    def interrupted(self) -> bool:
        """Whether it was interrupted."""
        return self._wait is not None and self._wait.interrupted

    def make(
        self, function: Callable[..., T], data: bytes | None = None, dropped: Callable[[], T] | None = None
    ) -> T:
        """Make the call as :meth:`Injection.make`, and end it.  Raises OSError(EINTR) if it was
        interrupted."""
        with self.told():
            self.check()
            self.call.result = result = self.injection.make(function, data, dropped)
        return result

    def look_later(self, seconds: float, look: Callable[[], None]) -> None:
        """Call ``look`` in so many seconds if the call still waits then.  It is short."""
        wait = self._wait

        def due() -> None:
            if wait is not None and not wait.over:
                look()

        self._point.call_late(seconds, due)

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
            self.call.error = _reason(error)
            raise
        finally:
            self.end()

    def end(self) -> None:
        """The call is over."""
        if self._listener is not None:
            try:
                self._listener.end(self.call)
            except Exception:
                log.exception("a listener failed at the end of %s", self.call.name)
        self._point.end(self._observers, self.call)
        after = self.injection.after
        if after is None:
            return
        if self.unlocked:
            try:
                after()
            except Exception:
                log.exception("what was to come after %s failed", self.call.name)
        else:
            self._point.do_later(after)


class CallPoint:
    """The point of one lab.  ``listener`` is None while nobody listens (:meth:`listen`), ``observers`` are
    those that :meth:`observe` has added."""

    __slots__ = (
        "_closed",
        "_faults",
        "_late",
        "_switches",
        "_threads",
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
        self._late, self._faults = LateCalls(), LateCalls("faults")
        self._waits: set[Wait] = set()
        self._threads = 0
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
            waits = tuple(self._waits)
        for wait in waits:
            try:
                wait.end()
            except Exception:  # the others still end
                log.exception("a call that waited failed at the end of the lab")

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
        """Call ``switch`` now, and whenever an observer or a listener comes or goes.  It sees to it that
        calls pass the point while the point is :attr:`attended`.  It runs under :attr:`lock`, on any thread,
        and waits for nothing."""
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

    # ---- parts of a call ----

    def begin(self, call: Call) -> Observers:
        """Tell the observers that the call begins, for callers that make it in parts.  The result is for
        :meth:`end`."""
        call.begun = call.begun or time.monotonic()
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

    def steer(self, call: Call) -> Steered | None:
        """Begin the call if the listener attends to it; None if not.  The caller makes it
        (:class:`Steered`)."""
        listener = self.attends(call)
        return None if listener is None else Steered(self, listener, call)

    def attends(self, call: Call) -> Listener | None:
        """The listener, if it attends to the call.  Any thread."""
        listener = self.listener
        return listener if listener is not None and _attends(listener, call) else None

    def waiting(self) -> Wait:
        """A wait that :meth:`close` ends."""
        wait = Wait(self._late, self._waits.discard)
        with self.lock:
            self._waits.add(wait)
            closed = self._closed
        if closed:
            wait.end()
        return wait

    def do_later(self, action: Callable[[], None]) -> None:
        """Call it on the thread ``faults``, soon."""
        self._faults.add(0, action)

    def call_late(self, seconds: float, call: Callable[[], None]) -> None:
        """Make a short call in so many seconds, on the thread ``late-calls``."""
        self._late.add(seconds, call)

    # ---- whole calls ----

    def tell(self, call: Call, function: Callable[[], T]) -> T:
        """Make a call that nobody steers.  Any thread; also a pump, and under locks."""
        observers = self.begin(call)
        try:
            call.result = result = function()
        except BaseException as error:
            call.error = error
            raise
        finally:
            self.end(observers, call)
        return result

    def run(
        self,
        call: Call,
        function: Callable[..., T],
        data: bytes | None = None,
        dropped: Callable[[], T] | None = None,
    ) -> T:
        """Make the call on a thread that may wait.  ``function`` takes ``data``, if there are some;
        ``dropped`` as :meth:`Injection.make`."""
        steered = self.steer(call)
        if steered is not None:
            return self.run_steered(steered, function, data, dropped)
        made = function if data is None else functools.partial(function, data)
        return self.tell(call, made) if self.observers else made()

    def run_steered(
        self,
        steered: Steered,
        function: Callable[..., T],
        data: bytes | None = None,
        dropped: Callable[[], T] | None = None,
        waiting: Callable[[Steered], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> T:
        """Make the rest of a call on a thread that may wait.  While the call waits, the block ``waiting`` can
        interrupt it.  Raises OSError(ENOMEM) when too many threads wait."""
        if steered.waits:
            try:
                self._wait_on_thread(steered, waiting)
            except BaseException as error:
                with steered.told():
                    raise error
        return steered.make(function, data, dropped)

    def _wait_on_thread(
        self, steered: Steered, waiting: Callable[[Steered], AbstractContextManager[object]]
    ) -> None:
        with self.lock:
            if self._threads >= MOST_THREADS:
                raise OSError(errno.ENOMEM, "too many threads wait")
            self._threads += 1
        try:
            over = threading.Event()
            steered.wait(over.set)
            with waiting(steered):
                over.wait()
        finally:
            with self.lock:
                self._threads -= 1

    async def run_async(
        self,
        call: Call,
        function: Callable[..., Awaitable[T]],
        data: bytes | None = None,
        dropped: Callable[[], T] | None = None,
    ) -> T:
        """As :meth:`run` on the trio thread, which goes on with other tasks meanwhile.  What cancels it ends
        the wait, too."""
        steered = self.steer(call)
        if steered is None:
            made = function if data is None else functools.partial(function, data)
            return await self.tell_async(call, made)
        steered.unlocked = True
        with _client_is(call.tid), steered.told():
            if steered.waits:
                await _wait_async(steered)
            call.result = result = await _make_async(steered.injection, function, data, dropped)
        return result

    async def tell_async(self, call: Call, function: Callable[[], Awaitable[T]]) -> T:
        """Make a call on the trio thread that nobody steers."""
        observers = self.begin(call)
        try:
            with _client_is(call.tid):
                call.result = result = await function()
        except BaseException as error:
            call.error = _reason(error)
            raise
        finally:
            self.end(observers, call)
        return result

    def run_locked(self, call: Call, function: Callable[[], T]) -> T:
        """Make the call on the trio thread, within a store and under locks, where it cannot wait.

        Its wait is a debt of that store (:func:`owing`), whose answer waits for as long.
        """
        steered = self.steer(call)
        if steered is None:
            return self.tell(call, function) if self.observers else function()
        if steered.waits:
            _owe(self, steered.injection)
        return steered.make(function)

    def signal(self, call: Call, function: Callable[..., object], data: bytes | None = None) -> None:
        """Make a call from any thread, which does not wait: another thread makes a delayed one.  It is an
        interrupt, which is lost if it is refused, or a write by an ioeventfd."""
        steered = self.steer(call)
        if steered is None:
            self.tell(call, function if data is None else functools.partial(function, data))
        elif steered.waits:
            send = functools.partial(_send, steered, function, data)
            steered.wait(functools.partial(self._send_soon, send))
        else:
            _send(steered, function, data)

    def _send_soon(self, send: Callable[[], None]) -> None:
        self._late.add(0, send)


def _send(steered: Steered, function: Callable[..., object], data: bytes | None) -> None:
    with contextlib.suppress(OSError):  # it is refused, or the device is gone: nobody waits for an answer
        steered.make(function, data, dropped=_nothing)


def _nothing() -> None:
    """What becomes of an interrupt that is dropped."""


async def _wait_async(waiting: Steered | _Owed) -> None:
    """Wait on the trio thread."""
    over, thread = trio.Event(), trio.lowlevel.current_trio_token()

    def ready() -> None:
        with contextlib.suppress(trio.RunFinishedError):  # the lab has ended
            thread.run_sync_soon(over.set)

    waiting.wait(ready)
    try:
        await over.wait()
    except BaseException:
        waiting.interrupt()
        raise
    waiting.check()


async def _make_async(
    injection: Injection,
    function: Callable[..., Awaitable[T]],
    data: bytes | None,
    dropped: Callable[[], T] | None,
) -> T:
    """As :meth:`Injection.make`."""
    if injection.error is not None:
        raise injection.error
    if injection.drop and dropped is not None:
        return dropped()
    arguments = () if data is None else (injection.changed(data),)
    for _ in range(injection.times - 1):
        await function(*arguments)
    return await function(*arguments)


class _Owed:
    """A wait that a store owes."""

    __slots__ = ("_injection", "_wait", "check", "interrupt")

    def __init__(self, point: CallPoint, injection: Injection) -> None:
        self._injection, self._wait = injection, point.waiting()
        self.check, self.interrupt = self._wait.check, self._wait.interrupt

    def wait(self, ready: Callable[[], None]) -> None:
        self._wait.start(self._injection, ready)


def _reason(error: BaseException) -> BaseException:
    """Why a call failed.  A task is cancelled when its client has got a signal, and when the lab ends."""
    return OSError(errno.EINTR, "interrupted") if isinstance(error, trio.Cancelled) else error


class Debt:
    """What the answer to a store is to wait for."""

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        self._owed: list[tuple[CallPoint, Injection]] = []

    def owe(self, point: CallPoint, injection: Injection) -> None:
        """It waits for this as well."""
        self._owed.append((point, injection))

    async def pay(self) -> None:
        """Wait for all of it, one after the other.  Trio thread."""
        while self._owed:
            await _wait_async(_Owed(*self._owed.pop(0)))


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


def _owe(point: CallPoint, injection: Injection) -> None:
    debt = _debt.get()
    if debt is not None:
        debt.owe(point, injection)


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


def _attends(listener: Listener, call: Call) -> bool:
    try:
        return listener.attends(call)
    except Exception:
        log.exception("a listener failed to look at %s", call.name)
        return False


def _begin(listener: Listener, call: Call) -> Injection:
    try:
        return listener.begin(call) or NOTHING
    except Exception:
        log.exception("a listener failed at the begin of %s", call.name)
        return NOTHING
