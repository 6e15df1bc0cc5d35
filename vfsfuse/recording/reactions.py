# SPDX-License-Identifier: Apache-2.0
"""What a recorded device did after each write of a register: which registers had changed, which interrupts
and DMA came.  A model is written from that (vfsfuse.recording.model).

A recording does not say what caused what.  Each change, interrupt and DMA is ascribed to the last write of a
register before it.  State: an `Account` is made of one device's events and does not change afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vfsfuse.recording import recording as kinds
from vfsfuse.recording.recording import Event, RecordedDevice

WIDTHS = (1, 2, 4, 8)
BARS = 6
_NEAR = 1 << 16
"""Bytes behind the address in a register within which DMA is ascribed to that register."""
_MOST_REGISTERS = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """A register: its region, its offset and its width in bytes, and its name."""

    region: int
    offset: int
    width: int
    name: str


@dataclass(slots=True)
class Dma:
    """One DMA after a write.  `base` are the registers that had its address, low and high, or one of 8 bytes;
    `ahead` is how far behind that it began.  `count` is the register that had its size; a size of 1, 2, 4 or
    8 may be in a register by chance."""

    event: Event
    base: tuple[Place, ...] = ()
    ahead: int = 0
    count: Place | None = None


@dataclass(slots=True)
class Reaction:
    """What followed one write of `value`, until the next write of a register."""

    place: Place
    value: int
    changes: dict[Place, int] = field(default_factory=dict)
    interrupts: list[Event] = field(default_factory=list)
    dma: list[Dma] = field(default_factory=list)
    ends_intx: bool = False
    """Whether INTx was asserted before it, so that this write may have been its acknowledgement."""

    @property
    def busy(self) -> bool:
        """Whether the device did something by itself."""
        return bool(self.interrupts or self.dma)


class Account:
    """The registers of a device, and what it did.

    `resets` has the values that reads found before anything had changed them.  `played` are registers whose
    reads differ without a write between them, each with all values in order."""

    def __init__(
        self, device: RecordedDevice, events: Sequence[Event], without: Collection[int] = ()
    ) -> None:
        """`without` are regions that are no registers."""
        self.places = _places(device, events, frozenset(without))
        played: set[Place] = set()
        while True:
            found = _Run(self.places, played)
            for event in events:
                found.take(event)
            if found.played <= played:
                break
            played |= found.played
        self.resets = found.resets
        self.reactions = found.reactions
        self.read, self.written = found.read, found.written
        self.unasked = found.unasked
        """Interrupts and DMA before any register was written."""
        self.played: dict[Place, tuple[int, ...]] = {
            place: tuple(found.values[place]) for place in self.in_order if place in played
        }

    @property
    def in_order(self) -> list[Place]:
        """The registers by region and offset."""
        return sorted(self.places.values(), key=lambda place: (place.region, place.offset))


class _Run:
    """One way through the events.  `known` are registers that are played."""

    def __init__(self, places: Mapping[tuple[int, int, int], Place], known: set[Place]) -> None:
        self._places, self._known = places, known
        self._now: dict[Place, int] = {}
        """What each register is to have."""
        self._given: dict[Place, int] = {}
        """What the driver has last written."""
        self._last: Reaction | None = None
        self._intx = False
        self.resets: dict[Place, int] = {}
        self.read: set[Place] = set()
        self.written: set[Place] = set()
        self.played: set[Place] = set()
        self.values: dict[Place, list[int]] = {}
        self.reactions: list[Reaction] = []
        self.unasked = 0

    def take(self, event: Event) -> None:
        if event.errno:
            return
        if event.kind == kinds.READ:
            self._read(event)
        elif event.kind == kinds.WRITE:
            self._write(event)
        elif event.kind in (kinds.INTERRUPT, kinds.DMA):
            self._act(event)
        elif event.kind in (kinds.RESET, kinds.CLOSE) or event.name in kinds.RESETS:
            self._now, self._given, self._last, self._intx = dict(self.resets), {}, None, False

    def _place(self, event: Event) -> Place | None:
        if len(event.data) != event.size:
            return None
        return self._places.get((event.region, event.offset, event.size))

    def _read(self, event: Event) -> None:
        place = self._place(event)
        if place is None:
            return
        value = int.from_bytes(event.data, "little")
        self.values.setdefault(place, []).append(value)
        if place in self._known:
            return
        last, is_first = self._last, place not in self.read and place not in self.written
        self.read.add(place)
        if is_first and not (last is not None and last.busy):
            self.resets[place] = self._now[place] = value
        elif value != self._now.get(place, 0):
            if last is None or place in last.changes:
                self.played.add(place)
            else:
                last.changes[place] = value
            self._now[place] = value

    def _write(self, event: Event) -> None:
        place = self._place(event)
        if place is None:
            return
        value = int.from_bytes(event.data, "little")
        self.written.add(place)
        self._now[place] = self._given[place] = value
        self._last = Reaction(place, value, ends_intx=self._intx)
        self._intx = False
        self.reactions.append(self._last)

    def _act(self, event: Event) -> None:
        last = self._last
        if last is None:
            self.unasked += 1
        elif event.kind == kinds.DMA:
            if event.name != "pin":
                last.dma.append(self._dma(event, last.place))
        else:
            self._intx = self._intx or event.name == kinds.INTERRUPTS[0]
            last.interrupts.append(event)

    def _dma(self, event: Event, trigger: Place) -> Dma:
        made = Dma(event)
        found = [(event.iova - start, base) for base, start in self._addresses() if start]
        near = [each for each in found if 0 <= each[0] < _NEAR]
        if near:
            made.ahead, made.base = min(near, key=lambda each: (each[0], each[1][0].offset))
        for place, value in self._given.items():
            if value == event.size not in WIDTHS and place != trigger and place not in made.base:
                made.count = place
        return made

    def _addresses(self) -> Iterable[tuple[tuple[Place, ...], int]]:
        """Addresses that the driver has written: in one register, or in two of 4 bytes side by side."""
        for place, value in self._given.items():
            if place.width < 4:
                continue
            above = self._places.get((place.region, place.offset + place.width, place.width))
            high = self._given.get(above, 0) if above is not None else 0
            if place.width == 4 and above is not None and high:
                yield (place, above), value | high << 32
            else:
                yield (place,), value


def _places(
    device: RecordedDevice, events: Iterable[Event], without: frozenset[int]
) -> dict[tuple[int, int, int], Place]:
    """The registers: those with names, and for each other access that is of a register's width one that is
    named by its offset.  They do not overlap; the more common accesses win."""
    taken: dict[int, set[int]] = {}
    called: set[tuple[int, str]] = set()
    found: dict[tuple[int, int, int], Place] = {}

    def add(region: int, offset: int, width: int, name: str) -> None:
        taken_name = (region, name) in called or not name
        place = Place(region, offset, width, f"REG_{offset:X}" if taken_name else name)
        there = device.regions.get(region)
        inside = taken.setdefault(region, set())
        span = range(offset, offset + width)
        if there is None or offset + width > there.size or not inside.isdisjoint(span):
            return
        if len(found) < _MOST_REGISTERS:
            inside.update(span)
            called.add((region, place.name))
            found[region, offset, width] = place

    for (region, offset, width), name in device.names.items():
        if region < BARS and width in WIDTHS and region not in without:
            add(region, offset, width, name)
    accesses = Counter(
        (event.region, event.offset, event.size)
        for event in events
        if event.kind in (kinds.READ, kinds.WRITE) and event.size in WIDTHS and not event.errno
    )
    for (region, offset, width), _ in accesses.most_common():
        if region < BARS and region not in without and not offset % width:
            add(region, offset, width, f"REG_{offset:X}")
    return found
