# SPDX-License-Identifier: Apache-2.0
"""type1 beside a plain dictionary of pages: whatever the order of map, unmap, pin, DMA and dirty tracking."""

import errno
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devmodel.iommu.api import PAGE_SIZE, Prot
from devmodel.iommu.backend import LockedMemory
from devmodel.iommu.type1 import Type1
from tests.unit.fakes import FakeClient, fails
from tests.unit.test_iommu import Bitmap, Driver, Group

RW = Prot.READ | Prot.WRITE
LIMIT = 5
MEMLOCK = 24
PAGES = st.integers(0, 15)
COUNTS = st.integers(1, 6)
PROTS = st.sampled_from([Prot.READ, Prot.WRITE, RW])


@dataclass(eq=False)
class Page:
    """One page of iova: its mapping (first page, pages), what is behind it, what was done to it."""

    mapping: tuple[int, int]
    frame: int
    prot: Prot
    pins: int = 0
    dirty: bool = False


@dataclass
class Model:
    """The dictionary, and what is the same for all of it."""

    v2: bool
    pages: dict[int, Page] = field(default_factory=dict)
    tracking: bool = False
    physical: bool = False

    @property
    def mappings(self) -> set[tuple[int, int]]:
        return {page.mapping for page in self.pages.values()}

    @property
    def locked(self) -> int:
        """Pages that are accounted to the client."""
        return len(self.pages) if self.physical else sum(page.pins > 0 for page in self.pages.values())

    def touched(self, first: int, count: int) -> set[tuple[int, int]]:
        return {self.pages[n].mapping for n in range(first, first + count) if n in self.pages}

    def splits(self, first: int, count: int) -> bool:
        """Whether the range has a mapping in part."""
        return any(
            start < first or start + size > first + count for start, size in self.touched(first, count)
        )


class PageDictionary(RuleBasedStateMachine):
    """Every rule does the same to both and compares the outcome."""

    @initialize(v2=st.booleans())
    def start(self, v2: bool) -> None:
        self.locked = LockedMemory()
        self.iommu = Type1(v2=v2, limit=LIMIT, locked=self.locked)
        self.driver = Driver(self.iommu)
        self.client = FakeClient(memlock=MEMLOCK * PAGE_SIZE)
        self.model = Model(v2)

    @rule(first=PAGES, count=COUNTS, frame=st.integers(0, 2**30), prot=PROTS)
    def map(self, first: int, count: int, frame: int, prot: Prot) -> None:
        model = self.model
        args = (self.client, first * PAGE_SIZE, frame * PAGE_SIZE, count * PAGE_SIZE, prot)
        if model.touched(first, count):
            fails(errno.EEXIST, self.iommu.map, *args)
        elif len(model.mappings) == LIMIT:
            fails(errno.ENOSPC, self.iommu.map, *args)
        elif model.physical and model.locked + count > MEMLOCK:
            fails(errno.ENOMEM, self.iommu.map, *args)
        else:
            self.iommu.map(*args)
            for number in range(first, first + count):
                model.pages[number] = Page((first, count), frame + number - first, prot)

    @rule(first=PAGES, count=COUNTS, dirty=st.booleans())
    def unmap(self, first: int, count: int, dirty: bool) -> None:
        model, bitmap = self.model, Bitmap() if dirty else None
        asked = (first * PAGE_SIZE, count * PAGE_SIZE)
        if (dirty and not model.tracking) or (model.v2 and model.splits(first, count)):
            fails(errno.EINVAL, self.iommu.unmap, *asked, bitmap=bitmap)
            return
        gone = model.touched(first, count)
        if any(start < first for start, _ in gone):
            gone = set()
        expected = self.expected_bits(gone, first)
        assert self.iommu.unmap(*asked, bitmap=bitmap) == sum(size for _, size in gone) * PAGE_SIZE
        if bitmap is not None:
            self.compare_bits(bitmap, gone, first, expected)
        self.forget(gone)

    @rule()
    def unmap_all(self) -> None:
        assert self.iommu.unmap(0, 0, all=True) == len(self.model.pages) * PAGE_SIZE
        self.forget(self.model.mappings)

    @rule(first=PAGES, count=COUNTS, prot=PROTS)
    def pin(self, first: int, count: int, prot: Prot) -> None:
        args = (first * PAGE_SIZE, count, prot)
        found = [self.model.pages.get(number) for number in range(first, first + count)]
        pages = [page for page in found if page is not None]
        new = 0 if self.model.physical else sum(not page.pins for page in pages)
        if not self.model.v2:
            fails(errno.EACCES, self.iommu.space.pin_pages, *args)
        elif len(pages) < count:
            fails(errno.EINVAL, self.iommu.space.pin_pages, *args)
        elif any(prot & ~page.prot for page in pages):
            fails(errno.EPERM, self.iommu.space.pin_pages, *args)
        elif self.model.locked + new > MEMLOCK:
            fails(errno.ENOMEM, self.iommu.space.pin_pages, *args)
        else:
            self.iommu.space.pin_pages(*args)
            for page in pages:
                page.pins += 1

    @rule(first=PAGES, count=COUNTS)
    def unpin(self, first: int, count: int) -> None:
        self.iommu.space.unpin_pages(first * PAGE_SIZE, count)
        for number in range(first, first + count):
            if number in self.model.pages:
                self.model.pages[number].pins = max(self.model.pages[number].pins - 1, 0)

    @rule()
    def attach_or_detach_a_physical_function(self) -> None:
        if self.model.physical:
            self.iommu.detach(Group(1))
        elif len(self.model.pages) > MEMLOCK:
            fails(errno.ENOMEM, self.iommu.attach, Group(1))
            return
        else:
            self.iommu.attach(Group(1))
        self.model.physical = not self.model.physical

    @precondition(lambda self: self.model.v2)
    @rule()
    def start_or_stop_tracking(self) -> None:
        if self.model.tracking:
            self.iommu.stop_tracking()
            for page in self.model.pages.values():
                page.dirty = False
        else:
            self.iommu.start_tracking()
        self.model.tracking = not self.model.tracking

    @rule(first=PAGES, count=st.integers(1, 22))
    def report_dirty(self, first: int, count: int) -> None:
        bitmap, asked = Bitmap(), (first * PAGE_SIZE, count * PAGE_SIZE)
        if not self.model.v2:
            fails(errno.EACCES, self.iommu.report_dirty, *asked, bitmap)
        elif not self.model.tracking or self.model.splits(first, count):
            fails(errno.EINVAL, self.iommu.report_dirty, *asked, bitmap)
        else:
            whole = self.model.touched(first, count)
            expected = self.expected_bits(whole, first)
            self.iommu.report_dirty(*asked, bitmap)
            self.compare_bits(bitmap, whole, first, expected)
            for number in range(first, first + count):
                if number in self.model.pages:
                    self.model.pages[number].dirty = False

    @rule(
        first=PAGES,
        offset=st.integers(0, PAGE_SIZE - 1),
        size=st.integers(1, 3 * PAGE_SIZE),
        write=st.booleans(),
    )
    def dma(self, first: int, offset: int, size: int, write: bool) -> None:
        iova = first * PAGE_SIZE + offset
        numbers = range(first, (iova + size - 1) // PAGE_SIZE + 1)
        pages = [self.model.pages.get(number) for number in numbers]
        wanted = Prot.WRITE if write else Prot.READ
        data = bytes(i % 251 for i in range(size))
        if not all(page is not None and page.prot & wanted for page in pages):
            fails(errno.EFAULT, self.iommu.space.dma_rw, iova, bytearray(size), write)
        elif write:
            self.iommu.space.dma_write(iova, data)
            assert self.through_pages(iova, size) == data
            for page in pages:
                assert page is not None
                page.dirty = page.dirty or self.model.tracking
        else:
            assert self.iommu.space.dma_read(iova, size) == self.through_pages(iova, size)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "model"):
            assert self.iommu.dma_avail == LIMIT - len(self.model.mappings)
            assert self.locked.of(self.client) == self.model.locked
            assert [m.iova // PAGE_SIZE for m in self.iommu.space.mappings] == sorted(
                f for f, _ in self.model.mappings
            )

    def expected_bits(self, mappings: set[tuple[int, int]], base: int) -> int:
        numbers = (number for start, size in mappings for number in range(start, start + size))
        return sum(1 << number - base for number in numbers if self.model.pages[number].dirty)

    @staticmethod
    def compare_bits(bitmap: Bitmap, mappings: set[tuple[int, int]], base: int, expected: int) -> None:
        for start, size in mappings:
            mask = ((1 << size) - 1) << start - base
            assert bitmap.bits & mask == expected & mask
        if not mappings:
            assert bitmap.bits == 2**64 - 1

    def forget(self, mappings: set[tuple[int, int]]) -> None:
        self.model.pages = {n: page for n, page in self.model.pages.items() if page.mapping not in mappings}

    def through_pages(self, iova: int, size: int) -> bytes:
        """Byte for byte by the dictionary."""
        places = (
            self.model.pages[at // PAGE_SIZE].frame * PAGE_SIZE + at % PAGE_SIZE
            for at in range(iova, iova + size)
        )
        return bytes(self.client.bytes.get(place, 0) for place in places)


TestPageDictionary = PageDictionary.TestCase
TestPageDictionary.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
