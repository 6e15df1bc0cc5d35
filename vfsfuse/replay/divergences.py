# SPDX-License-Identifier: Apache-2.0
"""Where the clients of a lab do other than a recording says, and how much of it was replayed.

Each place of a recording is told once, and so many places.  They are told by the log, whose lines `vfsfuse
run` and `vfsfuse replay` print on stderr.  State: a Divergences belongs to one recording in one lab.  Any
thread, under its lock, which nobody holds while something else is waited for.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

log = logging.getLogger(__name__)
MOST_TOLD = 50
"""Places that are told."""


@dataclass(slots=True, eq=False)
class Progress:
    """Of one device: how many of its events there are, and how many were replayed."""

    total: int
    replayed: int = 0


@dataclass(slots=True, eq=False)
class Divergences:
    """``origin`` is the recording's file.  ``told`` are the lines, ``count`` is how many divergences there
    were."""

    origin: str
    told: list[str] = field(default_factory=list)
    count: int = 0
    progress: dict[str, Progress] = field(default_factory=dict)
    _places: set[tuple[str, int, object]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, device: str, line: int, expected: str, got: str, at: object = None) -> None:
        """Here is one, at a line of the recording; ``at`` tells apart those that are told each.  Any thread,
        also under locks of a device."""
        place = device, line, at
        with self._lock:
            self.count += 1
            if place in self._places or len(self._places) > MOST_TOLD:
                return
            self._places.add(place)
            told = f"{self.origin}:{line}: expected {expected}, got {got}"
            if len(self._places) > MOST_TOLD:
                told = f"{self.origin}: there are more than {MOST_TOLD} divergences: no others are told"
            self.told.append(told)
        log.warning("%s", told)

    def of_device(self, device: str, total: int) -> Progress:
        """How far a device is, from now on."""
        with self._lock:
            return self.progress.setdefault(device, Progress(total))

    @property
    def summary(self) -> str:
        """One line."""
        with self._lock:
            each = self.progress.values()
            replayed, total = sum(one.replayed for one in each), sum(one.total for one in each)
            first = f"first divergence: {self.told[0]}" if self.told else "no divergence"
            return f"{replayed} of {total} events replayed, {first}"
