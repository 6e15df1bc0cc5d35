# SPDX-License-Identifier: Apache-2.0
"""Lab files that include others: reads them all, and merges their tables into those of one file.

State: an :class:`_Includer` belongs to the reading of one lab file, on one thread. The including file wins
over those that it includes, and a later one of them over an earlier one. Tables merge key by key; anything
else, arrays too, is replaced whole.
"""

import os
from pathlib import Path
from typing import Any

from vfsfuse.labfile import values
from vfsfuse.labfile.mistakes import Keys, LabFileError, Mistakes
from vfsfuse.labfile.source import Source, read_source

MAX_FILES = 64
"""Files that one lab file may include, with those that they include."""

ABSENT = "absent"
"""The key by which an including file takes a table away."""

NOTHING_THERE = "takes nothing away: no included file has it (check the name)"
"""The error of ``absent = true`` for what is not there."""

_REMOVABLE: tuple[Keys, ...] = (
    ("parents", "*"),
    ("parents", "*", "types", "*"),
    ("functions", "*"),
    ("roots", "*"),
    ("nodes", "*"),
    ("iommu", "units", "*"),
)


def read_with_includes(path: Path) -> Source:
    """The lab file at ``path``, merged with what it includes. Raises :class:`LabFileError`."""
    mistakes = Mistakes(path)
    source = None
    with mistakes.noted():
        source = _Includer(mistakes).read(path, ())
    mistakes.check()
    assert source is not None  # a part that was left has noted why
    return source


def is_absent(table: object) -> bool:
    """Whether a table only says that it takes another one away."""
    return isinstance(table, dict) and table.get(ABSENT) is True


class _Includer:
    """Reads each file once. ``path`` arguments are spelled as people wrote them, for the errors."""

    def __init__(self, mistakes: Mistakes) -> None:
        self.mistakes = mistakes
        self.sources: dict[str, Source] = {}
        self.files = 0

    def read(self, path: Path, above: tuple[Path, ...]) -> Source:
        """The file at ``path`` with its includes. ``above`` are the files that lead to it."""
        source = read_source(path)
        names = self._names(source)
        merged: Source | None = None
        for name in names:
            base = self._include(path, path.parent / name, (*above, path))
            if base is not None:
                merged = base if merged is None else self._merge(merged, base)
        return source if merged is None else self._merge(merged, source)

    def _names(self, source: Source) -> tuple[str, ...]:
        try:
            return values.includes.read(source.content.pop("include", []))
        except ValueError as error:
            self.mistakes.note(source.path, ("include",), str(error))
            return ()

    def _include(self, by: Path, path: Path, above: tuple[Path, ...]) -> Source | None:
        real = os.path.realpath(path)
        if real in map(os.path.realpath, above):
            circle = " includes ".join(map(str, (*above, path)))
            self.mistakes.note(by, ("include",), f"goes in a circle: {circle} (take one of them out)")
            return None
        if real not in self.sources:
            self.files += 1
            if self.files > MAX_FILES:
                self.mistakes.fail(by, ("include",), f"comes to more than {MAX_FILES} files (join some)")
            source = self._readable(by, path, above)
            if source is None:
                return None
            self.sources[real] = source
        return self.sources[real]

    def _readable(self, by: Path, path: Path, above: tuple[Path, ...]) -> Source | None:
        if not os.path.exists(path):
            why = f"there is no file {path} (paths begin at the file that they are written in)"
            self.mistakes.note(by, ("include",), why)
            return None
        try:
            return self.read(path, above)
        except LabFileError as error:
            self.mistakes.lines += error.lines
            return None

    # ---- merging ----

    def _merge(self, base: Source, over: Source) -> Source:
        """``base`` with what ``over`` says."""
        taken: set[Keys] = set()
        origins = dict(over.origins)
        content = self._tables(base.content, over.content, (), over, taken)
        for keys in taken:
            origins[keys] = base.file(keys)
        for keys, file in base.origins.items():
            if any(keys[:length] in taken for length in range(1, len(keys))):
                origins[keys] = file
        return Source(over.path, content, origins)

    def _tables(
        self, base: dict[str, Any], over: dict[str, Any], keys: Keys, by: Source, taken: set[Keys]
    ) -> dict[str, Any]:
        """A table of ``base`` with that of ``over``. Keys of values that are base's come into ``taken``."""
        merged: dict[str, Any] = {}
        for key, value in base.items():
            here = (*keys, key)
            if key not in over:
                merged[key] = value
                taken.add(here)
            elif _is_removable(here) and is_absent(over[key]):
                for other in over[key].keys() - {ABSENT}:
                    why = "stands beside absent = true, which takes all away (leave one of them out)"
                    self.mistakes.note(by.file((*here, other)), (*here, other), why)
            elif isinstance(value, dict) and isinstance(over[key], dict):
                merged[key] = self._tables(value, over[key], here, by, taken)
            else:
                merged[key] = over[key]
        return merged | {key: value for key, value in over.items() if key not in base}


def _is_removable(keys: Keys) -> bool:
    return any(_matches(keys, pattern) for pattern in _REMOVABLE if len(keys) == len(pattern))


def _matches(keys: Keys, pattern: Keys) -> bool:
    return all(wanted in ("*", key) for key, wanted in zip(keys, pattern, strict=True))
