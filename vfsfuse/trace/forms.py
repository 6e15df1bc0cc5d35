# SPDX-License-Identifier: Apache-2.0
"""The forms in which a trace shows a number: as a decimal, an address, flags, a name.

A form is a function from an integer to what is shown of it: a text as strace(1) prints such a value, and a
value for JSON.  State: none.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vfsfuse.trace.escaping import printable
from vfsfuse.trace.flagnames import flag_names, split_bits, value_names


class Shown(NamedTuple):
    """A value as a text for people, and as a value for JSON."""

    text: str
    json: Any


Form = Callable[[int], Shown]


def decimal(value: int) -> Shown:
    """A count, an id, a descriptor."""
    return Shown(str(value), value)


def hexadecimal(value: int) -> Shown:
    """An iova, an offset, a size of memory, a bitmap."""
    return Shown(f"{value:#x}", value)


def pointer(value: int) -> Shown:
    """An address of the client."""
    return Shown(f"{value:#x}" if value else "NULL", value)


def flags_of(names: Mapping[int, str], what: str) -> Form:
    """Flags by their names.  JSON has a list; bits without a name are one hexadecimal number at its end."""

    def form(value: int) -> Shown:
        known, rest = split_bits(value, names)
        listed = [*known, *([f"{rest:#x}"] if rest else [])]
        if value and not known:
            return Shown(f"{value:#x} /* {what}??? */", listed)
        return Shown("|".join(listed) or "0", listed)

    return form


def flags(*prefixes: str) -> Form:
    """Flags whose names begin so."""
    return flags_of(flag_names(*prefixes), prefixes[0])


def choice_of(names: Mapping[int, str], what: str = "") -> Form:
    """One of several names.  JSON has the name, or the number if it has none.  With `what`, an unknown
    number is an unusual one, and hexadecimal."""

    def form(value: int) -> Shown:
        name = names.get(value)
        if name is not None:
            return Shown(name, name)
        return Shown(f"{value:#x} /* {what} */" if what else str(value), value)

    return form


def choice(*prefixes: str, suffix: str = "", without: tuple[str, ...] = ()) -> Form:
    """One of the constants that begin and end so."""
    names = value_names(*prefixes, suffix=suffix, without=without)
    return choice_of(names, f"{prefixes[0]}???{suffix}")


def fourcc(value: int) -> Shown:
    """A pixel format of DRM: four characters, or 0 for none."""
    text = value.to_bytes(4, "little").decode("latin-1")
    if value and text.isascii() and text.isprintable():
        return Shown(f'{value:#x} /* "{printable(text)}" */', text)
    return hexadecimal(value)


def uuid_of(data: bytes) -> Shown:
    """The 16 bytes of a UUID."""
    text = str(uuid.UUID(bytes=data))
    return Shown(text, text)


MOST_ELEMENTS = 32
"""Elements of an array that a line shows."""


def array(elements: list[Shown], count: int) -> Shown:
    """An array of `count` elements, of which `elements` are known.  JSON has all that are known."""
    texts = [each.text for each in elements[:MOST_ELEMENTS]]
    if len(texts) < count:
        texts.append("...")
    return Shown(f"[{', '.join(texts)}]", [each.json for each in elements])


def fields(members: Mapping[str, Shown], complete: bool = True) -> Shown:
    """A struct: {argsz=8, flags=0}.  `complete` is False if its end could not be read."""
    texts = [f"{name}={each.text}" for name, each in members.items()]
    if not complete:
        texts.append("...")
    return Shown(f"{{{', '.join(texts)}}}", {name: each.json for name, each in members.items()})


def hexdump(data: bytes, size: int | None = None, most: int = 16) -> str:
    """The first `most` bytes: "34 12 ..".  `size` is how many there are, if `data` has only the first."""
    size = len(data) if size is None else size
    shown = data[:most].hex(" ")
    return f"{shown} .." if size > min(len(data), most) else shown
