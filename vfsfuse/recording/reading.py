# SPDX-License-Identifier: Apache-2.0
"""Reads a recording.  A file may come from anywhere: the memory that it takes is bounded, and each line
that is not as docs/recording.md says is a RecordingError with its place.

State: a `_Reader` has that of one file, for one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from vfsfuse.recording import recording as kinds
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
    NUMBERS,
    hexadecimal,
    number,
    read_error,
    read_irq,
    read_pieces,
    read_region,
    read_text,
    signed,
    split,
)
from vfsfuse.recording.writing import DIALOGUE, FIRST, HIDDEN, NOTHING, SHOWN
from vfsfuse.sticky import open_file

MOST_LINE = 1 << 22
"""Characters of a line."""
_MOST_SIZE = 1 << 40
"""Bytes of a region: its place in the file of a device has that much room."""
_MOST_ADDRESS = 1 << 64
_CONTINUED = "|"
_DATA, _FAILED = "=", "!"


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
        self._recording.source = _one_of(_single(words), SOURCES)

    def _command(self, words: list[str]) -> None:
        self._recording.command = tuple(map(read_text, words))

    def _mmap(self, words: list[str]) -> None:
        self._recording.shows_mmap = _one_of(_single(words), (HIDDEN, SHOWN)) == SHOWN

    def _device(self, words: list[str]) -> None:
        devices = self._recording.devices
        place, name, *rest = _at_least(words, 2)
        if number(place) != len(devices):
            raise ValueError(f"this is device {len(devices)}, not {place[:40]}")
        _bounded(len(devices) + 1, kinds.MOST_DEVICES, "devices")
        said = _options(rest, "flags", "regions", "irqs", "group")
        made = RecordedDevice(read_text(name), number(said.get("flags", "0")))
        if any(each.name == made.name for each in devices):
            raise ValueError(f"there are two devices {made.name[:40]}")
        made.num_regions = _bounded(number(said.get("regions", "0")), kinds.MOST_INDEXES, "regions")
        made.num_irqs = _bounded(number(said.get("irqs", "0")), kinds.MOST_INDEXES, "interrupt indexes")
        made.group = number(said["group"]) if "group" in said else None
        devices.append(made)

    def _last(self) -> RecordedDevice:
        if not self._recording.devices:
            raise ValueError("no line 'device' comes before it")
        return self._recording.devices[-1]

    def _region(self, words: list[str]) -> None:
        name, *rest = _at_least(words, 1)
        index, said = read_region(name), _options(rest, "size", "flags", "capabilities")
        regions = self._last().regions
        if index in regions or index >= self._last().num_regions:
            raise ValueError(f"{name} is there already, or the device has not so many regions")
        size = _bounded(number(said.get("size", "0")), _MOST_SIZE, "bytes in a region")
        capabilities = _struct(said.get("capabilities"))
        regions[index] = Region(index, size, number(said.get("flags", "0")), capabilities)

    def _irq(self, words: list[str]) -> None:
        name, *rest = _at_least(words, 1)
        index, said = read_irq(name), _options(rest, "count", "flags")
        irqs = self._last().irqs
        if index in irqs or index >= self._last().num_irqs:
            raise ValueError(f"{name} is there already, or the device has not so many interrupt indexes")
        count = _bounded(number(said.get("count", "0")), 1 << 16, "interrupts of an index")
        irqs[index] = Irq(index, count, number(said.get("flags", "0")))

    def _config(self, words: list[str]) -> None:
        offset, *rest = _at_least(words, 2)
        device = self._last()
        if number(offset) != len(device.config):
            raise ValueError(f"this row of configuration space begins at {len(device.config):#x}")
        device.config += read_pieces(rest, kinds.MOST_CONFIG)
        _bounded(len(device.config), kinds.MOST_CONFIG, "bytes of configuration space")

    def _register(self, words: list[str]) -> None:
        region, offset, size, name = _exactly(words, 4)
        names = self._last().names
        _bounded(len(names) + 1, kinds.MOST_NAMES, "registers")
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
        when, on, kind, *rest = _at_least(words, 3)
        read = _EVENTS.get(kind)
        if read is None:
            raise ValueError(f"{kind[:40]} is no kind of event (there are {', '.join(_EVENTS)})")
        _bounded(len(self._recording.events) + 1, kinds.MOST_EVENTS, "events")
        event = Event(_time(when), self._device_index(on), kind, line=self._line)
        if event.device == NO_DEVICE:
            event.file = on
        said = _Words(rest)
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
        if event is None or event.kind not in _HAVE_DATA:
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
        _bounded(self._total, kinds.MOST_TOTAL, "bytes of data")


class _Words:
    """The rest of an event's line: words, then options, then a value and an errno."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self.errno = 0
        if len(words) >= 2 and words[-2] == _FAILED:
            self.errno = read_error(words[-1])
            del words[-2:]
        self.value = ""
        """What is behind `=`."""
        if _DATA in words:
            at = words.index(_DATA)
            self.value = _single(words[at + 1 :])
            del words[at:]

    def take(self) -> str:
        if not self._words:
            raise ValueError("the line ends too early")
        return self._words.pop(0)

    def may_take(self) -> str:
        return self._words.pop(0) if self._words else ""

    def options(self, *names: str) -> dict[str, str]:
        words, self._words = self._words, []
        return _options(words, *names)

    def end(self) -> None:
        if self._words:
            raise ValueError(f"{self._words[0][:40]} is too much here")


def _read_access(event: Event, said: _Words) -> None:
    event.region, event.offset = read_region(said.take()), number(said.take())
    _bounded(event.offset, _MOST_SIZE, "bytes in a region")
    event.size = _bounded(number(said.take()), _MOST_SIZE, "bytes in a region")
    _read_data(event, said)


def _read_write(event: Event, said: _Words) -> None:
    _read_access(event, said)
    taken = said.options("taken").get("taken")
    event.result = 0 if event.errno else event.size
    if taken is not None:
        event.result = number(taken)


def _read_dma(event: Event, said: _Words) -> None:
    event.name = _one_of(said.take(), ("read", "write", "pin"))
    event.iova = _bounded(number(said.take()), _MOST_ADDRESS - 1, "bytes of addresses")
    event.size = _bounded(number(said.take()), _MOST_ADDRESS - 1, "bytes of addresses")
    _read_data(event, said)


def _read_data(event: Event, said: _Words) -> None:
    word, size = said.value, event.size
    event.errno = said.errno
    if word.startswith("0x"):
        value = number(word)
        if size not in NUMBERS or value >> 8 * size:
            raise ValueError(f"{word[:40]} is no value of {size} bytes")
        event.data = value.to_bytes(size, "little")
    elif word:
        event.data = read_pieces([word])
    if len(event.data) > size:
        raise ValueError(f"there are {len(event.data)} bytes of data for {size}")


def _read_ioctl(event: Event, said: _Words) -> None:
    event.name = read_text(said.take())
    options = said.options("argument", "before", "after")
    event.argument = number(options.get("argument", "0"))
    event.before = _struct(options.get("before"))
    after = options.get("after")
    event.after = event.before if after is None else b"" if after == NOTHING else _struct(after)
    event.errno = said.errno
    if bool(event.errno) == bool(said.value):
        raise ValueError("an ioctl has a result (= 0) or an errno (! EINVAL)")
    event.result = signed(said.value) if said.value else 0


def _read_interrupt(event: Event, said: _Words) -> None:
    event.name, event.vector, event.errno = read_text(said.take()), number(said.take()), said.errno
    _bounded(event.vector, 1 << 16, "vectors")


def _read_path(event: Event, said: _Words) -> None:
    event.name, event.errno = read_text(said.may_take()), said.errno


def _read_reset(event: Event, said: _Words) -> None:
    event.errno = said.errno


def _read_mmap(event: Event, said: _Words) -> None:
    event.region, event.size = read_region(said.take()), number(said.take())
    _bounded(event.size, _MOST_SIZE, "bytes in a region")


_EVENTS: Mapping[str, Callable[[Event, _Words], None]] = {
    kinds.READ: _read_access,
    kinds.WRITE: _read_write,
    kinds.IOCTL: _read_ioctl,
    kinds.INTERRUPT: _read_interrupt,
    kinds.DMA: _read_dma,
    kinds.RESET: _read_reset,
    kinds.OPEN: _read_path,
    kinds.CLOSE: _read_path,
    kinds.MMAP: _read_mmap,
}
_HAVE_DATA = (kinds.READ, kinds.WRITE, kinds.DMA)


def _time(word: str) -> float:
    whole, _, part = word.partition(".")
    if not whole.isdecimal() or not part.isdecimal() or len(part) != 6 or len(whole) > 9:
        raise ValueError(f"{word[:40]} is no time (write seconds as 0.000125)")
    return float(word)


def _options(words: Iterable[str], *names: str) -> dict[str, str]:
    """NAME=VALUE words."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in names or name in found:
            raise ValueError(f"{word[:40]} is not known here (known are {', '.join(_forms(names))})")
        found[name] = value
    return found


def _forms(names: Iterable[str]) -> Iterator[str]:
    return (f"{name}=VALUE" for name in names)


def _struct(word: str | None) -> bytes:
    if word is None:
        return b""
    _bounded(len(word) // 2, kinds.MOST_STRUCT, "bytes of a struct")
    return hexadecimal(word)


def _single(words: Sequence[str]) -> str:
    return _exactly(words, 1)[0]


def _exactly(words: Sequence[str], count: int) -> Sequence[str]:
    if len(words) != count:
        raise ValueError(f"the line has {len(words)} values in place of {count}")
    return words


def _at_least(words: Sequence[str], count: int) -> Sequence[str]:
    if len(words) < count:
        raise ValueError("the line ends too early")
    return words


def _one_of(word: str, choices: Sequence[str]) -> str:
    if word not in choices:
        raise ValueError(f"{word[:40]} is none of {', '.join(choices)}")
    return word


def _bounded(value: int, most: int, what: str) -> int:
    if value > most:
        raise ValueError(f"{value} is too much: a recording has at most {most} {what}")
    return value
