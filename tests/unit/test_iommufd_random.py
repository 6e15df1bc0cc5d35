# SPDX-License-Identifier: Apache-2.0
"""An IOAS against plain lists of its mappings and ranges: any calls in any order."""

import errno
import random
from collections.abc import Callable, Iterable

import pytest

from devmodel.iommu.api import PAGE_SIZE
from devmodel.iommu.holes import Room
from devmodel.iommufd import ioas as ioas_module
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.iovas import LAST
from tests.unit.fakes import FakeClient
from tests.unit.test_iommufd import FIXED, RW, Attached, PinUser, mapped


class Model:
    """The rules of an IOAS over plain lists, each looked through from end to end."""

    def __init__(self) -> None:
        self.mappings: dict[int, int] = {}
        self.reserved: dict[str, tuple[int, int]] = {}
        self.allowed: list[tuple[int, int]] = []
        self.unit = 1

    def is_mapped(self, first: int, last: int) -> bool:
        return any(iova <= last and first < iova + size for iova, size in self.mappings.items())

    def free(self, first: int, last: int) -> str:
        if overlaps(self.reserved.values(), first, last):
            return "EINVAL"
        return "EEXIST" if self.is_mapped(first, last) else ""

    def map(self, iova: int | None, length: int, va: int) -> int | str:
        if length % self.unit:
            return "EINVAL"
        if iova is None:
            align = min(1 << (length - 1).bit_length(), va & -va) if va else 1 << (length - 1).bit_length()
            if align < self.unit:
                return "EINVAL"
            if (iova := self.choice(length, align, va % PAGE_SIZE)) is None:
                return "ENOSPC"
        elif iova % self.unit:
            return "EINVAL"
        elif wrong := self.free(iova, iova + length - 1):
            return wrong
        if va % PAGE_SIZE % self.unit:
            return "EINVAL"
        self.mappings[iova] = length
        return iova

    def choice(self, length: int, align: int, offset: int) -> int | None:
        mapped_ranges = [(iova, iova + size - 1) for iova, size in self.mappings.items()]
        used = sorted([*self.reserved.values(), *mapped_ranges])
        for low, high in sorted(self.allowed) or [(0, LAST)]:
            last = min(high, LAST - PAGE_SIZE)
            first = Room(length, align, offset).fits(max(low, PAGE_SIZE), last)
            if first is None:
                continue
            for begin, end in [*used, (last + 1, last + 1)]:
                found = Room(length, align, offset).fits(first, min(begin - 1, last))
                if found is not None:
                    return found
                first = max(first, end + 1)
        return None

    def unmap(self, first: int, last: int) -> int | str:
        removed = 0
        for iova, size in sorted(self.mappings.items()):
            if iova <= last and first < iova + size:
                if iova < first or iova + size - 1 > last:
                    return "ENOENT"
                removed += self.mappings.pop(iova)
        return removed or "ENOENT"


def overlaps(ranges: Iterable[tuple[int, int]], first: int, last: int) -> bool:
    return any(low <= last and first <= high for low, high in ranges)


def outcome(call: Callable[..., int | None], *arguments: object) -> int | str | None:
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.mark.parametrize("seed", [*range(20), 81, 295, 1734])
def test_any_calls_in_any_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devmodel.iommu.mappings.BLOCK", 4)
    monkeypatch.setattr("devmodel.iommu.holes.FREED", 5)
    monkeypatch.setattr(ioas_module, "MANY", 3)
    rng, ioas, model, client = random.Random(seed), Ioas(), Model(), FakeClient()
    pages, access = rng.choice([True, False]), Attached(1, emulated=True)

    def number(most: int) -> int:
        return (
            rng.randrange(most) * PAGE_SIZE if pages else rng.randrange(most * PAGE_SIZE) >> rng.randrange(12)
        )

    for _ in range(400):
        what = rng.random()
        if what < 0.5:
            iova = None if rng.random() < 0.5 else number(40)
            length, va = number(6) or 1, number(8)
            flags = RW if iova is None else RW | FIXED
            found = outcome(ioas.map, client, flags, va, length, iova or 0)
            assert found == model.map(iova, length, va)
        elif what < 0.85:
            chosen_one = rng.choice([*model.mappings.items(), (number(40), number(9) or 1)])
            first, length = chosen_one if rng.random() < 0.8 else (number(40), number(20) or 1)
            assert outcome(ioas.unmap, first, length) == model.unmap(first, first + length - 1)
        elif what < 0.92:
            first = number(40)
            last, owner = first + (number(4) or 1), rng.choice("ab")
            ioas.unreserve(owner)
            model.reserved.pop(owner, None)
            taken = model.is_mapped(first, last) or overlaps(model.allowed, first, last)
            assert outcome(ioas.reserve, owner, [(first, last)]) == ("EADDRINUSE" if taken else None)
            if not taken:
                model.reserved[owner] = (first, last)
        elif what < 0.97:
            edges = sorted(rng.sample(range(60 * PAGE_SIZE), 4)) if rng.random() < 0.7 else []
            allowed = list(zip(edges[::2], edges[1::2], strict=True))
            taken = any(overlaps(model.reserved.values(), *one) for one in allowed)
            assert outcome(ioas.allow, allowed) == ("EADDRINUSE" if taken else None)
            if not taken:
                model.allowed = allowed
        elif model.unit == 1:
            whole = all(not (iova | size) % PAGE_SIZE for iova, size in model.mappings.items())
            whole = whole and all(not one.vaddr % PAGE_SIZE for one in ioas.space.mappings)
            assert outcome(ioas.add_access, access, PinUser()) == (None if whole else "EADDRINUSE")
            model.unit = PAGE_SIZE if whole else 1
        else:
            ioas.remove_access(access)
            model.unit = 1
        assert dict(mapped(ioas)) == model.mappings and ioas.alignment == model.unit
