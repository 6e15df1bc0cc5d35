# SPDX-License-Identifier: Apache-2.0
"""The type1 database against a dictionary of pages, and its errnos."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from devmodel.iommu import PAGE_SIZE, Prot, Type1
from tests.unit.fakes import TOP, FakeClient, fails

RW = Prot.READ | Prot.WRITE


@pytest.fixture(params=[True, False], ids=["v2", "v1"])
def iommu(request: pytest.FixtureRequest) -> Type1:
    return Type1(v2=bool(request.param))


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


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
    assert iommu.translate(0x4000, 0x2000) == [(client, 0x9000, 0x2000, RW)]


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
    iommu.dma_write(0x1FFE, b"abcd")
    assert first.read(0xAFFE, 2) == b"ab" and second.read(0xB000, 2) == b"cd"
    assert iommu.dma_read(0x1FFD, 6) == b"\0abcd\0"


def test_dma_respects_protection_and_writes_nothing_when_refused(iommu: Type1, client: FakeClient) -> None:
    iommu.map(client, 0x1000, 0xA000, PAGE_SIZE, RW)
    iommu.map(client, 0x2000, 0xB000, PAGE_SIZE, Prot.READ)
    iommu.map(client, 0x3000, 0xC000, PAGE_SIZE, Prot.WRITE)
    fails(errno.EFAULT, iommu.dma_write, 0x1FFE, b"abcd")
    fails(errno.EFAULT, iommu.dma_read, 0x2FFE, 4)
    fails(errno.EFAULT, iommu.dma_write, 0x3FFE, b"abcd")
    assert client.bytes == {}


def test_dma_across_a_hole_is_refused_whole(iommu: Type1, client: FakeClient) -> None:
    iommu.map(client, 0x1000, 0xA000, PAGE_SIZE, RW)
    iommu.map(client, 0x3000, 0xB000, PAGE_SIZE, RW)
    for iova in (0x0FFE, 0x1FFE, 0x2800, 0x3FFE):
        fails(errno.EFAULT, iommu.dma_write, iova, bytes(0x1004))
        fails(errno.EFAULT, iommu.dma_read, iova, 0x1004)
    assert client.bytes == {}


def test_dma_to_memory_that_is_not_there_is_the_clients_errno(iommu: Type1) -> None:
    small = FakeClient(limit=0x1000)
    iommu.map(small, 0, 0x8000, PAGE_SIZE, RW)
    fails(errno.EFAULT, iommu.dma_read, 0, 4)


def test_an_absurd_dma_is_refused_before_anything_is_allocated(iommu: Type1, client: FakeClient) -> None:
    iommu.map(client, 0, 0, PAGE_SIZE, RW)
    fails(errno.EFAULT, iommu.dma_read, 0, 2**62)


def test_sixty_five_thousand_mappings(client: FakeClient) -> None:
    iommu = Type1()
    for number in range(65535):
        iommu.map(client, number * 0x3000, number * PAGE_SIZE, PAGE_SIZE, RW)
    assert iommu.dma_avail == 0
    assert iommu.translate(40000 * 0x3000 + 8, 4) == [(client, 40000 * PAGE_SIZE + 8, 4, RW)]
    fails(errno.EFAULT, iommu.translate, 40000 * 0x3000 + PAGE_SIZE, 4)
    assert iommu.unmap(0, 65535 * 0x3000) == 65535 * PAGE_SIZE


PAGES = st.integers(0, 15)
COUNTS = st.integers(1, 6)
PROTS = st.sampled_from([Prot.READ, Prot.WRITE, RW])


class PageDictionary(RuleBasedStateMachine):
    """Type1 beside a plain dictionary: page of iova -> (first page, pages, page of vaddr, prot)."""

    @initialize(v2=st.booleans())
    def start(self, v2: bool) -> None:
        self.iommu = Type1(v2=v2, limit=5)
        self.client = FakeClient()
        self.pages: dict[int, tuple[int, int, int, Prot]] = {}

    @property
    def mappings(self) -> set[tuple[int, int]]:
        return {(first, count) for first, count, _, _ in self.pages.values()}

    @rule(page=PAGES, count=COUNTS, frame=st.integers(0, 2**30), prot=PROTS)
    def map(self, page: int, count: int, frame: int, prot: Prot) -> None:
        wanted = range(page, page + count)
        args = (self.client, page * PAGE_SIZE, frame * PAGE_SIZE, count * PAGE_SIZE, prot)
        if any(number in self.pages for number in wanted):
            fails(errno.EEXIST, self.iommu.map, *args)
        elif len(self.mappings) == 5:
            fails(errno.ENOSPC, self.iommu.map, *args)
        else:
            self.iommu.map(*args)
            for number in wanted:
                self.pages[number] = (page, count, frame + number - page, prot)

    @rule(page=PAGES, count=COUNTS)
    def unmap(self, page: int, count: int) -> None:
        asked = (page * PAGE_SIZE, count * PAGE_SIZE)
        touched = {self.pages[number][:2] for number in range(page, page + count) if number in self.pages}
        split = any(first < page or first + size > page + count for first, size in touched)
        starts_inside = any(first < page for first, _ in touched)
        if self.iommu.v2 and split:
            fails(errno.EINVAL, self.iommu.unmap, *asked)
            return
        gone = set() if starts_inside else touched
        assert self.iommu.unmap(*asked) == sum(size for _, size in gone) * PAGE_SIZE
        self.pages = {number: entry for number, entry in self.pages.items() if entry[:2] not in gone}

    @rule()
    def unmap_all(self) -> None:
        assert self.iommu.unmap(0, 0, all=True) == len(self.pages) * PAGE_SIZE
        self.pages = {}

    @rule(
        page=PAGES,
        offset=st.integers(0, PAGE_SIZE - 1),
        size=st.integers(1, 3 * PAGE_SIZE),
        write=st.booleans(),
    )
    def dma(self, page: int, offset: int, size: int, write: bool) -> None:
        iova = page * PAGE_SIZE + offset
        touched = [self.pages.get(number) for number in range(page, (iova + size - 1) // PAGE_SIZE + 1)]
        allowed = all(entry and entry[3] & (Prot.WRITE if write else Prot.READ) for entry in touched)
        data = bytes(i % 251 for i in range(size))
        if not allowed:
            fails(
                errno.EFAULT,
                *((self.iommu.dma_write, iova, data) if write else (self.iommu.dma_read, iova, size)),
            )
        elif write:
            self.iommu.dma_write(iova, data)
            assert self.through_pages(iova, size) == data
        else:
            assert self.iommu.dma_read(iova, size) == self.through_pages(iova, size)

    def through_pages(self, iova: int, size: int) -> bytes:
        """Byte for byte by the dictionary."""
        places = (
            (self.pages[at // PAGE_SIZE][2] * PAGE_SIZE + at % PAGE_SIZE) for at in range(iova, iova + size)
        )
        return bytes(self.client.bytes.get(place, 0) for place in places)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "iommu"):
            assert self.iommu.dma_avail == 5 - len(self.mappings)


TestPageDictionary = PageDictionary.TestCase
TestPageDictionary.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


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
