# SPDX-License-Identifier: Apache-2.0
"""The kinds of value that the keys of a fault rule have: how each is read and written.

A value comes as text, or as the number or truth value that TOML and Python have for it.  ``read`` raises
ValueError, whose text says what is wrong and what to give.  ``json`` is a JSON schema (draft 7) that accepts
every value that ``read`` does.  State: none.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Json = Mapping[str, Any]

MOST_TEXT = 256
"""Characters of a pattern."""
MOST_NUMBER = (1 << 64) - 1
MOST_COUNT = (1 << 63) - 1
MOST_SECONDS = 86400.0
MOST_ERRNO = 511
"""The highest errno that a program can get.  Those from 512 on are the kernel's own."""
MOST_PATH = 4096
PLAUSIBLE = "plausible"
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", re.ASCII)
_NEGATIVE = re.compile(r"-[0-9.]+", re.ASCII)
_FLOAT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}", re.ASCII)
_IOCTL = re.compile(r"0[xX][0-9a-fA-F]{1,8}", re.ASCII)
_RANGE = re.compile(rf"({_NUMBER.pattern})(-({_NUMBER.pattern}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of value.  ``said`` is what the reference calls it, ``write`` gives the text that ``read`` takes
    back."""

    said: str
    read: Callable[[object], T]
    json: Json
    write: Callable[[T], str] = str


@dataclass(frozen=True, slots=True)
class Span:
    """Whole numbers from ``first`` to ``last``, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first:#x}" if self.first == self.last else f"{self.first:#x}-{self.last:#x}"

    def meets(self, start: int, size: int) -> bool:
        """Whether it has one of the ``size`` numbers from ``start`` on."""
        return start <= self.last and self.first < start + size


def _whole(value: object, least: int, most: int, what: str) -> int:
    if isinstance(value, str) and _NEGATIVE.fullmatch(value):
        raise ValueError(f"{value} is out of range ({what})")
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value, 0) if value[:2] in ("0x", "0X") else int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number ({what})")
    if not least <= value <= most:
        raise ValueError(f"{value} is out of range ({what})")
    return value


def _whole_kind(said: str, least: int, most: int, what: str, write: Callable[[int], str] = str) -> Kind[int]:
    json = {
        "anyOf": [
            {"type": "integer", "minimum": least},
            {"type": "string", "pattern": f"^({_NUMBER.pattern})$"},
        ]
    }
    return Kind(said, lambda value: _whole(value, least, most, what), json, write)


def _text(value: object, what: str, most: int = MOST_TEXT) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{value!r} is not {what}")
    if len(value) > most:
        raise ValueError(f"has {len(value)} characters (give {most} at most)")
    return value


def pattern(said: str) -> Kind[str]:
    """A name, in which ``*``, ``?`` and ``[...]`` stand for others, as in a shell."""
    what = f"a pattern (give {said}; * stands for any characters)"
    json = {"type": "string", "minLength": 1, "maxLength": MOST_TEXT}
    return Kind(said, lambda value: _text(value, what), json)


def ioctl(said: str) -> Kind[str]:
    """As :func:`pattern`, or the number of an ioctl as a trace has it."""
    named = pattern(said)

    def read(value: object) -> str:
        text = named.read(value)
        return f"{int(text, 16):#x}" if is_ioctl_number(text) else text

    return Kind(said, read, named.json)


def is_ioctl_number(text: str) -> bool:
    """Whether it is the number of an ioctl, and no name."""
    return _IOCTL.fullmatch(text) is not None


def choice(*words: str) -> Kind[str]:
    """One of several words, in any case of letters."""
    known = {word.lower(): word for word in words}
    listed = ", ".join(words)

    def read(value: object) -> str:
        found = known.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"{value!r} is not known (give one of {listed})")
        return found

    insensitive = "|".join(re.sub("[A-Za-z]", _either_case, word) for word in words)
    said = ", ".join(f"`{word}`" for word in words)
    return Kind(said, read, {"type": "string", "pattern": f"^({insensitive})$"})


def _either_case(letter: re.Match[str]) -> str:
    return f"[{letter[0].upper()}{letter[0].lower()}]"


def words(*known: str) -> Kind[tuple[str, ...]]:
    """Some of several words, separated by commas, or "any" for all of them."""

    def read(value: object) -> tuple[str, ...]:
        if value == "any":
            return known
        found = [word.strip() for word in value.split(",")] if isinstance(value, str) else [str(value)]
        for word in found:
            if word not in known:
                raise ValueError(f"{word!r} is not known (give any, or some of {', '.join(known)})")
        return tuple(word for word in known if word in found)

    def write(value: tuple[str, ...]) -> str:
        return "any" if value == known else ",".join(value)

    one = f"({'|'.join(known)})"
    said = f"`any`, or some of {', '.join(f'`{word}`' for word in known)}, separated by commas"
    return Kind(said, read, {"type": "string", "pattern": f"^(any| *{one} *(, *{one} *)*)$"}, write)


def _name(value: object) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError(f"{value!r} cannot be a name (use up to 64 letters, digits, '-', '_', '.' and ':')")
    return value


def _process(value: object) -> int | str:
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        return _whole(value, 1, 2**31 - 1, "give the number of a process")
    return _text(value, "a process (give its name or its number)")


def _seconds(value: object) -> float:
    return _fraction(value, MOST_SECONDS, f"give seconds, 0 to {MOST_SECONDS:.0f}")


def _fraction(value: object, most: float, what: str) -> float:
    if isinstance(value, str) and _NEGATIVE.fullmatch(value):
        raise ValueError(f"{value} is out of range ({what})")
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number ({what})")
    if not math.isfinite(value) or not 0 <= value <= most:
        raise ValueError(f"{value} is out of range ({what})")
    return float(value)


def _decimal(value: float) -> str:
    """Without an exponent, which ``read`` does not take: as many as 9 decimal places."""
    return f"{value:.9f}".rstrip("0").rstrip(".")


def _fraction_kind(said: str, read: Callable[[object], float], most: float) -> Kind[float]:
    json = {
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": most},
            {"type": "string", "pattern": f"^{_FLOAT.pattern}$"},
        ]
    }
    return Kind(said, lambda value: round(read(value), 9), json, _decimal)


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise ValueError(f"{value!r} is neither true nor false (give true, or leave it out)")


def _errno(value: object) -> int | str:
    known = getattr(errno, value, None) if isinstance(value, str) and value.startswith("E") else None
    if isinstance(known, int):
        return known
    if value == PLAUSIBLE:
        return PLAUSIBLE
    if isinstance(value, str) and not value.isdecimal():
        raise ValueError(f"{value!r} is no errno (give its name, such as ENOMEM, or its number)")
    return _whole(value, 1, MOST_ERRNO, f"give the name of an errno, such as ENOMEM, or 1 to {MOST_ERRNO}")


def errno_name(number: int | str) -> str:
    """The name of an errno, or its number if Linux has no name for it."""
    return errno.errorcode.get(number, str(number)) if isinstance(number, int) else number


def _span(value: object) -> Span:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is not a range (write 0x10-0x17, or one number)")
    first = _whole(found[1], 0, MOST_NUMBER, "a number of 64 bits")
    last = first if found[3] is None else _whole(found[3], 0, MOST_NUMBER, "a number of 64 bits")
    if last < first:
        raise ValueError(f"{value} ends before it begins (write the lower number first)")
    return Span(first, last)


_REGIONS = {**{f"BAR{index}": index for index in range(6)}, "ROM": 6, "config": 7, "VGA": 8}
"""Names of the regions of vfio-pci by their indexes.  Source: <linux/vfio.h>."""
_REGION_NAMES = {index: name for name, index in _REGIONS.items()}
MOST_REGION = 255


def _region(value: object) -> int:
    for name, index in _REGIONS.items():
        if isinstance(value, str) and value.lower() == name.lower():
            return index
    what = "give BAR0 to BAR5, ROM, config, VGA, or the index of a region"
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError(f"{value!r} is no region ({what})")
    return _whole(value, 0, MOST_REGION, what)


def _path(value: object) -> str:
    path = _text(value, "a path", MOST_PATH)
    if not path.startswith("/"):
        raise ValueError(f"{path!r} does not begin with / (give the whole path)")
    return path


name = Kind("a text", _name, {"type": "string", "pattern": f"^{_NAME.pattern}$"})
count = _whole_kind("a number from 1 on", 1, MOST_COUNT, "give 1 or more")
unsigned = _whole_kind("a number from 0 on", 0, MOST_COUNT, "give 0 or more")
bits = _whole_kind("a number, such as `0xff`", 0, MOST_NUMBER, "give a number of 64 bits", hex)
mask = _whole_kind("a mask, such as `0x80`", 1, MOST_NUMBER, "give a mask of 64 bits, not 0", hex)
seconds = _fraction_kind("seconds", _seconds, MOST_SECONDS)
probability = _fraction_kind("0 to 1", lambda value: _fraction(value, 1.0, "give 0 to 1, such as 0.1"), 1.0)
flag = Kind("`true`", _flag, {"enum": [True, False, "true", "false"]}, lambda value: "true")
errnos = Kind(
    "a name, such as `ENOMEM`, or a number",
    _errno,
    {"type": ["string", "integer"], "minLength": 1, "minimum": 1, "maximum": MOST_ERRNO},
    errno_name,
)
span = Kind(
    "a range, such as `0x10-0x17`, or one number",
    _span,
    {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": f"^{_RANGE.pattern}$"}]},
)
region = Kind(
    "`BAR0` to `BAR5`, `ROM`, `config`, `VGA` or an index",
    _region,
    {"type": ["string", "integer"], "minLength": 1, "minimum": 0, "maximum": MOST_REGION},
    lambda index: _REGION_NAMES.get(index, str(index)),
)
process = Kind(
    "a name, or the number of a process",
    _process,
    {"type": ["string", "integer"], "minLength": 1, "minimum": 1},
)
path = Kind("a path", _path, {"type": "string", "minLength": 1, "maxLength": MOST_PATH})
