# SPDX-License-Identifier: Apache-2.0
"""Holds of pages, by stretches, against a count for each page."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from devmodel.client import Pages
from devmodel.iommu.heldpages import HeldPages
from tests.unit.fakes import FakeClient, FakePages

END = 24
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "keep"]), st.integers(0, END), st.integers(1, 9))
)


@given(STEPS)
def test_stretches_are_as_single_pages(steps: list[tuple[str, int, int]]) -> None:
    held, holds = HeldPages(), Counter[int]()
    pinned: dict[int, tuple[FakePages, int]] = {}
    added: list[tuple[int, int]] = []
    for what, first, count in steps:
        span = first, first + count
        numbers = range(*span)
        if what == "add":
            assert held.add([span]) == sum(not holds[page] for page in numbers)
            holds.update(numbers)
            added.append(span)
        elif what == "keep":
            pages = FakePages(FakeClient(), first)
            held.keep(*span, pages, first)
            for page in numbers:
                if holds[page]:
                    pinned.setdefault(page, (pages, first))
        elif added:
            span = added.pop(first % len(added))
            holds.subtract(range(*span))
            gone = [page for page in range(*span) if not holds[page]]
            let_go: list[Pages | None] = []
            assert held.remove([span], let_go) == len(gone)
            assert {id(one) for one in let_go if one} == {
                id(pinned[page][0]) for page in gone if page in pinned
            }
            for page in gone:
                pinned.pop(page, None)
        assert held.total == sum(count > 0 for count in holds.values())
        position = 0
        for low, high, stretch in held.pinned(0, 2 * END):
            assert low == position < high
            position = high
            for page in range(low, high):
                assert stretch.holds == holds[page]
                assert (stretch.pages and (stretch.pages, stretch.base)) == pinned.get(page)
        assert position == 2 * END
    for span in added:
        held.remove([span], [])
    assert held.pinned(0, END) == [(0, END, held.pinned(0, 1)[0][2])]  # one stretch again
