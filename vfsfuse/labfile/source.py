# SPDX-License-Identifier: Apache-2.0
"""The text of a lab file: TOML to tables, and the file that each value was written in.

State: none; a :class:`Source` is a value.
"""

import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfsfuse.labfile.mistakes import Keys, LabFileError, line

MAX_BYTES = 16 << 20
"""Bytes that are read of a lab file, so that a device such as /dev/zero comes to an end."""

STDIN = Path("<stdin>")
"""The path of a lab file that is read from standard input. Relative paths in it begin at the current folder.
It is this object: any other path, whatever its text, is that of a file."""

_SYNTAX = (
    "mend the syntax there: addresses and texts are in quotes, hexadecimal numbers begin with 0x, and "
    "a table in braces is on one line"
)

MAX_DEPTH = 32
"""Tables and arrays within one another; a lab needs six."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a lab file says. ``origins`` names the files of values that stand in another than ``path``: all
    values below the keys, unless there are longer keys that lead to it."""

    path: Path
    content: dict[str, Any]
    origins: dict[Keys, Path] = field(default_factory=dict)

    def file(self, keys: Keys) -> Path:
        """The file in which the value at ``keys`` was written."""
        if self.origins:
            for length in range(len(keys), 0, -1):
                found = self.origins.get(keys[:length])
                if found is not None:
                    return found
        return self.path


def read_source(path: Path) -> Source:
    """The lab file at ``path``. Raises :class:`LabFileError` for one that is no TOML or has no bounds."""
    content = _parse(path)
    _check_sizes(path, content)
    return Source(path, content)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except OSError as error:
        raise LabFileError(f"{path}: cannot be read: {error.strerror} (check the path)") from error
    except UnicodeDecodeError as error:
        raise LabFileError(f"{path}: is not UTF-8 text (byte {error.start}) (is it a TOML file?)") from error
    except tomllib.TOMLDecodeError as error:
        raise LabFileError(f"{path}: not TOML: {error} ({_SYNTAX})") from error
    except RecursionError as error:
        raise LabFileError(f"{path}: too many brackets in one another (write it flat)") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise LabFileError(f"{path}: a value that cannot be: {error} (give a smaller number)") from error


def _text(path: Path) -> str:
    if path is STDIN:
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise LabFileError(f"{path}: is larger than {MAX_BYTES} bytes (is it a TOML file?)")
    return content.decode().replace("\r\n", "\n")


def _check_sizes(path: Path, content: object) -> None:
    """Refuse what cannot be shown in an error: numbers of thousands of digits, and endless nesting."""
    left: list[tuple[int, Keys, object]] = [(0, (), content)]
    while left:
        depth, keys, value = left.pop()
        if depth > MAX_DEPTH:
            why = f"is nested more than {MAX_DEPTH} deep (write it flat)"
            raise LabFileError(line(path, keys[:MAX_DEPTH], why))
        if isinstance(value, dict):
            left += [(depth + 1, (*keys, key), inside) for key, inside in value.items()]
        elif isinstance(value, list):
            left += [(depth + 1, keys, inside) for inside in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:  # as TOML says
            raise LabFileError(line(path, keys, "does not fit in 64 bits (give a smaller number)"))
