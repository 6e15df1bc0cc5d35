# SPDX-License-Identifier: Apache-2.0
"""The type1 database against a dictionary of pages, and its errnos."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.client import Client
from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import PAGE_SIZE, DmaFault, Fault, Prot
from devmodel.iommu.dirty import CHUNK, DirtyPages, bitmap_bytes
from devmodel.iommu.segments import segments_of
from devmodel.iommu.space import StillPinned
from devmodel.iommu.type1 import Type1
from tests.unit.fakes import TOP, FakeClient, fails

RW = Prot.READ | Prot.WRITE


@pytest.fixture(params=[True, False], ids=["v2", "v1"])
def iommu(request: pytest.FixtureRequest) -> Type1:
    return Type1(v2=bool(request.param))


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def behind(iommu: Type1, iova: int, size: int) -> list[tuple[Client, int, int, Prot]]:
    """(client, vaddr, size, protection) of the memory behind a range that has no hole."""
    segments = segments_of(iommu.space.mappings, iova, size)
    assert segments is not None
    return [
        (one.mapping.client, one.mapping.vaddr + one.offset, one.size, one.mapping.prot) for one in segments
    ]


@pytest.mark.parametrize(
    ("iova", "vaddr", "size", "prot", "number"),
    [
        (0, 0, 0, RW, errno.EINVAL),
        (0, 0, 100, RW, errno.EINVAL),
        (1, 0, PAGE_SIZE, RW, errno.EINVAL),
        (0, 1, PAGE_SIZE, RW, errno.EINVAL),
        (0, 0, PAGE_SIZE, Prot(0), errno.EINVAL),
        (TOP - PAGE_SIZE, 0, 2 * PAGE_SIZE, RW, errno.EOVERFLOW),
        (0, TOP - PAGE_SIZE, 2 * PAGE_SIZE, RW, errno.EOVERFLOW),
        (0x5000, 0, PAGE_SIZE, RW, errno.EEXIST),
        (0x3000, 0, 0x3000, RW, errno.EEXIST),
        (0x4000, 0, 0x1000, RW, errno.EEXIST),
        (0x0000, 0, 0x10000, RW, errno.EEXIST),
    ],
)
def test_map_errors_leave_everything_as_it_was(
    iommu: Type1, client: FakeClient, iova: int, vaddr: int, size: int, prot: Prot, number: int
) -> None:
    iommu.map(client, 0x4000, 0x9000, 0x2000, RW)
    fails(number, iommu.map, client, iova, vaddr, size, prot)
    assert iommu.dma_avail == 65534
    assert behind(iommu, 0x4000, 0x2000) == [(client, 0x9000, 0x2000, RW)]


def test_the_last_page_of_the_address_space_can_be_mapped(iommu: Type1, client: FakeClient) -> None:
    iommu.map(client, TOP - PAGE_SIZE, TOP - PAGE_SIZE, PAGE_SIZE, RW)
    assert iommu.unmap(TOP - PAGE_SIZE, PAGE_SIZE) == PAGE_SIZE


def test_the_limit_is_enospc_and_an_unmap_gives_room(client: FakeClient) -> None:
    iommu = Type1(limit=2)
    iommu.map(client, 0, 0, PAGE_SIZE, RW)
    iommu.map(client, 0x1000, 0, PAGE_SIZE, RW)
    fails(errno.ENOSPC, iommu.map, client, 0x2000, 0, PAGE_SIZE, RW)
    fails(errno.EEXIST, iommu.map, client, 0x1000, 0, PAGE_SIZE, RW)
    iommu.unmap(0, PAGE_SIZE)
    iommu.map(client, 0x2000, 0, PAGE_SIZE, RW)


@pytest.mark.parametrize(
    ("iova", "size", "number"),
    [
        (0, 0, errno.EINVAL),
        (0, 5, errno.EINVAL),
        (5, PAGE_SIZE, errno.EINVAL),
        (TOP - PAGE_SIZE, 2 * PAGE_SIZE, errno.EOVERFLOW),
    ],
)
def test_unmap_errors(iommu: Type1, iova: int, size: int, number: int) -> None:
    fails(number, iommu.unmap, iova, size)


def test_unmapping_nothing_is_no_error(iommu: Type1) -> None:
    assert iommu.unmap(0, 0x10000) == 0


def test_v2_never_splits(client: FakeClient) -> None:
    iommu = Type1(v2=True)
    iommu.map(client, 0x2000, 0, 0x4000, RW)
    for iova, size in [(0x3000, 0x1000), (0x2000, 0x1000), (0x5000, 0x4000), (0x0000, 0x3000)]:
        fails(errno.EINVAL, iommu.unmap, iova, size)
    assert iommu.unmap(0x1000, 0x10000) == 0x4000


def test_v1_takes_whole_mappings_that_start_in_the_range(client: FakeClient) -> None:
    iommu = Type1(v2=False)
    iommu.map(client, 0x2000, 0, 0x4000, RW)
    iommu.map(client, 0x8000, 0, 0x1000, RW)
    assert iommu.unmap(0x3000, 0x10000) == 0
    assert iommu.unmap(0x0000, 0x3000) == 0x4000
    assert iommu.unmap(0x0000, 0x10000) == 0x1000


def test_unmap_all_takes_no_range(iommu: Type1, client: FakeClient) -> None:
    for page in range(5):
        iommu.map(client, page * 0x2000, 0, PAGE_SIZE, RW)
    fails(errno.EINVAL, iommu.unmap, 0, PAGE_SIZE, all=True)
    fails(errno.EINVAL, iommu.unmap, PAGE_SIZE, 0, all=True)
    assert iommu.unmap(0, 0, all=True) == 5 * PAGE_SIZE
    assert iommu.unmap(0, 0, all=True) == 0
    assert iommu.dma_avail == 65535


def test_dma_crosses_mappings_and_clients(iommu: Type1) -> None:
    first, second = FakeClient(1), FakeClient(2)
    iommu.map(first, 0x1000, 0xA000, PAGE_SIZE, RW)
    iommu.map(second, 0x2000, 0xB000, PAGE_SIZE, RW)
    iommu.space.dma_write(0x1FFE, b"abcd")
    assert first.read(0xAFFE, 2) == b"ab" and second.read(0xB000, 2) == b"cd"
    assert iommu.space.dma_read(0x1FFD, 6) == b"\0abcd\0"


def test_dma_respects_protection_and_writes_nothing_when_refused(iommu: Type1, client: FakeClient) -> None:
    iommu.map(client, 0x1000, 0xA000, PAGE_SIZE, RW)
    iommu.map(client, 0x2000, 0xB000, PAGE_SIZE, Prot.READ)
    iommu.map(client, 0x3000, 0xC000, PAGE_SIZE, Prot.WRITE)
    fails(errno.EFAULT, iommu.space.dma_write, 0x1FFE, b"abcd")
    fails(errno.EFAULT, iommu.space.dma_read, 0x2FFE, 4)
    fails(errno.EFAULT, iommu.space.dma_write, 0x3FFE, b"abcd")
    assert client.bytes == {}


def test_dma_across_a_hole_is_refused_whole(iommu: Type1, client: FakeClient) -> None:
    iommu.map(client, 0x1000, 0xA000, PAGE_SIZE, RW)
    iommu.map(client, 0x3000, 0xB000, PAGE_SIZE, RW)
    for iova in (0x0FFE, 0x1FFE, 0x2800, 0x3FFE):
        fails(errno.EFAULT, iommu.space.dma_write, iova, bytes(0x1004))
        fails(errno.EFAULT, iommu.space.dma_read, iova, 0x1004)
    assert client.bytes == {}


def test_dma_to_memory_that_is_not_there_is_the_clients_errno(iommu: Type1) -> None:
    small = FakeClient(limit=0x1000)
    iommu.map(small, 0, 0x8000, PAGE_SIZE, RW)
    fails(errno.EFAULT, iommu.space.dma_read, 0, 4)


def test_an_absurd_dma_is_refused_before_anything_is_allocated(iommu: Type1, client: FakeClient) -> None:
    iommu.map(client, 0, 0, PAGE_SIZE, RW)
    fails(errno.EFAULT, iommu.space.dma_read, 0, 2**62)


def test_sixty_five_thousand_mappings(client: FakeClient) -> None:
    iommu = Type1()
    for number in range(65535):
        iommu.map(client, number * 0x3000, number * PAGE_SIZE, PAGE_SIZE, RW)
    assert iommu.dma_avail == 0
    assert behind(iommu, 40000 * 0x3000 + 8, 4) == [(client, 40000 * PAGE_SIZE + 8, 4, RW)]
    fails(errno.EFAULT, iommu.space.dma_read, 40000 * 0x3000 + PAGE_SIZE, 4)
    assert iommu.unmap(0, 65535 * 0x3000) == 65535 * PAGE_SIZE


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
)
def test_whatever_a_client_asks_gets_an_errno_or_a_mapping(
    iova: int, vaddr: int, size: int, flags: int
) -> None:
    iommu, client = Type1(), FakeClient()
    try:
        iommu.map(client, iova, vaddr, size, Prot(flags & 3))
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.EOVERFLOW)
    else:
        assert iommu.unmap(iova, size) == size


class Group:
    """An IOMMU group of either kind."""

    def __init__(self, number: int = 1, emulated: bool = False) -> None:
        self.number, self.emulated = number, emulated


class Driver:
    """A mediated device that lets go of what it pinned when it is told, unless it is ``stubborn``."""

    def __init__(self, iommu: Type1, stubborn: bool = False) -> None:
        self.iommu, self.stubborn = iommu, stubborn
        self.told: list[tuple[int, int]] = []
        iommu.attach(Group(9, emulated=True))
        iommu.space.register(self)

    def dma_unmap(self, iova: int, size: int) -> None:
        assert not self.iommu.space.lock.locked()
        self.told.append((iova, size))
        if not self.stubborn:
            self.iommu.space.unpin_pages(iova, size // PAGE_SIZE)


class Bitmap:
    """A client's dirty bitmap."""

    def __init__(self, size: int = 8, pgsize: int = PAGE_SIZE, broken: bool = False) -> None:
        self.size, self.pgsize, self.broken = size, pgsize, broken
        self.data = bytearray(b"\xff" * size)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        if self.broken:
            raise OSError(errno.EFAULT, "no memory")
        assert offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data

    @property
    def bits(self) -> int:
        return int.from_bytes(self.data, "little")


def test_a_refused_dma_is_recorded(client: FakeClient) -> None:
    iommu = Type1()
    with pytest.raises(DmaFault, match="write of 0x4 bytes at iova 0x1000: not mapped") as caught:
        iommu.space.dma_write(0x1000, b"abcd")
    assert caught.value.fault == Fault(0x1000, 4, True, "not mapped")
    assert list(iommu.space.inflight.faults) == [caught.value.fault] and iommu.space.inflight.fault_count == 1
    for _ in range(100):
        fails(errno.EFAULT, iommu.space.dma_read, 0, 2**40)
    assert iommu.space.inflight.fault_count == 101 and len(iommu.space.inflight.faults) == 64


def test_dma_of_nothing_is_nothing(client: FakeClient) -> None:
    iommu = Type1()
    assert iommu.space.dma_read(0, 0) == b""
    iommu.space.dma_write(0, b"")
    assert not iommu.space.inflight.fault_count


def test_dma_fills_a_buffer_of_the_models_own(client: FakeClient) -> None:
    iommu = Type1()
    iommu.map(client, 0, 0, 2 * PAGE_SIZE, RW)
    iommu.space.dma_write(PAGE_SIZE - 2, b"abcd")
    buffer = bytearray(6)
    iommu.space.dma_rw(PAGE_SIZE - 2, memoryview(buffer)[1:5], write=False)
    assert buffer == b"\0abcd\0"


def test_pinning_is_accounted_over_all_containers_and_refused_over_the_limit() -> None:
    locked, client = LockedMemory(), FakeClient(memlock=4 * PAGE_SIZE)
    first, second = Type1(locked=locked), Type1(locked=locked)
    for number, iommu in enumerate((first, second)):
        iommu.attach(Group(number))
    first.map(client, 0, 0, 3 * PAGE_SIZE, RW)
    fails(errno.ENOMEM, second.map, client, 0, 0, 2 * PAGE_SIZE, RW)
    assert second.dma_avail == 65535 and locked.of(client) == 3
    second.map(client, 0, 0, PAGE_SIZE, RW)
    second.map(FakeClient(2, memlock=0, privileged=True), PAGE_SIZE, 0, 64 * PAGE_SIZE, RW)
    assert first.unmap(0, 3 * PAGE_SIZE) == 3 * PAGE_SIZE and locked.of(client) == 1
    second.close()
    assert locked.of(client) == 0


def test_attaching_a_physical_function_later_pins_what_is_mapped() -> None:
    locked, client = LockedMemory(), FakeClient(memlock=4 * PAGE_SIZE)
    iommu = Type1(locked=locked)
    driver = Driver(iommu)
    iommu.map(client, 0, 0, 3 * PAGE_SIZE, RW)
    iommu.map(client, 0x10000, 0, 2 * PAGE_SIZE, RW)
    iommu.space.pin_pages(0, 2, RW)
    assert locked.of(client) == 2
    fails(errno.ENOMEM, iommu.attach, Group(1))
    assert locked.of(client) == 2 and not iommu.iova_ranges
    iommu.unmap(0x10000, 2 * PAGE_SIZE)
    iommu.attach(Group(1))
    assert locked.of(client) == 3 and list(iommu.iova_ranges)
    fails(errno.ENOMEM, iommu.map, client, 0x10000, 0, 2 * PAGE_SIZE, RW)
    iommu.detach(Group(1))
    assert locked.of(client) == 2 and not iommu.iova_ranges
    iommu.space.unregister(driver)
    iommu.detach(Group(9))
    assert locked.of(client) == 0 and iommu.dma_avail == 65535


def test_memory_that_cannot_be_pinned_refuses_the_group_and_the_mapping() -> None:
    iommu, small = Type1(), FakeClient(limit=PAGE_SIZE)
    iommu.map(small, 0, 0x8000, PAGE_SIZE, RW)
    fails(errno.EFAULT, iommu.attach, Group())
    iommu.unmap(0, PAGE_SIZE)
    iommu.attach(Group())
    fails(errno.EINVAL, iommu.attach, Group())
    fails(errno.EFAULT, iommu.map, small, 0, 0x8000, PAGE_SIZE, RW)
    fails(errno.EINVAL, iommu.map, small, 0xFEE00000, 0, PAGE_SIZE, RW)
    assert iommu.dma_avail == 65535 and iommu.space.locked.of(small) == 0


def test_memory_that_ends_before_the_limit_does_is_efault() -> None:
    """As with the kernel, which pins page by page."""
    client = FakeClient(limit=16 * PAGE_SIZE, memlock=4 * PAGE_SIZE)
    iommu = Type1()
    iommu.attach(Group())
    iommu.map(client, 0, 0, PAGE_SIZE, RW)
    fails(errno.EFAULT, iommu.map, client, 2**20, 13 * PAGE_SIZE, 64 * PAGE_SIZE, RW)
    fails(errno.ENOMEM, iommu.map, client, 2**20, 12 * PAGE_SIZE, 64 * PAGE_SIZE, RW)
    fails(errno.ENOMEM, iommu.map, client, 2**20, 12 * PAGE_SIZE, 4 * PAGE_SIZE, RW)
    iommu.map(client, 2**20, 12 * PAGE_SIZE, 3 * PAGE_SIZE, RW)
    assert iommu.space.locked.of(client) == 4


def test_pin_pages_preconditions(client: FakeClient) -> None:
    iommu = Type1()
    fails(errno.EINVAL, iommu.space.register, object())
    iommu.map(client, 0, 0, 4 * PAGE_SIZE, Prot.READ)
    fails(errno.EINVAL, iommu.space.pin_pages, 0, 1, Prot.READ)
    Driver(iommu)
    fails(errno.E2BIG, iommu.space.pin_pages, 0, 513, Prot.READ)
    fails(errno.EINVAL, iommu.space.pin_pages, 0, 0, Prot.READ)
    fails(errno.EINVAL, iommu.space.pin_pages, 1, 1, Prot.READ)
    fails(errno.EINVAL, iommu.space.pin_pages, 0, 5, Prot.READ)
    fails(errno.EPERM, iommu.space.pin_pages, 0, 1, RW)
    v1 = Type1(v2=False)
    fails(errno.EACCES, v1.space.pin_pages, 0, 1, Prot.READ)


def test_an_unmap_asks_for_pinned_pages_first(client: FakeClient) -> None:
    iommu = Type1()
    driver = Driver(iommu)
    iommu.map(client, 0, 0x8000, 4 * PAGE_SIZE, RW)
    pin = iommu.space.pin_pages(PAGE_SIZE, 2, RW)
    pin.write(PAGE_SIZE - 1, b"ab")
    assert pin.read(PAGE_SIZE - 1, 2) == b"ab" == client.read(0x8000 + 2 * PAGE_SIZE - 1, 2)
    assert iommu.unmap(0, 4 * PAGE_SIZE) == 4 * PAGE_SIZE
    assert driver.told == [(0, 4 * PAGE_SIZE)]
    for call in (lambda: pin.read(0, 1), lambda: pin.write(0, b"x")):
        fails(errno.EFAULT, call)


def test_a_device_that_does_not_let_go_is_a_bug_and_keeps_its_pages(client: FakeClient) -> None:
    iommu = Type1()
    driver = Driver(iommu, stubborn=True)
    iommu.map(client, 0, 0, PAGE_SIZE, RW)
    pin = iommu.space.pin_pages(0, 1, Prot.READ)
    with pytest.raises(StillPinned):
        iommu.unmap(0, PAGE_SIZE)
    assert len(driver.told) == 10 and iommu.dma_avail == 65534
    assert pin.read(0, 1) == b"\0"
    fails(errno.EFAULT, pin.write, 0, b"x")
    fails(errno.EFAULT, pin.read, 0, PAGE_SIZE + 1)


def test_a_pin_that_fails_half_way_leaves_nothing_pinned() -> None:
    locked = LockedMemory()
    iommu = Type1(locked=locked)
    Driver(iommu)
    roomy, poor = FakeClient(1), FakeClient(2, memlock=0)
    iommu.map(roomy, 0, 0, PAGE_SIZE, RW)
    iommu.map(poor, PAGE_SIZE, 0, PAGE_SIZE, RW)
    fails(errno.ENOMEM, iommu.space.pin_pages, 0, 2, RW)
    assert locked.of(roomy) == locked.of(poor) == 0
    iommu.unmap(0, 2 * PAGE_SIZE)


def test_vaddrs_move_between_processes() -> None:
    locked, old, new = LockedMemory(), FakeClient(1), FakeClient(2, memlock=PAGE_SIZE)
    iommu = Type1(locked=locked)
    iommu.attach(Group())
    iommu.map(old, 0, 0, PAGE_SIZE, RW)
    iommu.map(old, 0x4000, 0, 2 * PAGE_SIZE, RW)
    assert iommu.invalidate_vaddr(0, 0, all=True) == 3 * PAGE_SIZE
    fails(errno.EINVAL, iommu.invalidate_vaddr, 0, PAGE_SIZE)
    fails(errno.EBUSY, iommu.attach, Group(2))
    iommu.update_vaddr(new, 0, 0x7000, PAGE_SIZE)
    fails(errno.ENOMEM, iommu.update_vaddr, new, 0x4000, 0, 2 * PAGE_SIZE)
    assert (locked.of(old), locked.of(new)) == (2, 1)
    iommu.space.dma_write(0, b"moved")
    assert new.read(0x7000, 5) == b"moved"
    assert iommu.unmap(0, 0, all=True) == 3 * PAGE_SIZE
    iommu.attach(Group(2))


def test_dirty_pages_are_those_a_device_wrote(client: FakeClient) -> None:
    iommu = Type1()
    iommu.map(client, 0x10000, 0, 70 * PAGE_SIZE, RW)
    iommu.map(client, 0x10000 + 75 * PAGE_SIZE, 0, 5 * PAGE_SIZE, RW)
    iommu.space.dma_write(0x10000, b"before")
    iommu.start_tracking()
    iommu.space.dma_write(0x10000 + 2 * PAGE_SIZE - 1, b"ab")
    iommu.space.dma_write(0x10000 + 76 * PAGE_SIZE, b"c")
    iommu.space.dma_read(0x10000 + 5 * PAGE_SIZE, 9)
    bitmap = Bitmap(16)
    iommu.report_dirty(0x10000, 80 * PAGE_SIZE, bitmap)
    # the hole between them keeps what the client had there, but for the rest of the first mapping's last word
    assert bitmap.bits & ((1 << 64) - 1) == 0b110
    assert bitmap.bits >> 75 & 0b11111 == 0b10 and bitmap.bits >> 80 == 0
    again = Bitmap(16)
    iommu.report_dirty(0x10000, 80 * PAGE_SIZE, again)
    assert again.bits & ((1 << 64) - 1) == 0
    iommu.space.dma_write(0x10000, b"x")
    fails(errno.EFAULT, iommu.unmap, 0x10000, 70 * PAGE_SIZE, bitmap=Bitmap(16, broken=True))
    last = Bitmap(16)
    assert iommu.unmap(0x10000, 70 * PAGE_SIZE, bitmap=last) == 70 * PAGE_SIZE
    assert last.bits == 1


def reported(iommu: Type1, pages: int) -> int:
    """The dirty bits of the first pages."""
    bitmap = Bitmap(bitmap_bytes(pages))
    iommu.report_dirty(0, pages * PAGE_SIZE, bitmap)
    return bitmap.bits


def test_all_that_is_pinned_for_a_physical_function_is_dirty_each_time(client: FakeClient) -> None:
    iommu = Type1()
    Driver(iommu)
    iommu.attach(Group(2))
    iommu.map(client, 0, 0, 70 * PAGE_SIZE, RW)
    iommu.start_tracking()
    for _ in range(2):
        assert reported(iommu, 70) == (1 << 70) - 1
    iommu.detach(Group(2))
    assert reported(iommu, 70) == (1 << 70) - 1  # what it wrote before it left
    assert reported(iommu, 70) == 0
    iommu.attach(Group(2))
    bitmap = Bitmap(16)
    assert iommu.unmap(0, 70 * PAGE_SIZE, bitmap=bitmap) == 70 * PAGE_SIZE
    assert bitmap.bits == (1 << 70) - 1


def test_a_physical_function_that_could_not_be_attached_makes_nothing_dirty() -> None:
    client, iommu = FakeClient(memlock=PAGE_SIZE), Type1()
    Driver(iommu)
    for iova in (0, PAGE_SIZE):
        iommu.map(client, iova, 0, PAGE_SIZE, RW)
    iommu.start_tracking()
    fails(errno.ENOMEM, iommu.attach, Group(2))
    assert reported(iommu, 2) == 0


def test_pages_that_a_mediated_device_holds_are_dirty_each_time(client: FakeClient) -> None:
    iommu = Type1()
    Driver(iommu)
    iommu.map(client, 0, 0, 8 * PAGE_SIZE, RW)
    early = iommu.space.pin_pages(0, 1, RW)
    iommu.start_tracking()
    late = iommu.space.pin_pages(2 * PAGE_SIZE, 2, Prot.READ)
    for _ in range(2):
        assert reported(iommu, 8) == 0b1101
    early.release()
    late.release()
    assert reported(iommu, 8) == 0b1101  # written before they were unpinned, perhaps
    assert reported(iommu, 8) == 0
    iommu.start_tracking()
    iommu.space.pin_pages(0, 1, RW)
    bitmap = Bitmap()
    assert iommu.unmap(0, 8 * PAGE_SIZE, bitmap=bitmap) == 8 * PAGE_SIZE
    assert bitmap.bits == 1


def test_a_report_that_faults_leaves_whole_mappings_and_pinned_pages_dirty(client: FakeClient) -> None:
    iommu = Type1()
    Driver(iommu)
    iommu.map(client, 0, 0, 8 * PAGE_SIZE, RW)
    iommu.space.pin_pages(0, 1, RW)
    iommu.start_tracking()
    iommu.space.dma_write(PAGE_SIZE, b"x")
    fails(errno.EFAULT, iommu.report_dirty, 0, 8 * PAGE_SIZE, Bitmap(broken=True))
    assert reported(iommu, 8) == 0b11
    iommu.attach(Group(2))
    fails(errno.EFAULT, iommu.report_dirty, 0, 8 * PAGE_SIZE, Bitmap(broken=True))
    assert reported(iommu, 8) == 0xFF


def test_dirty_tracking_takes_memory_for_what_is_written_only(client: FakeClient) -> None:
    iommu = Type1()
    size = (2**31 - 1) * PAGE_SIZE
    iommu.map(client, 0, 0, size, RW)
    iommu.start_tracking()
    iommu.space.dma_write(size - 1, b"x")
    fails(errno.EINVAL, iommu.map, client, 2**60, 0, size + PAGE_SIZE, RW)
    iommu.unmap(0, size)
    iommu.stop_tracking()
    iommu.map(client, 2**60, 0, size + PAGE_SIZE, RW)
    fails(errno.EINVAL, iommu.start_tracking)


@given(st.integers(1, 300), st.integers(0, 200), st.data())
def test_bits_are_put_where_they_belong(pages: int, first: int, data: st.DataObject) -> None:
    written = data.draw(st.lists(st.tuples(st.integers(0, pages - 1), st.integers(0, pages - 1)), max_size=5))
    dirty = DirtyPages(pages)
    expected = 0
    for one, other in written:
        low, high = sorted((one, other))
        dirty.mark(low, high)
        expected |= ((1 << high - low + 1) - 1) << low
    bitmap = Bitmap(bitmap_bytes(first + pages))
    dirty.copy_to(bitmap, first)
    assert bitmap.bits & ((1 << first) - 1) == (1 << first) - 1
    assert bitmap.bits >> first == expected


def test_bits_beyond_a_chunk_are_put_where_they_belong() -> None:
    pages = 3 * 8 * CHUNK + 5
    for first in (0, 3, 64, 67):
        dirty = DirtyPages(pages)
        dirty.mark(8 * CHUNK - 2, 8 * CHUNK + 1)
        dirty.mark(pages - 1, pages - 1)
        bitmap = Bitmap(bitmap_bytes(first + pages))
        dirty.copy_to(bitmap, first)
        assert bitmap.bits >> first == 0b1111 << 8 * CHUNK - 2 | 1 << pages - 1
        dirty.clear()
        dirty.copy_to(bitmap, first)
        assert bitmap.bits >> first == 0
        DirtyPages(pages, whole=True).copy_to(bitmap, first)
        assert bitmap.bits >> first == (1 << pages) - 1
