# SPDX-License-Identifier: Apache-2.0
"""The events of a recording that is being made, in the order in which they begin.

The thread of the ptrace loop and the one that watches interrupts add events; a lock guards the list.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from vfsfuse.recording.recording import MOST_EVENTS, MOST_TOTAL, Event


class Begun(NamedTuple):
    """The place of an event in the recording, and the time at which it began."""

    place: int
    time: float


class Events:
    """What has happened since the recording began.  `say` gets a line for the user."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, set[str]()
        self._start = time.monotonic()
        self._room = MOST_TOTAL
        self._events: list[Event | None] = []
        """None is a call that has not ended, or that was none of VFIO."""
        self.lock = threading.RLock()
        """Held while events are put in order.  Nothing waits under it."""

    def say(self, line: str) -> None:
        """Say a line once.  Any thread."""
        with self.lock:
            is_new = line not in self._said
            self._said.add(line)
        if is_new:
            self._say(line)

    def begin(self) -> Begun | None:
        """An event begins now.  None when the recording is full."""
        with self.lock:
            if len(self._events) >= MOST_EVENTS or self._room <= 0:
                self.say("the recording is full: what follows is not recorded")
                return None
            self._events.append(None)
            return Begun(len(self._events) - 1, time.monotonic() - self._start)

    def end(self, begun: Begun, event: Event) -> None:
        """The event is over.  It is dropped if there is no room for its data."""
        with self.lock:
            self._room -= len(event.data) + len(event.before) + len(event.after)
            if self._room >= 0:
                self._events[begun.place] = event

    def add(self, make: Callable[[float], Event]) -> None:
        """An event takes place now.  `make` gets the time."""
        with self.lock:
            begun = self.begin()
            if begun:
                self.end(begun, make(begun.time))

    def all(self) -> list[Event]:
        """The events that are over."""
        with self.lock:
            return [event for event in self._events if event is not None]
