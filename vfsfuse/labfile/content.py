# SPDX-License-Identifier: Apache-2.0
"""Bytes that a lab file gives: a file's content, or rows of hexadecimal bytes as lspci -xxxx prints them.

State: none. Source: lspci(8) (the rows).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from devmodel.pci.dump import BARE_ROW, config_space, row_of, rows_of
from vfsfuse.labfile.mistakes import with_remedy

T = TypeVar("T")
MAX_BYTES = 16 << 20
"""Bytes of a file: the largest ROM."""


def read_content(text: str, folder: Path) -> bytes:
    """The bytes of ``text``: of its rows if it has some, else of the file at that path, which begins at
    ``folder``. Raises ValueError with the reason and the remedy."""
    return _remedied(rows_of, text) if _is_content(text) else _file(text, folder)


def read_config(text: str, folder: Path) -> bytes:
    """A configuration space: as :func:`read_content`, or a file with such rows."""
    if _is_content(text):
        return _remedied(config_space, text.encode("ascii", "replace"))
    data = _file(text, folder)
    try:
        return _remedied(config_space, data)
    except ValueError as error:
        raise ValueError(f"{folder / text}: {error}") from error


def _is_content(text: str) -> bool:
    """Whether the text is content and no path: several lines, or one row with its offset. TOML drops a line
    break that opens a text, so a single row often has none."""
    return "\n" in text or row_of(text) is not None


def _remedied(read: Callable[[T], bytes], given: T) -> bytes:
    """What ``read`` gives. Its errors get a remedy if they have none."""
    try:
        return read(given)
    except ValueError as error:
        raise ValueError(with_remedy(str(error), "write rows as lspci -xxxx does")) from error


def _file(name: str, folder: Path) -> bytes:
    path = folder / name
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        is_row = BARE_ROW.fullmatch(name) is not None
        hint = "write the offset of a row, as in 00: 55 aa" if is_row else "paths begin at the lab file"
        raise ValueError(f"{path} cannot be read: {error.strerror} ({hint})") from error
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be a path (name a file)") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes (name another file)")
    return data
