# SPDX-License-Identifier: Apache-2.0
"""Writes a recording as text: a few lines about it, its devices, and a line for each event.

Comments say what the numbers mean; readers skip them.  docs/recording.md describes the lines, and
vfsfuse.recording.reading reads them.  State: none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from devmodel.pci.names import names_of
from devmodel.pci.regs import CFG_SPACE_EXP_SIZE, CFG_SPACE_SIZE
from devmodel.region.names import Place, RegisterNames
from vfsfuse.recording import recording as kinds
from vfsfuse.recording.recording import (
    CONFIG_REGION,
    NO_DEVICE,
    Event,
    RecordedDevice,
    Recording,
    Region,
    irq_name,
    region_name,
)
from vfsfuse.recording.words import error_name, pieces, text, value_of
from vfsfuse.sticky import open_file
from vfsfuse.trace.decode import explain
from vfsfuse.trace.escaping import printable
from vfsfuse.trace.forms import Form, flags
from vfsfuse.trace.record import Record

VERSION = 1
FIRST = f"vfsfuse recording {VERSION}"
DIALOGUE = "dialogue"
HIDDEN, SHOWN = "hidden", "shown"
NOTHING = "-"
"""No bytes, where there were some before."""
_CONFIG_ROW = 16
_HEADER = 64
"""Bytes of the header of configuration space."""
_DEVICE_FLAGS, _REGION_FLAGS = flags("VFIO_DEVICE_FLAGS_"), flags("VFIO_REGION_INFO_FLAG_")
_IRQ_FLAGS = flags("VFIO_IRQ_INFO_")


def write(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write a recording to a file.  Raises OSError."""
    file = open_file(os.fspath(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.set_blocking(file, True)
    with open(file, "w", encoding="utf-8") as out:
        out.writelines(f"{line}\n" for line in lines(recording))


def lines(recording: Recording) -> Iterator[str]:
    """The lines of a recording, without line breaks."""
    yield FIRST
    yield f"source {recording.source}"
    if recording.command:
        yield f"command {' '.join(map(text, recording.command))}"
    yield f"mmap {SHOWN if recording.shows_mmap else HIDDEN}"
    for number, device in enumerate(recording.devices):
        yield ""
        yield from _device(number, device)
    yield ""
    yield DIALOGUE
    names = [_Names(device) for device in recording.devices]
    for event in recording.events:
        yield from _event(event, names)


def _device(number: int, device: RecordedDevice) -> Iterator[str]:
    group = "" if device.group is None else f" group={device.group}"
    yield _with_comment(
        f"device {number} {text(device.name)} flags={device.flags:#x} regions={device.num_regions} "
        f"irqs={device.num_irqs}{group}",
        _named(_DEVICE_FLAGS, device.flags),
    )
    for region in device.regions.values():
        yield _region(region)
    for irq in device.irqs.values():
        yield _with_comment(
            f"irq {irq_name(irq.index)} count={irq.count} flags={irq.flags:#x}", _named(_IRQ_FLAGS, irq.flags)
        )
    yield from _config(device.config)
    for (region_index, offset, size), name in device.names.items():
        yield f"register {region_name(region_index)} {offset:#x} {size} {text(name)}"


def _config(config: bytes) -> Iterator[str]:
    """Configuration space in rows, and a line for several rows of zeros."""
    at = 0
    while at < len(config):
        zeros = len(config) - at - len(config[at:].lstrip(b"\0"))
        zeros -= zeros % _CONFIG_ROW
        if zeros > _CONFIG_ROW:
            yield f"config {at:#05x} 00*{zeros}"
        else:
            zeros = 0
            yield f"config {at:#05x} {config[at : at + _CONFIG_ROW].hex(' ')}"
        at += zeros or _CONFIG_ROW


def _region(region: Region) -> str:
    capabilities = f" capabilities={region.capabilities.hex()}" if region.capabilities else ""
    return _with_comment(
        f"region {region_name(region.index)} size={region.size:#x} flags={region.flags:#x}{capabilities}",
        _named(_REGION_FLAGS, region.flags),
    )


def _named(form: Form, value: int) -> str:
    """Flags by their names, without the beginning that all of them have."""
    return "|".join(name.rpartition("_")[2] for name in form(value).text.split("|")) if value else ""


class _Names:
    """The names of a device's registers, for comments."""

    def __init__(self, device: RecordedDevice) -> None:
        places: dict[int, list[Place]] = {}
        for (region, offset, size), name in device.names.items():
            places.setdefault(region, []).append(Place(offset, size, name))
        self._regions = {region: RegisterNames(found) for region, found in places.items()}
        if len(device.config) >= _HEADER:
            size = CFG_SPACE_SIZE if len(device.config) <= CFG_SPACE_SIZE else CFG_SPACE_EXP_SIZE
            self._regions[CONFIG_REGION] = names_of(device.config.ljust(size, b"\0"))

    def describe(self, event: Event) -> str:
        """What an access touches."""
        names = self._regions.get(event.region)
        return "" if names is None else names.describe(event.offset, event.size)


def _event(event: Event, names: Sequence[_Names]) -> Iterator[str]:
    on = event.file if event.device == NO_DEVICE else str(event.device)
    line = f"{event.time:.6f} {on} {event.kind} {_BODIES[event.kind](event)}".rstrip()
    value, rows = _data(event)
    failed = f" ! {error_name(event.errno)}" if event.errno else ""
    result = f" = {event.result}" if event.kind == kinds.IOCTL and not event.errno else ""
    yield _with_comment(f"{line}{value}{result}{failed}", _comment(event, names))
    for row in rows:
        yield f"    | {row}"


def _data(event: Event) -> tuple[str, list[str]]:
    """The data at the end of an event's line, and the lines that follow it."""
    if not event.data:
        return "", []
    value = value_of(event.data, event.size)
    if value is not None:
        return f" = {value}", []
    rows = list(pieces(event.data))
    return (f" = {rows[0]}", []) if len(rows) == 1 else ("", rows)


def _access(event: Event) -> str:
    return f"{region_name(event.region)} {event.offset:#x} {event.size}"


def _write(event: Event) -> str:
    taken = "" if event.errno or event.result == event.size else f" taken={event.result}"
    return _access(event) + taken


def _ioctl(event: Event) -> str:
    argument = f" argument={event.argument:#x}" if event.argument else ""
    before = f" before={event.before.hex()}" if event.before else ""
    after = "" if event.after == event.before else f" after={event.after.hex() or NOTHING}"
    return f"{text(event.name)}{argument}{before}{after}"


def _path(event: Event) -> str:
    return text(event.name) if event.name else ""


_BODIES: Mapping[str, Callable[[Event], str]] = {
    kinds.READ: _access,
    kinds.WRITE: _write,
    kinds.IOCTL: _ioctl,
    kinds.INTERRUPT: lambda event: f"{text(event.name)} {event.vector}",
    kinds.DMA: lambda event: f"{text(event.name)} {event.iova:#x} {event.size}",
    kinds.RESET: lambda event: "",
    kinds.OPEN: _path,
    kinds.CLOSE: _path,
    kinds.MMAP: lambda event: f"{region_name(event.region)} {event.size:#x}",
}
"""By kind: what is between the kind and the data."""


def _comment(event: Event, names: Sequence[_Names]) -> str:
    if event.kind in (kinds.READ, kinds.WRITE) and 0 <= event.device < len(names):
        return names[event.device].describe(event)
    if event.kind == kinds.IOCTL:
        said = explain(_record(event))
        return f"{said.given} => {said.returned}" if said.returned else said.given
    return ""


def _record(event: Event) -> Record:
    """An ioctl as a record of a trace, which can be explained."""
    told = {"arg": event.argument, "before": event.before, "after": event.after or event.before}
    return Record(0, 0.0, "ioctl", "", event.name, told, 0.0, errno=event.errno)


def _with_comment(line: str, comment: str) -> str:
    return f"{line}  # {printable(comment)}" if comment else line
