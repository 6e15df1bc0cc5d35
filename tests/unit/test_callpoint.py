# SPDX-License-Identifier: Apache-2.0
"""The call point by itself: who is told, in which order, and what a delay or a refusal does."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import trio

from devmodel.calls.call import Call, CallKind
from devmodel.calls.injection import Body, Hold, Injection
from devmodel.calls.point import CallPoint
from devmodel.calls.stores import Debt, owing
from devmodel.device.base import Device
from devmodel.device.tasks import TaskHost
from devmodel.iommu.api import PAGE_SIZE, Prot
from devmodel.iommu.type1 import Type1
from devmodel.irq.eventfd import Eventfd, Watcher
from devmodel.irq.irqs import Action, IrqIndex
from devmodel.irq.kinds import ClientFds, PciIrq
from devmodel.lifecycle.change import lifecycle_change
from devmodel.region.access import PLAIN, Access, first_bytes
from ioctl_shim._native import lib
from tests.unit.fakes import FakeClient, fails
from tests.unit.test_iommu import Driver
from tests.waiting import wait_for

SECONDS = 60


class Account:
    """A listener that keeps an account, and delays or refuses what it is told to."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, object, int | None]] = []
        self.delay = 0.0
        self.refusal = 0
        self.broken = self.broken_look = False
        self.hold: Hold | None = None

    def attends(self, call: Call) -> bool:
        if self.broken_look:
            raise ZeroDivisionError
        return True

    def begin(self, call: Call) -> Injection:
        self.lines.append(("begin", call.name, None, None))
        if self.broken:
            raise ZeroDivisionError
        error = OSError(self.refusal, "refused") if self.refusal else None
        return Injection("rule", self.delay, self.hold, error)

    def end(self, call: Call) -> None:
        error = call.error.errno if isinstance(call.error, OSError) else None
        self.lines.append(("end", call.name, call.result, error))
        if self.broken:
            raise ZeroDivisionError


@pytest.fixture
def point() -> CallPoint:
    made = CallPoint()
    made.listen(Account())
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
    assert silent.run(call(), Body(lambda: 7)) == silent.run_locked(call(), lambda: 7) == 7
    silent.signal(call(), lambda: sent.append(1))
    assert sent == [1]


def test_a_call_is_told_before_and_after_with_its_result(point: CallPoint) -> None:
    assert point.run(call("a"), Body(lambda: 7)) == 7
    fails(errno.EBUSY, point.run, call("b"), Body(failing))
    assert account(point).lines == [
        ("begin", "a", None, None),
        ("end", "a", 7, None),
        ("begin", "b", None, None),
        ("end", "b", None, errno.EBUSY),
    ]


def test_calls_within_a_call_are_told_within_it(point: CallPoint) -> None:
    point.run(call("outer"), Body(lambda: point.run_locked(call("inner"), lambda: 1)))
    assert [(when, name) for when, name, _, _ in account(point).lines] == [
        ("begin", "outer"),
        ("begin", "inner"),
        ("end", "inner"),
        ("end", "outer"),
    ]


def test_a_refused_call_is_not_made(point: CallPoint) -> None:
    account(point).refusal = errno.EPERM
    made = list[int]()
    fails(errno.EPERM, point.run, call(), Body(lambda: made.append(1)))
    fails(errno.EPERM, point.run_locked, call(), lambda: made.append(1))
    point.signal(call(), lambda: made.append(1))
    assert made == []
    assert [line[3] for line in account(point).lines if line[0] == "end"] == [errno.EPERM] * 3


def test_a_delayed_call_waits_as_its_caller_can(point: CallPoint) -> None:
    account(point).delay = 0.25
    begun = time.monotonic()
    assert point.run(call(), Body(lambda: 7)) == 7
    assert time.monotonic() - begun >= 0.25


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
    def seconds(debt: Debt) -> float:
        begun = time.monotonic()
        trio.run(debt.pay)
        return time.monotonic() - begun

    account(point).delay = delay
    with owing() as debt:
        assert point.run_locked(call("create"), lambda: 7) == 7
        fails(errno.EBUSY, point.run_locked, call("remove"), failing)
    assert seconds(debt) >= 2 * delay
    point.run_locked(call("outside of any store"), lambda: 7)
    account(point).delay = 3600
    with owing() as another:
        pass
    trio.run(another.pay)


def test_an_asynchronous_call_waits_and_has_a_result(point: CallPoint) -> None:
    async def function() -> int:
        return 7

    async def main() -> float:
        begun = trio.current_time()
        assert await point.run_async(call("a"), Body(function)) == 7
        return trio.current_time() - begun

    account(point).delay = 0.01
    assert trio.run(main) >= 0.01
    assert account(point).lines == [("begin", "a", None, None), ("end", "a", 7, None)]


def test_interrupts_that_wait_are_lost_when_there_are_too_many(
    point: CallPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devmodel.calls.point.MOST_SIGNALS", 3)
    account = Account()
    account.hold = Hold()
    point.listen(account)
    came: list[int] = []
    errors = [errno.ENOMEM] * 2 + [None] * 3
    for number in range(5):
        point.signal(Call(CallKind.INTERRUPT, "device", "MSIX"), partial(came.append, number))
    assert point.held == 3 and not came
    account.hold.release()
    wait_for(lambda: came == [0, 1, 2] and not point.held)
    wait_for(lambda: [line[3] for line in account.lines if line[0] == "end"] == errors)
    account.hold = None
    point.signal(Call(CallKind.INTERRUPT, "device", "MSIX"), partial(came.append, 5))
    assert came == [0, 1, 2, 5]


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
    assert point.run(call("x"), Body(lambda: 7)) == 7
    point.signal(call("y"), lambda: sent.append(1))
    assert sent == [1]
    assert "a listener failed at the begin of x" in caplog.text
    assert "a listener failed at the end of y" in caplog.text


# ---- observers ----


class Watching:
    """An observer that keeps an account of what it was told: when, the call's name, its result or error."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, object]] = []

    def began(self, call: Call) -> None:
        assert call.begun and call.error is None
        self.lines.append(("began", call.name, None))

    def ended(self, call: Call) -> None:
        error = call.error
        outcome = error.errno if isinstance(error, OSError) else error or call.result
        self.lines.append(("ended", call.name, outcome))


async def seven() -> int:
    return 7


def calls_of_every_way(point: CallPoint) -> list[Call]:
    made = [call(name) for name in ("run", "tell", "locked", "async", "signal", "fails")]
    assert point.run(made[0], Body(lambda: 7)) == 7
    assert point.tell(made[1], lambda: 7) == 7
    assert point.run_locked(made[2], lambda: 7) == 7
    assert trio.run(point.run_async, made[3], Body(seven)) == 7
    point.signal(made[4], lambda: 7)
    fails(errno.EBUSY, point.run, made[5], Body(failing))
    return made


@pytest.mark.parametrize("listens", [False, True])
def test_observers_see_every_call_with_a_listener_and_without(listens: bool) -> None:
    point, observers = CallPoint(), (Watching(), Watching())
    point.listen(Account() if listens else None)
    for observer in observers:
        point.observe(observer)
    made = calls_of_every_way(point)
    for observer in observers:
        assert [(when, name) for when, name, _ in observer.lines] == [
            (when, each.name) for each in made for when in ("began", "ended")
        ]
        outcomes = {name: outcome for when, name, outcome in observer.lines if when == "ended"}
        assert outcomes.pop("fails") == errno.EBUSY and outcomes.pop("signal") in (None, 7)
        assert set(outcomes.values()) == {7}
    assert all(each.error is None for each in made)  # an exception would keep what its frames use


def test_a_refusal_and_a_delay_are_of_the_call_that_observers_see(point: CallPoint) -> None:
    observer = Watching()
    point.observe(observer)
    account(point).refusal = errno.EPERM
    fails(errno.EPERM, point.run, call("refused"), Body(lambda: 7))
    point.signal(call("lost"), lambda: 7)
    assert observer.lines == [
        ("began", "refused", None),
        ("ended", "refused", errno.EPERM),
        ("began", "lost", None),
        ("ended", "lost", errno.EPERM),
    ]


def test_who_goes_during_a_call_hears_its_end_and_who_comes_does_not() -> None:
    point, first, second = CallPoint(), Watching(), Watching()
    point.observe(first)

    def change() -> None:
        point.unobserve(first)
        point.observe(second)

    point.run(call("a"), Body(change))
    point.run(call("b"), Body(lambda: 7))
    assert first.lines == [("began", "a", None), ("ended", "a", None)]
    assert second.lines == [("began", "b", None), ("ended", "b", 7)]


def test_what_is_set_up_hears_of_each_observer_that_comes_and_goes() -> None:
    point, seen = CallPoint(), list[bool]()

    def switch() -> None:
        seen.append(point.attended)

    observers = Watching(), Watching()
    point.join(switch)
    for observer in observers:
        point.observe(observer)
    for observer in observers:
        point.unobserve(observer)
    assert seen == [False, True, True, True, False]
    point.leave(switch)
    point.observe(observers[0])
    assert len(seen) == 5
    assert point.attended
    point.unobserve(observers[0])
    point.listen(Account())
    assert point.attended


def test_the_client_of_a_store_is_that_of_its_lifecycle_changes() -> None:
    class Changes:
        calls = CallPoint()

        @lifecycle_change
        def create(self, name: str) -> int:
            return len(name)

    class Clients(Watching):
        def began(self, call: Call) -> None:
            self.lines.append(("began", call.name, call.tid))

    async def store() -> int:
        return changes.create("copier")

    changes, observer = Changes(), Clients()
    changes.calls.observe(observer)
    made = Call(CallKind.STORE, "directory", "vgpu_create", tid=1234)
    assert trio.run(changes.calls.run_async, made, Body(store)) == 6
    assert changes.create("nobody") == 6
    began = [line for line in observer.lines if line[0] == "began"]
    assert began == [("began", "vgpu_create", 1234), ("began", "create", 1234), ("began", "create", 0)]


def test_pinned_pages_and_interrupts_that_are_set_up_are_observed_too() -> None:
    calls, observer, sent = CallPoint(), Watching(), os.eventfd(0)
    device = Device("board", [], [None, None, IrqIndex(4)])
    device.tasks.host = TaskHost(calls)
    driver = Type1()
    Driver(driver)
    driver.map(FakeClient(), 0, 0x8000, 2 * PAGE_SIZE, Prot.READ | Prot.WRITE)
    device.connect(driver.space)
    device.opened(None)
    pin = trio.run(device.dma.pin, 0, 1, Prot.READ | Prot.WRITE)
    data = ClientFds([os.dup(sent)], lambda number: Eventfd(number, lib.shim_signal), Watcher())
    device.irq.set(PciIrq.MSIX, Action.TRIGGER, 0, 1, data)

    def use() -> None:
        pin.write(8, b"data")
        assert pin.read(8, 4) == b"data"
        assert device.irq.raise_message(0) and os.eventfd_read(sent) == 1

    use()
    calls.observe(observer)
    use()
    calls.unobserve(observer)
    use()
    assert [(name, outcome) for when, name, outcome in observer.lines if when == "ended"] == [
        ("write", None),
        ("read", b"data"),
        ("MSIX", None),
    ]
    device.close()
    calls.observe(observer)  # and the device has nothing to do with it any more
    os.close(sent)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_first_bytes_of_a_buffer(kind: Callable[[bytes], bytes]) -> None:
    assert first_bytes(kind(b"abcdef"), 4, PLAIN) == b"abcd"
    assert first_bytes(kind(b""), 4, PLAIN) == b""


def test_the_first_bytes_of_mapped_memory() -> None:
    def no_page(to: int, source: int, size: int) -> int:
        return -errno.EFAULT

    with mmap.mmap(-1, PAGE_SIZE) as memory, memoryview(memory) as view:
        view[:4] = b"data"
        assert first_bytes(view, 4, PLAIN) == b"data"
        assert first_bytes(view[2:], 8192, PLAIN) == b"ta" + bytes(PAGE_SIZE - 4)
        assert first_bytes(view, 4, Access(no_page, no_page)) == b""
