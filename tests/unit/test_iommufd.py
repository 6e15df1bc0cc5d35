# SPDX-License-Identifier: Apache-2.0
"""The rules of an IOAS."""

import errno

import pytest

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import PAGE_SIZE, MustWait, Prot
from devmodel.iommufd import ioas as ioas_module
from devmodel.iommufd.areas import Budget
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.iovas import LAST
from devmodel.iommufd.mapflags import check_map
from tests.unit.fakes import TOP, FakeClient, fails

FIXED, WRITEABLE, READABLE = 1, 2, 4
RW = WRITEABLE | READABLE
APERTURE = 2**48
MSI = (0xFEE00000, 0xFEEFFFFF)


class Attached:
    """A domain, or an access if it is ``emulated``."""

    def __init__(self, number: int, emulated: bool = False) -> None:
        self.number, self.emulated = number, emulated


class PinUser:
    """A device that is told of unmaps: ``seen`` has their ranges."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def dma_unmap(self, iova: int, size: int) -> None:
        self.seen.append((iova, size))


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def ioas() -> Ioas:
    return Ioas()


def fixed(ioas: Ioas, client: FakeClient, iova: int, length: int, va: int = 0, **more: bool) -> int:
    return ioas.map(client, FIXED | RW, va, length, iova, **more)


def chosen(ioas: Ioas, client: FakeClient, va: int, length: int) -> int:
    return ioas.map(client, RW, va, length, 0)


def mapped(ioas: Ioas) -> list[tuple[int, int]]:
    return [(one.iova, one.size) for one in ioas.space.mappings]


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ((8 | RW, 0, 0, PAGE_SIZE), errno.EOPNOTSUPP),
        ((RW, 1, 0, PAGE_SIZE), errno.EOPNOTSUPP),
        ((8, 0, LAST, LAST), errno.EOPNOTSUPP),
        ((RW, 0, LAST, PAGE_SIZE), errno.EOVERFLOW),
        ((0, 0, 0, LAST), errno.EOVERFLOW),
        ((FIXED, 0, 0, 0), errno.EINVAL),
    ],
)
def test_checks_before_the_ioas(arguments: tuple[int, int, int, int], number: int) -> None:
    fails(number, check_map, *arguments)
    check_map(RW | FIXED, 0, 0, 0)


@pytest.mark.parametrize(
    ("iova", "length", "va", "number"),
    [
        (0, 0, 0, errno.EINVAL),
        (0, 0, TOP, errno.EOVERFLOW),
        (0x4000, 0x1000, TOP - 0x1000, errno.EOVERFLOW),
        (0, LAST - 1, 0, errno.EINVAL),
        (0, LAST - PAGE_SIZE + 1, 0, errno.EINVAL),
        (TOP - 5, 6, 0, errno.EOVERFLOW),
        (0x4000, 1, 0, errno.EEXIST),
        (0x4002, 1, 0, errno.EEXIST),
        (0x3FFF, 2, 0, errno.EEXIST),
        (0, 0x10000, 0, errno.EEXIST),
    ],
)
def test_a_fixed_map_that_fails_changes_nothing(
    ioas: Ioas, client: FakeClient, iova: int, length: int, va: int, number: int
) -> None:
    fixed(ioas, client, 0x4000, 3)
    fails(number, fixed, ioas, client, iova, length, va)
    assert mapped(ioas) == [(0x4000, 3)]


def test_single_bytes(ioas: Ioas, client: FakeClient) -> None:
    assert ioas.alignment == 1 and ioas.iova_ranges() == [(0, LAST)]
    client.write(0x77, b"abc")
    assert fixed(ioas, client, TOP - 3, 3, 0x77) == TOP - 3
    assert fixed(ioas, client, TOP - 4, 1, 0x90) == TOP - 4
    assert ioas.space.dma_read(TOP - 3, 3) == b"abc"
    ioas.space.dma_write(TOP - 4, b"xyz!")
    assert client.read(0x77, 3) == b"yz!" and client.read(0x90, 1) == b"x"
    assert ioas.unmap(TOP - 4, 4) == 4
    assert mapped(ioas) == []


def test_a_mapping_without_rights(ioas: Ioas, client: FakeClient) -> None:
    ioas.map(client, FIXED, 0, PAGE_SIZE, 0)
    fails(errno.EFAULT, ioas.space.dma_read, 0, 1)
    fails(errno.EFAULT, ioas.space.dma_write, 0, b"x")
    ioas.add_domain(Attached(1))
    ioas.map(client, FIXED, 0, PAGE_SIZE, 0x1000)
    fails(errno.EFAULT, ioas.space.dma_read, 0x1000, 1)
    assert ioas.unmap(0, 0x2000) == 0x2000


def test_rights(ioas: Ioas, client: FakeClient) -> None:
    ioas.map(client, FIXED | READABLE, 0, 1, 0)
    ioas.map(client, FIXED | WRITEABLE, 0, 1, 1)
    assert [one.prot for one in ioas.space.mappings] == [Prot.READ, Prot.WRITE]


# ---- unmap ----


@pytest.mark.parametrize(
    ("iova", "length", "number"),
    [
        (LAST, 1, errno.EOVERFLOW),
        (1, LAST, errno.EOVERFLOW),
        (0, 0, errno.EINVAL),
        (TOP - 2, 3, errno.EOVERFLOW),
        (0, 0x1000, errno.ENOENT),
        (0x8000, 1, errno.ENOENT),
        (0x4001, 0x2000, errno.ENOENT),
        (0x4000, 0xFFF, errno.ENOENT),
        (0x4FFF, 1, errno.ENOENT),
    ],
)
def test_an_unmap_that_fails(ioas: Ioas, client: FakeClient, iova: int, length: int, number: int) -> None:
    fixed(ioas, client, 0x4000, PAGE_SIZE)
    fails(number, ioas.unmap, iova, length)
    assert mapped(ioas) == [(0x4000, PAGE_SIZE)]


def test_an_unmap_ends_at_a_mapping_that_it_would_split(ioas: Ioas, client: FakeClient) -> None:
    for iova in (0x1000, 0x2000, 0x8000):
        fixed(ioas, client, iova, PAGE_SIZE)
    fails(errno.ENOENT, ioas.unmap, 0, 0x8001)
    assert mapped(ioas) == [(0x8000, PAGE_SIZE)]


def test_an_unmap_gives_the_bytes_of_whole_mappings(ioas: Ioas, client: FakeClient) -> None:
    for iova in (0x1000, 0x2000, 0x8000):
        fixed(ioas, client, iova, 0x800)
    assert ioas.unmap(0, 0x5000) == 0x1000
    assert ioas.unmap(0, LAST) == 0x800
    assert ioas.unmap(0, LAST) == 0
    fails(errno.ENOENT, ioas.unmap, 0, LAST - 1)


def test_what_takes_long_is_not_done_by_a_thread_that_may_not_wait(
    ioas: Ioas, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ioas_module, "MANY", 2)
    for iova in range(3):
        fixed(ioas, client, iova, 1)
    with pytest.raises(MustWait):
        ioas.unmap(0, LAST, may_wait=False)
    with pytest.raises(MustWait):
        ioas.map(client, RW, 0, 1, 0, may_wait=False)
    assert chosen(ioas, client, 0, 1) == PAGE_SIZE
    assert ioas.map(client, RW, 0, 1, 0, may_wait=False) == PAGE_SIZE + 1
    assert ioas.unmap(PAGE_SIZE, 2) == 2
    assert ioas.unmap(1, 1, may_wait=False) == 1
    assert ioas.unmap(0, LAST, may_wait=False) == 2


@pytest.mark.parametrize("count", [7, 8, 9])
def test_very_many_are_unmapped_some_at_a_time(
    ioas: Ioas, client: FakeClient, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(ioas_module, "MANY", 4)
    for number in range(count):
        fixed(ioas, client, number * PAGE_SIZE, PAGE_SIZE)
    fails(errno.ENOENT, ioas.unmap, 0, count * PAGE_SIZE - 1)
    assert mapped(ioas) == [((count - 1) * PAGE_SIZE, PAGE_SIZE)]
    for number in range(count - 1):
        fixed(ioas, client, number * PAGE_SIZE, PAGE_SIZE)
    assert ioas.unmap(0, (count - 1) * PAGE_SIZE) == (count - 1) * PAGE_SIZE
    for number in range(count - 1):
        fixed(ioas, client, number * PAGE_SIZE, PAGE_SIZE)
    assert ioas.unmap(0, LAST) == count * PAGE_SIZE


def test_the_limit_is_of_all_address_spaces_together(client: FakeClient) -> None:
    budget = Budget(20)
    first, second = Ioas(budget=budget), Ioas(budget=budget)
    for number in range(17):
        fixed(first, client, number, 1)
    for number in range(3):
        fails(errno.ENOMEM, fixed, second, client, 0, 1)
        first.unmap(number, 1)
    assert chosen(first, client, 0, 1) == PAGE_SIZE
    first.destroyed()
    fails(errno.ENOMEM, fixed, first, client, 0, 1)
    for number in range(20):
        fixed(second, client, number, 1)
    fails(errno.ENOMEM, fixed, second, client, 20, 1)
    fails(errno.ENOMEM, chosen, second, client, 0, 1)
    fails(errno.EEXIST, fixed, second, client, 0, 1)
    assert len(mapped(second)) == 20


# ---- chosen iovas ----


@pytest.mark.parametrize(
    ("va", "length", "iova"),
    [
        (0x7F0000001000, 0x1000, 0x1000),
        (0x7F0000200000, 0x200000, 0x200000),
        (0x7F0000000000, 0x3000, 0x4000),
        (0x7F0000001300, 0x100, 0x1300),
        (0x7F0000000000, 2**30, 0x200000),
        (0, 0x1000, 0x1000),
        (0, 0x40000000, 0x200000),
        (5, 1, 0x1005),
    ],
)
def test_the_lowest_iova_is_chosen(ioas: Ioas, client: FakeClient, va: int, length: int, iova: int) -> None:
    assert chosen(ioas, client, va, length) == iova


def test_a_hole_is_used_again(ioas: Ioas, client: FakeClient) -> None:
    pages = [chosen(ioas, client, 0x10000, PAGE_SIZE) for _ in range(2000)]
    assert pages == [number * PAGE_SIZE for number in range(1, 2001)]
    for iova in (pages[1500], pages[3], pages[700]):
        ioas.unmap(iova, PAGE_SIZE)
    assert chosen(ioas, client, 0x10000, 2 * PAGE_SIZE) == 2002 * PAGE_SIZE
    found = [chosen(ioas, client, 0x10000, PAGE_SIZE) for _ in range(4)]
    assert found == [pages[3], pages[700], pages[1500], 2001 * PAGE_SIZE]


def test_where_there_is_no_hole(ioas: Ioas, client: FakeClient) -> None:
    fails(errno.EOVERFLOW, chosen, ioas, client, 0, LAST // 2)
    fixed(ioas, client, PAGE_SIZE, LAST - 3 * PAGE_SIZE)
    fails(errno.ENOSPC, chosen, ioas, client, 0, 2 * PAGE_SIZE)
    fixed(ioas, client, 0, PAGE_SIZE)
    assert len(mapped(ioas)) == 2


def test_allowed_ranges_are_for_chosen_iovas_alone(ioas: Ioas, client: FakeClient) -> None:
    ioas.allow([(0x9000, 0x9FFF), (0x3000, 0x4FFF), (0x5000, 0x5FFF)])
    assert ioas.iova_ranges() == [(0, LAST)]
    assert chosen(ioas, client, 0x4000, 0x2000) == 0x4000
    assert chosen(ioas, client, 0, 0x1000) == 0x3000
    assert chosen(ioas, client, 0, 0x1000) == 0x9000
    fails(errno.ENOSPC, chosen, ioas, client, 0, 0x1000)
    fixed(ioas, client, 0x20000, 0x1000)
    ioas.allow([])
    assert chosen(ioas, client, 0, 0x1000) == 0x1000


@pytest.mark.parametrize(
    ("ranges", "number"),
    [
        ([(5, 5)], errno.EINVAL),
        ([(6, 5)], errno.EINVAL),
        ([(0, 9), (9, 12)], errno.EINVAL),
        ([(9, 12), (0, 9)], errno.EINVAL),
        ([(0, LAST), (5, 6)], errno.EINVAL),
        ([(0, 1), MSI], errno.EADDRINUSE),
        ([(0, LAST)], errno.EADDRINUSE),
    ],
)
def test_a_wrong_list_leaves_the_old_one(
    ioas: Ioas, client: FakeClient, ranges: list[tuple[int, int]], number: int
) -> None:
    ioas.allow([(0x7000, 0x7FFF)])
    ioas.reserve("device", [MSI])
    fails(number, ioas.allow, ranges)
    assert chosen(ioas, client, 0, 0x1000) == 0x7000


# ---- reserved iovas, domains and accesses ----


def test_reserved_iovas(ioas: Ioas, client: FakeClient) -> None:
    fixed(ioas, client, 0x5000, 0x1000)
    ioas.allow([(0x20000, 0x2FFFF)])
    for used in ((0x5FFF, 0x6000), (0, LAST), (0x2FFFF, 0x30000)):
        fails(errno.EADDRINUSE, ioas.reserve, "a", [MSI, used])
    ioas.reserve("a", [(0x8000, 0x8FFF), (0x6000, 0x6FFF)])
    ioas.reserve("b", [(0x6800, 0x7FFF)])
    assert ioas.iova_ranges() == [(0, 0x5FFF), (0x9000, LAST)]
    fails(errno.EINVAL, fixed, ioas, client, 0x5000, 0x2000)
    fails(errno.EINVAL, fixed, ioas, client, 0x8FFF, 1)
    fails(errno.EEXIST, fixed, ioas, client, 0x5000, 0x1000)
    ioas.unreserve("a")
    ioas.unreserve("unknown")
    assert ioas.iova_ranges() == [(0, 0x67FF), (0x8000, LAST)]
    fixed(ioas, client, 0x6000, 0x800)
    ioas.unreserve("b")
    assert ioas.iova_ranges() == [(0, LAST)]


def test_chosen_iovas_keep_off_reserved_ones(ioas: Ioas, client: FakeClient) -> None:
    ioas.reserve("a", [(0x2000, 0x4FFF)])
    assert [chosen(ioas, client, 0, 0x1000) for _ in range(2)] == [0x1000, 0x5000]
    ioas.unreserve("a")
    assert [chosen(ioas, client, 0, 0x1000) for _ in range(2)] == [0x2000, 0x3000]


def test_a_domain_needs_whole_pages_in_its_aperture(client: FakeClient) -> None:
    for iova, length, va in ((1, PAGE_SIZE, 0), (0, 1, 0), (0, PAGE_SIZE, 1), (APERTURE, PAGE_SIZE, 0)):
        ioas = Ioas()
        fixed(ioas, client, iova, length, va)
        fails(errno.EADDRINUSE, ioas.add_domain, Attached(1))
        assert ioas.alignment == 1 and ioas.iova_ranges() == [(0, LAST)]
    ioas = Ioas()
    ioas.allow([(0, APERTURE)])
    fails(errno.EADDRINUSE, ioas.add_domain, Attached(1))
    assert ioas.alignment == 1


def test_mappings_with_a_domain(ioas: Ioas, client: FakeClient) -> None:
    first, second = Attached(1), Attached(2)
    fixed(ioas, client, 0, PAGE_SIZE)
    ioas.add_domain(first)
    ioas.add_domain(second)
    assert ioas.alignment == PAGE_SIZE and ioas.iova_ranges() == [(0, APERTURE - 1)]
    for iova, length, va in (
        (0x1001, 0x1000, 0),
        (0x1000, 0x1001, 0),
        (0x1000, 0x1000, 1),
        (APERTURE, 0x1000, 0),
        (APERTURE - PAGE_SIZE, 2 * PAGE_SIZE, 0),
    ):
        fails(errno.EINVAL, fixed, ioas, client, iova, length, va)
    fails(errno.EEXIST, fixed, ioas, client, 0, 0x1000, 1)
    fails(errno.EINVAL, chosen, ioas, client, 0x10800, 0x1000)
    fails(errno.EINVAL, chosen, ioas, client, 0x10000, 0x800)
    with pytest.raises(MustWait):
        fixed(ioas, client, 0x1000, 0x1000, may_wait=False)
    fixed(ioas, client, 0x1000, 0x1000)
    assert ioas.space.locked.of(client) == 2
    ioas.remove_domain(first)
    assert ioas.alignment == PAGE_SIZE and ioas.space.locked.of(client) == 2
    ioas.remove_domain(second)
    assert ioas.alignment == 1 and ioas.iova_ranges() == [(0, LAST)]
    assert ioas.space.locked.of(client) == 0 and len(mapped(ioas)) == 2


def test_a_domain_whose_memory_cannot_be_pinned() -> None:
    for client, number in ((FakeClient(limit=0x1000), errno.EFAULT), (FakeClient(memlock=1), errno.ENOMEM)):
        ioas, good = Ioas(), FakeClient(2)
        fixed(ioas, good, 0, PAGE_SIZE)
        fixed(ioas, client, 0x4000, PAGE_SIZE, 0x4000 if number == errno.EFAULT else 0)
        fails(number, ioas.add_domain, Attached(1))
        assert ioas.alignment == 1 and ioas.iova_ranges() == [(0, LAST)]
        assert ioas.space.locked.of(good) == 0 == ioas.space.locked.of(client)
        ioas.unmap(0x4000, PAGE_SIZE)
        ioas.add_domain(Attached(1))
        fails(number, fixed, ioas, client, 0x4000, PAGE_SIZE, 0x4000 if number == errno.EFAULT else 0)
        assert mapped(ioas) == [(0, PAGE_SIZE)]


def test_an_access_that_pins_needs_whole_pages(ioas: Ioas, client: FakeClient) -> None:
    pinning, reading, user = Attached(1, True), Attached(2, True), PinUser()
    fixed(ioas, client, 1, 1)
    fails(errno.EADDRINUSE, ioas.add_access, pinning, user)
    ioas.add_access(reading)
    assert ioas.alignment == 1
    ioas.unmap(1, 1)
    ioas.add_access(pinning, user)
    assert ioas.alignment == PAGE_SIZE and ioas.iova_ranges() == [(0, LAST)]
    fails(errno.EINVAL, fixed, ioas, client, 1, PAGE_SIZE)
    fixed(ioas, client, 0, PAGE_SIZE)
    pin = ioas.space.pin_pages(0, 1, Prot.READ)
    assert ioas.space.locked.of(client) == 1
    pin.release()
    ioas.remove_access(pinning, user)
    assert user.seen == [] and ioas.alignment == 1
    fixed(ioas, client, 0x1001, 1)
    fails(errno.EINVAL, ioas.space.pin_pages, 0, 1, Prot.READ)
    ioas.remove_access(reading)
    assert len(mapped(ioas)) == 2


def test_huge_pages(ioas: Ioas, client: FakeClient) -> None:
    fails(errno.EINVAL, ioas.set_huge_pages, 2)
    fixed(ioas, client, 0, 1)
    fails(errno.EADDRINUSE, ioas.set_huge_pages, 0)
    assert (ioas.huge_pages, ioas.alignment) == (True, 1)
    ioas.unmap(0, 1)
    fixed(ioas, client, 0, PAGE_SIZE)
    ioas.set_huge_pages(0)
    ioas.set_huge_pages(0)
    assert (ioas.huge_pages, ioas.alignment) == (False, PAGE_SIZE)
    ioas.add_domain(Attached(1))
    ioas.set_huge_pages(0)
    ioas.set_huge_pages(1)
    assert (ioas.huge_pages, ioas.alignment) == (True, PAGE_SIZE)
    fails(errno.EINVAL, ioas.set_huge_pages, 0)
    ioas.unmap(0, LAST)
    ioas.set_huge_pages(0)
    ioas.remove_domain(Attached(1))


def test_the_end_of_an_ioas(client: FakeClient) -> None:
    locked = LockedMemory()
    ioas = Ioas(locked)
    kept = [fixed(ioas, client, number * PAGE_SIZE, PAGE_SIZE) for number in range(3)]
    domain = Attached(1)
    ioas.add_domain(domain)
    assert locked.of(client) == 3 == len(kept)
    ioas.remove_domain(domain)
    ioas.destroyed()
    assert locked.of(client) == 0 and mapped(ioas) == []
