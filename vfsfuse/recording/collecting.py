# SPDX-License-Identifier: Apache-2.0
"""Makes a recording of the records of a lab's trace.

The trace tells calls as they end; a recording has them as they began, so that a write comes before the
interrupt that it causes.  A Collector belongs to one thread.  The server may be another user's: records are
values that were checked (vfsfuse.trace.record), and what is in them is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vfsfuse.recording import recording as kinds
from vfsfuse.recording.recording import (
    CONTAINER,
    GROUP,
    IOMMUFD,
    LAB,
    NO_DEVICE,
    Event,
    Irq,
    RecordedDevice,
    Recording,
    RecordingError,
    Region,
    check,
)
from vfsfuse.trace.filters import MOST_KEPT
from vfsfuse.trace.record import DEVICE, Record

TRACE_KINDS = ("ioctl", "region", "dma", "interrupt", "open", "reset", "mmap")
"""Kinds of records that a recording is made of, besides descriptions."""
KEEP = MOST_KEPT
"""Records that the lab keeps for a recorder."""
RESETTING = frozenset({*kinds.RESETS, "VFIO_DEVICE_BIND_IOMMUFD"})
"""Ioctls within which a device is reset."""
_ROOT = "dev/"
"""Where VFIO's files begin in a mount."""


def wishes(shows_mmap: bool) -> Mapping[str, bool]:
    """The options of the file `trace` for a recorder."""
    return {"record": True, "hide_mmap": not shows_mmap}


class _Seen(NamedTuple):
    """An event before its device is known: `subject` is the device's name, or that of a file."""

    number: int
    time: float
    ended: int
    subject: str
    resets: bool
    event: Event


class Collector:
    """The recording of what comes in `add`.

    `lost` counts records that the lab has dropped: then there is no recording."""

    def __init__(self, command: Sequence[str] = (), shows_mmap: bool = False) -> None:
        self._command, self._shows_mmap = tuple(command), shows_mmap
        self._seen: list[_Seen] = []
        self._devices: dict[str, RecordedDevice] = {}
        self._ended = 0
        self.lost = 0

    def add(self, record: Record) -> None:
        """The next record of the trace.  One that is none of a recording makes no difference.  Raises
        RecordingError for a record that no lab makes, or if there are too many."""
        if record.kind == "lost":
            lost = record.arguments.get("count", 0)
            self.lost += lost if isinstance(lost, int) else 1
            return
        make = _MAKERS.get(record.kind)
        if record.kind == DEVICE:
            self._devices.setdefault(record.subject, _described(record))
        elif make is None or record.duration is None:  # under way: told again when it is over
            return
        else:
            self._add(record, make)

    def _add(self, record: Record, make: Callable[[Record, Event], bool]) -> None:
        self._ended += 1
        event = Event(0.0, NO_DEVICE, record.kind, errno=record.errno)
        try:
            wanted = make(record, event)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise RecordingError(
                f"the lab tells of a {record.kind} without what is in it ({error})"
            ) from None
        if not wanted:
            return
        if len(self._seen) >= kinds.MOST_EVENTS:
            raise RecordingError(f"a recording has at most {kinds.MOST_EVENTS} events")
        resets = record.kind == "open" or record.name in RESETTING
        self._seen.append(_Seen(record.number, record.time, self._ended, record.subject, resets, event))

    def recording(self) -> Recording:
        """What there is so far.  Raises RecordingError if records are missing, or there are too many data."""
        if self.lost:
            are = "1 record is" if self.lost == 1 else f"{self.lost} records are"
            raise RecordingError(f"{are} missing: the calls came faster than they could be taken")
        numbers = {name: number for number, name in enumerate(self._devices)}
        made = Recording(LAB, self._command, self._shows_mmap, list(self._devices.values()))
        ordered = _without_own_resets(sorted(self._seen, key=lambda each: each.number))
        placed = [(each, *_place(each, numbers)) for each in ordered if not _is_given(each.event)]
        kept = [each for each in placed if each[1] != NO_DEVICE or each[2]]
        first = min((seen.time for seen, _, _ in kept), default=0.0)
        for seen, device, file in kept:
            event = replace(seen.event, time=seen.time - first, device=device, file=file)
            made.events.append(event)
        check(made)
        return made

    @property
    def unknown(self) -> list[str]:
        """Devices with accesses that were open before the recording began, so it has none of their events."""
        accessed = (each.subject for each in self._seen if each.event.kind in (kinds.READ, kinds.WRITE))
        return sorted({name for name in accessed if name not in self._devices})


def _without_own_resets(seen: Iterable[_Seen]) -> Iterable[_Seen]:
    """Leave out resets that are part of a call in the recording: it began before and ended after them."""
    last: dict[str, int] = {}
    for each in seen:
        if each.event.kind == kinds.RESET:
            if last.get(each.subject, 0) > each.ended:
                continue
        elif each.resets:
            last[each.subject] = max(last.get(each.subject, 0), each.ended)
        yield each


def _is_given(event: Event) -> bool:
    """Whether it opens the file that GROUP_GET_DEVICE_FD gives: that ioctl is in the recording."""
    return event.kind == kinds.OPEN and not event.name


def _place(seen: _Seen, devices: Mapping[str, int]) -> tuple[int, str]:
    """The device that an event is of, or the kind of file."""
    subject = seen.subject
    if subject in devices:
        return devices[subject], ""
    if seen.event.kind in (kinds.OPEN, kinds.CLOSE) and seen.event.name:
        return NO_DEVICE, _FILES.get(seen.event.name, GROUP if _is_group(seen.event.name) else "")
    if subject in (CONTAINER, IOMMUFD):
        return NO_DEVICE, subject
    return NO_DEVICE, GROUP if subject.startswith("group ") else ""


_FILES = {"/dev/vfio/vfio": CONTAINER, "/dev/iommu": IOMMUFD}


def _is_group(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return folder == "/dev/vfio" and name.removeprefix("noiommu-").isdecimal()


# ---- what each kind of record makes of its event; False for one that is not wanted ----


def _region(record: Record, event: Event) -> bool:
    told = record.arguments
    if told.get("sysfs"):
        return False
    event.kind = record.name
    event.region, event.offset, event.size = (_count(told[key]) for key in ("region", "offset", "size"))
    event.data = _bytes(told.get("data", b""))[: kinds.MOST_DATA]
    if event.kind == kinds.WRITE and not event.errno:
        event.result = _count(record.result)
    return event.kind in (kinds.READ, kinds.WRITE)


def _ioctl(record: Record, event: Event) -> bool:
    told = record.arguments
    if told.get("sysfs"):
        return False
    event.name = record.name
    event.before = _bytes(told.get("before", b""))[: kinds.MOST_STRUCT]
    event.after = _bytes(told.get("after", b""))[: kinds.MOST_STRUCT] or event.before
    if record.name in kinds.TAKE_NUMBERS:
        event.argument = _count(told.get("arg", 0))
    if isinstance(record.result, int) and not event.errno:
        event.result = record.result
    return True


def _dma(record: Record, event: Event) -> bool:
    told = record.arguments
    event.name, event.iova, event.size = record.name, _count(told["iova"]), _count(told["size"])
    event.data = _bytes(told.get("data", b""))[: kinds.MOST_DATA]
    return event.name in ("read", "write", "pin")


def _interrupt(record: Record, event: Event) -> bool:
    event.name, event.vector = record.name, _count(record.arguments["vector"])
    return True


def _reset(record: Record, event: Event) -> bool:
    return True


def _open(record: Record, event: Event) -> bool:
    """Opens of VFIO's files.  The file that GROUP_GET_DEVICE_FD gives is none that has a path."""
    path = str(record.arguments.get("path", ""))
    event.kind = record.name
    event.name = f"/{path}" if path.startswith(_ROOT) else ""
    return event.kind in (kinds.OPEN, kinds.CLOSE) and (bool(event.name) or "/" not in path)


def _mmap(record: Record, event: Event) -> bool:
    event.region, event.size = _count(record.arguments["region"]), _count(record.arguments["size"])
    return True


_MAKERS: Mapping[str, Callable[[Record, Event], bool]] = {
    "region": _region,
    "ioctl": _ioctl,
    "dma": _dma,
    "interrupt": _interrupt,
    "reset": _reset,
    "open": _open,
    "mmap": _mmap,
}


def _described(record: Record) -> RecordedDevice:
    """The device of a record that describes one.  Raises RecordingError."""
    told = record.arguments
    try:
        flags, regions, irqs = (_count(told[key]) for key in ("flags", "num_regions", "num_irqs"))
        made = RecordedDevice(record.subject, flags, regions, irqs)
        made.group = None if told["group"] is None else _count(told["group"])
        for index, size, flags, capabilities in told["regions"]:
            made.regions[index] = Region(
                _count(index), _count(size), _count(flags), bytes.fromhex(capabilities)
            )
        for index, count, flags in told["irqs"]:
            made.irqs[index] = Irq(_count(index), _count(count), _count(flags))
        made.config = bytes.fromhex(told["config"])[: kinds.MOST_CONFIG]
        for region, offset, size, name in told["registers"][: kinds.MOST_NAMES]:
            made.names[_count(region), _count(offset), _count(size)] = str(name)
    except (LookupError, TypeError, ValueError) as error:
        raise RecordingError(f"the lab does not describe {record.subject} as a device ({error})") from None
    return made


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number")
    return int(value)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("no bytes")
    return value
