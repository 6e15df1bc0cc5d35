# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom in an address space: DMA, unmaps and dirty bitmaps of clients whose memory is slow."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from devmodel.iommu.api import PAGE_SIZE, DmaFault, MustWait, Prot
from devmodel.iommu.type1 import Type1
from devmodel.vfio.container import Container
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import Kind, row_of
from ioctl_shim.processes import Processes
from tests.unit.clients import Call
from tests.unit.fakes import FakeClient, fails
from tests.unit.test_iommu import Bitmap, Driver
from vfsfuse.vfio.container import ContainerFops

RW = Prot.READ | Prot.WRITE
ROUNDS = 300


class SlowClient(FakeClient):
    """Its memory answers only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def read(self, vaddr: int, size: int) -> bytes:
        self.begun.set()
        assert self.go.wait(60)
        return super().read(vaddr, size)


class SlowBitmap(Bitmap):
    """Its memory takes what is written only when told to."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__(broken=broken)
        self.begun, self.go = threading.Event(), threading.Event()

    def write(self, offset: int, data: bytes) -> None:
        self.begun.set()
        assert self.go.wait(60)
        super().write(offset, data)


class FaultingBitmap(Bitmap):
    """Its memory ends at its second write; ``meanwhile`` is called just before."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__(32)
        self.writes, self.meanwhile = 0, meanwhile

    def write(self, offset: int, data: bytes) -> None:
        self.writes += 1
        if self.writes == 2:
            self.meanwhile()
            raise OSError(errno.EFAULT, "no memory")
        super().write(offset, data)


@pytest.fixture
def tracked() -> Type1:
    """Three mappings of 64 pages, one behind the other, all tracked, with page 1 of each dirty."""
    iommu, client = Type1(), FakeClient()
    iommu.start_tracking()
    for number in range(3):
        iommu.map(client, number * 64 * PAGE_SIZE, number * 64 * PAGE_SIZE, 64 * PAGE_SIZE, RW)
        iommu.space.dma_write((number * 64 + 1) * PAGE_SIZE, b"dirty")
    return iommu


def bits(iommu: Type1) -> list[int]:
    """The dirty pages of each of three times 64 pages, by a report."""
    bitmap = Bitmap(32)
    iommu.report_dirty(0, 192 * PAGE_SIZE, bitmap)
    return [bitmap.bits >> 64 * number & 2**64 - 1 for number in range(3)]


@pytest.fixture
def busy() -> Iterator[tuple[Type1, SlowClient]]:
    """Two pages, with a DMA under way in the first one."""
    iommu, slow = Type1(), SlowClient()
    iommu.map(slow, 0, 0, 2 * PAGE_SIZE, RW)
    dma = Call(lambda: iommu.space.dma_read(0, 64))
    assert slow.begun.wait(60)
    yield iommu, slow
    slow.go.set()
    assert dma.result() == bytes(64)


def test_a_report_that_the_client_holds_up_holds_nobody_else(tracked: Type1) -> None:
    bitmap = SlowBitmap()
    report = Call(lambda: tracked.report_dirty(0, 64 * PAGE_SIZE, bitmap))
    assert bitmap.begun.wait(60)
    tracked.space.dma_write(5 * PAGE_SIZE, b"meanwhile")
    assert tracked.space.dma_read(5 * PAGE_SIZE, 9) == b"meanwhile"
    tracked.map(FakeClient(), 2**32, 0, PAGE_SIZE, RW)
    assert tracked.unmap(2**32, PAGE_SIZE, may_wait=False) == PAGE_SIZE
    assert report.waits
    bitmap.go.set()
    report.result()
    assert bitmap.bits == 1 << 1
    assert bits(tracked) == [1 << 5, 1 << 1, 1 << 1]


def test_an_unmap_that_the_clients_bitmap_holds_up_holds_only_its_range(tracked: Type1) -> None:
    bitmap = SlowBitmap()
    unmap = Call(lambda: tracked.unmap(0, 64 * PAGE_SIZE, bitmap=bitmap))
    assert bitmap.begun.wait(60)
    tracked.space.dma_write(64 * PAGE_SIZE, b"elsewhere")
    assert tracked.unmap(128 * PAGE_SIZE, 64 * PAGE_SIZE, may_wait=False) == 64 * PAGE_SIZE
    with pytest.raises(DmaFault, match="being unmapped"):
        tracked.space.dma_write(0, b"late")
    with pytest.raises(MustWait):
        tracked.unmap(0, 64 * PAGE_SIZE, may_wait=False)
    assert unmap.waits and tracked.dma_avail == 65533
    bitmap.go.set()
    assert unmap.result() == 64 * PAGE_SIZE
    assert bitmap.bits == 1 << 1 and tracked.dma_avail == 65534


def test_what_is_mapped_in_a_hole_of_such_an_unmap_can_be_reached_at_once(tracked: Type1) -> None:
    assert tracked.unmap(64 * PAGE_SIZE, 64 * PAGE_SIZE) == 64 * PAGE_SIZE
    bitmap = SlowBitmap()
    bitmap.size = 32
    unmap = Call(lambda: tracked.unmap(0, 192 * PAGE_SIZE, bitmap=bitmap))
    assert bitmap.begun.wait(60)
    tracked.map(FakeClient(), 70 * PAGE_SIZE, 0, PAGE_SIZE, RW)
    tracked.space.dma_write(70 * PAGE_SIZE, b"new")
    for gone in (0, 128):
        with pytest.raises(DmaFault, match="being unmapped"):
            tracked.space.dma_write(gone * PAGE_SIZE, b"late")
    bitmap.go.set()
    assert unmap.result() == 128 * PAGE_SIZE
    assert tracked.space.dma_read(70 * PAGE_SIZE, 3) == b"new"


def test_what_two_unmaps_take_at_once_is_unmapped_and_counted_once(tracked: Type1) -> None:
    bitmap = SlowBitmap()
    first = Call(lambda: tracked.unmap(0, 64 * PAGE_SIZE, bitmap=bitmap))
    assert bitmap.begun.wait(60)
    assert tracked.unmap(0, 64 * PAGE_SIZE) == 64 * PAGE_SIZE
    bitmap.go.set()
    assert first.result() == 0 and bitmap.bits == 1 << 1


def test_two_reports_are_one_after_the_other(tracked: Type1) -> None:
    """What the first one has taken and cannot report is there for the second one."""
    broken, last = SlowBitmap(broken=True), Bitmap()
    first = Call(lambda: tracked.report_dirty(0, 64 * PAGE_SIZE, broken))
    assert broken.begun.wait(60)
    tracked.space.dma_write(7 * PAGE_SIZE, b"between")
    second = Call(lambda: tracked.unmap(0, 64 * PAGE_SIZE, bitmap=last))
    assert second.waits_for(0.1)
    broken.go.set()
    fails(errno.EFAULT, first.result)
    assert second.result() == 64 * PAGE_SIZE
    assert last.bits == 1 << 7 | 1 << 1


def test_a_report_that_faults_loses_no_dirty_page(tracked: Type1) -> None:
    """As with Linux: what is before the fault was reported and is clean, the rest is as it was."""
    bitmap = FaultingBitmap(lambda: tracked.space.dma_write(70 * PAGE_SIZE, b"meanwhile"))
    fails(errno.EFAULT, tracked.report_dirty, 0, 192 * PAGE_SIZE, bitmap)
    assert bitmap.bits & 2**64 - 1 == 1 << 1
    assert bits(tracked) == [0, 1 << 1 | 1 << 6, 1 << 1]
    assert bits(tracked) == [0, 0, 0]


def test_a_report_that_faults_after_tracking_has_stopped_leaves_nothing_dirty(tracked: Type1) -> None:
    fails(errno.EFAULT, tracked.report_dirty, 0, 192 * PAGE_SIZE, FaultingBitmap(tracked.stop_tracking))
    tracked.start_tracking()
    assert bits(tracked) == [0, 0, 0]


def test_an_unmap_whose_bitmap_faults_keeps_what_it_has_not_reported(tracked: Type1) -> None:
    bitmap = FaultingBitmap()
    fails(errno.EFAULT, tracked.unmap, 0, 192 * PAGE_SIZE, bitmap=bitmap)
    assert bitmap.bits & 2**64 - 1 == 1 << 1
    assert [mapping.iova for mapping in tracked.space.mappings] == [64 * PAGE_SIZE, 128 * PAGE_SIZE]
    tracked.space.dma_write(64 * PAGE_SIZE, b"as before")
    assert bits(tracked)[1:] == [1 << 0 | 1 << 1, 1 << 1]


def test_an_unmap_that_must_not_wait_says_so_and_changes_nothing(busy: tuple[Type1, SlowClient]) -> None:
    iommu, slow = busy
    driver = Driver(iommu)
    iommu.space.pin_pages(PAGE_SIZE, 1, RW)
    for size, everything in ((2 * PAGE_SIZE, False), (0, True)):
        with pytest.raises(MustWait):
            iommu.unmap(0, size, everything, may_wait=False)
    assert iommu.dma_avail == 65534 and driver.told == [] and not iommu.space.inflight.draining
    iommu.space.dma_write(128, b"goes on")
    iommu.map(FakeClient(), 2 * PAGE_SIZE, 0, PAGE_SIZE, RW)
    assert iommu.unmap(2 * PAGE_SIZE, PAGE_SIZE, may_wait=False) == PAGE_SIZE  # another range need not wait
    slow.go.set()
    assert iommu.unmap(0, 2 * PAGE_SIZE) == 2 * PAGE_SIZE and driver.told == [(0, 2 * PAGE_SIZE)]


def test_an_unmap_with_a_bitmap_must_not_run_where_nobody_may_wait(tracked: Type1) -> None:
    bitmap = Bitmap()
    with pytest.raises(MustWait):
        tracked.unmap(0, 64 * PAGE_SIZE, bitmap=bitmap, may_wait=False)
    assert bitmap.bits == 2**64 - 1 and tracked.dma_avail == 65532
    fails(errno.EINVAL, tracked.unmap, 1, 64 * PAGE_SIZE, bitmap=bitmap, may_wait=False)


class Counting(FakeClient):
    """Counts who is in its memory now."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.lock = threading.Lock()

    def read(self, vaddr: int, size: int) -> bytes:
        with self.lock:
            self.inside += 1
        data = bytes(size)
        with self.lock:
            self.inside -= 1
        return data


def test_that_it_need_not_wait_is_decided_together_with_the_unmap() -> None:
    """DMA begins all the time: an unmap that did not wait has found a moment without any."""
    iommu, client, end = Type1(), Counting(), threading.Event()

    def work() -> None:
        while not end.is_set():
            with suppress(DmaFault):
                iommu.space.dma_read(0, 64)

    workers = [Call(work) for _ in range(2)]
    done = 0
    for _ in range(ROUNDS):
        iommu.map(client, 0, 0, PAGE_SIZE, RW)
        while True:
            try:
                done += iommu.unmap(0, PAGE_SIZE, may_wait=False)
                break
            except MustWait:
                assert iommu.dma_avail == 65534
        assert client.inside == 0
    end.set()
    for worker in workers:
        worker.result()
    assert done == ROUNDS * PAGE_SIZE and not iommu.space.inflight.copying


def test_version_1_waits_for_dma_behind_the_range_that_it_goes_beyond() -> None:
    iommu, slow = Type1(v2=False), SlowClient()
    iommu.map(slow, 0, 0, 4 * PAGE_SIZE, RW)
    dma = Call(lambda: iommu.space.dma_read(3 * PAGE_SIZE, 64))
    assert slow.begun.wait(60)
    with pytest.raises(MustWait):
        iommu.unmap(0, PAGE_SIZE, may_wait=False)
    unmap = Call(lambda: iommu.unmap(0, PAGE_SIZE))
    assert unmap.waits_for(0.1)
    slow.go.set()
    assert dma.result() == bytes(64) and unmap.result() == 4 * PAGE_SIZE


def test_what_is_being_unmapped_cannot_be_pinned_any_more(busy: tuple[Type1, SlowClient]) -> None:
    iommu, slow = busy
    Driver(iommu)
    unmap = Call(lambda: iommu.unmap(0, 2 * PAGE_SIZE))
    while not iommu.space.inflight.draining:
        assert unmap.waits
    fails(errno.EINVAL, iommu.space.pin_pages, PAGE_SIZE, 1, RW)
    slow.go.set()
    assert unmap.result() == 2 * PAGE_SIZE


def test_the_pump_leaves_such_an_unmap_to_another_thread(busy: tuple[Type1, SlowClient]) -> None:
    iommu, slow = busy
    container = Container()
    container.iommu = iommu
    file = ContainerFops(container, Processes(lambda: -1))
    row = row_of(Kind.CONTAINER, "VFIO_IOMMU_UNMAP_DMA")
    asked = ffi.new("struct vfio_iommu_type1_dma_unmap *", (24, 0, 0, 2 * PAGE_SIZE))
    ffi.memmove(lib.lane_argument(1).data, asked, 24)
    address = int(ffi.cast("uintptr_t", asked))
    assert file.ioctl(row.cmd, address, os.getpid(), on_pump=1) is None
    assert iommu.dma_avail == 65534
    slow.go.set()
    assert file.ioctl(row.cmd, address, os.getpid(), on_pump=0) == 0
    assert asked.size == 2 * PAGE_SIZE and iommu.dma_avail == 65535
