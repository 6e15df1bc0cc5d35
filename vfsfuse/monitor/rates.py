# SPDX-License-Identifier: Apache-2.0
"""What the devices of a lab do a second: the difference of two samples, busiest devices first.  No state.

Shares of an engine are of the time of one engine, so 1.0 is all of it.  Sizes are bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vfsfuse.monitor.files import in_order
from vfsfuse.monitor.sampling import COUNTED, Device, Gpu, Sample

US = 1_000_000
_CALLS = ("reads", "writes", "ioctls")
_COUNTED = (*_CALLS, "dma_read_bytes", "dma_write_bytes", "interrupts", "resets")
"""The members of DeviceRates that are counters of that name."""


class GpuRates(NamedTuple):
    """What a parent of vGPUs does: the share of its engine's time, None without an engine."""

    name: str
    engine: float | None
    memory_used: int | None
    memory: int | None
    vgpus: int | None


class DeviceRates(NamedTuple):
    """What a vGPU or a function does, a second.  None stands for what is not known, or not there."""

    name: str
    device: str
    type: str | None
    parent: str | None
    clients: tuple[tuple[int, str], ...]
    engine: float | None
    memory_used: int | None
    memory: int | None
    pinned_pages: int | None
    calls: float | None
    reads: float | None
    writes: float | None
    ioctls: float | None
    dma_read_bytes: float | None
    dma_write_bytes: float | None
    interrupts: float | None
    resets: float | None
    dma_faults: float | None
    failed_commands: float | None

    @property
    def dma_bytes(self) -> float | None:
        return _sum(self.dma_read_bytes, self.dma_write_bytes)

    @property
    def faults(self) -> float | None:
        """DMA that failed, or commands of the engine, whichever is more: one of them causes the other."""
        known = [each for each in (self.dma_faults, self.failed_commands) if each is not None]
        return max(known) if known else None

    @property
    def is_idle(self) -> bool:
        """Whether it has no client and does nothing."""
        return not (self.clients or self.engine or self.calls or self.dma_bytes or self.interrupts)


class Rates(NamedTuple):
    """What a lab does, over `seconds`.  `devices` are the busiest ones, of which there are `vgpus` vGPUs in
    all."""

    lab: str
    seconds: float
    gpus: tuple[GpuRates, ...]
    devices: tuple[DeviceRates, ...]
    vgpus: int
    clients: int
    unseen: int
    uncounted: str | None


def rates(lab: str, before: Sample, now: Sample) -> Rates:
    """The rates between two samples."""
    seconds = max(now.seconds - before.seconds, 1e-6)
    gpus, devices = {each.name: each for each in before.gpus}, {each.device: each for each in before.devices}
    rows = [_device(devices.get(each.device), each, seconds) for each in now.devices]
    return Rates(
        lab=lab,
        seconds=seconds,
        gpus=tuple(_gpu(gpus.get(each.name), each, seconds) for each in now.gpus),
        devices=tuple(sorted(rows, key=_business)),
        vgpus=now.vgpus,
        clients=now.clients,
        unseen=now.unseen,
        uncounted=now.uncounted,
    )


def _gpu(before: Gpu | None, now: Gpu, seconds: float) -> GpuRates:
    engine = _rate(before and before.engine_us, now.engine_us, seconds * US)
    return GpuRates(now.name, engine, now.used, now.memory, now.vgpus)


def _device(before: Device | None, now: Device, seconds: float) -> DeviceRates:
    def of(name: str) -> float | None:
        """The rate of a number that the device has."""
        return _rate(getattr(before, name, None), getattr(now, name), seconds)

    counts = dict(zip(COUNTED, now.counts or (), strict=False))
    # a device that was not there before was not called before, as far as is counted
    earlier = dict(zip(COUNTED, (before and before.counts) or (0,) * len(COUNTED), strict=True))
    counted = {name: max(0, count - earlier[name]) / seconds for name, count in counts.items()}
    engine = _rate(before and before.engine_us, now.engine_us, seconds * US)
    faults = of("dma_faults")
    return DeviceRates(
        name=now.name,
        device=now.device,
        type=now.type,
        parent=now.parent,
        clients=now.clients,
        engine=engine,
        memory_used=now.used,
        memory=now.memory,
        pinned_pages=now.pinned,
        calls=sum(counted[each] for each in _CALLS) if counted else None,
        **{each: counted.get(each) for each in _COUNTED},
        dma_faults=counted.get("dma_faults") if faults is None else faults,
        failed_commands=of("failed"),
    )


def _rate(before: int | None, now: int | None, seconds: float) -> float | None:
    """Of a total that only grows; a smaller one is that of a new device."""
    return None if before is None or now is None else max(0, now - before) / seconds


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None and second is None else (first or 0) + (second or 0)


def _business(row: DeviceRates) -> tuple[Any, ...]:
    """A key that sorts the busiest first."""
    work = (row.engine, row.dma_bytes, row.calls, row.interrupts)
    return (*(-(each or 0) for each in work), not row.clients, in_order(row.name))
