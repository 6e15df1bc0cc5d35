# SPDX-License-Identifier: Apache-2.0
"""What the registers of a replayed device hold, where the order of calls does not say it.

A register holds what was last read of it or written to it.  After a write it holds what the recording reads
after the same write.  Before, it holds what the recording reads of it in a device that nothing was written to
yet; else what it always reads, if that is always the same.

State: `Learned` is a value, made once for a recording.  A State belongs to one device.
"""

from __future__ import annotations

from vfsfuse.recording.recording import DMA, INTERRUPT, READ, WRITE, Event
from vfsfuse.replay.script import Place, Script, place_of
from vfsfuse.replay.sparse import SparseBytes

Regions = dict[int, SparseBytes]


class Learned:
    """What a recording tells of a device's registers.

    ``initial`` has bytes that are read before anything is written, ``constant`` those that are read alike
    everywhere and never written, ``read`` those that are read at all.  ``after`` has what is read at a place
    after these bytes were written there.
    """

    __slots__ = ("after", "constant", "initial", "read")

    def __init__(self, script: Script) -> None:
        self.initial: Regions = {}
        self.constant: Regions = {}
        self.read: Regions = {}
        self.after: dict[tuple[Place, bytes], bytes] = {}
        varying: Regions = {}
        seen: dict[Place, bytes] = {}
        """What was read last, by place."""
        written: dict[Place, bytes] = {}
        part, untouched = -1, True
        for number, event in script.events():
            if number != part:
                part, untouched = number, True
                written.clear()
            if event.kind == READ:
                place = place_of(event)
                if untouched or seen.get(place) != event.data:
                    seen[place] = event.data
                    self._note_read(event, untouched, varying)
                if place in written:
                    self.after.setdefault((place, written[place]), event.data)
            elif event.kind == WRITE:
                untouched = False
                written[place_of(event)] = event.data
                _of(varying, event.region).put(event.offset, event.data)
            elif event.kind in (DMA, INTERRUPT):
                untouched = False
        for place in seen:
            _add_constant(self.constant, place, self.read[place.region], varying.get(place.region))

    def _note_read(self, event: Event, untouched: bool, varying: Regions) -> None:
        if untouched:
            _of(self.initial, event.region).add(event.offset, event.data)
        seen, missing = bytearray(event.data), bytearray(b"\1") * len(event.data)
        _of(self.read, event.region).fill(event.offset, seen, missing)
        if seen != event.data:
            for position, (before, now) in enumerate(zip(seen, event.data, strict=True)):
                if before != now:
                    _of(varying, event.region).put(event.offset + position, b"\0")
        self.read[event.region].put(event.offset, event.data)


class State:
    """The registers of one device."""

    __slots__ = ("_learned", "_now")

    def __init__(self, learned: Learned) -> None:
        self._learned = learned
        self._now: Regions = {}

    def reset(self) -> None:
        """The device was reset, or opened anew."""
        self._now = {}

    def know(self, place: Place, data: bytes) -> None:
        """A read has given this, or would have."""
        _of(self._now, place.region).put(place.offset, data)

    def write(self, place: Place, data: bytes) -> None:
        """The client has written this."""
        self.know(place, self._learned.after.get((place, data), data))

    def held(self, place: Place, early: bool = False) -> bytes:
        """What a read gives; bytes that are not known are 0.  ``early`` is whether the device has not done
        yet what the client may be waiting for: what was never read before is not known then."""
        into, missing = bytearray(place.size), bytearray(b"\1") * place.size
        learned = self._learned
        for regions in (self._now, learned.initial, *(() if early else (learned.constant,))):
            found = regions.get(place.region)
            if found is not None and 1 in missing:
                found.fill(place.offset, into, missing)
        return bytes(into)

    def is_read(self, place: Place) -> bool:
        """Whether the recording has a read of one of these bytes."""
        found = self._learned.read.get(place.region)
        return found is not None and found.knows(place.offset, place.size)


def _of(regions: Regions, region: int) -> SparseBytes:
    return regions.setdefault(region, SparseBytes())


def _add_constant(constant: Regions, place: Place, read: SparseBytes, varying: SparseBytes | None) -> None:
    """Add those bytes of a place that do not vary."""
    data, unread = bytearray(place.size), bytearray(b"\1") * place.size
    read.fill(place.offset, data, unread)
    same = bytearray(b"\1") * place.size
    if varying is not None:
        varying.fill(place.offset, bytearray(place.size), same)
    if all(same):
        _of(constant, place.region).put(place.offset, bytes(data))
        return
    for position in range(place.size):
        if same[position]:
            _of(constant, place.region).put(place.offset + position, bytes(data[position : position + 1]))
