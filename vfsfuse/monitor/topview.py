# SPDX-License-Identifier: Apache-2.0
"""The rates of a lab as `vfsfuse top` shows them: cells of tables, lines of text, an object.  No state.

top.schema.json describes the object.  Its keys stay; later versions only add some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vfsfuse.monitor.listing import UNKNOWN, unseen_note
from vfsfuse.monitor.rates import DeviceRates, GpuRates, Rates
from vfsfuse.monitor.tables import share, size, table

GPU_HEADING = ("GPU", "ENGINE", "MEMORY", "VGPUS")
DEVICE_HEADING = (
    *("DEVICE", "PARENT", "TYPE", "ENGINE", "MEMORY", "DMA/s", "IRQ/s", "CALLS/s", "FAULTS/s"),
    "CLIENTS",
)
RIGHT = "ENGINE MEMORY VGPUS DMA/s IRQ/s CALLS/s FAULTS/s"
"""Columns that are aligned to the right."""
MOST_CLIENTS = 2


def summary(rates: Rates) -> str:
    """The line above the tables."""
    in_use = sum(bool(row.clients) for row in rates.devices)
    return (
        f"{rates.lab}: {_many(rates.vgpus, 'vGPU')}, {_many(in_use, 'device')} in use, "
        f"{_many(rates.clients, 'client')}, {rates.seconds:.1f} s"
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def gpu_cells(gpu: GpuRates) -> tuple[str | None, ...]:
    return (
        *(gpu.name, percent(gpu.engine), share(gpu.memory_used, gpu.memory)),
        None if gpu.vgpus is None else str(gpu.vgpus),
    )


def device_cells(row: DeviceRates, unseen: int) -> tuple[str | None, ...]:
    """The cells of a device.  Clients that cannot be seen are a question mark."""
    shown = [f"{comm} ({pid})" for pid, comm in row.clients[:MOST_CLIENTS]]
    if len(row.clients) > MOST_CLIENTS:
        shown.append(f"{len(row.clients) - MOST_CLIENTS} more")
    if unseen and not row.clients:
        shown.append(UNKNOWN)
    return (
        *(row.name, row.parent, row.type, percent(row.engine), _memory(row)),
        size(None if row.dma_bytes is None else round(row.dma_bytes)),
        *(count(each) for each in (row.interrupts, row.calls, row.faults)),
        ", ".join(shown) or None,
    )


def _memory(row: DeviceRates) -> str | None:
    return size(row.memory_used) if row.memory is None else share(row.memory_used, row.memory)


def percent(part: float | None) -> str | None:
    return None if part is None else f"{100 * part:.1f}%"


def count(rate: float | None) -> str | None:
    """A number of events a second: a few have one decimal."""
    if rate is None:
        return None
    return f"{rate:.1f}" if 0 < rate < 10 else f"{rate:.0f}"


def notes(rates: Rates, shown: int) -> Iterator[str]:
    """The lines below the tables, of which `shown` devices are in."""
    hidden = rates.vgpus - sum(row.type is not None for row in rates.devices[:shown])
    if hidden > 0 and shown <= len(rates.devices):
        yield f"{_many(hidden, 'more vGPU')} not shown"
    if rates.uncounted is not None:
        yield f"DMA/s, IRQ/s, CALLS/s: {rates.uncounted}"
    if rates.unseen:
        yield unseen_note(rates.unseen)


def lines(rates: Rates) -> Iterator[str]:
    """The whole as text."""
    yield summary(rates)
    for heading, rows in (
        (GPU_HEADING, [gpu_cells(gpu) for gpu in rates.gpus]),
        (DEVICE_HEADING, [device_cells(row, rates.unseen) for row in rates.devices]),
    ):
        yield from _under_empty_line(list(table(heading, rows, RIGHT)))
    yield from _under_empty_line(list(notes(rates, len(rates.devices))))


def _under_empty_line(found: Sequence[str]) -> Iterator[str]:
    yield from ("", *found) if found else ()


def as_json(rates: Rates, time: float) -> dict[str, Any]:
    """The object of top.schema.json.  `time` is seconds since the epoch."""
    return {
        "lab": rates.lab,
        "time": round(time, 3),
        "seconds": round(rates.seconds, 6),
        "gpus": [gpu._asdict() for gpu in rates.gpus],
        "devices": [
            {**row._asdict(), "clients": [{"pid": pid, "comm": comm} for pid, comm in row.clients]}
            for row in rates.devices
        ],
        "vgpus": rates.vgpus,
        "clients": rates.clients,
        "clients_unseen": rates.unseen,
        "uncounted": rates.uncounted,
    }
