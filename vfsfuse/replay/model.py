# SPDX-License-Identifier: Apache-2.0
"""The model of a replayed device: a plain function with the recorded configuration space, whose regions,
interrupts and DMA are those of a recording.

State: as of any device, under its lock; its task does the DMA, and what takes time.
"""

from __future__ import annotations

import math
import mmap
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import ClassVar, cast

import trio

from devmodel.device.pci import DeviceRegion, PciRegion
from devmodel.iommu.api import DmaFault
from devmodel.iommu.driver import Iommu
from devmodel.irq.irqs import IrqIndex
from devmodel.irq.kinds import PciIrq
from devmodel.models.plain import PlainDevice, plain_model
from devmodel.pci import regs
from devmodel.pci.fields import Bar
from devmodel.region.region import Region
from vfsfuse.recording import regioninfo
from vfsfuse.recording.recording import DMA, INTERRUPT, INTERRUPTS, Event
from vfsfuse.recording.recording import Region as RecordedRegion
from vfsfuse.replay import description
from vfsfuse.replay.dialogue import Next
from vfsfuse.replay.regions import (
    MappedRegion,
    ReadOnlyRegion,
    ReplayRegion,
    WriteOnlyRegion,
    register_names,
)
from vfsfuse.replay.replayed import Played
from vfsfuse.replay.script import IrqSet, Place

_LATE = 1e-3
"""Seconds that the task waits longer, so that it need not wait twice."""
_UNMASK_SECONDS = 1.0
"""Seconds in which a client unmasks INTx."""
_BLOCK = 4096
"""Bytes that are compared at once."""
_SHOWN = 8
"""Bytes of data that differ, in a divergence."""


class ReplayDevice(PlainDevice):
    """A device of a recording.  :func:`replay_model` makes the class."""

    __slots__ = ("_asked", "_dialogue", "_is_open", "_until", "_woken")
    PLAYED: ClassVar[Played]

    # ---- what it is ----

    def bars(self) -> Mapping[int, Bar]:
        """The dialogue is made here, because this is called before anything else, and once."""
        self._dialogue = self.PLAYED.dialogue()
        self._asked: deque[IrqSet] = deque()
        self._is_open = False
        self._until = math.inf
        self._woken = trio.Event()
        bars = super().bars()
        return {index: self._with_dialogue(index, bar) for index, bar in bars.items()}

    def device_regions(self) -> Sequence[DeviceRegion]:
        recorded = self.PLAYED.device.regions
        own = [recorded[index] for index in sorted(recorded) if index >= PciRegion.COUNT]
        return [DeviceRegion(self._region(each), *description.type_of(each)) for each in own]

    def _with_dialogue(self, index: int, bar: Bar) -> Bar:
        return (
            bar
            if index == regs.ROM_BAR
            else replace(bar, region=self._region(self.PLAYED.device.regions[index]))
        )

    def _region(self, recorded: RecordedRegion) -> Region:
        index, size, flags = recorded.index, recorded.size, recorded.flags
        if flags & regioninfo.MMAP and self.PLAYED.replay.recording.shows_mmap and not size % mmap.PAGESIZE:
            return MappedRegion(self, index, size, description.mappable_areas(recorded))
        kind = ReplayRegion
        if not flags & regioninfo.WRITE:
            kind = ReadOnlyRegion
        elif not flags & regioninfo.READ:
            kind = WriteOnlyRegion
        return kind(self, index, size, register_names(description.names_of(self.PLAYED.device, index)))

    def _region_table(self) -> list[Region | None]:
        table = super()._region_table()
        vga = self.PLAYED.device.regions.get(PciRegion.VGA)
        if vga is not None and vga.size:
            table[PciRegion.VGA] = self._region(vga)
        return table

    def _irq_table(self) -> list[IrqIndex | None]:
        return description.irq_indexes(self.PLAYED.device)

    # ---- what the client does; under the lock ----

    def reads(self, place: Place) -> bool:
        return self._dialogue.reads(place)

    def client_read(self, place: Place) -> bytes:
        """Part of a read of a region."""
        now = self._catch_up()
        data = self._dialogue.read(place, now)
        self._react(now)
        return data

    def client_wrote(self, place: Place, data: bytes) -> None:
        """Part of a write to a region."""
        now = self._catch_up()
        self._dialogue.write(place, data, now)
        self._react(now)

    def after_reset(self) -> None:
        self._dialogue.reset(self._catch_up())

    def _catch_up(self) -> float:
        """Tell the dialogue of the SET_IRQS so far.  Returns the time."""
        now = time.monotonic()
        while self._asked:
            self._dialogue.set_irqs(self._asked.popleft(), now)
        return now

    # ---- what the client does; without the lock ----

    def opened(self, iommu: Iommu | None) -> None:
        with self.lock:
            if not self._is_open:
                self._is_open = True
                self._asked.clear()
                self._dialogue.opened(time.monotonic())
        super().opened(iommu)

    def released(self) -> None:
        with self.lock:
            if self._is_open:
                self._catch_up()
                self._dialogue.closed()
                self._is_open = False
        super().released()

    def irqs_asked(self, flags: int, index: int, start: int, count: int) -> None:
        self._asked.append(IrqSet(flags, index, start, count))
        self._wake()

    @property
    def is_open(self) -> bool:
        """Whether a client has it open. Any thread."""
        return self._is_open

    # ---- what the device does ----

    def _react(self, now: float) -> None:
        """Send the interrupts that are due, and have the task do what else is.  Under the lock."""
        while True:
            deed, seconds = self._dialogue.peek(now)
            if deed is None or deed.kind != INTERRUPT or self._is_masked(deed):
                break
            self._dialogue.begin()
            self._dialogue.done(deed, now, self._interrupt(deed))
        if deed is not None or (seconds is not None and now + seconds < self._until):
            self._wake()

    def _wake(self) -> None:
        host = self.tasks.host
        if host is not None:
            host.soon(self._woken.set)

    async def run(self) -> None:
        while True:
            with self.locked():
                self._woken = trio.Event()
                self._catch_up()
                deed, seconds = self._next()
            if deed is not None:
                await self._do(deed)
                continue
            with trio.move_on_after(math.inf if seconds is None else seconds + _LATE):
                await self._woken.wait()

    def _next(self) -> Next:
        """The deed that the task begins, or when to look again."""
        now = time.monotonic()
        found = self._dialogue.peek(now)
        if found.deed is not None:
            self._dialogue.begin()
        self._until = math.inf if found.seconds is None else now + found.seconds
        return found

    async def _do(self, deed: Event) -> None:
        done = True
        if deed.kind == DMA:
            done = await self._transfer(deed)
        with trio.move_on_after(_UNMASK_SECONDS):
            while self._is_masked(deed):  # it has come when the client had unmasked it
                await trio.sleep(_LATE)
        with self.locked():
            if deed.kind == INTERRUPT:
                done = self._interrupt(deed)
            self._dialogue.done(deed, time.monotonic(), done)

    async def _transfer(self, deed: Event) -> bool:
        """Make a DMA.  Returns whether it is as recorded."""
        translation = self.PLAYED.replay.translation
        iova = translation.iova(deed.iova)
        try:
            if deed.name == "write":
                await self.dma.write(iova, deed.data)
                return True
            data = await self.dma.read(iova, len(deed.data))
        except DmaFault as error:
            with self.locked():
                self._dialogue.diverged(deed, f"a refused DMA at {iova:#x}: {error.fault.reason}")
            return False
        if translation.alike_data(deed.data, data):
            return True
        with self.locked():
            self._dialogue.diverged(deed, difference(deed.data, data))
        return False

    def _interrupt(self, deed: Event) -> bool:
        """Send an interrupt.  Under the lock.  Returns whether the client has set it up."""
        index = PciIrq(INTERRUPTS.index(deed.name)) if deed.name in INTERRUPTS else None
        if index in (PciIrq.ERR, PciIrq.REQ):
            self.irq.trigger(index)
            return True
        if index is None or self.irq.active is not index:
            self._dialogue.diverged(deed, "no such interrupt, because the client has not set it up")
            return False
        if index is PciIrq.INTX:
            self.set_intx(True)  # for a moment, so that it comes as often as it was recorded
            self.set_intx(False)
        else:
            self.irq.raise_message(deed.vector)
        return True

    def _is_masked(self, deed: Event) -> bool:
        intx = self.irq.intx
        return deed.name == PciIrq.INTX.name and self.irq.active is PciIrq.INTX and intx.masked


def difference(recorded: bytes, now: bytes) -> str:
    """Where the data of a DMA differ first."""
    blocks = range(0, len(now), _BLOCK)
    block = next((at for at in blocks if recorded[at : at + _BLOCK] != now[at : at + _BLOCK]), 0)
    place = next((at for at in range(block, min(len(now), block + _BLOCK)) if recorded[at] != now[at]), 0)
    was, found = recorded[place : place + _SHOWN].hex(" "), now[place : place + _SHOWN].hex(" ")
    return f"other data: at byte {place:#x} {found} instead of {was}"


@cache
def replay_model(played: Played) -> type[ReplayDevice]:
    """The model of a device of a recording; the same class for the same one.  Raises ValueError in one line
    for one that there can be no model of."""
    description.check(played.device)
    base = plain_model(description.plain_spec(played.device, played.rom))
    members = {
        "__slots__": (),
        "__doc__": "A device of a recording.",
        "PLAYED": played,
        "resettable": bool(played.device.flags & description.DEVICE_RESET),
    }
    model = cast(type[ReplayDevice], type("Replay", (ReplayDevice, base), members))
    model("sample").close()
    return model
