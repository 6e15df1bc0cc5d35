# SPDX-License-Identifier: Apache-2.0
"""The errors of a lab file: all that are found, each one line that a person can act on.

State: a :class:`Mistakes` belongs to the reading of one lab file, on one thread.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

Keys = tuple[str, ...]
"""Where a value stands: the keys that lead to it from the top of the file."""

MAX_SHOWN = 100
"""Errors of a file that are shown."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class LabFileError(Exception):
    """The lab file cannot be used. Each of ``lines`` is one error: "file: key.path: reason (remedy)"."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Mistake(Exception):
    """One error, which :class:`Mistakes` has noted. Only :meth:`Mistakes.noted` catches it."""


class Mistakes:
    """Collects the errors of one lab file, so that all of them are shown at once."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.lines: list[str] = []

    def note(self, source: Path, keys: Keys, why: str) -> None:
        """Add an error of the value at ``keys``. ``why`` is the reason, and the remedy in parentheses."""
        self.lines.append(line(source, keys, why))

    def fail(self, source: Path, keys: Keys, why: str) -> NoReturn:
        """Add an error, and leave the part that is being read."""
        self.note(source, keys, why)
        raise Mistake

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A part of the file: an error in it is noted, and the reading goes on behind the part."""
        with suppress(Mistake):
            yield

    def check(self) -> None:
        """Raise :class:`LabFileError` with all errors, if there are any."""
        if self.lines:
            left = len(self.lines) - MAX_SHOWN
            more = (f"{self.source}: has {left} more errors (mend these first)",) if left > 0 else ()
            raise LabFileError(*self.lines[:MAX_SHOWN], *more)


def with_remedy(why: str, remedy: str) -> str:
    """A reason with a remedy in parentheses, if it does not end with one already."""
    return why if why.endswith(")") else f"{why} ({remedy})"


def line(source: Path, keys: Keys, why: str) -> str:
    """The line about an error."""
    return f"{place_of(source, keys)}: {why}"


def place_of(source: Path, keys: Keys) -> str:
    """A place in a file, as errors name it."""
    return f"{source}: {'.'.join(map(quoted, keys)) or 'the file'}"


def quoted(key: str) -> str:
    """A key as TOML spells it in a dotted path."""
    return key if _BARE_KEY.fullmatch(key) else '"' + key.encode("unicode_escape").decode() + '"'
