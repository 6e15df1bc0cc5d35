# SPDX-License-Identifier: Apache-2.0
"""What a listener has happen to calls, by itself: waits, holds, dropped, doubled and changed calls."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from functools import partial

import pytest
import trio

from devmodel.calls import waits
from devmodel.calls.call import Call, CallKind
from devmodel.calls.injection import Body, Hold, Injection
from devmodel.calls.latecalls import LateCalls
from devmodel.calls.point import CallPoint
from devmodel.calls.stores import owing
from devmodel.device import tasks
from devmodel.device.base import Device
from devmodel.device.tasks import Task, TaskHost, ended_with_task
from devmodel.iommu.api import PAGE_SIZE, DmaFault, Prot
from devmodel.iommu.type1 import Type1
from devmodel.lifecycle.change import lifecycle_change
from devmodel.region.access import PLAIN, store_bytes
from tests.unit.fakes import FakeClient, fails
from tests.unit.test_iommu import Driver
from tests.waiting import wait_for

LONG = 3600.0


class Steering:
    """A listener that has one thing happen to each call whose name is in `names`, or to all of them."""

    def __init__(self, injection: Injection | None = None, names: tuple[str, ...] = ()) -> None:
        self.injection, self._names = injection, names
        self.ended: list[str] = []

    def attends(self, call: Call) -> bool:
        return not self._names or call.name in self._names

    def begin(self, call: Call) -> Injection | None:
        return self.injection

    def end(self, call: Call) -> None:
        self.ended.append(call.name)


def steered(injection: Injection | None = None, *names: str) -> CallPoint:
    point = CallPoint()
    point.listen(Steering(injection, names))
    return point


def call(name: str = "thing") -> Call:
    return Call(CallKind.REGION, "device", name)


def flip(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


# ---- what is made ----


def test_a_dropped_call_is_not_made_and_gives_what_it_would() -> None:
    point, made = steered(Injection(drop=True)), list[int]()
    assert point.run(call(), Body(lambda: made.append(1), dropped=lambda: None)) is None
    assert point.run(call(), Body(lambda: 7)) == 7  # of a kind that cannot be dropped
    assert point.run(call(), Body(made.__len__, dropped=lambda: 4)) == 4
    point.signal(call(), lambda: made.append(2))
    assert made == []


def test_a_call_that_comes_twice_has_the_second_result() -> None:
    point, results = steered(Injection(times=2)), iter((1, 2, 3, 4))
    assert point.run(call(), Body(lambda: next(results))) == 2
    assert point.run_locked(call(), lambda: next(results)) == 4


def test_the_data_of_a_write_change_before_it_and_those_of_a_read_after_it() -> None:
    point, written = steered(Injection(change=flip)), list[bytes]()
    point.run(call("write"), Body(written.append, b"\x0f\xf0"))
    assert written == [b"\xf0\x0f"]
    assert point.run(call("read"), Body(lambda: b"\1")) == b"\xfe"
    assert point.run(call("a number"), Body(lambda: 5)) == 5


@pytest.mark.parametrize("broken", [lambda data: data + b"x", lambda data: 1 / 0], ids=["longer", "fails"])
def test_a_change_that_fails_leaves_the_data(broken: Callable[[bytes], bytes]) -> None:
    assert steered(Injection(change=broken)).run(call("read"), Body(lambda: b"data")) == b"data"


def test_who_does_not_attend_changes_nothing() -> None:
    point = steered(Injection(error=OSError(errno.EIO, "never")), "another")
    assert point.run(call(), Body(lambda: 7)) == 7
    fails(errno.EIO, point.run, call("another"), Body(lambda: 7))
    assert isinstance(point.listener, Steering) and point.listener.ended == ["another"]


def test_observers_are_told_which_rules_hit_before_the_call_begins() -> None:
    class Observing:
        def __init__(self) -> None:
            self.seen: list[tuple[str, str, bool]] = []

        def began(self, call: Call) -> None:
            self.seen.append(("began", call.fault, call.delayed))

        def ended(self, call: Call) -> None:
            self.seen.append(("ended", call.fault, call.delayed))

    point, observer = CallPoint(), Observing()
    point.observe(observer)
    point.run(call(), Body(lambda: 7))
    for injection in (
        Injection("slow", delay=0.001),
        Injection("full,late", error=OSError(errno.ENOSPC, "")),
    ):
        point.listen(Steering(injection))
        try:
            point.run(call(), Body(lambda: 7))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    rules = [("", False), ("slow", True), ("full,late", False)]
    assert observer.seen == [(when, *rule) for rule in rules for when in ("began", "ended")]


def test_what_comes_after_a_call_is_made_once_it_is_over_and_refused() -> None:
    came = list[str]()
    for error in (None, OSError(errno.EIO, "refused")):
        done = threading.Event()

        def after(done: threading.Event = done) -> None:
            came.append(threading.current_thread().name)
            done.set()

        point = steered(Injection(error=error, after=after))
        with contextlib.suppress(OSError):
            point.run_locked(call(), lambda: 7)
        assert done.wait(60)
    assert came == ["faults", "faults"]


# ---- waits ----


def in_thread(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `function` on a thread; its outcome comes into the list."""
    outcomes = list[object]()

    def run() -> None:
        try:
            outcomes.append(function())
        except BaseException as error:
            outcomes.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcomes


def test_calls_hang_until_their_hold_is_released() -> None:
    hold = Hold()
    point = steered(Injection(hold=hold))
    threads = [in_thread(lambda: point.run(call(), Body(lambda: 7))) for _ in range(5)]
    wait_for(lambda: hold.held == point.held == 5)
    assert not any(outcomes for _, outcomes in threads)
    hold.release()
    for thread, outcomes in threads:
        thread.join(60)
        assert outcomes == [7]
    assert (hold.held, point.held) == (0, 0)
    assert point.run(call(), Body(lambda: 7)) == 7  # and no more of them hang


def test_a_call_is_delayed_and_then_hangs() -> None:
    hold = Hold()
    point = steered(Injection(delay=0.05, hold=hold))
    thread, outcomes = in_thread(lambda: point.run(call(), Body(lambda: 7)))
    wait_for(lambda: hold.held)
    hold.release()
    thread.join(60)
    assert outcomes == [7]


@pytest.mark.parametrize("injection", [Injection(delay=LONG), Injection(hold=Hold())], ids=["delay", "hold"])
def test_a_call_that_waits_is_interrupted_and_the_end_lets_it_go(injection: Injection) -> None:
    point, made = steered(injection), list[int]()
    ready = threading.Event()
    first = point.steer(call())
    assert first is not None and first.waits
    first.wait(ready.set)
    assert not ready.is_set()
    assert first.interrupt() and ready.is_set() and first.interrupted
    assert not first.interrupt()
    fails(errno.EINTR, first.make, partial(made.append, 1))
    thread, outcomes = in_thread(lambda: point.run(call(), Body(lambda: 7)))
    wait_for(lambda: point.held)
    point.close()
    thread.join(60)
    assert outcomes == [7] and made == []
    point.listen(Steering(injection))  # nobody listens any more
    assert point.run(call(), Body(lambda: 7)) == 7
    late = waits.Waits()
    late.close()
    assert late.new().over


def test_a_signal_hangs_on_no_thread_and_comes_when_it_is_released() -> None:
    hold, sent = Hold(), list[bytes]()
    point = steered(Injection(hold=hold, change=flip))
    point.signal(call(), sent.append, b"\1")
    assert sent == [] and hold.held == 1
    hold.release()
    wait_for(lambda: sent == [b"\xfe"])


def test_threads_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "MOST_THREADS", 2)
    hold = Hold()
    point = steered(Injection(hold=hold))
    threads = [in_thread(lambda: point.run(call(), Body(lambda: 7))) for _ in range(2)]
    wait_for(lambda: hold.held == 2)
    fails(errno.ENOMEM, point.run, call(), Body(lambda: 7))
    hold.release()
    for thread, outcomes in threads:
        thread.join(60)
        assert outcomes == [7]
    assert point.run(call(), Body(lambda: 7)) == 7


def test_a_store_waits_for_itself_and_for_its_changes_and_ends_when_it_is_cancelled() -> None:
    hold = Hold()

    def held() -> int:
        return hold.held

    class Changes:
        calls = steered(Injection(hold=hold), "create", "held")

        @lifecycle_change
        def create(self, name: str) -> int:
            return len(name)

    changes, events = Changes(), list[object]()

    async def store() -> int:
        return changes.create("copier")

    async def main() -> None:
        with owing() as debt:
            assert await changes.calls.run_async(Call(CallKind.STORE, "", "store"), Body(store)) == 6
        with trio.move_on_after(0.05) as scope:
            await debt.pay()
        assert scope.cancelled_caught and not held()
        with trio.move_on_after(0.05) as scope:
            await changes.calls.run_async(Call(CallKind.STORE, "", "held"), Body(store))
        assert scope.cancelled_caught and not held()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changes.calls.run_async, Call(CallKind.STORE, "", "held"), Body(store))
            while not held():
                await trio.sleep(0.001)
            hold.release()
        events.append("done")

    trio.run(main)
    assert events == ["done"]


async def _taken(data: bytes, taken: list[bytes]) -> int:
    taken.append(data)
    return len(data)


async def _two() -> int:
    return 2


def test_a_store_is_dropped_changed_and_made_twice() -> None:
    taken = list[bytes]()
    store = partial(_taken, taken=taken)
    made = Call(CallKind.STORE, "", "store")
    assert trio.run(steered(Injection(drop=True)).run_async, made, Body(store, b"ab", _two)) == 2
    assert taken == []
    twice = Injection(times=2, change=flip)
    assert trio.run(steered(twice).run_async, made, Body(store, b"\0", _two)) == 1
    assert taken == [b"\xff", b"\xff"]


def test_late_calls_that_are_forgotten_are_not_made_and_leave_nothing() -> None:
    late, made = LateCalls(), list[int]()
    entries = [late.add(LONG, partial(made.append, number)) for number in range(1000)]
    done = threading.Event()
    late.add(0.01, done.set)
    for entry in entries:
        late.forget(entry)
    late.forget(entries[0])
    assert done.wait(60) and made == []
    assert len(late._calls) < 200


# ---- DMA ----


class Memory:
    """A device with two pages of a client's memory at iova 0."""

    def __init__(self, injection: Injection) -> None:
        self.calls = steered(injection)
        self.device = Device("board", [], [])
        self.device.tasks.host = TaskHost(self.calls)
        self.client, driver = FakeClient(), Type1()
        Driver(driver)
        driver.map(self.client, 0, 0x8000, 2 * PAGE_SIZE, Prot.READ | Prot.WRITE)
        self.device.connect(driver.space)
        self.device.opened(None)
        self.dma = self.device.dma


def content(injection: Injection, change: Callable[[Memory], object]) -> bytes:
    """The first bytes of the memory, which was "data", after `change`."""
    memory = Memory(injection)
    point = memory.calls
    point.listen(None)
    memory.dma.write_now(0, b"data")
    point.listen(Steering(injection))
    change(memory)
    point.listen(None)
    return memory.dma.read_now(0, 4)


def test_a_write_by_dma_is_dropped_changed_and_refused() -> None:
    def write(memory: Memory) -> None:
        memory.dma.write_now(0, b"\0\1\2\3")
        memory.dma.write_now(0, bytearray(b"\0\1\2\3"))

    assert content(Injection(drop=True), write) == b"data"
    assert content(Injection(change=flip), write) == b"\xff\xfe\xfd\xfc"
    assert content(Injection(times=2), write) == b"\0\1\2\3"
    with pytest.raises(DmaFault) as caught:
        content(Injection(error=OSError(errno.EIO, "the rule says so")), write)
    assert caught.value.fault.reason == "the rule says so" and caught.value.fault.write


def test_a_read_by_dma_is_dropped_and_changed_also_into_a_buffer() -> None:
    got = list[bytes]()

    def read(memory: Memory) -> None:
        buffer = bytearray(4)
        memory.dma.read_into_now(0, buffer)
        got.extend((memory.dma.read_now(0, 4), bytes(buffer)))

    assert content(Injection(drop=True), read) == b"data"
    assert content(Injection(change=flip), read) == b"data"
    assert got == [bytes(4)] * 2 + [flip(b"data")] * 2


def test_a_dma_that_hangs_ends_with_the_task_that_makes_it() -> None:
    hold = Hold()
    memory = Memory(Injection(hold=hold))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            host = memory.device.tasks.host
            assert host is not None
            await nursery.start(host.serve)
            memory.device.start(memory.dma.write, 0, b"late")
            while not hold.held:
                await trio.sleep(0.001)
            memory.device.reset()
            while hold.held:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    trio.run(main)
    hold.release()
    memory.calls.listen(None)
    assert memory.dma.read_now(0, 4) == bytes(4)


def test_a_wait_of_a_stopped_task_ends_at_once() -> None:
    async def nothing() -> None:
        """What the task would do."""

    task, ended = Task(nothing, ()), list[int]()
    with ended_with_task(lambda: ended.append(0)):  # no task
        pass
    callback = partial(ended.append, 1)

    async def main() -> None:
        tasks._current.set(task)
        with ended_with_task(callback):
            task.stop()
        with ended_with_task(callback):
            pass

    trio.run(main)
    assert ended == [1, 1]


def test_bytes_are_stored_at_the_beginning_of_a_buffer() -> None:
    plain, mapped = bytearray(4), memoryview(bytearray(8))[2:6]
    store_bytes(plain, b"ab", PLAIN)
    store_bytes(mapped, b"cd", PLAIN)
    assert (bytes(plain), bytes(mapped)) == (b"ab\0\0", b"cd\0\0")
