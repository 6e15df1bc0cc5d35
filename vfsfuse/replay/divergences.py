# SPDX-License-Identifier: Apache-2.0
"""Where the clients of a lab do other than a recording says, and how much of it was replayed.

Each place of a recording is told once, MOST_TOLD places at most.  They are told by the log, whose lines
`vfsfuse run` prints on stderr, unless somebody reads them otherwise.  State: a Divergences belongs to one
recording in one lab.  Any thread, under its lock, which nobody holds while something else is waited for.
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
    """Of one device: how many of its events there are, how many were replayed, and how often it is open."""

    total: int
    replayed: int = 0
    open: int = 0


@dataclass(slots=True, eq=False)
class Divergences:
    """``origin`` is the recording's file.  ``told`` are the lines, ``count`` is how many divergences there
    were."""

    origin: str
    told: list[str] = field(default_factory=list)
    count: int = 0
    readers: int = 0
    """Who has the file open that tells of them."""
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
            level = logging.INFO if self.readers else logging.WARNING
        log.log(level, "%s", told)

    def read_by(self, readers: int) -> None:
        """So many more read them from now on."""
        with self._lock:
            self.readers += readers

    def of_device(self, device: str, total: int) -> Progress:
        """How far a device is, from now on."""
        with self._lock:
            return self.progress.setdefault(device, Progress(total))

    @property
    def open(self) -> int:
        """How many of its devices are open now."""
        with self._lock:
            return sum(one.open for one in self.progress.values())

    @property
    def unused(self) -> list[str]:
        """The devices with which nothing was done that the recording has."""
        with self._lock:
            return [name for name, one in self.progress.items() if one.total and not one.replayed]

    @property
    def lines(self) -> list[str]:
        """The places that were told."""
        with self._lock:
            return list(self.told)

    @property
    def summary(self) -> str:
        """One line."""
        with self._lock:
            each = self.progress.values()
            replayed = sum(min(one.replayed, one.total) for one in each)
            said = f"{replayed} of {sum(one.total for one in each)} events replayed"
            if not self.count:
                return f"{said}, no divergence"
            where = self.told[0].partition(": ")[0]
            return f"{said}, {self.count} divergence{'s' * (self.count > 1)}, the first at {where}"
