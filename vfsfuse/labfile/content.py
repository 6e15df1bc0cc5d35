# SPDX-License-Identifier: Apache-2.0
"""Bytes that a lab file gives: a file's content, or rows of hexadecimal bytes as lspci -xxxx prints them.

State: none. Source: lspci(8) (the rows), PCI Local Bus 3.0 appendix I and chapter 6.3 (sizes).
"""

import re
from pathlib import Path

MAX_BYTES = 16 << 20
"""Bytes of a file: the largest ROM."""

_ROW = re.compile(r"(?:([0-9a-f]{2,8}): )?((?:[0-9a-f]{2} )*[0-9a-f]{2}) *", re.ASCII)


def read_content(text: str, folder: Path) -> bytes:
    """The bytes of ``text``: of its rows if it has a line break, else of the file at that path, which begins
    at ``folder``. Raises ValueError with the reason and the remedy."""
    if "\n" in text:
        return _rows(text)
    path = folder / text
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror} (paths begin at the lab file)") from error
    except ValueError as error:
        raise ValueError(f"{text!r} cannot be a path (name a file)") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes (name another file)")
    return data


def read_config(text: str, folder: Path) -> bytes:
    """A configuration space: as :func:`read_content`, or a file with such rows."""
    data = read_content(text, folder)
    if "\n" in text or b"\n" not in data:
        return data
    try:
        return _rows(data.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        return data


def _rows(text: str) -> bytes:
    """The bytes of all rows. Only the first line may be none, where lspci names the function."""
    found = bytearray()
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        row = _ROW.fullmatch(line.strip().lower())
        if row is None and number:
            raise ValueError(f'{line.strip()!r} is not a row of bytes (write such as "00: 86 80")')
        if row is None:
            continue
        if row[1] is not None and int(row[1], 16) != len(found):
            raise ValueError(f"row {row[1]} follows {len(found)} bytes (give all rows, in their order)")
        found += bytes.fromhex(row[2])
    return bytes(found)
