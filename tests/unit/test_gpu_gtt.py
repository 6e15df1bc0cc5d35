# SPDX-License-Identifier: Apache-2.0
"""The GTT and its shadow beside plain dictionaries of pages, whatever is written, mapped, unmapped, used."""

import random
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from devmodel.gpu.faults import EngineFault, ErrorCode
from devmodel.gpu.gtt import ENTRIES, GTT_SIZE, PAGE_SIZE, SYSTEM_BASE, SYSTEM_SIZE, VALID, WRITABLE, Gtt
from devmodel.gpu.shadow import Shadow
from devmodel.iommu.api import Prot
from devmodel.iommu.type1 import Type1
from tests.unit.fakes import FakeClient

RW = Prot.READ | Prot.WRITE


def entries(gtt: Gtt, first: int, *values: int) -> None:
    gtt.write(first * 8, struct.pack(f"<{len(values)}Q", *values))


def test_the_table_is_memory_that_a_reset_clears() -> None:
    gtt = Gtt()
    assert gtt.size == GTT_SIZE == 8 * ENTRIES and gtt.read(GTT_SIZE - 4, 4) == bytes(4)
    gtt.write(3, b"\x01\x02\x03")
    gtt.write(GTT_SIZE - 1, b"\xff")
    assert gtt.read(0, 8) == b"\0\0\0\1\2\3\0\0" and gtt.read(GTT_SIZE - 2, 2) == b"\0\xff"
    gtt.reset()
    assert gtt.read(0, GTT_SIZE) == bytes(GTT_SIZE)


@pytest.mark.parametrize(
    ("offset", "size", "touched"),
    [(0, 8, (0, 1)), (4, 8, (0, 2)), (7, 1, (0, 1)), (8, 1, (1, 2)), (16, 800, (2, 102)), (15, 2, (1, 3))],
)
def test_a_write_says_which_entries_it_touched(offset: int, size: int, touched: tuple[int, int]) -> None:
    gtt, told = Gtt(), []
    gtt.watch(lambda first, end: told.append((first, end)))
    gtt.write(offset, bytes(size))
    assert told == [touched]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 18, 81, 1000, 4096, 5000, ENTRIES])
@pytest.mark.parametrize("flags", [VALID, VALID | WRITABLE])
def test_contiguous_entries_are_found_to_their_end(length: int, flags: int) -> None:
    gtt, iova = Gtt(), 7 << 32
    entries(gtt, 0, *(iova + number * PAGE_SIZE | flags for number in range(length)))
    found = gtt.look(0, ENTRIES)
    assert found is not None and found == (iova, length, flags == VALID | WRITABLE)
    assert gtt.look(0, length // 2 + 1) == (iova, length // 2 + 1, found.writable)
    assert gtt.look(length - 1, ENTRIES) == (iova + (length - 1) * PAGE_SIZE, 1, found.writable)


def test_what_ends_a_range() -> None:
    gtt = Gtt()
    assert gtt.look(0, ENTRIES) is None
    last = 2**64 - PAGE_SIZE
    entries(gtt, 0, last | VALID, VALID, PAGE_SIZE | VALID | WRITABLE, 2 * PAGE_SIZE | VALID, WRITABLE)
    found = [gtt.look(index, ENTRIES) for index in range(5)]
    assert found == [(last, 1, False), (0, 1, False), (PAGE_SIZE, 1, True), (2 * PAGE_SIZE, 1, False), None]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(0, 59))
def test_ranges_are_as_long_as_they_are(pages: list[int], index: int) -> None:
    """Against a walk of one entry after the other; page 0 stands for an invalid entry."""
    gtt, index = Gtt(), index % len(pages)
    entries(gtt, 0, *(page * PAGE_SIZE | VALID if page else 0 for page in pages))
    length = 0
    while index + length < len(pages) and pages[index] and pages[index + length] == pages[index] + length:
        length += 1
    found = gtt.look(index, ENTRIES)
    assert found == ((pages[index] * PAGE_SIZE, length, False) if length else None)


# ---- the shadow ----

TABLE = 24
"""Entries, and pages of iova, in use: few, so that they meet."""
PLACES = st.integers(0, TABLE - 1)
COUNTS = st.integers(1, 8)


class ShadowMachine(RuleBasedStateMachine):
    """Every DMA through the shadow ends as one by the two dictionaries: same memory, or same fault."""

    @initialize()
    def start(self) -> None:
        self.gtt, self.iommu, self.client = Gtt(), Type1(), FakeClient()
        self.space = self.iommu.space
        self.shadow = Shadow(self.gtt)
        self.table: dict[int, tuple[int, bool]] = {}
        self.pages: dict[int, tuple[int, Prot, int]] = {}
        self.frames = 1

    @rule(first=PLACES, count=COUNTS, page=PLACES, writable=st.booleans())
    def point(self, first: int, count: int, page: int, writable: bool) -> None:
        """Entries in a row, as identity ranges are."""
        count = min(count, TABLE - first)
        flags = VALID | (WRITABLE if writable else 0)
        entries(self.gtt, first, *((page + number) * PAGE_SIZE | flags for number in range(count)))
        self.table.update({first + number: (page + number, writable) for number in range(count)})

    @rule(first=PLACES, count=COUNTS)
    def clear(self, first: int, count: int) -> None:
        count = min(count, TABLE - first)
        entries(self.gtt, first, *[0] * count)
        for number in range(first, first + count):
            self.table.pop(number, None)

    @rule(first=PLACES, count=COUNTS, prot=st.sampled_from([Prot.READ, Prot.WRITE, RW, RW, RW]))
    def map(self, first: int, count: int, prot: Prot) -> None:
        if any(page in self.pages for page in range(first, first + count)):
            return
        frame, self.frames = self.frames, self.frames + count + 1
        self.space.map(self.client, first * PAGE_SIZE, frame * PAGE_SIZE, count * PAGE_SIZE, prot)
        for number in range(count):
            self.pages[first + number] = (frame + number, prot, first)

    @rule(page=st.integers(0, 2 * TABLE))
    def unmap(self, page: int) -> None:
        if page in self.pages:
            first = self.pages[page][2]
            whole = [number for number, (_, _, start) in self.pages.items() if start == first]
            self.iommu.unmap(first * PAGE_SIZE, len(whole) * PAGE_SIZE)
            for number in whole:
                del self.pages[number]

    @rule()
    def another_container(self) -> None:
        """The old one lives on, with its mappings, which are not this client's any more."""
        self.iommu = Type1()
        self.space = self.iommu.space
        self.pages.clear()

    @rule()
    def reset(self) -> None:
        self.gtt.reset()
        self.table.clear()

    @rule()
    def release(self) -> None:
        self.shadow.forget()
        assert not len(self.shadow)

    @rule(
        first=PLACES,
        offset=st.integers(0, PAGE_SIZE - 1),
        size=st.integers(1, 3 * PAGE_SIZE),
        write=st.booleans(),
    )
    def dma(self, first: int, offset: int, size: int, write: bool) -> None:
        start = first * PAGE_SIZE + offset
        expected = self.expected(start, size, write)
        data = bytearray(random.Random(size).randbytes(size) if write else size)
        try:
            self.shadow.transfer(self.space, [(SYSTEM_BASE + start, size)], data, write)
        except EngineFault as fault:
            assert (fault.code, fault.address) == expected
            return
        assert expected is None
        there = b"".join(self.client.read(*part) for part in self.parts(start, size))
        assert there == data

    @invariant()
    def what_is_remembered_is_as_long_as_it_can_be(self) -> None:
        if hasattr(self, "shadow"):
            hits, ranges = self.shadow.hits, len(self.shadow)
            assert self.shadow.stats().split()[:2] == ["hits", str(hits)]
            assert len(self.shadow) <= ranges <= TABLE

    def expected(self, start: int, size: int, write: bool) -> tuple[ErrorCode, int] | None:
        """The first fault of a walk through both dictionaries, page by page."""
        for page in range(start // PAGE_SIZE, (start + size - 1) // PAGE_SIZE + 1):
            address = SYSTEM_BASE + max(start, page * PAGE_SIZE)
            if page not in self.table:
                return ErrorCode.NOT_PRESENT, address
            iova, writable = self.table[page]
            if iova not in self.pages:
                return ErrorCode.DMA, address
            if write and not writable:
                return ErrorCode.READ_ONLY, address
            if not self.pages[iova][1] & (Prot.WRITE if write else Prot.READ):
                return ErrorCode.DMA, address
        return None

    def parts(self, start: int, size: int) -> list[tuple[int, int]]:
        found, position = [], start
        while position < start + size:
            length = min(PAGE_SIZE - position % PAGE_SIZE, start + size - position)
            frame = self.pages[self.table[position // PAGE_SIZE][0]][0]
            found.append((frame * PAGE_SIZE + position % PAGE_SIZE, length))
            position += length
        return found


TestShadow = ShadowMachine.TestCase
TestShadow.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_ranges_out_of_the_aperture() -> None:
    shadow = Shadow(Gtt())
    for address, size in [(SYSTEM_BASE - 1, 2), (SYSTEM_BASE + SYSTEM_SIZE - 1, 2), (0, 1), (2**64, 1)]:
        with pytest.raises(EngineFault) as caught:
            shadow.transfer(Type1().space, [(address, size)], bytearray(size), False)
        assert (caught.value.code, caught.value.address) == (ErrorCode.BAD_ADDRESS, address)


def test_an_identity_range_is_one_range_wherever_it_is_first_used() -> None:
    gtt, iommu, client = Gtt(), Type1(), FakeClient()
    iommu.map(client, 0, 1 << 20, 256 * PAGE_SIZE, RW)
    entries(gtt, 0, *(page * PAGE_SIZE | VALID for page in range(256)))
    shadow = Shadow(gtt)
    for page in (200, 100, 50, 0, 150):
        shadow.transfer(iommu.space, [(SYSTEM_BASE + page * PAGE_SIZE, 8)], bytearray(8), False)
        assert len(shadow) == 1
    assert shadow.stats() == "hits 1 misses 4 invalidations 0 ranges 1"
    entries(gtt, 100, 0)
    assert shadow.stats() == "hits 1 misses 4 invalidations 1 ranges 2"
    entries(gtt, 100, 100 * PAGE_SIZE | VALID)
    shadow.transfer(iommu.space, [(SYSTEM_BASE, 256 * PAGE_SIZE)], bytearray(256 * PAGE_SIZE), False)
    assert shadow.stats() == "hits 2 misses 5 invalidations 1 ranges 1"
    iommu.unmap(0, 256 * PAGE_SIZE)
    assert shadow.stats() == "hits 2 misses 5 invalidations 2 ranges 0"


class Watched(FakeClient):
    """A client that says whether it was reached since it took the page away."""

    def __init__(self) -> None:
        super().__init__()
        self.mapped = False
        self.late = 0

    def write_parts(self, parts: object, view: memoryview) -> None:
        self.late += not self.mapped


def test_no_dma_reaches_memory_after_its_unmap_has_returned() -> None:
    """Two threads of DMA through shadows of their own, while pages are mapped and unmapped all the time."""
    iommu, client, end = Type1(), Watched(), threading.Event()
    done: list[int] = []

    def work() -> None:
        gtt, count = Gtt(), 0
        entries(gtt, 0, *(page * PAGE_SIZE | VALID | WRITABLE for page in range(4)))
        shadow = Shadow(gtt)
        while not end.is_set():
            try:
                shadow.transfer(iommu.space, [(SYSTEM_BASE, 4 * PAGE_SIZE)], bytearray(4 * PAGE_SIZE), True)
                count += 1
            except EngineFault as fault:
                assert fault.code is ErrorCode.DMA
        done.append(count)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3000):
        client.mapped = True
        iommu.map(client, 0, 1 << 20, 4 * PAGE_SIZE, RW)
        iommu.unmap(0, 4 * PAGE_SIZE)
        client.mapped = False
    end.set()
    for thread in threads:
        thread.join()
    assert client.late == 0 and len(done) == 2
