# SPDX-License-Identifier: Apache-2.0
"""Events of a dialogue in words, for a divergence.  State: none."""

from __future__ import annotations

from collections.abc import Mapping

from vfsfuse.recording.recording import (
    CLOSE,
    DMA,
    INTERRUPT,
    OPEN,
    READ,
    WRITE,
    Event,
    irq_name,
    region_name,
    register_at,
)
from vfsfuse.replay.script import IrqSet, Place, place_of

Names = Mapping[tuple[int, int, int], str]
_NUMBERS = (1, 2, 4, 8)
_MOST_BYTES = 16
"""Bytes of a larger access that are shown."""
_ACTIONS = {8: "mask", 16: "unmask", 32: "trigger"}
_DATA = {1: "none", 2: "bool", 4: "eventfd"}


def access_text(names: Names, place: Place, write: bool, data: bytes | None = None) -> str:
    """``BAR0 write COMMAND = 0x1``, or ``BAR0 read 0x18/4`` without data."""
    name = register_at(names, *place) or f"{place.offset:#x}/{place.size}"
    said = f"{region_name(place.region)} {'write' if write else 'read'} {name}"
    return said if data is None else f"{said} = {data_text(data)}"


def data_text(data: bytes) -> str:
    """A number for as many bytes as a register has, else the first bytes."""
    if len(data) in _NUMBERS:
        return f"{int.from_bytes(data, 'little'):#x}"
    rest = "..." if len(data) > _MOST_BYTES else ""
    return data[:_MOST_BYTES].hex(" ") + rest


def irq_text(asked: IrqSet) -> str:
    """``SET_IRQS MSIX 0-3 trigger eventfd``."""
    last = asked.start + asked.vectors - 1
    vectors = (
        "none" if not asked.vectors else f"{asked.start}" if asked.vectors == 1 else f"{asked.start}-{last}"
    )
    words = [word for bits in (_ACTIONS, _DATA) for bit, word in bits.items() if asked.flags & bit]
    return " ".join(["SET_IRQS", irq_name(asked.irq), vectors, *words])


def event_text(names: Names, event: Event | None) -> str:
    """An event that was expected. None is the end of the recording."""
    if event is None:
        return "the end of the recording"
    if event.kind in (READ, WRITE):
        return access_text(names, place_of(event), event.kind == WRITE, event.data)
    if event.kind == DMA:
        return f"DMA {event.name} {event.iova:#x}, {len(event.data)} bytes"
    if event.kind == INTERRUPT:
        return f"interrupt {event.name} {event.vector}"
    if event.kind in (OPEN, CLOSE):
        return event.kind
    asked = IrqSet.of(event.before)
    return "reset" if asked is None else irq_text(asked)
