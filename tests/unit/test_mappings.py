# SPDX-License-Identifier: Apache-2.0
"""The database of mappings, in small blocks, against pages; map and unmap in every order."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.iommu.api import PAGE_SIZE
from devmodel.iommu.mappings import Mapping, Mappings
from devmodel.iommu.type1 import Type1
from tests.unit.fakes import FakeClient

ORDERS: dict[str, Callable[[list[int]], list[int]]] = {
    "upwards": lambda iovas: iovas,
    "downwards": lambda iovas: iovas[::-1],
    "shuffled": lambda iovas: random.Random(1).sample(iovas, len(iovas)),
}


def mapping(first: int, count: int) -> Mapping:
    return Mapping(FakeClient(), first * PAGE_SIZE, 0, count * PAGE_SIZE, 3)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 4)), max_size=120))
def test_whatever_comes_and_goes_is_found_where_it_is(steps: list[tuple[bool, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("devmodel.iommu.mappings.BLOCK", 3)
        found, kept = Mappings(), dict[int, Mapping]()
        for adds, first, count in steps:
            if not adds and first in kept:
                gone = kept[first]
                found.remove(gone)
                kept = {page: one for page, one in kept.items() if one is not gone}
            elif adds:
                pages, new = range(first, first + count), mapping(first, count)
                assert found.add(new) is not any(page in kept for page in pages)
                kept |= dict.fromkeys(pages, new) if new in found.by_start.values() else {}
            compare(found, kept)


def compare(found: Mappings, kept: dict[int, Mapping]) -> None:
    """Both have the same mappings, and the same at each page."""
    assert list(found) == [kept[page] for page in sorted(kept) if page == kept[page].iova // PAGE_SIZE]
    for page in range(64):
        assert found.covering(page * PAGE_SIZE + 7) is kept.get(page)


@pytest.mark.parametrize("order", ORDERS)
def test_thousands_in_every_order(order: str) -> None:
    iommu, client = Type1(), FakeClient()
    iovas = ORDERS[order]([number * 2 * PAGE_SIZE for number in range(3000)])
    for iova in iovas:
        iommu.map(client, iova, iova, PAGE_SIZE, 3)
    for iova in iovas:
        found = iommu.space.mappings.covering(iova + 8)
        assert found is not None and found.end >= iova + 12
        assert found.vaddr + iova + 8 - found.iova == iova + 8
    for other in ORDERS.values():
        for iova in other(sorted(iovas)):
            assert iommu.unmap(iova, PAGE_SIZE) == PAGE_SIZE
        assert iommu.dma_avail == iommu.space.limit
        for iova in iovas:
            iommu.map(client, iova, iova, PAGE_SIZE, 3)
