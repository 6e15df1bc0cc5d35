# SPDX-License-Identifier: Apache-2.0
"""A device on a bench: its registers, its memory, its interrupts, its time and its life.

Nothing stands in for devices, tasks, DMA or the IOMMU here: they are the lab's own."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from devmodel.iommu.api import PageResponse, Prot
from devmodel.iommu.space import StillPinned
from devmodel.irq.kinds import PciIrq
from devmodel.sdk import ExtendedCapability
from examples.copier import COPY, DONE, FAULT, Copier
from tests.iommufd.asker import Asker
from tests.testing.toys import TICK, Borrower, Pinner, Threaded, Timer
from tests.unit.fakes import fails
from vfsfuse.testing import Bench, BenchError, BenchTimeout, ModelFailed

PAGE = 4096
IOVA = 0x10000


def copy(bench: Bench[Copier], source: int, target: int, size: int) -> None:
    bench["SOURCE"], bench["TARGET"], bench["SIZE"] = source, target, size
    bench["COMMAND"] = COPY


# ---- registers ----


def test_registers_have_names_wherever_they_are() -> None:
    with Bench(Timer) as bench:
        assert (bench["COUNT"], bench["BAR0.SCRATCH"], bench["BAR1.SCRATCH"]) == (0, 7, 0)
        bench["BAR1.SCRATCH"] = 0x1122334455667788
        assert bench.read(1, 0x10, 8).hex() == "8877665544332211"
        bench["COUNT"] = 5
        assert bench["COUNT"] == 0  # it is read-only, as for a client
        assert bench["VENDOR_ID"] == bench["CONFIG.VENDOR_ID"] == 0x1234
        assert bench["DEVICE_ID"] == bench["BAR1.DEVICE_ID"] == 0
        assert bench["CONFIG.DEVICE_ID"] == 0x7131
        assert bench["CLASS_DEVICE"] == 0x0880 and bench["INTERRUPT_PIN"] == 1
        bench["CONFIG.BAR0"] = 0xFFFFFFFF
        assert bench["BAR0"] == 0xFFFFF000
        assert bench["MSI_FLAGS"] & 1 and bench["EXP_DEVCAP"] and bench["PM_CTRL"] == 8


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("SCRATCH", "SCRATCH is in several regions: write BAR0.SCRATCH or BAR1.SCRATCH"),
        ("COUNTS", "has no register 'COUNTS' (there is COUNT"),
        ("BAR3.COUNT", "has no register 'BAR3.COUNT'"),
        ("", "has no register ''"),
        (4, "has no register 4 (bench.read and bench.write take offsets)"),
    ],
)
def test_an_unknown_name_says_what_there_is(name: str, why: str) -> None:
    with Bench(Timer) as bench, pytest.raises(BenchError) as caught:
        bench[name]
    assert why in str(caught.value)


@pytest.mark.parametrize("value", [-1, 1 << 16])
def test_a_value_that_does_not_fit_is_refused(value: int) -> None:
    with Bench(Timer) as bench, pytest.raises(ValueError, match="COUNTDOWN has 2 bytes"):
        bench["COUNTDOWN"] = value


def test_regions_are_read_and_written_as_by_a_client() -> None:
    with Bench(Timer) as bench:
        assert bench.write(3, 4090, b"abcdefgh") == 6
        assert bench.read(3, 4088, 100) == b"\0\0abcdef"
        fails(errno.EINVAL, bench.read, 3, 4096, 1)
        fails(errno.EINVAL, bench.read, 2, 0, 1)
        fails(errno.EINVAL, bench.write, 99, 0, b"x")
        fails(errno.EINVAL, bench.read, 0, -1, 1)


# ---- memory ----


def test_a_device_does_dma_in_what_is_mapped() -> None:
    with Bench(Copier) as bench:
        view = bench.memory.map(IOVA, 2 * PAGE)
        bench.memory.map(IOVA + 2 * PAGE, PAGE, write=False)
        bench.memory.write(IOVA + 2 * PAGE - 2, b"abcd")
        copy(bench, IOVA + 2 * PAGE - 2, IOVA, 4)
        assert bench["STATUS"] == 0 and bytes(view[:4]) == bytes(4)  # nothing happens between two calls
        bench.settle()
        assert bench["STATUS"] == DONE and bytes(view[:4]) == b"abcd" and bench.time == 0
        assert bench.interrupts.count(0) == 1 and not bench.memory.faults
        bench["STATUS"] = DONE
        assert bench["STATUS"] == 0
        copy(bench, IOVA, IOVA + 2 * PAGE - 2, 4)
        bench.settle()
        assert bench["STATUS"] == FAULT and bench.memory.fault_count == 1
        (fault,) = bench.memory.faults
        assert (fault.iova, fault.size, fault.write) == (IOVA + 2 * PAGE - 2, 4, True)
        assert bench.memory.read(IOVA + 2 * PAGE - 2, 4) == b"abcd"


def test_what_is_unmapped_is_gone() -> None:
    with Bench(Copier) as bench:
        bench.memory.map(IOVA, PAGE)
        bench.memory.map(0, PAGE)
        assert [(each.iova, each.size) for each in bench.memory.mappings] == [(0, PAGE), (IOVA, PAGE)]
        assert bench.memory.unmap(IOVA, PAGE) == PAGE
        copy(bench, IOVA, 0, 4)
        bench.settle()
        assert bench["STATUS"] == FAULT
        with pytest.raises(BenchError, match="nothing is mapped at iova 0x10000"):
            bench.memory.read(IOVA, 1)
        with pytest.raises(BenchError, match="nothing is mapped at iova 0x1000 "):
            bench.memory.write(PAGE - 1, b"ab")
        assert bench.memory.read(PAGE - 1, 1) == b"\0"
        assert bench.memory.map(IOVA, PAGE)[0] == 0


@pytest.mark.parametrize(
    ("number", "iova", "size"),
    [
        (errno.EINVAL, 0, 0),
        (errno.EINVAL, 0, 100),
        (errno.EINVAL, 100, PAGE),
        (errno.EINVAL, -PAGE, PAGE),
        (errno.EINVAL, 2**64, PAGE),
        (errno.EINVAL, 0, -PAGE),
        (errno.EOVERFLOW, 2**64 - PAGE, 2 * PAGE),
        (errno.EEXIST, IOVA, PAGE),
    ],
)
def test_mappings_follow_the_rules_of_type1(number: int, iova: int, size: int) -> None:
    with Bench(Copier) as bench:
        bench.memory.map(IOVA, PAGE)
        fails(number, bench.memory.map, iova, size)
        assert len(bench.memory.mappings) == 1


def test_a_mapping_without_permissions_is_refused_and_one_is_not_cut() -> None:
    with Bench(Copier) as bench:
        fails(errno.EINVAL, bench.memory.map, IOVA, PAGE, read=False, write=False)
        bench.memory.map(IOVA, 2 * PAGE, read=False)
        assert bench.memory.mappings[0].prot == Prot.WRITE
        fails(errno.EINVAL, bench.memory.unmap, IOVA, PAGE)
        assert bench.memory.unmap(0, PAGE) == 0


def test_a_device_that_is_no_bus_master_reaches_nothing() -> None:
    with Bench(Copier, bus_master=False) as bench:
        bench.memory.map(IOVA, PAGE)
        copy(bench, IOVA, IOVA, 4)
        bench.settle()
        assert bench["STATUS"] == FAULT and bench.memory.fault_count == 1 and not bench.memory.faults
        bench["CONFIG.COMMAND"] |= 4
        copy(bench, IOVA, IOVA, 4)
        bench.settle()
        assert bench["STATUS"] == DONE | FAULT


def test_pins_are_held_until_the_unmap() -> None:
    with Bench(Pinner) as bench:
        bench.memory.map(IOVA, 2 * PAGE)
        bench["PIN"] = IOVA + PAGE
        bench.settle()
        bench["POKE"] = 0x5A
        bench.settle()
        assert bench.memory.pinned_pages == 1 and bench.memory.read(IOVA + PAGE + 8, 1) == b"\x5a"
        assert bench.memory.unmap(IOVA, 2 * PAGE) == 2 * PAGE
        assert bench.memory.pinned_pages == 0


def test_a_model_that_does_not_unpin_is_told() -> None:
    with Bench(Pinner) as bench:
        bench.memory.map(IOVA, PAGE)
        bench["PIN"], bench["STUBBORN"] = IOVA, 1
        bench.settle()
        with pytest.raises(StillPinned, match="does not unpin iova 0x10000"):
            bench.memory.unmap(IOVA, PAGE)
        bench["STUBBORN"] = 0
        assert bench.memory.unmap(IOVA, PAGE) == PAGE


# ---- interrupts ----


def test_messages_are_recorded_with_their_time() -> None:
    with Bench(Timer) as bench:
        assert bench.interrupts.kind is PciIrq.MSI
        bench["COUNTDOWN"], bench["PERIOD_MS"] = 3, 300
        came = bench.wait_interrupt(1, timeout=1.5)
        assert came.vector == 1 and came.kind is PciIrq.MSI and came.time == pytest.approx(1.0)
        assert [round(each.time, 3) for each in bench.interrupts.log if each.vector == 0] == [0.3, 0.6, 0.9]
        assert [bench.wait_interrupt(0).time for _ in range(3)] == pytest.approx([0.3, 0.6, 0.9])
        assert bench.time == pytest.approx(1.0)
        with pytest.raises(BenchTimeout, match=r"MSI 0 has not come in 1 s of virtual time \(interrupts so"):
            bench.wait_interrupt(0)
        assert bench.interrupts.count(0) == 3 and bench.interrupts.count(1) == 2
        bench.interrupts.clear()
        assert bench.interrupts.count(0) == 0 and str(bench.interrupts) == "none"


def test_intx_is_a_level_that_masks_itself() -> None:
    with Bench(Copier, interrupts="INTX") as bench:
        bench.memory.map(IOVA, PAGE)
        copy(bench, IOVA, IOVA, 4)
        assert bench.wait_interrupt().kind is PciIrq.INTX
        assert bench.interrupts.asserted
        copy(bench, IOVA, IOVA, 4)
        bench.settle()
        assert bench.interrupts.count() == 1
        bench.interrupts.unmask()
        assert bench.interrupts.count() == 2  # nobody has cleared STATUS
        bench["STATUS"] = DONE
        bench.interrupts.unmask()
        assert bench.interrupts.count() == 2 and not bench.interrupts.asserted


def test_a_client_chooses_its_interrupts() -> None:
    with Bench(Copier, interrupts=None) as bench:
        assert [bench.interrupts.kind] == [None]
        bench.memory.map(IOVA, PAGE)
        copy(bench, IOVA, IOVA, 4)
        bench.settle()
        assert bench.interrupts.asserted and not bench.interrupts.log
        with pytest.raises(BenchError, match="no interrupts are set up"):
            bench.wait_interrupt()
        bench.interrupts.use("INTX")
        assert bench.interrupts.count() == 1  # the line is asserted still
        bench.interrupts.use("msix", 1)
        copy(bench, IOVA, IOVA, 4)
        bench.settle()
        assert bench.interrupts.kind == PciIrq.MSIX and bench.interrupts.count(0, "MSIX") == 1
        bench.interrupts.use(None)
        assert [bench.interrupts.kind] == [None]
        for kind, count, why in (
            ("MSI", None, "0 vectors of MSI"),
            ("MSIX", 3, "2 vectors"),
            ("REQ", 1, "REQ"),
        ):
            with pytest.raises(BenchError, match=why):
                bench.interrupts.use(kind, count)
        with pytest.raises(BenchError, match="'IRQ' is no kind of interrupt"):
            bench.interrupts.count(0, "IRQ")


def test_a_device_without_the_interrupts_that_are_asked_for() -> None:
    with pytest.raises(BenchError, match=r"has no MSI$"):
        Bench(Copier, interrupts="MSI")


def test_a_client_rings_a_doorbell() -> None:
    with Bench(Copier, kind="function") as bench:
        bench.memory.map(IOVA, PAGE)
        bench["SOURCE"], bench["TARGET"], bench["SIZE"] = IOVA, IOVA + 8, 4
        doorbell = bench.ioeventfd("COMMAND", COPY)
        assert not bench.interrupts.log
        for count in (1, 2):
            doorbell.signal()
            bench.settle()
            assert bench.interrupts.count(0) == count
        fails(errno.EEXIST, bench.ioeventfd, "COMMAND", COPY)
        fails(errno.EINVAL, bench.ioeventfd, "CONFIG.COMMAND", 0)
        doorbell.remove()
        doorbell.signal()
        fails(errno.ENODEV, doorbell.remove)
        other = bench.ioeventfd("COMMAND", COPY)
        bench.close_device()
        bench.open_device()
        other.signal()
        bench.settle()
        assert bench.interrupts.count(0) == 2
    with Bench(Copier) as bench:
        fails(errno.ENOTTY, bench.ioeventfd, "COMMAND", COPY)


# ---- time ----


def ticks(seconds: float, steps: int) -> tuple[int, float, list[str]]:
    with Bench(Timer) as bench:
        for _ in range(steps):
            bench.advance(seconds / steps)
        return bench["COUNT"], bench.time, list(map(str, bench.interrupts.log))


def test_time_passes_when_the_test_says_so() -> None:
    with Bench(Timer) as bench:
        bench.settle()
        assert bench["COUNT"] == 0 and bench.time == 0
        bench.advance(TICK / 2)
        assert bench["COUNT"] == 0
        bench.advance(TICK / 2)
        assert bench["COUNT"] == 1
        bench.advance(600)
        assert bench["COUNT"] == 6001 and bench.interrupts.count(1) == 600


@pytest.mark.parametrize("steps", [1, 3, 10, 100])
def test_the_same_calls_have_the_same_results(steps: int) -> None:
    first = ticks(1.0, steps)
    assert first[0] == 10 and first[1] == pytest.approx(1.0) and len(first[2]) == 1
    assert all(ticks(1.0, steps) == first for _ in range(5))


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_time_that_cannot_pass(seconds: float) -> None:
    with Bench(Timer) as bench:
        with pytest.raises(ValueError, match="cannot pass"):
            bench.advance(seconds)
        with pytest.raises(ValueError, match="cannot pass"):
            bench.wait(lambda: True, seconds)


def test_a_condition_is_waited_for() -> None:
    with Bench(Timer) as bench:
        bench.wait(lambda: bench["COUNT"] == 3)
        assert bench.time == pytest.approx(3 * TICK)
        with pytest.raises(BenchTimeout, match=r"COUNT of 100 has not come in 0\.5 s"):
            bench.wait(lambda: bench["COUNT"] == 100, 0.5, "COUNT of 100")
        assert bench.time == pytest.approx(8 * TICK)


def test_time_does_not_run_ahead_of_the_threads_of_tasks() -> None:
    """And a thread that waits for virtual time does not keep it from passing."""
    with Bench(Borrower) as bench:
        for seconds in (1, 2, 2, 5):
            bench["ASK"] = seconds
        seen = []
        for _ in range(6):
            bench.advance(1)
            seen.append(bench["DONE"])
        assert seen == [1, 3, 3, 3, 4, 4]


def test_threads_of_a_model_have_real_time() -> None:
    with Bench(Threaded) as bench:
        for milliseconds in (0, 1, 30):
            bench["DONE"], bench["GO"] = 0, milliseconds
            bench.wait_interrupt(0, timeout=0)
            assert bench["DONE"] == 1
        bench["DONE"] = 0
        with pytest.raises(BenchTimeout):
            bench.wait(lambda: bench["DONE"])
        bench.patience = 0.5
        bench["GO"] = 2000
        with pytest.raises(BenchTimeout, match="DONE has not come"):
            bench.wait(lambda: bench["DONE"], 0.01, "DONE")


# ---- its life ----


def test_a_reset_starts_the_device_anew() -> None:
    with Bench(Timer) as bench:
        bench["COUNTDOWN"], bench["PERIOD_MS"], bench["BAR0.SCRATCH"] = 9, 100, 1
        bench.advance(0.25)
        assert (bench["COUNT"], bench["COUNTDOWN"]) == (2, 7)
        before = bench.device.stops
        bench.reset()
        assert bench.device.stops == before + 1
        assert (bench["COUNT"], bench["COUNTDOWN"], bench["BAR0.SCRATCH"]) == (0, 0, 7)
        bench.advance(0.25)
        assert bench["COUNT"] == 2 and bench.interrupts.count(0) == 2


def test_a_client_closes_and_opens_the_device() -> None:
    with Bench(Timer) as bench:
        bench.advance(0.25)
        bench.close_device()
        fails(errno.ENODEV, bench.read, 0, 0, 4)
        fails(errno.ENODEV, bench.reset)
        with pytest.raises(BenchError, match="closed the device already"):
            bench.close_device()
        with pytest.raises(BenchError, match=r"the client has closed the device \(bench.open_device"):
            bench.interrupts.use("MSI")
        bench.advance(10)
        bench.open_device()
        with pytest.raises(BenchError, match="has the device open already"):
            bench.open_device()
        assert bench["COUNT"] == 2  # a mediated device keeps its registers
        bench.advance(0.1)
        assert bench["COUNT"] == 3 and bench.interrupts.kind is PciIrq.MSI


def test_memory_stays_mapped_from_one_open_to_the_next() -> None:
    with Bench(Copier) as bench:
        bench.memory.map(IOVA, PAGE)
        bench.memory.write(IOVA, b"kept")
        bench.close_device()
        bench.open_device()
        copy(bench, IOVA, IOVA + 16, 4)
        bench.wait_interrupt()
        assert bench.memory.read(IOVA + 16, 4) == b"kept"


def test_a_device_that_vanishes() -> None:
    with Bench(Timer) as bench:
        bench.advance(0.1)
        bench.vanish()
        assert bench.interrupts.count(0, "REQ") == 1 and bench.interrupts.count(0, "ERR") == 1
        assert bench["COUNT"] == 0xFFFFFFFF
        bench.advance(1)
        assert not bench.interrupts.count(1)


def test_pages_that_a_device_asks_for() -> None:
    with Bench(Asker, kind="function") as bench:
        bench["ADDRESS"], bench["PAGES"], bench["COMMAND"] = IOVA, 2, 1
        bench.settle()
        assert bench["STATUS"] == 0 and bench.pages.waiting == ((IOVA, 2, Prot.READ | Prot.WRITE),)
        bench.memory.map(IOVA, 2 * PAGE)
        assert bench.pages.answer().iova == IOVA
        bench.settle()
        assert bench["STATUS"] == 1 and bench.memory.read(IOVA, 4) == b"\1\0\0\0"
        bench["STATUS"], bench["COMMAND"] = 0, 1
        bench.settle()
        bench.pages.answer(PageResponse.INVALID)
        bench.settle()
        assert bench["STATUS"] == 1 + PageResponse.INVALID
        with pytest.raises(BenchError, match="asks for no pages"):
            bench.pages.answer()
        bench["COMMAND"] = 1
        bench.settle()
        bench.reset()
        bench.pages.answer()
        bench.settle()
        assert bench["STATUS"] == 0, "the task that waited has ended"


def test_a_device_without_page_requests_asks_nobody() -> None:
    class Deaf(Asker):
        def extended_capabilities(self) -> list[ExtendedCapability]:
            return []

    with Bench(Deaf, kind="function") as bench:
        bench["ADDRESS"], bench["PAGES"], bench["COMMAND"] = IOVA, 1, 1
        bench.settle()
        assert bench["STATUS"] == 1 + PageResponse.INVALID and not bench.pages.waiting
        bench["PAGES"], bench["COMMAND"] = 0, 1
        with pytest.raises(ModelFailed):
            bench.settle()


def test_attributes() -> None:
    with Bench(Timer) as bench:
        bench.advance(0.2)
        assert (bench.attribute("stats/count"), bench.attribute("label")) == ("2", "none")
        bench.set_attribute("label", "a label")
        assert bench.attribute("label") == "a label" == bench.device.label
        with pytest.raises(ValueError, match="at least one character"):
            bench.set_attribute("label", "")
        with pytest.raises(BenchError, match="cannot be written"):
            bench.set_attribute("stats/count", "1")
        with pytest.raises(BenchError, match=r"no attribute 'fast' \(there is stats/count, label\)"):
            bench.attribute("fast")
    with Bench(Timer, options={"step": 2}) as bench:
        assert bench.attribute("fast") == "1"


def test_a_closed_bench_says_so() -> None:
    bench = Bench(Timer)
    bench.close()
    bench.close()
    uses: list[Callable[[], object]] = [
        bench.settle,
        bench.reset,
        lambda: bench["COUNT"],
        lambda: bench.memory.map(0, PAGE),
    ]
    for use in uses:
        with pytest.raises(BenchError, match="the bench is closed"):
            use()


def test_benches_do_not_disturb_one_another() -> None:
    with Bench(Timer) as one, Bench(Timer, options={"step": 2}) as other:
        one.advance(1)
        assert (one["COUNT"], other["COUNT"]) == (10, 0)
        other.advance(0.5)
        assert (one["COUNT"], other["COUNT"]) == (10, 10)
        assert len(one.interrupts.log) == len(other.interrupts.log) == 1


def test_nothing_is_imported_before_it_is_used() -> None:
    """The fixtures of this package are loaded by every run of pytest."""
    code = (
        "import sys, vfsfuse.testing\n"
        "assert not {name for name in sys.modules if name.split('.')[0] in ('devmodel', 'trio', 'PIL')}\n"
        "from vfsfuse.testing import Bench, ModelFailed, Physical\n"
        "assert not {name for name in sys.modules if name.split('.')[0] in ('PIL', 'pyfuse3')}\n"
        "try: vfsfuse.testing.Nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("module 'vfsfuse.testing' has no attribute 'Nothing'\n", "")


def test_a_bench_leaves_nothing_behind() -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with Bench(Copier):
        before = held()
    for kind in ("vgpu", "function"):
        for _ in range(5):
            with Bench(Copier, kind=kind) as bench:
                bench.memory.map(IOVA, PAGE)
                copy(bench, IOVA, IOVA, 4)
                bench.wait_interrupt()
    with Bench(Copier):
        # what a test before this one has left for a while may have ended by now
        assert all(now <= then for now, then in zip(held(), before, strict=True))
