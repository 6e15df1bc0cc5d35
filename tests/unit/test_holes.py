# SPDX-License-Identifier: Apache-2.0
"""The search for the lowest hole, against one that looks at every hole."""

import random

import pytest

from devmodel.iommu.holes import Holes, Room
from devmodel.iommu.mappings import Mapping, Mappings
from tests.unit.fakes import FakeClient


def lowest(mappings: Mappings, wanted: Room, ranges: list[tuple[int, int]]) -> int | None:
    """The answer of :meth:`Holes.find`, by looking at every hole."""
    for first, last in ranges:
        start = first
        for mapping in [*mappings, None]:
            end = mapping.iova - 1 if mapping else last
            if start <= min(end, last):
                found = wanted.fits(start, min(end, last))
                if found is not None:
                    return found
            start = max(start, mapping.end if mapping else start)
    return None


@pytest.mark.parametrize("seed", range(30))
def test_the_lowest_hole_whatever_was_removed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devmodel.iommu.mappings.BLOCK", 4)
    monkeypatch.setattr("devmodel.iommu.holes.FREED", 7)
    rng = random.Random(seed)
    mappings, client = Mappings(), FakeClient()
    holes, ranges = Holes(mappings), [(16, 900), (1000, 4000)]
    kinds = [
        Room(size, align, offset) for size in (1, 3, 8) for align, offset in ((1, 0), (4, 0), (2, 6), (1, 5))
    ]
    rng.shuffle(kinds)
    del kinds[rng.randrange(2, len(kinds)) :]
    for _ in range(1500):
        what = rng.random()
        if what < 0.45:
            wanted = rng.choice(kinds)
            found = holes.find(wanted, ranges)
            assert found == lowest(mappings, wanted, ranges)
            if found is not None and rng.random() < 0.8:
                assert mappings.add(Mapping(client, found, 0, wanted.length, 3))
        elif what < 0.6:
            mappings.add(Mapping(client, rng.randrange(4200), 0, rng.randrange(1, 20), 3))
        elif what < 0.62:
            ranges = [(rng.randrange(5, 900), 900 + rng.randrange(100)), (1000, rng.randrange(1001, 4100))]
            holes.forget()
        elif what < 0.625:
            mappings.clear()
        else:
            for mapping in rng.sample(list(mappings), min(len(mappings), rng.randrange(3))):
                mappings.remove(mapping)
