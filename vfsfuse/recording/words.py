# SPDX-License-Identifier: Apache-2.0
"""The words of a recording's file: texts, numbers, data, errnos.  Each is written and read here.

`ValueError` says what is wrong with a word.  State: none.
"""

from __future__ import annotations

import errno as errnos
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from vfsfuse.recording.recording import INTERRUPTS, MOST_DATA, MOST_STRUCT, REGIONS, irq_name, region_name

ROW = 32
"""Bytes of data in a line."""
RUN = 64
"""From this number on, equal bytes are written as one word, such as 00*4096."""
NUMBERS = (1, 2, 4, 8)
"""Sizes of data that are written as a number."""
_PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+*-][A-Za-z0-9_./:,@%+*=~-]*")
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"#]\S*|#.*|\S+')
_RUN = re.compile(rb"(.)\1{%d,}" % (RUN - 1), re.DOTALL)
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_REPEATED = re.compile(r"([0-9a-f]{2})\*([0-9]{1,9})")
_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|[0-9]{1,20}")
_SIGNED = re.compile(r"-?[0-9]{1,20}")
_INDEXED = re.compile(r"(?:region|irq)([0-9]{1,4})")


def text(value: str) -> str:
    """A text as one word: as it is, or as a string of JSON in ASCII."""
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def read_text(word: str) -> str:
    """The opposite of `text`."""
    if not word.startswith('"'):
        return word
    try:
        value = json.loads(word)
    except ValueError:
        raise ValueError(f"{word[:40]} is no quoted text") from None
    return str(value)


def split(line: str) -> list[str]:
    """The words of a line, without its comment."""
    if '"' not in line:
        return line.partition(" #")[0].split() if not line.lstrip().startswith("#") else []
    found = _WORD.findall(line)
    return [word for word in found if not word.startswith("#")]


def number(word: str) -> int:
    """A number, decimal or with 0x."""
    if not _NUMBER.fullmatch(word):
        raise ValueError(f"{word[:40]} is no number (write 4096 or 0x1000)")
    return int(word, 0) if word.startswith("0x") else int(word)


def signed(word: str) -> int:
    """A decimal number that may be negative."""
    if not _SIGNED.fullmatch(word):
        raise ValueError(f"{word[:40]} is no number")
    return int(word)


def hexadecimal(word: str) -> bytes:
    """Bytes as pairs of lower-case digits."""
    if not _HEX.fullmatch(word):
        raise ValueError(f"{word[:40]} is no data (write two hexadecimal digits for each byte)")
    return bytes.fromhex(word)


def error_name(number: int) -> str:
    """ENOSPC, or the number of an errno without a name."""
    return errnos.errorcode.get(number, str(number))


def read_error(word: str) -> int:
    """The opposite of `error_name`."""
    found = getattr(errnos, word, None) if word.startswith("E") else None
    if isinstance(found, int):
        return found
    if not word.isdecimal() or not 0 < int(word) < 4096:
        raise ValueError(f"{word[:40]} is no errno (write EINVAL, or a number)")
    return int(word)


def read_region(word: str) -> int:
    """The opposite of `region_name`."""
    return _index(word, REGIONS, region_name, "region")


def read_irq(word: str) -> int:
    """The opposite of `irq_name`."""
    return _index(word, INTERRUPTS, irq_name, "interrupt")


def _index(word: str, names: tuple[str, ...], name: object, what: str) -> int:
    if word in names:
        return names.index(word)
    found = _INDEXED.fullmatch(word)
    if found is None or not callable(name) or name(int(found[1])) != word:
        raise ValueError(f"{word[:40]} is no {what} (there are {', '.join(names)})")
    return int(found[1])


def value_of(data: bytes, size: int) -> str | None:
    """The data of an access as a number, if it is one of 1, 2, 4 or 8 bytes."""
    if len(data) != size or size not in NUMBERS:
        return None
    return f"{int.from_bytes(data, 'little'):#x}"


def pieces(data: bytes) -> Iterator[str]:
    """Data as words, each for a line: rows of digits, and runs of one byte."""
    at = 0
    for run in _RUN.finditer(data):
        yield from _rows(data, at, run.start())
        at = run.end()
        yield f"{data[run.start()]:02x}*{at - run.start()}"
    yield from _rows(data, at, len(data))


def _rows(data: bytes, start: int, end: int) -> Iterator[str]:
    for at in range(start, end, ROW):
        yield data[at : min(at + ROW, end)].hex()


def read_pieces(words: Iterable[str], room: int = MOST_DATA) -> bytes:
    """The opposite of `pieces`: `room` bytes at most."""
    found = bytearray()
    for word in words:
        run = _REPEATED.fullmatch(word)
        size = int(run[2]) if run else len(word) // 2
        if len(found) + size > room:
            raise ValueError(f"there is more data than {room} bytes")
        found += bytes.fromhex(run[1]) * size if run else hexadecimal(word)
    return bytes(found)


# ---- several words ----


def options(words: Iterable[str], *names: str) -> dict[str, str]:
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


def struct(word: str | None) -> bytes:
    """The bytes of a struct; None is none."""
    if word is None:
        return b""
    bounded(len(word) // 2, MOST_STRUCT, "bytes of a struct")
    return hexadecimal(word)


def single(words: Sequence[str]) -> str:
    """The only word."""
    return exactly(words, 1)[0]


def exactly(words: Sequence[str], count: int) -> Sequence[str]:
    """The words, if there are ``count`` of them."""
    if len(words) != count:
        raise ValueError(f"the line has {len(words)} values in place of {count}")
    return words


def at_least(words: Sequence[str], count: int) -> Sequence[str]:
    """The words, if there are ``count`` or more."""
    if len(words) < count:
        raise ValueError("the line ends too early")
    return words


def one_of(word: str, choices: Sequence[str]) -> str:
    """The word, if it is one of these."""
    if word not in choices:
        raise ValueError(f"{word[:40]} is none of {', '.join(choices)}")
    return word


def bounded(value: int, most: int, what: str) -> int:
    """The value, if a recording may have so much of that."""
    if value > most:
        raise ValueError(f"{value} is too much: a recording has at most {most} {what}")
    return value
