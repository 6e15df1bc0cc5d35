# SPDX-License-Identifier: Apache-2.0
"""The regions of a replayed device: each access is one of its dialogue.

State: as of any region, under the device's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from devmodel.region.names import Place as Name
from devmodel.region.names import RegisterNames
from devmodel.region.region import Memory, Region
from vfsfuse.replay.script import Place


class Plays(Protocol):
    """Who has the dialogue."""

    def reads(self, place: Place) -> bool:
        """Whether the recording has a read of one of these bytes."""
        ...

    def client_read(self, place: Place) -> bytes: ...
    def client_wrote(self, place: Place, data: bytes) -> None: ...


class ReplayRegion(Region):
    """A region that is only there by its dialogue."""

    __slots__ = ("_index", "_names", "_plays")

    def __init__(self, plays: Plays, index: int, size: int, names: RegisterNames | None = None) -> None:
        super().__init__(size)
        self._plays, self._index, self._names = plays, index, names

    @property
    def names(self) -> RegisterNames | None:
        return self._names

    def read(self, offset: int, size: int) -> bytes:
        return self._plays.client_read(Place(self._index, offset, size))

    def write(self, offset: int, data: bytes) -> None:
        self._plays.client_wrote(Place(self._index, offset, len(data)), bytes(data))


class ReadOnlyRegion(ReplayRegion):
    """One that cannot be written."""

    __slots__ = ()
    writable: ClassVar[bool] = False


class WriteOnlyRegion(ReplayRegion):
    """One that cannot be read."""

    __slots__ = ()
    readable: ClassVar[bool] = False


class MappedRegion(Memory):
    """Memory that the client may map. Accesses through a mapping are in no recording, so the memory
    answers all reads that the recording does not have."""

    __slots__ = ("_areas", "_number", "_plays")
    direct: ClassVar[bool] = False

    def __init__(
        self, plays: Plays, index: int, size: int, areas: tuple[tuple[int, int], ...] | None
    ) -> None:
        """Raises ValueError when it is not whole pages."""
        super().__init__(size)
        self._plays, self._number, self._areas = plays, index, areas

    @property
    def areas(self) -> tuple[tuple[int, int], ...] | None:
        return self._areas

    def read(self, offset: int, size: int) -> bytes:
        place = Place(self._number, offset, size)
        return self._plays.client_read(place) if self._plays.reads(place) else super().read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        super().write(offset, data)
        self._plays.client_wrote(Place(self._number, offset, len(data)), bytes(data))


def register_names(names: Mapping[tuple[int, int], str]) -> RegisterNames | None:
    """Names by offset and size, for a region."""
    return RegisterNames(Name(*place, name) for place, name in names.items()) if names else None
