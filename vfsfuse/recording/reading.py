# SPDX-License-Identifier: Apache-2.0
"""Reads a recording.  A file may come from anywhere: the memory that it takes is bounded, and each line
that is not as docs/recording.md says is a RecordingError with its place.

State: a `_Reader` has that of one file, for one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from vfsfuse.recording import recording as kinds
from vfsfuse.recording.eventlines import EVENTS, HAVE_DATA, Words, read_time
from vfsfuse.recording.recording import (
    FILES,
    NO_DEVICE,
    SOURCES,
    Event,
    Irq,
    RecordedDevice,
    Recording,
    RecordingError,
    Region,
)
from vfsfuse.recording.words import (
    at_least,
    bounded,
    exactly,
    number,
    one_of,
    options,
    read_irq,
    read_pieces,
    read_region,
    read_text,
    single,
    split,
    struct,
)
from vfsfuse.recording.writing import DIALOGUE, FIRST, HIDDEN, SHOWN
from vfsfuse.sticky import open_file

MOST_LINE = 1 << 22
"""Characters of a line."""
_CONTINUED = "|"


def read(path: str | os.PathLike[str]) -> Recording:
    """The recording in a file.  Raises RecordingError, and OSError if it cannot be opened or read."""
    name = os.fspath(path)
    file = open_file(name, os.O_RDONLY)
    os.set_blocking(file, True)
    with open(file, encoding="utf-8", errors="replace", newline="\n") as lines:
        return parse(iter(lambda: lines.readline(MOST_LINE + 2), ""), name)


def parse(lines: Iterable[str], name: str = "<recording>") -> Recording:
    """The recording in these lines; `name` is that of the file.  Raises RecordingError."""
    reader = _Reader(name)
    for line in lines:
        reader.take(line)
    return reader.end()


class _Reader:
    """One file, line by line."""

    def __init__(self, name: str) -> None:
        self._name, self._line, self._begun = name, 0, False
        self._recording = Recording(origin=name)
        self._take: Callable[[list[str]], None] = self._row
        self._rows: Mapping[str, Callable[[list[str]], None]] = {
            "source": self._source,
            "command": self._command,
            "mmap": self._mmap,
            "device": self._device,
            "region": self._region,
            "irq": self._irq,
            "config": self._config,
            "register": self._register,
            DIALOGUE: self._dialogue,
        }
        self._total = 0
        """Bytes of data so far."""
        self._rest = bytearray()
        """The data of the last event, as far as they are in rows of their own."""

    def take(self, line: str) -> None:
        """The next line.  Raises RecordingError."""
        self._line += 1
        try:
            if len(line) > MOST_LINE:
                raise ValueError(f"the line is longer than {MOST_LINE} characters")
            if not self._begun:
                self._first(line)
            elif words := split(line):
                self._take(words)
        except ValueError as error:
            raise RecordingError(f"{self._name}:{self._line}: {error}") from None

    def end(self) -> Recording:
        """The recording, once there are no more lines.  Raises RecordingError."""
        if not self._begun:
            raise RecordingError(f"{self._name}: the file is empty")
        if self._take != self._event:
            raise RecordingError(f"{self._name}: the file ends before its line {DIALOGUE!r}")
        self._finish_event()
        return self._recording

    def _first(self, line: str) -> None:
        if line.rstrip("\r\n") != FIRST:
            raise ValueError(f"this is no recording, or one of a newer vfsfuse (the first line is {FIRST!r})")
        self._begun = True

    # ---- the rows before the dialogue ----

    def _row(self, words: list[str]) -> None:
        keyword, *rest = words
        take = self._rows.get(keyword)
        if take is None:
            raise ValueError(f"{keyword[:40]} is not known here (known are {', '.join(self._rows)})")
        take(rest)

    def _source(self, words: list[str]) -> None:
        self._recording.source = one_of(single(words), SOURCES)

    def _command(self, words: list[str]) -> None:
        self._recording.command = tuple(map(read_text, words))

    def _mmap(self, words: list[str]) -> None:
        self._recording.shows_mmap = one_of(single(words), (HIDDEN, SHOWN)) == SHOWN

    def _device(self, words: list[str]) -> None:
        devices = self._recording.devices
        place, name, *rest = at_least(words, 2)
        if number(place) != len(devices):
            raise ValueError(f"this is device {len(devices)}, not {place[:40]}")
        bounded(len(devices) + 1, kinds.MOST_DEVICES, "devices")
        said = options(rest, "flags", "regions", "irqs", "group")
        made = RecordedDevice(read_text(name), number(said.get("flags", "0")))
        if any(each.name == made.name for each in devices):
            raise ValueError(f"there are two devices {made.name[:40]}")
        made.num_regions = bounded(number(said.get("regions", "0")), kinds.MOST_INDEXES, "regions")
        made.num_irqs = bounded(number(said.get("irqs", "0")), kinds.MOST_INDEXES, "interrupt indexes")
        made.group = number(said["group"]) if "group" in said else None
        devices.append(made)

    def _last(self) -> RecordedDevice:
        if not self._recording.devices:
            raise ValueError("no line 'device' comes before it")
        return self._recording.devices[-1]

    def _region(self, words: list[str]) -> None:
        name, *rest = at_least(words, 1)
        index, said = read_region(name), options(rest, "size", "flags", "capabilities")
        regions = self._last().regions
        if index in regions or index >= self._last().num_regions:
            raise ValueError(f"{name} is there already, or the device has not so many regions")
        size = bounded(number(said.get("size", "0")), kinds.MOST_SIZE, "bytes in a region")
        capabilities = struct(said.get("capabilities"))
        regions[index] = Region(index, size, number(said.get("flags", "0")), capabilities)

    def _irq(self, words: list[str]) -> None:
        name, *rest = at_least(words, 1)
        index, said = read_irq(name), options(rest, "count", "flags")
        irqs = self._last().irqs
        if index in irqs or index >= self._last().num_irqs:
            raise ValueError(f"{name} is there already, or the device has not so many interrupt indexes")
        count = bounded(number(said.get("count", "0")), 1 << 16, "interrupts of an index")
        irqs[index] = Irq(index, count, number(said.get("flags", "0")))

    def _config(self, words: list[str]) -> None:
        offset, *rest = at_least(words, 2)
        device = self._last()
        if number(offset) != len(device.config):
            raise ValueError(f"this row of configuration space begins at {len(device.config):#x}")
        device.config += read_pieces(rest, kinds.MOST_CONFIG)
        bounded(len(device.config), kinds.MOST_CONFIG, "bytes of configuration space")

    def _register(self, words: list[str]) -> None:
        region, offset, size, name = exactly(words, 4)
        names = self._last().names
        bounded(len(names) + 1, kinds.MOST_NAMES, "registers")
        names[read_region(region), number(offset), number(size)] = read_text(name)

    def _dialogue(self, words: list[str]) -> None:
        if words:
            raise ValueError(f"{words[0][:40]} is too much here")
        self._take = self._event

    # ---- the events ----

    def _event(self, words: list[str]) -> None:
        if words[0] == _CONTINUED:
            self._continue(words[1:])
            return
        self._finish_event()
        when, on, kind, *rest = at_least(words, 3)
        read = EVENTS.get(kind)
        if read is None:
            raise ValueError(f"{kind[:40]} is no kind of event (there are {', '.join(EVENTS)})")
        bounded(len(self._recording.events) + 1, kinds.MOST_EVENTS, "events")
        event = Event(read_time(when), self._device_index(on), kind, line=self._line)
        if event.device == NO_DEVICE:
            event.file = on
        said = Words(rest)
        read(event, said)
        said.end()
        if event.data:
            self._count(len(event.data))
        self._recording.events.append(event)

    def _device_index(self, word: str) -> int:
        if word in FILES:
            return NO_DEVICE
        index = number(word)
        if index >= len(self._recording.devices):
            raise ValueError(f"there is no device {index}")
        return index

    def _continue(self, words: Sequence[str]) -> None:
        """A row of data that belongs to the event before."""
        events = self._recording.events
        event = events[-1] if events else None
        if event is None or event.kind not in HAVE_DATA:
            raise ValueError("no event with data comes before this row")
        data = read_pieces(words, kinds.MOST_DATA - len(self._rest))
        if event.data or len(self._rest) + len(data) > event.size:
            raise ValueError(f"the event has {event.size} bytes, and this row is beyond them")
        self._count(len(data))
        self._rest += data

    def _finish_event(self) -> None:
        if self._rest:
            self._recording.events[-1].data = bytes(self._rest)
        self._rest = bytearray()

    def _count(self, size: int) -> None:
        self._total += size
        bounded(self._total, kinds.MOST_TOTAL, "bytes of data")
