# SPDX-License-Identifier: Apache-2.0
"""The iovas of an IOAS: those that devices reserve, and those among which the lab chooses.

State: under the lock of the address space; nothing here locks.
Source: <linux/iommufd.h> (IOMMU_IOAS_IOVA_RANGES, IOMMU_IOAS_ALLOW_IOVAS).
"""

import errno
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from devmodel.iommu.api import ADDRESSES, PAGE_SIZE
from devmodel.iommu.holes import Room

Range = tuple[int, int]
"""The first and the last address."""
LAST = ADDRESSES - 1
MAX_ALLOWED = 4096
"""The most ranges that a client may allow. Linux has no limit but the memory of its control group."""
CHOSEN = (PAGE_SIZE, LAST - PAGE_SIZE)
"""Where a chosen iova may be: never in the first page."""


class Iovas:
    """``reserved`` has the ranges that some device reserves. Ranges are in order, with a gap between each and
    the next."""

    __slots__ = ("_allowed", "_choices", "_owners", "reserved")

    def __init__(self) -> None:
        self._owners: dict[object, list[Range]] = {}
        self._allowed: list[Range] = []
        self.reserved: list[Range] = []
        """The list object never changes."""
        self._choices = [CHOSEN]

    def usable(self) -> list[Range]:
        """The ranges that no device reserves."""
        return without([(0, LAST)], self.reserved)

    def is_reserved(self, first: int, last: int) -> bool:
        """Whether a device reserves an address of the range."""
        return touches(self.reserved, first, last)

    def reserve(self, owner: object, ranges: Sequence[Range]) -> None:
        """Reserve ``ranges``, together with others of ``owner``. Other owners may reserve the same. Raises
        ``OSError(EADDRINUSE)`` for an address that clients have allowed."""
        if any(touches(self._allowed, *one) for one in ranges):
            raise OSError(errno.EADDRINUSE, "a reserved iova is allowed to be chosen")
        self._owners.setdefault(owner, []).extend(ranges)
        self._change()

    def unreserve(self, owner: object) -> None:
        """The opposite of :meth:`reserve`, for all ranges of ``owner``, which may have none."""
        if self._owners.pop(owner, None):
            self._change()

    def allow(self, ranges: Iterable[Range]) -> None:
        """Choose iovas in ``ranges`` only, anywhere if there are none.

        Raises ``OSError``, with nothing changed: EINVAL (a range ends where it begins or before, or two
        overlap), EADDRINUSE (reserved).
        """
        ordered = check_allowed(ranges)
        if any(self.is_reserved(*one) for one in ordered):
            raise OSError(errno.EADDRINUSE, "an allowed iova is reserved")
        self._allowed = merged(ordered)
        self._change()

    def choices(self, wanted: Room) -> list[Range]:
        """The ranges where an iova may be chosen."""
        if not wanted.offset:
            return self._choices
        # As in the kernel, the first address of an allowed range is rounded up at once. With an offset that
        # may leave out an address behind a mapping in that range.
        fitting = [(wanted.fits(first, last), last) for first, last in self._ranges()]
        return without([(first, last) for first, last in fitting if first is not None], self.reserved)

    def _ranges(self) -> list[Range]:
        low, high = CHOSEN
        allowed = [(max(first, low), min(last, high)) for first, last in self._allowed or [CHOSEN]]
        return [one for one in allowed if one[0] <= one[1]]

    def _change(self) -> None:
        self.reserved[:] = merged(sorted(one for ranges in self._owners.values() for one in ranges))
        self._choices = without(self._ranges(), self.reserved)


def check_allowed(ranges: Iterable[Range]) -> list[Range]:
    """``ranges`` in order. Raises ``OSError(EINVAL)`` as :meth:`Iovas.allow`."""
    ordered = sorted(ranges)
    if any(first >= last for first, last in ordered):
        raise OSError(errno.EINVAL, "an allowed range ends where it begins, or before")
    if any(one[1] >= behind[0] for one, behind in pairwise(ordered)):
        raise OSError(errno.EINVAL, "allowed ranges overlap")
    return ordered


def touches(ranges: Sequence[Range], first: int, last: int) -> bool:
    """Whether an address from ``first`` to ``last`` is in one of ``ranges``, which are in order."""
    index = bisect_right(ranges, (last, ADDRESSES)) - 1
    return index >= 0 and ranges[index][1] >= first


def merged(ordered: Iterable[Range]) -> list[Range]:
    """The addresses of ranges in order, with a gap between each range and the next."""
    found: list[Range] = []
    for first, last in ordered:
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def without(ranges: Iterable[Range], holes: Sequence[Range]) -> list[Range]:
    """The addresses of ``ranges`` that are not in ``holes``. Both are in order, with gaps."""
    found: list[Range] = []
    for first, last in ranges:
        index = max(bisect_right(holes, (first, ADDRESSES)) - 1, 0)
        while index < len(holes) and holes[index][0] <= last and first <= last:
            hole, end = holes[index]
            if first < hole:
                found.append((first, hole - 1))
            first = max(first, end + 1)
            index += 1
        if first <= last:
            found.append((first, last))
    return found
