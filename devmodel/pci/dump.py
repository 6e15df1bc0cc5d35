# SPDX-License-Identifier: Apache-2.0
"""Bytes as text, in rows as ``lspci -x`` prints them: "10: 04 00 10 fb ...".

State: none. Source: lspci(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from devmodel.pci.image import SIZES

ROW = 16
"""Bytes in a row."""
MAX_DUMP = 1 << 16
"""Most bytes that rows may have."""
_ROW = re.compile(r"\s*([0-9a-fA-F]{2,4}):((?:\s+[0-9a-fA-F]{2}){1,16})\s*")
BARE_ROW = re.compile(r"\s*[0-9a-fA-F]{2}(?:\s+[0-9a-fA-F]{2})*\s*")
"""Bytes without an offset."""
_ADDRESS_LINE = re.compile(r"([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7](\s.*)?")


def row_of(line: str) -> tuple[int, bytes] | None:
    """The offset and the bytes of a row, None for a line that is no row."""
    found = _ROW.fullmatch(line)
    return None if found is None else (int(found[1], 16), bytes.fromhex(found[2]))


def rows_of(text: str) -> bytes:
    """The bytes of a text of rows, as many as up to the last row. A row that is not there is zeros. A row
    without an offset follows the one before.

    Lines before the first row, and empty lines, do not count. Raises ValueError with the number of a line
    that is no row, or that is not behind the row before.
    """
    data = bytearray()
    for number, line in enumerate(text.splitlines(), 1):
        row = row_of(line)
        if row is None and BARE_ROW.fullmatch(line):
            row = len(data), bytes.fromhex(line)
        if row is None:
            if data and line.strip():
                other = ": a second function" if _ADDRESS_LINE.fullmatch(line) else ""
                raise ValueError(f'line {number} is no row such as "10: 04 00"{other} (take it out)')
            continue
        offset, found = row
        if offset < len(data) or (offset != len(data) and offset % ROW) or offset + len(found) > MAX_DUMP:
            raise ValueError(f"line {number}: no row can begin at {offset:#x} there (sort the rows)")
        data.extend(bytes(offset - len(data)) + found)
    if not data:
        raise ValueError('has no row such as "00: 86 80 ..."')
    return bytes(data)


def config_space(content: bytes) -> bytes:
    """Configuration space from the content of a file or text: rows, or the bytes themselves.

    Raises ValueError if it is neither.
    """
    if len(content) in SIZES and not content.isascii():
        return content
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(
            f"has {len(content)} bytes and no text (give 64, 256 or 4096 bytes, or rows as lspci -x)"
        ) from None
    data = rows_of(text)
    size = next((each for each in SIZES if len(data) <= each), 0)
    if not size:
        raise ValueError(f"has {len(data)} bytes in its rows (a configuration space has 4096 at most)")
    return data.ljust(size, b"\0")


def rows(data: bytes) -> Iterator[str]:
    """Rows for these bytes. Those of zeros are left out, if they are neither the first nor the last."""
    for offset in range(0, len(data), ROW):
        row = data[offset : offset + ROW]
        if any(row) or offset in (0, (len(data) - 1) // ROW * ROW):
            yield f"{offset:02x}: {row.hex(' ')}"
