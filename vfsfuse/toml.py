# SPDX-License-Identifier: Apache-2.0
"""Values as TOML text, for those who write lab files.  No state; any thread.  Source: toml.io, 1.0."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

_NAMED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}


def quoted(text: str) -> str:
    """A basic string on one line.  Keys are written so, too."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character < " " or character == "\x7f" or character in _NAMED:
        return _NAMED.get(character) or f"\\u{ord(character):04x}"
    return character


def document(table: Mapping[str, object]) -> str:
    """A table as a file, a line for each of its keys.  Raises TypeError for a value that TOML has not, with
    the keys that lead to it."""
    return "".join(f"{quoted(key)} = {_value(value, key)}\n" for key, value in table.items())


def _value(value: object, where: str) -> str:
    """A value on one line: tables are in braces."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | os.PathLike():
            return quoted(str(value))
        case Mapping():
            return f"{{ {', '.join(_pairs(value, where))} }}"
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return f"[{', '.join(_value(each, where) for each in value)}]"
    raise TypeError(f"{where}: a lab file cannot have the {type(value).__name__} {value!r}")


def _pairs(table: Mapping[object, object], where: str) -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(key, str):
            raise TypeError(f"{where}: a key of a lab file is a text, not {key!r}")
        yield f"{quoted(key)} = {_value(value, f'{where}.{key}')}"
