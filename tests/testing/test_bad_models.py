# SPDX-License-Identifier: Apache-2.0
"""Models that fail or hang on a bench, and benches that cannot be: each is one clear error, and soon."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devmodel.models.gpu import PhysicalGpu, Vgpu
from devmodel.models.mtty import Mtty
from devmodel.sdk import Bar, DeviceAttribute, Identity, Memory, PciDevice
from examples.copier import Copier
from tests.testing.toys import FAULTS, Bad, Timer
from vfsfuse.testing import Bench, BenchError, ModelFailed, ModelHangs, Physical, VfSpec

MIB = 1 << 20
PATIENCE = 2.0
"""A busy machine may take long to start a thread, which has to come to where it hangs."""


def number_of(fault: Callable[[Bad], None]) -> int:
    return FAULTS.index(fault)


@pytest.fixture
def hanging() -> Iterator[Bench[Bad]]:
    """A bench of whose device code is about to hang. It is let go at the end."""
    bench = Bench(Bad)
    device = bench.device
    yield bench
    device.let_go.set()
    bench.close()


# ---- failures ----


def test_an_exception_of_a_hook_comes_to_who_calls_it() -> None:
    with Bench(Bad) as bench:
        with pytest.raises(LookupError, match="a hook") as caught:
            bench["FAULT"] = number_of(Bad.raises)
        assert "raises" in [entry.name for entry in traceback.extract_tb(caught.value.__traceback__)]
        with pytest.raises(ZeroDivisionError, match="nothing to read"):
            bench["BAD"]
        assert bench["VENDOR_ID"] == 0x1234


def test_a_hook_that_exits_ends_nothing() -> None:
    with Bench(Bad) as bench:
        with pytest.raises(ModelFailed, match=r"the model calls sys.exit\(3\)"):
            bench["FAULT"] = number_of(Bad.exits)
        assert bench["VENDOR_ID"] == 0x1234


def test_an_exception_of_a_task_comes_to_who_lets_it_run() -> None:
    with Bench(Bad) as bench:
        bench["FAULT"] = number_of(Bad.task_raises)
        with pytest.raises(ModelFailed, match=r"LookupError: a task \(toys.py:\d+\)$") as caught:
            bench.settle()
        assert isinstance(caught.value.__cause__, LookupError)
        bench.settle()
        bench["FAULT"] = number_of(Bad.task_exits)
        with pytest.raises(ModelFailed, match="a task of a device failed: SystemExit: 4"):
            bench.advance(1)


def test_time_stops_at_the_moment_of_a_failure() -> None:
    with Bench(Bad) as bench:
        bench["FAULT"] = number_of(Bad.task_raises_later)
        with pytest.raises(ModelFailed) as caught:
            bench.advance(1)
        assert bench.time == 0.25 and len(caught.value.__notes__) == 1
        bench["FAULT"] = number_of(Bad.task_raises_later)
        with pytest.raises(ModelFailed):
            bench.wait(lambda: False)
        assert bench.time == 0.5


def test_an_exception_of_a_hook_that_a_doorbell_runs() -> None:
    with Bench(Bad, kind="function") as bench:
        doorbell = bench.ioeventfd("FAULT", number_of(Bad.raises))
        for _ in range(2):
            with pytest.raises(ModelFailed, match="the write of an ioeventfd failed: LookupError: a hook"):
                doorbell.signal()


def test_a_failure_at_the_end_is_told() -> None:
    bench = Bench(Bad)
    bench.device.fails_at_end = True
    with pytest.raises(ModelFailed, match=r"closed\(\) failed: LookupError: the end"):
        bench.close()
    bench.close()


class FailsAtClose(Copier):
    resets = 0

    def after_reset(self) -> None:
        self.resets += 1
        if self.resets > 1:
            raise LookupError("a second reset")


def test_a_failure_of_the_last_reset_is_told() -> None:
    bench = Bench(FailsAtClose, kind="function")
    with pytest.raises(ModelFailed, match="the end of the device failed: LookupError: a second reset"):
        bench.close()


def test_a_failure_at_the_end_does_not_hide_that_of_the_test() -> None:
    with pytest.raises(AssertionError, match="of the test") as caught, Bench(Bad) as bench:
        bench.device.fails_at_end = True
        raise AssertionError("of the test")
    assert "LookupError: the end" in caught.value.__notes__[0]


def test_a_task_that_ends_all_tasks() -> None:
    with Bench(Bad) as bench:
        bench["FAULT"] = number_of(Bad.task_ends_all)
        for _ in range(2):
            with pytest.raises(ModelFailed, match="ended all together"):
                bench.settle()
        bench.close_device()


# ---- hangs ----


@pytest.mark.parametrize(
    ("fault", "where"),
    [(Bad.deadlocks, r"'bench-lane' is at toys.py:\d+, in deadlocks"), (Bad.loops, "in loops")],
)
def test_a_hook_that_hangs(hanging: Bench[Bad], fault: Callable[[Bad], None], where: str) -> None:
    hanging.patience = PATIENCE
    with pytest.raises(ModelHangs, match=where):
        hanging["FAULT"] = number_of(fault)
    with pytest.raises(ModelHangs):
        hanging.settle()


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (Bad.task_blocks, "'bench-trio' is at toys.py:\\d+, in block "),
        (Bad.task_spins, r"its tasks are at toys.py:\d+, in spin "),
        (
            Bad.thread_blocks,
            "Bad does not come to rest within 2 s, its virtual time is 0 s: its tasks are at toys.py",
        ),
    ],
)
def test_a_task_that_does_not_come_to_rest(
    hanging: Bench[Bad], fault: Callable[[Bad], None], where: str
) -> None:
    hanging["FAULT"] = number_of(fault)
    hanging.patience = PATIENCE
    with pytest.raises(ModelHangs, match=where):
        hanging.settle()
    with pytest.raises(ModelHangs):
        hanging["FAULT"]


def test_a_task_that_does_too_much(hanging: Bench[Bad]) -> None:
    hanging["FAULT"] = number_of(Bad.task_ticks)
    hanging.settle()
    hanging.patience = PATIENCE
    where = r"its virtual time is [0-9.e-]+ s: (its tasks are|thread 'bench-trio' is) at toys.py"
    with pytest.raises(ModelHangs, match=where):
        hanging.advance(3600)


# ---- benches that cannot be ----


class Nobody(PciDevice):
    """Has no identity."""


class WrongAttribute(Copier):
    ATTRIBUTES = (DeviceAttribute("../up", str),)


class WrongBar(Timer):
    def bars(self) -> dict[int, Bar]:
        return {0: Bar(Memory(4096 * 3))}


class FailsAtOnce(Copier):
    identity = Identity(1, 2, 3, 4, class_code=0x088000)

    def after_reset(self) -> None:
        raise LookupError("a reset")


@pytest.mark.parametrize(
    ("model", "arguments", "why"),
    [
        (object, {}, "is not a device model"),
        ("Copier", {}, "is not a device model"),
        (Nobody, {}, "Nobody has no identity"),
        (WrongAttribute, {}, "'../up' cannot be a file"),
        (WrongBar, {}, "12288"),
        (Mtty, {"options": {"ports": 3}}, "option 'ports' is 3, not in 1 to 2"),
        (Mtty, {"options": {"port": 1}}, r"no option 'port' \(known: ports\)"),
        (
            Mtty,
            {"options": {"ports": "two"}},
            r"'two' for option 'ports' is a text \(options that are: none\)",
        ),
        (Mtty, {"options": {"ports": True}}, "option 'ports' is True, no whole number"),
        (Mtty, {"options": {"ports": 1.0}}, "option 'ports' is 1.0, no whole number"),
        (Mtty, {"options": {"ports": None}}, "option 'ports' is None"),
        (Mtty, {"options": {1: 1}}, "1 is no name of an option"),
        (Vgpu, {}, "video memory is 0 bytes, not from 1M to 2G"),
        (Vgpu, {"memory": -1}, "memory is -1, no number of bytes"),
        (Vgpu, {"memory": 4.0 * MIB}, "no number of bytes"),
        (
            Vgpu,
            {"memory": 4 * MIB, "parent": Physical(PhysicalGpu)},
            "video memory is 0 bytes, not in 1M to 1T",
        ),
        (Timer, {"options": {"serial": "12"}}, "a type of vGPU has no options that are texts"),
        (Timer, {"texts": {"serial": "x"}, "kind": "function"}, r"'serial' cannot be 'x' \(write 00-11\)"),
        (Timer, {"texts": {"name": "x"}, "kind": "function"}, "no option 'name' that is a text"),
        (Timer, {"kind": "mdev"}, "'mdev' is no kind of device"),
        (Timer, {"kind": "vf"}, "give parent=Physical"),
        (Timer, {"kind": "function", "parent": Physical(Timer)}, "has no parent"),
        (
            Timer,
            {"kind": "function", "vf": VfSpec(1, Mtty)},
            "their physical function's vendor 1234, not 4348",
        ),
        (Timer, {"vf": VfSpec(1, Timer)}, "only a physical function has virtual functions"),
    ],
)
def test_a_bench_that_cannot_be(model: Any, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Bench(model, **arguments)


def test_a_vgpu_that_its_parent_has_no_room_for() -> None:
    with pytest.raises(OSError, match="has no room for another"):
        Bench(Vgpu, memory=8 * MIB, parent=Physical(PhysicalGpu, 4 * MIB))


def test_a_device_that_cannot_be_opened() -> None:
    assert Bench(FailsAtOnce)["VENDOR_ID"] == 1
    with pytest.raises(LookupError, match="a reset"):
        Bench(FailsAtOnce, kind="function")


def test_only_a_physical_function_has_virtual_functions() -> None:
    with Bench(Timer) as bench, pytest.raises(BenchError, match="has no virtual functions"):
        bench.enable_vfs(1)
