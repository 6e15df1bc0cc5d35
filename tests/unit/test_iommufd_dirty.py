# SPDX-License-Identifier: Apache-2.0
"""Dirty tracking of an HWPT: which bits of a client's bitmap are set, and what stays dirty."""

from __future__ import annotations

import errno
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from devmodel.iommu.api import PAGE_SIZE, DmaFault, Prot
from devmodel.iommu.cutting import cut
from devmodel.iommu.dmaspace import Piece
from devmodel.iommu.space import IoAddressSpace
from devmodel.iommufd import dirty
from devmodel.iommufd.dirty import CHUNK, TrackedSpace, WrittenPages, check_dirty_range
from tests.unit.fakes import TOP, FakeClient, fails

RW = int(Prot.READ | Prot.WRITE)
BASE = 0x100000
PAGES = 2 * CHUNK + 7
END = BASE + PAGES * PAGE_SIZE


class Bits:
    """A client's bitmap. Accesses to the words in `unwritable` fault."""

    def __init__(self, before: int = 0) -> None:
        self.value = before
        self.unwritable: set[int] = set()
        self.touched: set[int] = set()

    def read(self, offset: int, size: int) -> bytes:
        self.check(offset, size)
        return (self.value >> offset * 8 & (1 << size * 8) - 1).to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        self.check(offset, len(data))
        mask = (1 << len(data) * 8) - 1 << offset * 8
        self.value = self.value & ~mask | int.from_bytes(data, "little") << offset * 8

    def check(self, offset: int, size: int) -> None:
        words = set(range(offset // 8, -(-(offset + size) // 8)))
        if words & self.unwritable:
            raise OSError(errno.EFAULT, "no such memory")
        self.touched |= words

    @property
    def found(self) -> set[int]:
        return {bit for bit in range(self.value.bit_length()) if self.value >> bit & 1}


@pytest.fixture
def space() -> IoAddressSpace:
    made = IoAddressSpace()
    made.map(FakeClient(), BASE, 0, END - BASE, RW)
    return made


@pytest.fixture
def tracked(space: IoAddressSpace) -> TrackedSpace:
    made = TrackedSpace(space)
    made.start()
    return made


def reported(
    tracked: TrackedSpace,
    iova: int = BASE,
    last: int = END - 1,
    page_size: int = PAGE_SIZE,
    clear: bool = True,
) -> set[int]:
    bits = Bits()
    tracked.report(iova, last, page_size, bits, clear)
    return bits.found


writes = st.lists(
    st.tuples(st.integers(0, PAGES * PAGE_SIZE - 1), st.integers(1, 5 * PAGE_SIZE)), min_size=1, max_size=12
)


@given(
    writes,
    st.integers(0, PAGES - 1),
    st.integers(1, PAGES),
    st.sampled_from([512, PAGE_SIZE, 3 * PAGE_SIZE, 4 * PAGE_SIZE, 64 * PAGE_SIZE, 2**30]),
)
def test_a_bit_says_that_its_bytes_were_written(
    made: list[tuple[int, int]], first: int, count: int, page_size: int
) -> None:
    """`page_size` counts by its lowest bit, and what a page of 4 KiB has of it is dirty together."""
    space = IoAddressSpace()
    space.map(FakeClient(), BASE, 0, END - BASE, RW)
    tracked = TrackedSpace(space)
    tracked.start()
    pages: set[int] = set()
    for offset, size in made:
        size = min(size, PAGES * PAGE_SIZE - offset)
        tracked.dma_write(BASE + offset, bytes(size))
        pages.update(range(offset // PAGE_SIZE, (offset + size - 1) // PAGE_SIZE + 1))
    iova, last = BASE + first * PAGE_SIZE, min(BASE + (first + count) * PAGE_SIZE, END) - 1
    inside = {page for page in pages if iova <= BASE + page * PAGE_SIZE <= last}
    unit = page_size & -page_size
    expected: set[int] = set()
    for page in inside:
        start = BASE + page * PAGE_SIZE - iova
        expected.update(range(start // unit, (start + PAGE_SIZE - 1) // unit + 1))
    assert reported(tracked, iova, last, page_size, clear=False) == expected
    assert reported(tracked, iova, last, page_size) == expected
    assert reported(tracked) == pages - inside and reported(tracked) == set()


def test_a_bit_for_each_byte(tracked: TrackedSpace) -> None:
    tracked.dma_write(BASE + PAGE_SIZE, b"x")
    assert reported(tracked, page_size=1) == set(range(PAGE_SIZE, 2 * PAGE_SIZE))


def test_bits_are_added_and_words_without_any_are_left_alone(tracked: TrackedSpace) -> None:
    for page in (1, 64, 65, 700):
        tracked.dma_write(BASE + page * PAGE_SIZE, b"x")
    bits = Bits(before=1 << 2 | 1 << 300)
    tracked.report(BASE, END - 1, PAGE_SIZE, bits)
    assert bits.found == {1, 2, 64, 65, 300, 700} and bits.touched == {0, 1, 10}


def test_every_way_of_writing_is_seen_and_no_read(tracked: TrackedSpace) -> None:
    tracked.dma_read(BASE, 100)
    tracked.dma_rw(BASE, bytearray(100), write=False)
    mapping = tracked.mapping_at(BASE, write=True)
    tracked.dma_pieces([Piece(mapping, 0, 10)], bytearray(10), write=False)
    assert reported(tracked) == set()
    tracked.dma_write(BASE + 3 * PAGE_SIZE - 1, b"ab")
    tracked.dma_rw(BASE + 5 * PAGE_SIZE, bytearray(b"c"), write=True)
    pieces = [Piece(mapping, 8 * PAGE_SIZE, 1), Piece(mapping, 10 * PAGE_SIZE, PAGE_SIZE + 1)]
    tracked.dma_pieces(pieces, bytearray(PAGE_SIZE + 2), write=True)
    assert tracked.dma_read(BASE + 3 * PAGE_SIZE - 1, 2) == b"ab"
    assert reported(tracked) == {2, 3, 5, 8, 10, 11}


def test_a_refused_write_is_not_dirty(tracked: TrackedSpace, space: IoAddressSpace) -> None:
    space.map(FakeClient(), END, 0, PAGE_SIZE, int(Prot.READ))
    for iova, size in ((END, 1), (END - 1, 2), (END + PAGE_SIZE, 1), (0, 1)):
        with pytest.raises(DmaFault):
            tracked.dma_write(iova, bytes(size))
    assert reported(tracked, last=END + PAGE_SIZE - 1) == set()
    assert space.inflight.fault_count == 4


def test_a_write_that_fails_half_way_is_dirty(space: IoAddressSpace) -> None:
    space.map(FakeClient(limit=PAGE_SIZE), END, 0, 2 * PAGE_SIZE, RW)
    tracked = TrackedSpace(space)
    tracked.start()
    with pytest.raises(DmaFault):
        tracked.dma_write(END + PAGE_SIZE - 1, b"ab")
    assert reported(tracked, END, END + 2 * PAGE_SIZE - 1) == {0, 1}


def test_physical_functions_pin_nothing(tracked: TrackedSpace) -> None:
    fails(errno.EINVAL, tracked.pin_pages, BASE, 1, Prot.READ)


def test_nothing_is_marked_unless_tracking_is_on(space: IoAddressSpace) -> None:
    tracked = TrackedSpace(space)
    tracked.dma_write(BASE, b"x")
    assert reported(tracked) == set() and not space.trackers
    tracked.start()
    tracked.dma_write(BASE + PAGE_SIZE, b"x")
    assert reported(tracked, clear=False) == {1}
    tracked.start()
    assert reported(tracked) == set() and space.trackers == [tracked]
    tracked.dma_write(BASE, b"x")
    tracked.stop()
    tracked.stop()
    assert reported(tracked) == set() and not space.trackers
    tracked.start()
    assert reported(tracked) == set()


def test_two_hwpts_keep_their_pages_apart(tracked: TrackedSpace, space: IoAddressSpace) -> None:
    other = TrackedSpace(space)
    other.start()
    tracked.dma_write(BASE, b"x")
    other.dma_write(BASE + PAGE_SIZE, b"x")
    space.dma_write(BASE + 2 * PAGE_SIZE, b"x")
    assert (reported(tracked), reported(other)) == ({0}, {1})


def test_a_mapping_takes_its_dirty_pages_with_it(tracked: TrackedSpace, space: IoAddressSpace) -> None:
    space.map(FakeClient(), END, 0, PAGE_SIZE, RW)
    tracked.dma_write(END - 1, b"ab")
    assert space.unmap((BASE, END), lambda: space.mappings.within(BASE, END)) == END - BASE
    space.map(FakeClient(), BASE, 0, END - BASE, RW)
    assert reported(tracked, BASE, END + PAGE_SIZE - 1) == {PAGES}


def test_the_report_ends_at_the_first_hole(tracked: TrackedSpace, space: IoAddressSpace) -> None:
    space.map(FakeClient(), END, 0, PAGE_SIZE, RW)
    space.map(FakeClient(), END + 2 * PAGE_SIZE, 0, PAGE_SIZE, RW)
    for iova in (BASE, END, END + 2 * PAGE_SIZE):
        tracked.dma_write(iova, b"x")
    assert reported(tracked, BASE - PAGE_SIZE, END) == set()
    assert reported(tracked, BASE, TOP - 1) == {0, PAGES}
    assert reported(tracked, END + 2 * PAGE_SIZE, TOP - 1) == {0}


def test_pages_whose_bits_cannot_be_stored_stay_dirty(tracked: TrackedSpace) -> None:
    for page in (0, CHUNK, 2 * CHUNK):
        tracked.dma_write(BASE + page * PAGE_SIZE, b"x")
    bits = Bits()
    bits.unwritable = {CHUNK // 64}
    tracked.report(BASE, END - 1, PAGE_SIZE, bits)
    assert bits.found == {0, 2 * CHUNK}
    assert reported(tracked) == {CHUNK}


class TwoHwpts(RuleBasedStateMachine):
    """Two HWPTs of one IOAS against a dictionary of pages: mappings come, go and are cut, devices write, and
    bitmaps are read."""

    ROOM = 24
    pages = st.integers(0, ROOM - 1)
    who = st.sampled_from([0, 1])

    def __init__(self) -> None:
        super().__init__()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(dirty, "PIECE", 2)  # reports have several pieces
        self.space = IoAddressSpace()
        self.tracked = [TrackedSpace(self.space) for _ in range(2)]
        self.mapped: dict[int, int] = {}
        """The last page of each mapping, by its first one."""
        self.dirty: list[set[int] | None] = [None, None]

    def teardown(self) -> None:
        self.patched.undo()
        for tracked in self.tracked:
            assert not tracked._reports

    def holds(self, page: int) -> bool:
        return any(first <= page <= last for first, last in self.mapped.items())

    @rule(first=pages, count=st.integers(1, 6))
    def map(self, first: int, count: int) -> None:
        last = min(first + count, self.ROOM) - 1
        if not any(map(self.holds, range(first, last + 1))):
            self.space.map(FakeClient(), first * PAGE_SIZE, 0, (last + 1 - first) * PAGE_SIZE, RW)
            self.mapped[first] = last

    @rule(page=pages)
    def unmap(self, page: int) -> None:
        last = self.mapped.pop(page, None)
        if last is not None:
            span = (page * PAGE_SIZE, (last + 1) * PAGE_SIZE)
            self.space.unmap(span, lambda: self.space.mappings.within(*span))
            for known in self.dirty:
                if known is not None:
                    known -= set(range(page, last + 1))

    @rule(page=pages)
    def cut(self, page: int) -> None:
        first = next((each for each, last in self.mapped.items() if each < page <= last), None)
        if first is not None:
            whole = self.space.mappings.covering(first * PAGE_SIZE)
            assert whole is not None
            cut(self.space.mappings, whole, page * PAGE_SIZE)
            self.mapped[page], self.mapped[first] = self.mapped[first], page - 1

    @rule(number=who, first=pages, count=st.integers(1, 6))
    def write(self, number: int, first: int, count: int) -> None:
        written = range(first, first + count)
        data = bytes(count * PAGE_SIZE)
        if all(map(self.holds, written)):
            self.tracked[number].dma_write(first * PAGE_SIZE, data)
            known = self.dirty[number]
            if known is not None:
                known.update(written)
        else:
            with pytest.raises(DmaFault):
                self.tracked[number].dma_write(first * PAGE_SIZE, data)

    @rule(number=who, on=st.booleans())
    def turn(self, number: int, on: bool) -> None:
        (self.tracked[number].start if on else self.tracked[number].stop)()
        self.dirty[number] = set() if on else None

    @rule(number=who, first=pages, count=st.integers(1, ROOM), clear=st.booleans(), fails=st.booleans())
    def report(self, number: int, first: int, count: int, clear: bool, fails: bool) -> None:
        bits = Bits()
        bits.unwritable = {0} if fails else set()
        last = (first + count) * PAGE_SIZE - 1
        self.tracked[number].report(first * PAGE_SIZE, last, PAGE_SIZE, bits, clear)
        end = next(page for page in range(first, self.ROOM + count + 1) if not self.holds(page))
        inside = set(range(first, min(end, first + count))) & (self.dirty[number] or set())
        assert bits.found == (set() if fails else {page - first for page in inside})
        if clear and not fails and inside:
            self.dirty[number] = (self.dirty[number] or set()) - inside


TestTwoHwpts = TwoHwpts.TestCase
TestTwoHwpts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class SlowBits(Bits):
    """A bitmap whose memory does not answer before `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def check(self, offset: int, size: int) -> None:
        self.asked.set()
        assert self.go.wait(60)
        super().check(offset, size)


def slowly(tracked: TrackedSpace, bits: SlowBits) -> threading.Thread:
    thread = threading.Thread(target=tracked.report, args=(BASE, END - 1, PAGE_SIZE, bits))
    thread.start()
    assert bits.asked.wait(60)
    return thread


def test_a_slow_bitmap_holds_up_nobody_and_loses_nothing(tracked: TrackedSpace) -> None:
    tracked.dma_write(BASE, b"x")
    tracked.dma_write(BASE + PAGE_SIZE, b"x")
    bits = SlowBits()
    thread = slowly(tracked, bits)
    tracked.dma_write(BASE + PAGE_SIZE, b"y")
    assert reported(tracked) == {1}
    bits.go.set()
    thread.join()
    assert bits.found == {0, 1}
    assert reported(tracked) == set()


@pytest.mark.parametrize("end", ["unmap", "stop", "start"])
def test_pages_that_went_during_a_report_do_not_come_back(
    tracked: TrackedSpace, space: IoAddressSpace, end: str
) -> None:
    tracked.dma_write(BASE, b"x")
    bits = SlowBits()
    bits.unwritable = {0}
    thread = slowly(tracked, bits)
    if end == "unmap":
        space.unmap((BASE, END), lambda: space.mappings.within(BASE, END))
        space.map(FakeClient(), BASE, 0, END - BASE, RW)
    else:
        getattr(tracked, end)()
        tracked.start()
    bits.go.set()
    thread.join()
    assert reported(tracked) == set()


def test_a_dma_that_ends_after_the_report_is_dirty_in_the_next(space: IoAddressSpace) -> None:
    class Slow(FakeClient):
        begun, go = threading.Event(), threading.Event()

        def write(self, vaddr: int, data: bytes) -> None:
            self.begun.set()
            assert self.go.wait(60)
            super().write(vaddr, data)

    client = Slow()
    space.map(client, END, 0, PAGE_SIZE, RW)
    tracked = TrackedSpace(space)
    tracked.start()
    thread = threading.Thread(target=tracked.dma_write, args=(END, b"x"))
    thread.start()
    assert client.begun.wait(60)
    assert reported(tracked, END, END + PAGE_SIZE - 1) == set()
    client.go.set()
    thread.join()
    assert reported(tracked, END, END + PAGE_SIZE - 1) == {0}


def test_memory_follows_what_was_written() -> None:
    """A hostile client maps very much, and has little written far apart."""
    pages = WrittenPages()
    for page in range(0, 2**40, 2**30):
        pages.mark(page, page)
    size = sys.getsizeof(pages.chunks) + sum(map(sys.getsizeof, pages.chunks.values()))
    assert len(pages.chunks) == 1024 and size < 256 * 1024
    pages.discard(1, 2**52)
    assert pages.chunks == {0: 1}
    assert pages.within(0, 2**52).chunks == {0: 1}


def test_a_report_of_very_much_comes_in_pieces(
    space: IoAddressSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of neighbours in iova, and of one mapping with very many dirty chunks."""
    monkeypatch.setattr(dirty, "PIECE", 3)
    for page in range(PAGES, PAGES + 20):
        space.map(FakeClient(), BASE + page * PAGE_SIZE, 0, PAGE_SIZE, RW)
    size = 64 * CHUNK * PAGE_SIZE
    space.map(FakeClient(), 2**40, 0, size, RW)
    tracked = TrackedSpace(space)
    tracked.start()
    pages = set(range(PAGES - 1, PAGES + 20))
    for page in pages:
        tracked.dma_write(BASE + page * PAGE_SIZE, b"x")
    assert reported(tracked, BASE, TOP - 1) == pages
    chunks = set(range(CHUNK - 1, 64 * CHUNK, CHUNK)) | {5, 900}
    for page in chunks:
        tracked.dma_write(2**40 + page * PAGE_SIZE, b"x")
    assert reported(tracked, 2**40 + PAGE_SIZE, 2**40 + size - 1) == {page - 1 for page in chunks}
    assert reported(tracked, 2**40, 2**40 + size - 1) == set()


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "alignment", "last"),
    [
        (0, 0x1000, 0x1000, 0x1000, 0xFFF),
        (0, 0, 0x1000, 0x1000, TOP - 1),
        (TOP - 0x1000, 0x1000, 0x1000, 0x1000, TOP - 1),
        (0x4000, 0x4000, 0x4000, 0x1000, 0x7FFF),
        (0x1000, 0x1000, 1, 0x1000, 0x1FFF),
        (0x1000, 0x4000, 0x3000, 0x1000, 0x4FFF),
        (0x4000, 0x4000, 0x3000, 0x1000, 0x7FFF),
    ],
)
def test_ranges_of_a_report(iova: int, length: int, page_size: int, alignment: int, last: int) -> None:
    assert check_dirty_range(iova, length, page_size, alignment) == last


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "number"),
    [
        (0x1000, 0, 0x1000, errno.EOVERFLOW),
        (0x1000, TOP - 0xFFF, 0x1000, errno.EOVERFLOW),
        (TOP - 1, 2, 0, errno.EOVERFLOW),
        (0x800, 0x1800, 1, errno.EINVAL),
        (0x1000, 0x800, 1, errno.EINVAL),
        (0x1000, 0x1000, 0, errno.EINVAL),
        (0x1000, 0x1000, 0x2000, errno.EINVAL),
        (0x2000, 0x1000, 0x2000, errno.EINVAL),
        (0x5000, 0x1000, 0x3000, errno.EINVAL),
    ],
)
def test_ranges_that_cannot_be_reported(iova: int, length: int, page_size: int, number: int) -> None:
    fails(number, check_dirty_range, iova, length, page_size, PAGE_SIZE)
