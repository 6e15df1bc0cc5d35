# SPDX-License-Identifier: Apache-2.0
"""Stores on the trio thread: how they wait, and what those owe that make lifecycle changes.

A lifecycle change is made under locks, where it cannot wait.  Its wait is a debt of the store that asks for
it: the answer to the store waits for as long.
Threads: the trio thread.  A context variable, which each task has for itself, says whose store it makes.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Protocol, TypeVar

import trio

from devmodel.calls.injection import Body, Injection
from devmodel.calls.waits import Waits

T = TypeVar("T")


class Waiting(Protocol):
    """What a task waits for: a call, or a debt."""

    def wait(self, ready: Callable[[], None]) -> None:
        """Have ``ready`` called once it is over, on any thread."""

    def interrupt(self) -> bool:
        """It is over, and fails with EINTR.  False if it was over before."""

    def check(self) -> None:
        """Once it is over: raises the error with which it has ended."""


async def wait_async(waiting: Waiting) -> None:
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


async def make_async(injection: Injection, body: Body[Awaitable[T]]) -> T:
    """As :meth:`Injection.make`."""
    if injection.error is not None:
        raise injection.error
    if injection.drop and body.dropped is not None:
        return await body.dropped()
    function, data = body.function, body.data
    arguments = () if data is None else (injection.changed(data),)
    for _ in range(injection.times - 1):
        await function(*arguments)
    return await function(*arguments)


def reason_of(error: BaseException) -> BaseException:
    """Why a call failed.  A task is cancelled when its client has got a signal, and when the lab ends."""
    return OSError(errno.EINTR, "interrupted") if isinstance(error, trio.Cancelled) else error


class _Owed:
    """A wait that a store owes."""

    __slots__ = ("_injection", "_wait", "check", "interrupt")

    def __init__(self, waits: Waits, injection: Injection) -> None:
        self._injection, self._wait = injection, waits.new()
        self.check, self.interrupt = self._wait.check, self._wait.interrupt

    def wait(self, ready: Callable[[], None]) -> None:
        self._wait.start(self._injection, ready)


class Debt:
    """What the answer to a store is to wait for."""

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        self._owed: list[tuple[Waits, Injection]] = []

    def owe(self, waits: Waits, injection: Injection) -> None:
        """It waits for this as well."""
        self._owed.append((waits, injection))

    async def pay(self) -> None:
        """Wait for all of it, one after the other.  Trio thread."""
        while self._owed:
            await wait_async(_Owed(*self._owed.pop(0)))


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


def owe(waits: Waits, injection: Injection) -> None:
    """The store that is being made, if there is one, owes the wait of ``injection``."""
    debt = _debt.get()
    if debt is not None:
        debt.owe(waits, injection)


_client: ContextVar[int] = ContextVar("client", default=0)
"""The thread of the client whose store the trio thread makes."""


@contextlib.contextmanager
def client_is(tid: int) -> Iterator[None]:
    """The block makes a store of this thread of a client."""
    token = _client.set(tid)
    try:
        yield
    finally:
        _client.reset(token)


def client_of_store() -> int:
    """The thread of the client whose store the trio thread makes; 0 if it makes none."""
    return _client.get()
