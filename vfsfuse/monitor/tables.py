# SPDX-License-Identifier: Apache-2.0
"""Plain tables: a heading in capitals, columns as wide as their widest value, two blanks between them.

Values come from others, so they are made printable here.  No state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vfsfuse.monitor.files import printable

NONE = "-"
"""What is shown where there is no value."""
CUT = "..."


def table(heading: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> Iterator[str]:
    """The lines of a table; none without rows.  `right` names the columns that are aligned to the right,
    separated by blanks."""
    cells = [[NONE if cell is None or cell == "" else printable(str(cell)) for cell in row] for row in rows]
    if not cells:
        return
    widths = [max(map(len, column)) for column in zip(heading, *cells, strict=True)]
    flush = [name in right.split() for name in heading]
    for row in (list(heading), *cells):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, flush, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def cut(line: str, width: int | None) -> str:
    """The line as it fits a terminal of so many columns; None for no limit."""
    if width is None or len(line) <= width:
        return line
    return line[: max(0, width - len(CUT))] + CUT[: max(0, width)]


def size(count: int | None) -> str | None:
    """A number of bytes for people: a whole number or one decimal, and K, M, G or T."""
    if count is None:
        return None
    value, unit = float(count), ""
    for larger in "KMGT":
        if value < 1024:
            break
        value, unit = value / 1024, larger
    digits = 0 if value == int(value) or not unit else 1
    return f"{value:.{digits}f}{unit}"


def share(part: int | None, whole: int | None) -> str | None:
    """Such as `64M of 256M`."""
    return None if whole is None else f"{size(part) or '?'} of {size(whole)}"
