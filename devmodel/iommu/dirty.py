# SPDX-License-Identifier: Apache-2.0
"""Dirty pages of a mapping, and the copying of them into a client's bitmap.

State: :class:`DirtyPages` belongs to a mapping, under the lock of its address space. A thread that reports it
takes it from there first, because a bitmap is written without that lock. It takes memory for the pages that a
device wrote, not for the size of the mapping, which a hostile client may make as large as it likes.
Source: <linux/vfio.h> (VFIO_IOMMU_DIRTY_PAGES): bits in 64-bit little endian words.
"""

import errno
from collections.abc import Iterator

from devmodel.iommu.api import MAX_BITMAP_SIZE, ClientBitmap

CHUNK = 32768
"""Bytes of bitmap that are allocated at once: the bits of 1 GiB of 4 KiB pages."""
_BITS = CHUNK * 8
_WORD = 64
_NOTHING = bytes(CHUNK)
_EVERYTHING = b"\xff" * CHUNK


class DirtyPages:
    """A set of written pages, out of ``pages``. ``whole`` means all of them, whatever was marked."""

    __slots__ = ("_chunks", "pages", "whole")

    def __init__(self, pages: int, whole: bool = False) -> None:
        self.pages, self.whole = pages, whole
        self._chunks: dict[int, bytearray] = {}

    def mark(self, first: int, last: int) -> None:
        """Pages ``first`` to ``last``, counted from the mapping's start, were written."""
        for number in range(first // _BITS, last // _BITS + 1):
            start = number * _BITS
            low, high = max(first - start, 0), min(last - start, _BITS - 1)
            _set_bits(self._chunks.setdefault(number, bytearray(CHUNK)), low, high)

    def merge(self, other: "DirtyPages") -> None:
        """Add the written pages of ``other``, which is for the same number of pages."""
        self.whole |= other.whole
        for number, chunk in other._chunks.items():
            mine = self._chunks.get(number, _NOTHING)
            bits = int.from_bytes(mine, "little") | int.from_bytes(chunk, "little")
            self._chunks[number] = bytearray(bits.to_bytes(CHUNK, "little"))

    def clear(self) -> None:
        """No page has been written."""
        self.whole = False
        self._chunks.clear()

    def copy_to(self, bitmap: ClientBitmap, first: int) -> None:
        """Write the bits of all pages from bit ``first`` of ``bitmap`` on. Bits before it keep their value.

        Bits behind the last page become 0 up to the end of the word. Raises ``OSError`` as ``bitmap`` does.
        """
        shift = first % _WORD
        offset = first // _WORD * 8
        carry = 0
        if shift:
            carry = int.from_bytes(bitmap.read(offset, 8), "little") & ((1 << shift) - 1)
        end = offset + bitmap_bytes(self.pages + shift)
        for chunk in self._all_chunks():
            size = min(CHUNK, end - offset)
            if chunk is _NOTHING and not carry:
                bitmap.write(offset, _NOTHING[:size])
                offset += size
                continue
            bits = int.from_bytes(chunk, "little") << shift | carry
            bitmap.write(offset, (bits & ((1 << size * 8) - 1)).to_bytes(size, "little"))
            carry, offset = bits >> size * 8, offset + size
        if offset < end:
            bitmap.write(offset, carry.to_bytes(end - offset, "little"))

    def _all_chunks(self) -> Iterator[bytes | bytearray]:
        for number in range(-(-self.pages // _BITS)):
            if not self.whole:
                yield self._chunks.get(number, _NOTHING)
                continue
            last = min(self.pages - number * _BITS, _BITS)
            yield _EVERYTHING if last == _BITS else ((1 << last) - 1).to_bytes(CHUNK, "little")


def bitmap_bytes(pages: int) -> int:
    """Bytes of a bitmap of ``pages`` bits: whole 64-bit words."""
    return -(-pages // _WORD) * 8


def report(dirty: DirtyPages | None, pages: int, first: int, bitmap: ClientBitmap) -> None:
    """Write the bits of a mapping of ``pages`` pages from bit ``first`` of ``bitmap`` on. None: all are
    clean.

    It waits for the client's memory, so the caller holds no lock. Raises ``OSError`` as ``bitmap`` does.
    """
    (dirty or DirtyPages(pages)).copy_to(bitmap, first)


def check_bitmap(bitmap: ClientBitmap, size: int, pgsize: int) -> None:
    """Raises ``OSError(EINVAL)`` unless each bit of ``bitmap`` stands for ``pgsize`` bytes, and it has enough
    bits for ``size`` bytes."""
    pages = size // bitmap.pgsize if bitmap.pgsize else 0
    if not pages or not bitmap_bytes(pages) <= bitmap.size <= MAX_BITMAP_SIZE:
        raise OSError(errno.EINVAL, f"a dirty bitmap of {bitmap.size} bytes for {pages} pages")
    if bitmap.pgsize != pgsize:
        raise OSError(errno.EINVAL, f"dirty pages are tracked in units of {pgsize}, not {bitmap.pgsize}")


def _set_bits(chunk: bytearray, low: int, high: int) -> None:
    if low == high:
        chunk[low // 8] |= 1 << low % 8
        return
    begin, end = low // 8, high // 8 + 1
    bits = ((1 << high - low + 1) - 1) << low % 8
    bits |= int.from_bytes(chunk[begin:end], "little")
    chunk[begin:end] = bits.to_bytes(end - begin, "little")
