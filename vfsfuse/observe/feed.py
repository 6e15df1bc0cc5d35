# SPDX-License-Identifier: Apache-2.0
"""The calls that one reader of the trace has not read yet, as many as it wants to keep.

State: under the lock of its Tracer, on whichever thread makes a call; the thread of the trace takes them.
"""

from __future__ import annotations

import errno
import json
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from vfsfuse.observe.told import Told
from vfsfuse.trace.filters import KEEP, MOST_KEPT, is_about, is_injected, named
from vfsfuse.trace.record import DEVICE, KINDS

MOST_BYTES = 128 << 20
"""Memory that the calls of one reader take at most."""
MOST_OPTIONS = 1 << 16
"""Bytes of a line of options."""
_MOST_SUBJECTS = 4096
V = TypeVar("V")


class Options:
    """What a reader has asked for in its line of JSON.  An empty list lets everything through, as None.

    `record` is whether it records: it gets whole data and descriptions of devices.  `hide_mmap` is whether
    VFIO hides from clients that regions can be mapped while it reads."""

    __slots__ = ("_subjects", "devices", "hide_mmap", "injected", "keep", "kinds", "pids", "record")

    def __init__(self) -> None:
        self.devices: tuple[str, ...] | None = None
        self.kinds: frozenset[str] | None = None
        self.pids: frozenset[int] | None = None
        self.injected: tuple[str, ...] | None = None
        self.keep = KEEP
        self.record = self.hide_mmap = False
        self._subjects: dict[str, bool] = {}

    @classmethod
    def parse(cls, line: bytes) -> Options:
        """Raises OSError(EINVAL) for a line that says anything else than that."""
        made = cls()
        try:
            if len(line) > MOST_OPTIONS:
                raise ValueError("too long")
            for key, value in dict(json.loads(line)).items():
                _OPTIONS[key](made, value)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise OSError(errno.EINVAL, f"options of a trace: {error}") from None
        return made

    def wants(self, told: Told) -> bool:
        if told.kind == DEVICE:
            if not self.record:
                return False
        elif self.kinds is not None and told.kind not in self.kinds:
            return False
        if self.pids is not None and told.client.pid not in self.pids and told.kind != DEVICE:
            return False
        if self.injected is not None and not is_injected(told.fault, self.injected):
            return False
        if self.devices is None or self._is_wanted(told.subject):
            return True
        return any(map(self._is_wanted, named(told.kind, told.data, told.arguments.get("arguments"))))

    def _is_wanted(self, subject: str) -> bool:
        found = self._subjects.get(subject)
        if found is None:
            if len(self._subjects) >= _MOST_SUBJECTS:
                self._subjects.clear()
            found = self._subjects[subject] = any(is_about(subject, name) for name in self.devices or ())
        return found

    def set_devices(self, value: object) -> None:
        self.devices = tuple(_list_of(str, value)) or None

    def set_kinds(self, value: object) -> None:
        kinds = frozenset(_list_of(str, value))
        if not kinds <= set(KINDS):
            raise ValueError("no such kind")
        self.kinds = kinds or None

    def set_pids(self, value: object) -> None:
        self.pids = frozenset(_list_of(int, value)) or None

    def set_injected(self, value: object) -> None:
        self.injected = tuple(_list_of(str, value)) or None

    def set_keep(self, value: object) -> None:
        if type(value) is not int or not 0 < value <= MOST_KEPT:
            raise ValueError(f"keep is a number from 1 to {MOST_KEPT}")
        self.keep = value

    def set_record(self, value: object) -> None:
        self.record = _switch(value)

    def set_hide_mmap(self, value: object) -> None:
        self.hide_mmap = _switch(value)


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _list_of(kind: type[V], value: object) -> list[V]:
    if not isinstance(value, list) or not all(type(each) is kind for each in value):
        raise ValueError(f"not a list of {kind.__name__}")
    return value


_OPTIONS: dict[str, Callable[[Options, object], None]] = {
    "devices": Options.set_devices,
    "kinds": Options.set_kinds,
    "pids": Options.set_pids,
    "injected": Options.set_injected,
    "keep": Options.set_keep,
    "record": Options.set_record,
    "hide_mmap": Options.set_hide_mmap,
}


class Feed:
    """The queue of one reader."""

    __slots__ = ("_calls", "_held", "lost", "options")

    def __init__(self) -> None:
        self.options = Options()
        self._calls: deque[Told] = deque()
        self._held = 0
        self.lost = 0
        """Calls that were dropped since the reader was last told of dropped ones."""

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return bool(self._calls) or self.lost > 0

    def begin(self, options: Options) -> None:
        """Begin anew with these options."""
        self.options, self._held, self.lost = options, 0, 0
        self._calls.clear()

    def put(self, told: Told) -> bool:
        """A call, if the reader wants it: then this is true.  The oldest calls go when there are too many."""
        options = self.options
        if not options.wants(told):
            return False
        self._calls.append(told)
        self._held += told.size
        while len(self._calls) > options.keep or self._held > MOST_BYTES:
            self._held -= self._calls.popleft().size
            self.lost += 1
        return True

    def drop(self) -> None:
        """Let go of all calls, one by one: to free many at once would keep the GIL from the pump."""
        while self._calls:
            self._calls.popleft()

    def take(self) -> Told | int | None:
        """The oldest call, or before it the number of those that were lost.  None when there is nothing."""
        if self.lost:
            lost, self.lost = self.lost, 0
            return lost
        if not self._calls:
            return None
        told = self._calls.popleft()
        self._held -= told.size
        return told
