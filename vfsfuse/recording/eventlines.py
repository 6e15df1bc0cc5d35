# SPDX-License-Identifier: Apache-2.0
"""The lines of events in a recording: what each kind has behind its name.

`ValueError` says what is wrong with a line.  State: none; a `Words` is of one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vfsfuse.recording import recording as kinds
from vfsfuse.recording.recording import MOST_SIZE, Event
from vfsfuse.recording.words import (
    NUMBERS,
    bounded,
    number,
    one_of,
    options,
    read_error,
    read_pieces,
    read_region,
    read_text,
    signed,
    single,
    struct,
)
from vfsfuse.recording.writing import NOTHING

_MOST_ADDRESS = 1 << 64
_DATA, _FAILED = "=", "!"


class Words:
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
            self.value = single(words[at + 1 :])
            del words[at:]

    def take(self) -> str:
        """The next word."""
        if not self._words:
            raise ValueError("the line ends too early")
        return self._words.pop(0)

    def may_take(self) -> str:
        """The next word, empty if there is none."""
        return self._words.pop(0) if self._words else ""

    def options(self, *names: str) -> dict[str, str]:
        """The rest as NAME=VALUE words."""
        words, self._words = self._words, []
        return options(words, *names)

    def end(self) -> None:
        """There must be no word left."""
        if self._words:
            raise ValueError(f"{self._words[0][:40]} is too much here")


def _read_access(event: Event, said: Words) -> None:
    event.region, event.offset = read_region(said.take()), number(said.take())
    bounded(event.offset, MOST_SIZE, "bytes in a region")
    event.size = bounded(number(said.take()), MOST_SIZE, "bytes in a region")
    _read_data(event, said)


def _read_write(event: Event, said: Words) -> None:
    _read_access(event, said)
    taken = said.options("taken").get("taken")
    event.result = 0 if event.errno else event.size
    if taken is not None:
        event.result = number(taken)


def _read_dma(event: Event, said: Words) -> None:
    event.name = one_of(said.take(), ("read", "write", "pin"))
    event.iova = bounded(number(said.take()), _MOST_ADDRESS - 1, "bytes of addresses")
    event.size = bounded(number(said.take()), _MOST_ADDRESS - 1, "bytes of addresses")
    _read_data(event, said)


def _read_data(event: Event, said: Words) -> None:
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


def _read_ioctl(event: Event, said: Words) -> None:
    event.name = read_text(said.take())
    given = said.options("argument", "before", "after")
    event.argument = number(given.get("argument", "0"))
    event.before = struct(given.get("before"))
    after = given.get("after")
    event.after = event.before if after is None else b"" if after == NOTHING else struct(after)
    event.errno = said.errno
    if bool(event.errno) == bool(said.value):
        raise ValueError("an ioctl has a result (= 0) or an errno (! EINVAL)")
    event.result = signed(said.value) if said.value else 0


def _read_interrupt(event: Event, said: Words) -> None:
    event.name, event.vector, event.errno = read_text(said.take()), number(said.take()), said.errno
    bounded(event.vector, 1 << 16, "vectors")


def _read_path(event: Event, said: Words) -> None:
    event.name, event.errno = read_text(said.may_take()), said.errno


def _read_reset(event: Event, said: Words) -> None:
    event.errno = said.errno


def _read_mmap(event: Event, said: Words) -> None:
    event.region, event.size = read_region(said.take()), number(said.take())
    bounded(event.size, MOST_SIZE, "bytes in a region")


EVENTS: Mapping[str, Callable[[Event, Words], None]] = {
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
HAVE_DATA = (kinds.READ, kinds.WRITE, kinds.DMA)


def read_time(word: str) -> float:
    """Seconds with six decimals."""
    whole, _, part = word.partition(".")
    if not whole.isdecimal() or not part.isdecimal() or len(part) != 6 or len(whole) > 9:
        raise ValueError(f"{word[:40]} is no time (write seconds as 0.000125)")
    return float(word)
