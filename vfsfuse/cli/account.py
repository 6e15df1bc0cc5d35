# SPDX-License-Identifier: Apache-2.0
"""Where a trace goes: lines of text or JSON to a file, a terminal or a pipe, and a summary at its end.

Single-threaded.  Writing waits for whoever reads the output; the lab does not, it drops records meanwhile.
"""

from __future__ import annotations

import errno
import json
import os
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vfsfuse.trace.record import Record

STDOUT, STDERR = 1, 2
LOST = "lost"


@dataclass(frozen=True, slots=True)
class Style:
    """What the user wants to see."""

    lines: bool = True
    json: bool = False
    summary: bool = False
    colour: str = "auto"


class Account:
    """Writes records to the descriptor `fd`, which `name` names in errors.

    `failure` says why nothing more is written.  It is empty when a reader such as head(1) has closed the
    pipe, and None while all is well."""

    def __init__(self, fd: int, name: str, style: Style) -> None:
        self._fd, self._name, self._json = fd, name, style.json
        self._line = _format(style, fd) if style.lines else None
        self._summary = None
        if style.summary:
            from vfsfuse.trace.summary import Summary

            self._summary = Summary()
        self.count = 0
        """How many records it has told."""
        self.lost = 0
        """How many records the lab has dropped."""
        self.failure: str | None = None

    def add(self, records: Iterable[Record]) -> int:
        """Tell these records, also those before an error of the iterator.  Returns how many there were."""
        lines: list[str] = []
        before = self.count
        try:
            for record in records:
                self.count += 1
                self._take(record, lines)
        finally:
            if lines:
                self._write("\n".join(lines) + "\n")
        return self.count - before

    def _take(self, record: Record, lines: list[str]) -> None:
        if record.kind == LOST:
            lost = record.arguments.get("count", 0)
            self.lost += lost if isinstance(lost, int) else 0
        if self._summary:
            self._summary.add(record)
        if self._line:
            lines.append(self._line(record))

    def end(self) -> None:
        """Write the summary."""
        if self._summary:
            said = json.dumps(self._summary.as_json()) if self._json else self._summary.table()
            self._write(f"{said.rstrip()}\n")

    def _write(self, text: str) -> None:
        if self.failure is not None:
            return
        try:
            write_all(self._fd, text.encode("utf-8", "surrogateescape"))
        except BrokenPipeError:
            self.failure = ""
        except OSError as error:
            self.failure = f"{self._name}: {error.strerror}: the rest of the trace is not written"


def _format(style: Style, fd: int) -> Callable[[Record], str]:
    if style.json:
        from vfsfuse.trace.asjson import as_json

        return lambda record: json.dumps(as_json(record), separators=(",", ":"))
    from vfsfuse.trace.text import Lines

    return Lines(wants_colours(style.colour, fd)).line


def wants_colours(choice: str, fd: int) -> bool:
    """Whether lines for `fd` have colours.  Source: https://no-color.org"""
    if choice != "auto":
        return choice == "always"
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return not plain and os.isatty(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, also to a file that another process has made non-blocking.  Raises OSError."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            select.select([], [fd], [])
