# SPDX-License-Identifier: Apache-2.0
"""The call point by itself: who is told, in which order, and what a delay or a refusal does."""

from __future__ import annotations

import errno
import threading
from functools import partial

import pytest
import trio

from devmodel.callpoint import Call, CallKind, CallPoint, owing
from tests.unit.fakes import fails

SECONDS = 5


class Account:
    """A listener that keeps an account, and delays or refuses what it is told to."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, object, int | None]] = []
        self.delay = 0.0
        self.refusal = 0
        self.broken = False

    def begin(self, call: Call) -> float:
        self.lines.append(("begin", call.name, None, None))
        if self.broken:
            raise ZeroDivisionError
        if self.refusal:
            raise OSError(self.refusal, "refused")
        return self.delay

    def end(self, call: Call) -> None:
        error = call.error.errno if isinstance(call.error, OSError) else None
        self.lines.append(("end", call.name, call.result, error))
        if self.broken:
            raise ZeroDivisionError


@pytest.fixture
def point() -> CallPoint:
    made = CallPoint()
    made.listener = Account()
    return made


def account(point: CallPoint) -> Account:
    assert isinstance(point.listener, Account)
    return point.listener


def call(name: str = "thing") -> Call:
    return Call(CallKind.IOCTL, "device", name)


def failing() -> int:
    raise OSError(errno.EBUSY, "it is")


def test_nobody_listens() -> None:
    silent, sent = CallPoint(), list[int]()
    assert silent.run(call(), lambda: 7) == silent.run_locked(call(), lambda: 7) == 7
    silent.signal(call(), lambda: sent.append(1))
    assert sent == [1]


def test_a_call_is_told_before_and_after_with_its_result(point: CallPoint) -> None:
    assert point.run(call("a"), lambda: 7) == 7
    fails(errno.EBUSY, point.run, call("b"), failing)
    assert account(point).lines == [
        ("begin", "a", None, None),
        ("end", "a", 7, None),
        ("begin", "b", None, None),
        ("end", "b", None, errno.EBUSY),
    ]


def test_calls_within_a_call_are_told_within_it(point: CallPoint) -> None:
    point.run(call("outer"), lambda: point.run_locked(call("inner"), lambda: 1))
    assert [(when, name) for when, name, _, _ in account(point).lines] == [
        ("begin", "outer"),
        ("begin", "inner"),
        ("end", "inner"),
        ("end", "outer"),
    ]


def test_a_refused_call_is_not_made(point: CallPoint) -> None:
    account(point).refusal = errno.EPERM
    made = list[int]()
    fails(errno.EPERM, point.run, call(), lambda: made.append(1))
    fails(errno.EPERM, point.run_locked, call(), lambda: made.append(1))
    point.signal(call(), lambda: made.append(1))
    assert made == []
    assert [line[3] for line in account(point).lines if line[0] == "end"] == [errno.EPERM] * 3


def test_a_delayed_call_waits_as_its_caller_can(point: CallPoint) -> None:
    account(point).delay, waited = 0.25, list[float]()
    assert point.run(call(), lambda: 7, waited.append) == 7
    assert waited == [0.25]


def test_a_delayed_interrupt_comes_from_another_thread(point: CallPoint) -> None:
    account(point).delay, came, threads = 0.01, threading.Event(), list[int]()

    def interrupt() -> None:
        threads.append(threading.get_ident())
        came.set()

    point.signal(call(), interrupt)
    assert came.wait(SECONDS)
    assert threads != [threading.get_ident()]


@pytest.mark.parametrize("delay", [0.0, 0.25])
def test_a_store_owes_what_its_lifecycle_changes_are_delayed(point: CallPoint, delay: float) -> None:
    account(point).delay = delay
    with owing() as debt:
        assert point.run_locked(call("create"), lambda: 7) == 7
        fails(errno.EBUSY, point.run_locked, call("remove"), failing)
    assert debt.seconds == 2 * delay
    point.run_locked(call("outside of any store"), lambda: 7)
    with owing() as another:
        assert another.seconds == 0


def test_an_asynchronous_call_waits_and_has_a_result(point: CallPoint) -> None:
    async def function() -> int:
        return 7

    async def main() -> float:
        begun = trio.current_time()
        assert await point.run_async(call("a"), function) == 7
        return trio.current_time() - begun

    account(point).delay = 0.01
    assert trio.run(main) >= 0.01
    assert account(point).lines == [("begin", "a", None, None), ("end", "a", 7, None)]


def test_late_interrupts_come_in_the_order_of_their_times(point: CallPoint) -> None:
    came, done = list[int](), threading.Event()
    for number, delay in enumerate((0.06, 0.02, 0.04)):
        account(point).delay = delay
        point.signal(call(), partial(came.append, number))
    account(point).delay = 0.1
    point.signal(call(), done.set)
    assert done.wait(SECONDS)
    assert came == [1, 2, 0]


def test_a_listener_that_fails_disturbs_nobody(point: CallPoint, caplog: pytest.LogCaptureFixture) -> None:
    account(point).broken = True
    sent = list[int]()
    assert point.run(call("x"), lambda: 7) == 7
    point.signal(call("y"), lambda: sent.append(1))
    assert sent == [1]
    assert "a listener failed at the begin of x" in caplog.text
    assert "a listener failed at the end of y" in caplog.text
