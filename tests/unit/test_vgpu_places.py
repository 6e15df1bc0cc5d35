# SPDX-License-Identifier: Apache-2.0
"""Which vGPUs a GPU has room for: the tables that NVIDIA publishes, and any order of coming and going."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.lifecycle.spec import PlacementMode, TypeSpec
from devmodel.lifecycle.vgpuplaces import VgpuPlaces, usual_starts
from devmodel.models.gpu import Vgpu
from tests.unit.fakes import fails

SLOTS = 48
SIZES = {1: 32, 2: 24, 3: 16, 4: 12, 6: 8, 8: 6, 12: 4, 16: 3, 24: 2, 48: 1}
"""Slots of a type, and how many there are when all are alike."""
STARTS = {
    2: (0, 4, 6, 10, 12, 16, 18, 22, 24, 28, 30, 34, 36, 40, 42, 46),
    3: tuple(range(0, 48, 3)),
    4: (0, 8, 12, 20, 24, 32, 36, 44),
    6: tuple(range(0, 48, 6)),
    8: (0, 16, 24, 40),
    12: (0, 12, 24, 36),
    16: (0, 32),
    24: (0, 24),
    48: (0,),
}


def spec(size: int, series: str = "Q", starts: tuple[int, ...] | None = None) -> TypeSpec:
    return TypeSpec(
        f"{size}{series}", "", Vgpu, memory=size << 20, slots=size, instances=SIZES[size], starts=starts
    )


TYPES = [spec(size, series) for size in SIZES for series in "QA"]


def fresh(mode: PlacementMode) -> VgpuPlaces:
    return VgpuPlaces(mode, SLOTS)


def names(placement: VgpuPlaces) -> set[str]:
    return {each.name for each in TYPES if placement.room_for(each) > 0}


@pytest.mark.parametrize("size", STARTS)
def test_the_places_of_a_type_are_those_of_a_real_card(size: int) -> None:
    assert usual_starts(size, SIZES[size], SLOTS) == STARTS[size]


def test_the_smallest_types_begin_almost_everywhere() -> None:
    found = usual_starts(1, 32, SLOTS)
    assert len(found) == 32 and found[:8] == (0, 2, 3, 5, 6, 8, 9, 11)


def test_without_a_vgpu_every_type_has_room() -> None:
    for mode in PlacementMode:
        assert names(fresh(mode)) == {each.name for each in TYPES}


def test_equal_sizes_of_different_series_are_beside_one_another() -> None:
    placement = fresh(PlacementMode.HOMOGENEOUS)
    for number in range(6):
        assert names(placement) == ({"8Q", "8A"} if number else {each.name for each in TYPES})
        placement.take(number, spec(8, "QA"[number % 2]))
        assert placement.start_of(number) is None
    assert names(placement) == set()
    placement.give(3)
    assert names(placement) == {"8Q", "8A"}
    for number in (0, 1, 2, 4, 5):
        placement.give(number)
    assert names(placement) == {each.name for each in TYPES}


def test_mixed_sizes_have_places() -> None:
    placement = fresh(PlacementMode.HETEROGENEOUS)
    placement.take("large", spec(24))
    assert placement.start_of("large") == 0
    assert {"48Q", "48A"} == {each.name for each in TYPES} - names(placement)
    placement.take("middle", spec(8))
    assert placement.start_of("middle") == 24
    assert "24Q" not in names(placement) and "16Q" in names(placement)
    placement.take("more", spec(16))
    assert placement.start_of("more") == 32 and names(placement) == set()


def test_a_vgpu_moves_to_a_free_place() -> None:
    placement = fresh(PlacementMode.HETEROGENEOUS)
    placement.take("one", spec(8))
    placement.take("two", spec(8))
    fails(errno.EINVAL, placement.move, "one", 8)
    fails(errno.EBUSY, placement.move, "one", 16)
    placement.move("one", 40)
    placement.move("one", 40)
    assert (placement.start_of("one"), placement.start_of("two")) == (40, 16)
    equal = fresh(PlacementMode.HOMOGENEOUS)
    equal.take("one", spec(8))
    fails(errno.EINVAL, equal.move, "one", 0)


def test_the_mode_changes_while_there_is_no_vgpu() -> None:
    placement = fresh(PlacementMode.HOMOGENEOUS)
    placement.take("one", spec(8))
    with pytest.raises(OSError) as caught:
        placement.mode = PlacementMode.HETEROGENEOUS
    assert caught.value.errno == errno.EBUSY
    placement.give("one")
    placement.mode = PlacementMode.HETEROGENEOUS
    with pytest.raises(OSError) as caught:
        VgpuPlaces(PlacementMode.HOMOGENEOUS, None).mode = PlacementMode.HETEROGENEOUS
    assert caught.value.errno == errno.EINVAL


def test_a_type_may_say_where_its_vgpus_begin() -> None:
    placement = fresh(PlacementMode.HETEROGENEOUS)
    own = spec(8, starts=(5, 30))
    for number, start in enumerate((5, 30)):
        placement.take(number, own)
        assert placement.start_of(number) == start
    assert placement.room_for(own) == 0


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(TYPES)), max_size=60), st.sampled_from(PlacementMode)
)
def test_no_two_vgpus_are_in_one_place(steps: list[tuple[bool, TypeSpec]], mode: PlacementMode) -> None:
    placement, there = fresh(mode), dict[int, TypeSpec]()
    for number, (coming, wanted) in enumerate(steps):
        if coming and placement.room_for(wanted) > 0:
            placement.take(number, wanted)
            there[number] = wanted
        elif not coming and there:
            gone = next(iter(there))
            placement.give(gone)
            del there[gone]
        assert len(placement) == len(there)
        assert sum(each.slots for each in there.values()) <= SLOTS
        if mode is PlacementMode.HOMOGENEOUS:
            assert len({each.memory for each in there.values()}) <= 1
            continue
        taken = [
            slot
            for owner, each in there.items()
            if (start := placement.start_of(owner)) is not None
            for slot in range(start, start + each.slots)
        ]
        assert len(taken) == len(set(taken)) == sum(each.slots for each in there.values())
        assert not taken or (min(taken) >= 0 and max(taken) < SLOTS)


@given(st.lists(st.sampled_from(TYPES), max_size=20), st.sampled_from(TYPES), st.sampled_from(PlacementMode))
def test_there_is_room_for_exactly_as_many(
    before: list[TypeSpec], wanted: TypeSpec, mode: PlacementMode
) -> None:
    placement = fresh(mode)
    for number, each in enumerate(before):
        if placement.room_for(each) > 0:
            placement.take(number, each)
    room = placement.room_for(wanted)
    for number in range(room):
        assert placement.room_for(wanted) == room - number
        placement.take(f"new {number}", wanted)
    assert placement.room_for(wanted) == 0
