# SPDX-License-Identifier: Apache-2.0
"""Dirty tracking of an HWPT: the pages that its devices wrote, reported to clients' bitmaps.

The pages are kept by iova, as in the page table of an IOMMU, not by mapping: two HWPTs of one IOAS keep their
pages apart. The memory that this takes follows what was written, not what is mapped.

State: under ``IoAddressSpace.lock`` of the IOAS. A bitmap is written without any lock, by a thread that may
wait. Source: <linux/iommufd.h> (struct iommu_hwpt_set_dirty_tracking, struct iommu_hwpt_get_dirty_bitmap).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from devmodel.iommu.api import ADDRESSES, PAGE_SIZE, Bitmap, Prot
from devmodel.iommu.dmaspace import DmaSpace, Piece, Pin
from devmodel.iommu.inflight import MAX_DMA, Find, Span
from devmodel.iommu.mappings import Mapping as IovaMapping
from devmodel.iommu.segments import Segment, copy
from devmodel.iommu.space import IoAddressSpace

CHUNK = 512
"""Pages in a chunk: the bits of 2 MiB are one number."""
PIECE = 4096
"""The most mappings, and the most chunks, that are looked at in one hold of the lock."""
_CHUNK_SIZE = CHUNK * PAGE_SIZE
_WORD = 64
_WRITE = int(Prot.WRITE)


class WrittenPages:
    """A set of pages by number, which is the iova divided by PAGE_SIZE. ``chunks`` has the bits of each chunk
    with a page in the set, by the chunk's number."""

    __slots__ = ("chunks",)

    def __init__(self, chunks: Mapping[int, int] | None = None) -> None:
        self.chunks: dict[int, int] = dict(chunks or {})

    def mark(self, first: int, last: int) -> None:
        """Add the pages from ``first`` to ``last``."""
        for number in range(first // CHUNK, last // CHUNK + 1):
            self.chunks[number] = self.chunks.get(number, 0) | _mask(number, first, last)

    def discard(self, first: int, last: int) -> None:
        """Remove the pages from ``first`` to ``last``."""
        for number in self._between(first, last):
            left = self.chunks[number] & ~_mask(number, first, last)
            if left:
                self.chunks[number] = left
            else:
                del self.chunks[number]

    def within(self, first: int, last: int) -> WrittenPages:
        """The pages of the set from ``first`` to ``last``."""
        found = {
            number: self.chunks[number] & _mask(number, first, last) for number in self._between(first, last)
        }
        return WrittenPages({number: bits for number, bits in found.items() if bits})

    def merge(self, other: WrittenPages) -> None:
        """Add the pages of ``other``."""
        for number, bits in other.chunks.items():
            self.chunks[number] = self.chunks.get(number, 0) | bits

    def _between(self, first: int, last: int) -> list[int]:
        """The numbers of the chunks of a range, which may be much larger than the set."""
        low, high = first // CHUNK, last // CHUNK
        if high - low < len(self.chunks):
            return [number for number in range(low, high + 1) if number in self.chunks]
        return [number for number in self.chunks if low <= number <= high]


def _mask(number: int, first: int, last: int) -> int:
    """The bits of chunk ``number`` that stand for pages from ``first`` to ``last``."""
    low, high = max(first - number * CHUNK, 0), min(last - number * CHUNK, CHUNK - 1)
    return ((1 << high - low + 1) - 1) << low


class Bits(NamedTuple):
    """A client's bitmap, whose bit 0 stands for ``page_size`` bytes from ``iova``."""

    bitmap: Bitmap
    iova: int
    page_size: int

    def store(self, chunks: Sequence[tuple[int, int]]) -> Iterator[int]:
        """Set the bits of chunks. Yields the number of each chunk whose bits could be stored. Without any
        lock."""
        shift = (self.page_size & -self.page_size).bit_length() - 1
        for number, pages in chunks:
            first, bits = _to_bits(number * _CHUNK_SIZE - self.iova, pages, shift)
            try:
                _set_bits(self.bitmap, first, bits)
            except OSError:  # as the kernel, which does not tell the client
                continue
            yield number


class TrackedSpace(DmaSpace):
    """The addresses of an HWPT with DIRTY_TRACKING: those of its IOAS, with each written page marked while
    tracking is on. It is on from :meth:`start` to :meth:`stop`."""

    __slots__ = ("_on", "_pages", "_reports", "_space")

    def __init__(self, space: IoAddressSpace) -> None:
        self._space = space
        self._on = False
        self._pages = WrittenPages()
        self._reports: list[WrittenPages] = []
        """Pages that are being reported. They are dirty again if the report fails."""

    def start(self) -> None:
        """SET_DIRTY_TRACKING with ENABLE: no page is dirty, and pages are marked from now on."""
        self._turn(on=True)

    def stop(self) -> None:
        """SET_DIRTY_TRACKING without ENABLE: no page is dirty, and none is marked."""
        self._turn(on=False)

    def _turn(self, on: bool) -> None:
        trackers = self._space.trackers
        with self._space.lock:
            if on and not self._on:
                trackers.append(self)
            elif self._on and not on:
                trackers.remove(self)
            self._on = on
            self._pages = WrittenPages()
            for report in self._reports:
                report.chunks.clear()

    def report(self, iova: int, last: int, page_size: int, bitmap: Bitmap, clear: bool = True) -> None:
        """GET_DIRTY_BITMAP from ``iova`` to ``last``, for a range that :func:`check_dirty_range` takes: set
        the bit of each page that was written. Bit 0 stands for ``page_size`` bytes from ``iova``.

        It ends at the first address that is not mapped. Reported pages are clean if ``clear``. Pages that are
        written meanwhile, and those whose bits cannot be stored, are dirty for the next report. It waits for
        the client's memory.
        """
        start = iova
        while start <= last:
            with self._space.lock:
                end = self._piece(start, last)
                if not self._on or end == start:
                    return
                found = self._take(start, end, clear)
                chunks = sorted(found.chunks.items())
            if chunks:
                self._store(found, Bits(bitmap, iova, page_size).store(chunks), clear)
            start = end

    def _store(self, found: WrittenPages, storing: Iterator[int], clear: bool) -> None:
        """Store ``found``, of which ``storing`` stores one chunk after the other. If it was taken from the
        dirty pages, so as to ``clear`` them, what cannot be stored is put back, unless :meth:`unmapped` or
        the end of tracking has taken it meanwhile."""
        stored: list[int] = []
        try:
            stored.extend(storing)
        finally:
            if clear:
                with self._space.lock:
                    self._reports.remove(found)
                    for number in stored:
                        found.chunks.pop(number, None)
                    self._pages.merge(found)

    # ---- under the lock of the space ----

    def _piece(self, start: int, last: int) -> int:
        """Where a piece of a report ends that begins at ``start``: at a hole, behind ``last``, or so early
        that the lock is held for a moment only. ``start`` itself if that is not mapped."""
        mappings = self._space.mappings
        mapping, end, left = mappings.covering(start), start, PIECE
        while mapping is not None and left and end <= last:
            end, left = mapping.end, left - 1
            mapping = mappings.by_start.get(end)
        if len(self._pages.chunks) > PIECE:
            end = min(end, (start // _CHUNK_SIZE + PIECE) * _CHUNK_SIZE)
        return min(end, last + 1)

    def _take(self, start: int, end: int, clear: bool) -> WrittenPages:
        first, last = start // PAGE_SIZE, (end - 1) // PAGE_SIZE
        found = self._pages.within(first, last)
        if clear and found.chunks:
            self._pages.discard(first, last)
            self._reports.append(found)
        return found

    def unmapped(self, iova: int, end: int) -> None:
        """The dirty pages of a mapping go with it."""
        for pages in (self._pages, *self._reports):
            pages.discard(iova // PAGE_SIZE, (end - 1) // PAGE_SIZE)

    # ---- DmaSpace ----

    def dma_read(self, iova: int, size: int) -> bytes:
        return self._space.dma_read(iova, size)

    def dma_write(self, iova: int, data: bytes) -> None:
        self._write(iova, memoryview(data))

    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        if write:
            self._write(iova, memoryview(buffer).cast("B"))
        else:
            self._space.dma_rw(iova, buffer, write)

    def mapping_at(self, iova: int, write: bool) -> IovaMapping:
        return self._space.mapping_at(iova, write)

    def dma_pieces(self, pieces: Sequence[Piece], buffer: bytearray | memoryview, write: bool) -> None:
        spans = [(one.iova + offset, one.iova + offset + size) for one, offset, size in pieces if size]
        if not write:
            self._space.dma_pieces(pieces, buffer, write)
        elif spans:
            self._move(spans, memoryview(buffer).cast("B"), partial(self._space.recall, pieces, _WRITE))

    def pin_pages(self, iova: int, count: int, prot: Prot) -> Pin:
        """Raises ``OSError(EINVAL)``: a physical function has all of its memory pinned, and pins nothing
        itself."""
        raise OSError(errno.EINVAL, "only mediated devices pin pages")

    def unpin_pages(self, iova: int, count: int) -> None:
        """Nothing is pinned."""

    def read_pinned(self, pin: Pin, offset: int, size: int) -> bytes:
        return self._space.read_pinned(pin, offset, size)

    def write_pinned(self, pin: Pin, offset: int, data: bytes) -> None:
        self._space.write_pinned(pin, offset, data)

    def _write(self, iova: int, view: memoryview) -> None:
        size = len(view)
        if not 0 < size <= MAX_DMA:
            self._space.inflight.refuse_size(iova, size, write=True)
            return
        self._move(((iova, iova + size),), view, partial(self._space.find, iova, size, _WRITE))

    def _move(self, spans: Sequence[Span], view: memoryview, find: Find) -> None:
        move = partial(copy, view=view, write=True)
        self._space.inflight.transfer(spans, len(view), True, find, move, self._mark)

    def _mark(self, segments: Sequence[Segment]) -> None:
        for mapping, offset, size, *_ in segments if self._on else ():
            start = mapping.iova + offset
            self._pages.mark(start // PAGE_SIZE, (start + size - 1) // PAGE_SIZE)


def check_dirty_range(iova: int, length: int, page_size: int, alignment: int) -> int:
    """The last address of a range of GET_DIRTY_BITMAP. ``alignment`` is that of the IOAS.

    A length of 0 at iova 0 is everything, as in the kernel. ``page_size`` need be no power of two: its lowest
    bit counts. Raises ``OSError``: EOVERFLOW for a range that wraps around or is empty, EINVAL for an edge
    that is no multiple of ``alignment`` or has a bit of ``page_size`` less 1.
    """
    last = iova + (length - 1) % ADDRESSES
    if last >= ADDRESSES:
        raise OSError(errno.EOVERFLOW, f"{length:#x} bytes at iova {iova:#x} are empty or wrap around")
    edges = iova | last + 1
    if edges & alignment - 1 or not page_size or edges & page_size - 1:
        raise OSError(errno.EINVAL, f"iova {iova:#x} to {last:#x} in pages of {page_size:#x} bytes")
    return last


# ---- bits: without any lock ----


def _to_bits(start: int, pages: int, shift: int) -> tuple[int, int]:
    """The bits, of 1 << ``shift`` bytes each, of pages that begin ``start`` bytes behind the address of bit
    0: the number of the first one, and the bits from there. ``start`` may be negative, no page lies there."""
    lowest = (pages & -pages).bit_length() - 1
    start, pages = start + lowest * PAGE_SIZE, pages >> lowest
    if 1 << shift == PAGE_SIZE:
        return start >> shift, pages
    first, bits = start >> shift, 0
    for low, high in _runs(pages):
        begin, end = (
            (start + low * PAGE_SIZE >> shift) - first,
            (start + high * PAGE_SIZE - 1 >> shift) - first,
        )
        bits |= ((1 << end - begin + 1) - 1) << begin
    return first, bits


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Each run of set bits, as the number of its first bit and the one behind its last."""
    position = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & bits + 1).bit_length() - 1
        bits >>= ones
        position += zeros
        yield position, position + ones
        position += ones


def _set_bits(bitmap: Bitmap, first: int, bits: int) -> None:
    """Set bits from ``first`` on. Words in which nothing is to be set are not touched: the client may use
    them meanwhile. Raises ``OSError`` as ``bitmap`` does."""
    word = first // _WORD
    bits <<= first % _WORD
    data = bits.to_bytes(-(-bits.bit_length() // _WORD) * 8, "little")
    for low, high in _word_runs(data):
        offset = word * 8 + low
        before = int.from_bytes(bitmap.read(offset, high - low), "little")
        after = before | int.from_bytes(data[low:high], "little")
        bitmap.write(offset, after.to_bytes(high - low, "little"))


def _word_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """The ranges of bytes of the words that are not 0, those that follow each other together."""
    begin = None
    for offset in range(0, len(data) + 8, 8):
        used = any(data[offset : offset + 8])
        if used and begin is None:
            begin = offset
        elif not used and begin is not None:
            yield begin, offset
            begin = None
