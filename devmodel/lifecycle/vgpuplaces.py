# SPDX-License-Identifier: Apache-2.0
"""Which types of vGPU a GPU has room for, by the places that its vGPUs are in.

A GPU has a number of slots. A type takes some of them in a row, and may begin at some of them only.

    homogeneous      all vGPUs have the same video memory; a type's ``instances`` bounds how many there are
    heterogeneous    vGPUs of different types are beside one another, each at a place of its own

State: the lifecycle thread's, under ``Lab.lock``. Source: the rules that NVIDIA documents for equal-size and
mixed-size vGPUs (NVML: nvmlDeviceGetVgpuTypeSupportedPlacements).
"""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from devmodel.lifecycle.spec import PlacementMode, TypeSpec

UNBOUNDED = 2**31 - 1
"""What :meth:`VgpuPlaces.room_for` says when there is no bound."""
MOST_PARTS = 16
"""A GPU's slots are halved at most so often that there are so many parts."""


def usual_starts(size: int, most: int, slots: int) -> tuple[int, ...]:
    """The slots at which a type of ``size`` slots may begin on a GPU of ``slots``. ``most`` is how many of
    the type there are when all are alike.

    The slots are halved again and again. Each part has room for two, one at its start and one at its end, or
    for one: at the start of a left half and at the end of a right one. So small types leave room for large
    ones.
    """
    parts = 1
    while parts < MOST_PARTS and parts * 2 < most:
        parts *= 2
    length = slots // parts
    starts: set[int] = set()
    for part in range(parts):
        first = part * length
        ends = (first, first + length - size)
        starts.update(ends if most == 2 * parts else ends[part % 2 : part % 2 + 1])
    return tuple(sorted(start for start in starts if 0 <= start <= slots - size))


@dataclass(frozen=True, slots=True)
class VgpuPlace:
    """Where a vGPU of type ``spec`` is: its first slot, None while places have no numbers."""

    spec: TypeSpec
    start: int | None

    def overlaps(self, start: int, size: int) -> bool:
        """Whether it has one of ``size`` slots from ``start`` on."""
        return self.start is not None and self.start < start + size and start < self.start + self.spec.slots


class VgpuPlaces:
    """The places of the vGPUs of one GPU, by whoever has them."""

    __slots__ = ("_mode", "_places", "_slots")

    def __init__(self, mode: PlacementMode, slots: int | None) -> None:
        """``slots`` is how many the GPU has, None if nobody counts them."""
        self._mode, self._slots = mode, slots
        self._places: dict[Hashable, VgpuPlace] = {}

    def __len__(self) -> int:
        """How many vGPUs there are."""
        return len(self._places)

    @property
    def mode(self) -> PlacementMode:
        """Which vGPUs can be beside one another."""
        return self._mode

    @mode.setter
    def mode(self, mode: PlacementMode) -> None:
        """Raises ``OSError``: EBUSY while there is a vGPU, EINVAL for places on a GPU without slots."""
        if self._places:
            raise OSError(errno.EBUSY, f"the GPU has {len(self)} vGPUs")
        if mode is PlacementMode.HETEROGENEOUS and self._slots is None:
            raise OSError(errno.EINVAL, "the GPU has no slots")
        self._mode = mode

    def room_for(self, spec: TypeSpec) -> int:
        """How many more vGPUs of this type there are places for, as far as places bound them."""
        if self._mode is PlacementMode.HETEROGENEOUS:
            return self._fitting(spec)
        first = next(iter(self._places.values()), None)
        if first is not None and first.spec.memory != spec.memory:
            return 0
        return UNBOUNDED if spec.instances is None else spec.instances - len(self)

    def _fitting(self, spec: TypeSpec) -> int:
        """How many fit beside one another. To begin as early as possible leaves most room, because all are of
        one size."""
        count, end = 0, 0
        for start in self.free_starts(spec):
            if start >= end:
                count, end = count + 1, start + spec.slots
        return count

    def starts(self, spec: TypeSpec) -> Sequence[int]:
        """The slots at which a vGPU of this type may begin."""
        if spec.starts is not None or self._slots is None:
            return spec.starts or ()
        most = spec.instances or self._slots // max(spec.slots, 1)
        return usual_starts(spec.slots, most, self._slots)

    def free_starts(self, spec: TypeSpec, but: Hashable = None) -> Iterator[int]:
        """Those at which one could begin now, if ``but`` were gone."""
        others = [place for owner, place in self._places.items() if owner is not but]
        for start in self.starts(spec):
            if not any(place.overlaps(start, spec.slots) for place in others):
                yield start

    def take(self, owner: Hashable, spec: TypeSpec) -> None:
        """Give ``owner`` a place for a vGPU of this type; :meth:`room_for` said that there is one."""
        start = None
        if self._mode is PlacementMode.HETEROGENEOUS:
            start = next(self.free_starts(spec))
        self._places[owner] = VgpuPlace(spec, start)

    def give(self, owner: Hashable) -> None:
        """Take the place of ``owner`` back."""
        del self._places[owner]

    def start_of(self, owner: Hashable) -> int | None:
        """The first slot of the place of ``owner``, None while places have no numbers."""
        return self._places[owner].start

    def move(self, owner: Hashable, start: int) -> None:
        """Move the vGPU of ``owner`` to another place.

        Raises ``OSError``: EINVAL for a slot at which it cannot begin, EBUSY for one that is taken.
        """
        place = self._places[owner]
        if self._mode is not PlacementMode.HETEROGENEOUS or start not in self.starts(place.spec):
            raise OSError(errno.EINVAL, f"no vGPU of type {place.spec.name} begins at {start}")
        if start not in self.free_starts(place.spec, owner):
            raise OSError(errno.EBUSY, f"slot {start} is taken")
        self._places[owner] = VgpuPlace(place.spec, start)
