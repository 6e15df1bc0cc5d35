# SPDX-License-Identifier: Apache-2.0
"""The part of a recording that one device plays, in the order in which it plays it.

A *part* begins when the device is opened for the first time, and with each reset.  It consists of *stages*.
A stage begins with what the client did and was not only asking: a write to a region, or SET_IRQS (its
*anchor*).  Then come the reads that were made before the next anchor, and the *deeds* of the device: its DMA
and its interrupts.  Values; nothing changes once a script is made.

Configuration space and the ROM are not in a script.  The lab answers them by what was recorded as a whole,
because BARs, interrupts and power management are those of the lab's device.  Calls that failed are not in one
either: VFIO fails them by itself.
Source: <linux/vfio.h> (vfio_irq_set).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from devmodel.pci.image import Image
from devmodel.pci.regs import EXP_DEVCTL, EXP_DEVCTL_BCR_FLR, CapId
from vfsfuse.recording.recording import (
    CLOSE,
    CONFIG_REGION,
    DMA,
    INTERRUPT,
    IOCTL,
    OPEN,
    READ,
    RESET,
    RESETS,
    WRITE,
    Event,
    Recording,
    irq_name,
)

ROM_REGION = 6
SET_IRQS = "VFIO_DEVICE_SET_IRQS"
_IRQ_SET = struct.Struct("<IIIII")
_DATA_NONE, _DATA_BOOL, _TRIGGER = 1, 2, 32
_DMA_DEEDS = ("read", "write")


class Place(NamedTuple):
    """Where an access is: the index of the region, offset and size in bytes."""

    region: int
    offset: int
    size: int

    def overlaps(self, other: Place) -> bool:
        """Whether both have a byte in common."""
        ends = self.offset + self.size, other.offset + other.size
        return self.region == other.region and self.offset < ends[1] and other.offset < ends[0]


class IrqSet(NamedTuple):
    """What SET_IRQS was asked for, without the descriptors."""

    flags: int
    irq: int
    start: int
    vectors: int

    @classmethod
    def of(cls, data: bytes) -> IrqSet | None:
        """That of a vfio_irq_set, None for less than one."""
        if len(data) < _IRQ_SET.size:
            return None
        return cls(*_IRQ_SET.unpack_from(data)[1:])

    @property
    def fires(self) -> bool:
        """Whether it sends the interrupts itself, as a test of the client's handler."""
        return bool(self.flags & _TRIGGER and self.flags & (_DATA_NONE | _DATA_BOOL) and self.vectors)


@dataclass(frozen=True, slots=True)
class Written:
    """A write."""

    place: Place
    data: bytes


Act = Written | IrqSet
"""What a client does that leads to another stage."""


@dataclass(slots=True, eq=False)
class Stage:
    """An anchor (None at the begin of a part) and what came before the next one.

    ``number`` is its place in the part, ``begun`` when it began.  ``items`` are reads and deeds in their
    order; ``reads`` has the indexes of the reads by place, and ``deeds`` those of the deeds.
    """

    number: int
    anchor: Event | None
    begun: float
    items: list[Event] = field(default_factory=list)
    reads: dict[Place, list[int]] = field(default_factory=dict)
    deeds: list[int] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Append an item."""
        if event.kind == READ:
            self.reads.setdefault(place_of(event), []).append(len(self.items))
        else:
            self.deeds.append(len(self.items))
        self.items.append(event)


@dataclass(slots=True, eq=False)
class Part:
    """``opens`` is whether it begins with an open; else it begins with a reset.  ``end`` is the event that
    ended it, None at the end of the recording, and ``last`` the line of the last event."""

    opens: bool
    stages: list[Stage]
    end: Event | None = None
    last: int = 0


@dataclass(slots=True, eq=False)
class Script:
    """What one device of a recording plays.  ``total`` is how many events that is, ``last`` the line at which
    the dialogue ends."""

    parts: Sequence[Part]
    total: int
    last: int = 0

    def events(self) -> Iterator[tuple[int, Event]]:
        """The anchors and items in their order, each with the number of its part."""
        for number, part in enumerate(self.parts):
            for stage in part.stages:
                if stage.anchor is not None:
                    yield number, stage.anchor
                for item in stage.items:
                    yield number, item


def place_of(event: Event) -> Place:
    """Where a read or a write was, without what was beyond the region's end."""
    return Place(event.region, event.offset, len(event.data))


def act_of(event: Event) -> Act:
    """What an anchor is."""
    if event.kind == WRITE:
        return Written(place_of(event), event.data)
    return IrqSet.of(event.before) or IrqSet(0, 0, 0, 0)


def script_of(recording: Recording, device: int) -> Script:
    """The script of the device with this number."""
    parts: list[Part] = []
    opens, is_open, since = True, 0, 0.0
    part: Part | None = None
    control = _device_control(recording.devices[device].config)
    for event in _played(list(recording.of_device(device)), control):
        if event.kind == OPEN:
            is_open += 1
            if is_open > 1:
                continue
        if event.kind == CLOSE:
            is_open = max(is_open - 1, 0)
            if is_open:
                continue
        if event.kind in (OPEN, CLOSE) or _is_reset(event, control):
            if part is not None:
                part.end = event
            part, opens, since = None, opens or event.kind in (OPEN, CLOSE), event.time
            continue
        if part is None:
            part = Part(opens, [Stage(0, None, since)])
            parts.append(part)
            opens = False
        _add(part, event)
    last = recording.events[-1].line if recording.events else 0
    return Script(parts, sum(1 for _ in Script(parts, 0).events()), last)


def _add(part: Part, event: Event) -> None:
    part.last = event.line
    if _is_anchor(event):
        part.stages.append(Stage(len(part.stages), event, event.time))
    else:
        part.stages[-1].add(event)


def _is_anchor(event: Event) -> bool:
    return event.kind == WRITE or (event.kind == IOCTL and event.name == SET_IRQS)


def _is_reset(event: Event, control: int) -> bool:
    """Whether the program, or something else, has reset the device.  `control` is where the register is by
    which a function level reset is asked for, 0 for none."""
    if event.kind == WRITE and event.region == CONFIG_REGION:
        at = control + 1 - event.offset  # the byte with the bit
        return bool(control) and 0 <= at < len(event.data) and bool(event.data[at] & EXP_DEVCTL_BCR_FLR >> 8)
    return event.kind == RESET or (event.kind == IOCTL and event.name in RESETS)


def _device_control(config: bytes) -> int:
    """Where the register Device Control of PCI Express is, 0 without one."""
    try:
        place = Image.of(config).offsets.get(CapId.EXP)
    except ValueError:  # nobody makes a device of it
        return 0
    return 0 if place is None else place + EXP_DEVCTL


def _played(events: Sequence[Event], control: int) -> Iterator[Event]:
    """Those events of a device that its script consists of, and those that divide it."""
    skipped = set[int]()
    for number, event in enumerate(events):
        asked = IrqSet.of(event.before) if event.kind == IOCTL and event.name == SET_IRQS else None
        if asked is not None and asked.fires and not event.errno:
            skipped.update(_fired_by(events, number, asked))
    for number, event in enumerate(events):
        if number in skipped or not (_plays(event) or _is_reset(event, control)) or event.errno:
            continue
        if event.kind == WRITE and 0 < event.result < len(event.data):
            event = replace(event, data=event.data[: event.result])
        yield event


def _fired_by(events: Sequence[Event], number: int, asked: IrqSet) -> Iterator[int]:
    """The interrupts that the SET_IRQS with this number sent itself: those beside it."""
    left = set(range(asked.start, asked.start + min(asked.vectors, 2048)))
    name = irq_name(asked.irq)
    for step in (1, -1):
        beside = number + step
        while 0 <= beside < len(events) and events[beside].kind == INTERRUPT:
            if events[beside].name == name and events[beside].vector in left:
                left.discard(events[beside].vector)
                yield beside
            beside += step


def _plays(event: Event) -> bool:
    if event.kind in (READ, WRITE):
        return event.region not in (ROM_REGION, CONFIG_REGION) and bool(event.data)
    if event.kind == IOCTL:
        return event.name in (SET_IRQS, *RESETS)
    if event.kind == DMA:
        return event.name in _DMA_DEEDS and bool(event.data)
    return event.kind in (INTERRUPT, RESET, OPEN, CLOSE)
