# SPDX-License-Identifier: Apache-2.0
"""The files that the models of a lab are read from, and whether they have changed since.

State: none.  Source: stat(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

Stamps = Mapping[str, tuple[int, int, int] | None]
"""By path what changes when a file is written or replaced: time, size and inode; None while there is none."""


def stamps_of(files: Iterable[str], beside: Iterable[str] = ()) -> Stamps:
    """The stamps of files, and of all modules in the folders `beside`.  Any thread."""
    more = (str(path) for folder in beside for path in _modules(folder))
    return {path: _stamp(path) for path in {*files, *more}}


def _modules(folder: str) -> list[Path]:
    try:
        return list(Path(folder).glob("*.py"))
    except OSError:
        return []


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
