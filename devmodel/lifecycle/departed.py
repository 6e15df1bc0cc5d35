# SPDX-License-Identifier: Apache-2.0
"""Devices that were removed by surprise, until the last client has let go of them. Only then the lab has back
what they took: their share, and their numbers.

State: the lifecycle thread's, under ``Lab.lock``; clients let go on the device lane.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from devmodel.device.tasks import TaskHost
from devmodel.vfio.group import Assignable, Group


class _Waiting(NamedTuple):
    """What has departed: its group, whether a client holds it, and what is called when none does."""

    group: Group
    held: Callable[[], bool]
    watcher: Callable[[], None]
    end: Callable[[], None]


class Departed:
    """The devices of one lab that are gone and may still be held."""

    def __init__(self, lock: threading.RLock, tasks: TaskHost) -> None:
        self._lock, self._tasks = lock, tasks
        self._waiting: dict[Assignable | Group, _Waiting] = {}

    def add(self, device: Assignable, end: Callable[[], None]) -> None:
        """Call ``end`` when no client holds the device any more: at once, if none does. It has vanished."""
        self._add(device, device.group, lambda: device.held, end)

    def add_group(self, group: Group, end: Callable[[], None]) -> None:
        """Call ``end`` when no client holds any device of a group whose last member is gone."""
        self._add(group, group, lambda: group.held, end)

    def close(self) -> None:
        """End all of them, held or not. For the end of the process."""
        for what in tuple(self._waiting):
            self._end(what)

    def _add(
        self,
        what: Assignable | Group,
        group: Group,
        held: Callable[[], bool],
        end: Callable[[], None],
    ) -> None:
        watcher = partial(self._tasks.soon, self._settle, what)
        self._waiting[what] = _Waiting(group, held, watcher, end)
        with group.lock:
            group.watch(watcher)
        self._settle(what)

    def _settle(self, what: Assignable | Group) -> None:
        with self._lock:
            waiting = self._waiting.get(what)
            if waiting is not None:
                with waiting.group.lock:
                    held = waiting.held()
                if not held:
                    self._end(what)

    def _end(self, what: Assignable | Group) -> None:
        waiting = self._waiting.pop(what)
        with waiting.group.lock:
            waiting.group.unwatch(waiting.watcher)
        waiting.end()
