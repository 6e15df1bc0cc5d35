# SPDX-License-Identifier: Apache-2.0
"""A clock that tests wind by hand."""

import trio
from trio.testing import MockClock

from devmodel.device.tasks import Task


class Clock:
    """In place of a served lab: tasks that have begun, each of which runs when the clock is told to."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def begin(self, task: Task) -> None:
        self.tasks.append(task)

    def end(self, task: Task) -> None:
        assert task.stopped and task in self.tasks
        self.tasks.remove(task)

    def strike(self) -> None:
        """The time of the oldest has come."""
        if self.tasks:
            trio.run(self.tasks.pop(0).serve, clock=MockClock(autojump_threshold=0))
