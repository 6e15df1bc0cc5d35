# SPDX-License-Identifier: Apache-2.0
"""Changes of a lab that happen by themselves, some time after the call that asked for them.

State: the lifecycle (trio) thread's. Source: trio's "Reference: tasks".
"""

import errno
from collections.abc import Awaitable, Callable

import trio

from devmodel.device.tasks import Task, TaskHost


class Timer:
    """A change that is to come."""

    __slots__ = ("_host", "_task")

    def __init__(self, host: TaskHost, task: Task) -> None:
        """For :meth:`Later.after`."""
        self._host, self._task = host, task

    def cancel(self) -> None:
        """Have it not happen. The lifecycle thread, before it happens."""
        self._task.stopped = True
        self._host.end(self._task)


class Later:
    """The changes that are to come in one lab. They end with :meth:`TaskHost.serve`, without happening."""

    __slots__ = ("_host", "publish")

    def __init__(self, host: TaskHost) -> None:
        self._host = host
        self.publish: Callable[[], Awaitable[None]] | None = None
        """Tells clients what has changed. Whoever serves the lab sets it before."""

    def after(self, seconds: float, change: Callable[[], object]) -> Timer:
        """Call ``change`` on the lifecycle thread after ``seconds``. Its exceptions are logged.

        Raises ``OSError(ENODEV)`` when no lab is being served, or it ends.
        """
        task = Task(self._happen, (seconds, change))
        try:
            self._host.begin(task)
        except RuntimeError as error:
            raise OSError(errno.ENODEV, "no lab is being served") from error
        return Timer(self._host, task)

    async def _happen(self, seconds: float, change: Callable[[], object]) -> None:
        await trio.sleep(seconds)
        try:
            change()
        finally:
            if self.publish is not None:
                await self.publish()
