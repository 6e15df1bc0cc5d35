# SPDX-License-Identifier: Apache-2.0
"""Bytes of a large range, of which few are known.

State: a SparseBytes belongs to its maker, and is used by one thread at a time.
"""

from __future__ import annotations

_PAGE = 256
"""Bytes.  Few, because a hostile recording may read one byte of each page, two million times."""


class SparseBytes:
    """Bytes by offset.  Only the pages with known bytes take memory."""

    __slots__ = ("_pages",)

    def __init__(self) -> None:
        self._pages: dict[int, tuple[bytearray, bytearray]] = {}

    def put(self, offset: int, data: bytes) -> None:
        """From now on these bytes are known."""
        done = 0
        while done < len(data):
            number, start = divmod(offset + done, _PAGE)
            count = min(_PAGE - start, len(data) - done)
            values, known = self._pages.setdefault(number, (bytearray(_PAGE), bytearray(_PAGE)))
            values[start : start + count] = data[done : done + count]
            known[start : start + count] = b"\1" * count
            done += count

    def fill(self, offset: int, into: bytearray, missing: bytearray) -> None:
        """Put what is known from `offset` on into those bytes of `into` for which `missing` is not 0, and
        make that 0."""
        done = 0
        while done < len(into):
            number, start = divmod(offset + done, _PAGE)
            count = min(_PAGE - start, len(into) - done)
            page = self._pages.get(number)
            if page is not None:
                _fill(page, start, into, missing, done, count)
            done += count

    def add(self, offset: int, data: bytes) -> None:
        """As :meth:`put`, for those bytes only that are not known yet."""
        into, missing = bytearray(data), bytearray(b"\1") * len(data)
        self.fill(offset, into, missing)
        self.put(offset, bytes(into))

    def knows(self, offset: int, size: int) -> bool:
        """Whether one of these bytes is known."""
        missing = bytearray(b"\1") * size
        self.fill(offset, bytearray(size), missing)
        return 0 in missing

    def clear(self) -> None:
        """Forget all of them."""
        self._pages.clear()


def _fill(
    page: tuple[bytearray, bytearray], start: int, into: bytearray, missing: bytearray, done: int, count: int
) -> None:
    values, known = page[0][start : start + count], page[1][start : start + count]
    if all(known) and all(missing[done : done + count]):
        into[done : done + count] = values
        missing[done : done + count] = bytes(count)
        return
    for position in range(count):
        if known[position] and missing[done + position]:
            into[done + position] = values[position]
            missing[done + position] = 0
