# SPDX-License-Identifier: Apache-2.0
"""Tasks: what a device does by itself, as coroutines of its model on the trio thread of the lab.

State: a :class:`TaskHost` belongs to the trio thread; a method that other threads may call says so.
:class:`Tasks` has a lock of its own, which is taken after every other.
Source: trio's "Reference: tasks" (cancel scopes, TrioToken).
"""

import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import trio

from devmodel.calls.point import CallPoint

log = logging.getLogger(__name__)

Coroutine = Callable[..., Awaitable[object]]
CODE_FAILED = (Exception, SystemExit)
"""What a model's code may raise without ending more than its task; sys.exit() is no end of the lab."""

DMA_THREADS = 4
"""Most DMA threads of one device: a client whose memory does not answer can keep no more of them waiting."""


class TaskStopped(BaseException):
    """Ends a task whose device was reset, released or removed. A model must not catch it."""


Report = Callable[[str, BaseException], None]
"""Tells of a failure of a model's code that no client is told of: what has failed, and the exception."""


def log_failure(what: str, error: BaseException) -> None:
    """The :data:`Report` of a lab: a traceback in the log. Any thread."""
    log.error(what, exc_info=error)


class Task:
    """One run of a model's coroutine. The thread that ends it sets ``stopped``, under the device's lock."""

    __slots__ = ("_arguments", "_function", "_scope", "stopped", "waits")

    def __init__(self, function: Coroutine, arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments
        self._scope: trio.CancelScope | None = None
        self.stopped = False
        self.waits: frozenset[Callable[[], object]] = frozenset()
        """What ends the waits of its threads. Changes under :data:`_waits_lock`."""

    async def serve(self, failed: Report = log_failure) -> None:
        """Run it to its end, on the trio thread. An exception of it goes to ``failed``, and ends nothing
        else."""
        if self.stopped:
            return
        _current.set(self)
        try:
            with trio.CancelScope() as self._scope:
                await self._function(*self._arguments)
        except TaskStopped:
            return
        except BaseExceptionGroup as group:  # from a nursery of the model's own
            _, rest = group.split(TaskStopped)
            if rest is not None and rest.split(CODE_FAILED)[1] is not None:
                raise rest from None
            if rest is not None:
                failed("a task of a device failed", rest)
        except CODE_FAILED as error:
            failed("a task of a device failed", error)

    def cancel(self) -> None:
        """Cancel its run. Trio thread."""
        if self._scope is not None:
            self._scope.cancel()

    def stop(self) -> None:
        """It is to do nothing any more. Any thread; :meth:`cancel` has to follow."""
        self.stopped = True
        with _waits_lock:
            waits, self.waits = self.waits, frozenset()
        for end in waits:
            end()


_waits_lock = threading.Lock()
_current: ContextVar[Task | None] = ContextVar("task", default=None)


def check_current() -> None:
    """Raise :class:`TaskStopped` if the current task was stopped. A thread has the task that started it."""
    task = _current.get()
    if task is not None and task.stopped:
        raise TaskStopped


@contextlib.contextmanager
def ended_with_task(end: Callable[[], object]) -> Iterator[None]:
    """Call ``end`` when the current task is stopped while its thread is in the block, at once if it was.
    ``end`` is short: it runs under the device's lock."""
    task = _current.get()
    if task is None:
        yield
        return
    with _waits_lock:
        task.waits |= {end}
    if task.stopped:
        end()
    try:
        yield
    finally:
        with _waits_lock:
            task.waits -= {end}


class TaskHost:
    """What the devices of a lab share: it runs their tasks for as long as :meth:`serve` runs, and has the
    lab's call point. ``failed`` is told of the failures of their models, on any thread."""

    __slots__ = ("_nursery", "_token", "calls", "failed")

    def __init__(self, calls: CallPoint | None = None) -> None:
        """``calls`` is the lab's call point; a host without one has a point where nobody listens."""
        self.calls = calls or CallPoint()
        self.failed: Report = log_failure
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None

    @property
    def serving(self) -> bool:
        """Whether tasks can run. Any thread."""
        return self._token is not None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run tasks until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._token = None

    def begin(self, task: Task) -> None:
        """Start ``task`` soon, from any thread. Raises RuntimeError when no lab is being served."""
        if self._token is None:
            raise RuntimeError("no lab is being served: a device has no tasks")
        self.soon(self._begin, task)

    def end(self, task: Task) -> None:
        """Cancel ``task`` soon, from any thread."""
        self.soon(task.cancel)

    def _begin(self, task: Task) -> None:
        if self._nursery is not None and self.serving:
            self._nursery.start_soon(task.serve, self.failed)

    def soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Call ``call`` on the trio thread soon. Any thread. Does nothing when no lab is being served."""
        token = self._token
        if token is not None:
            with contextlib.suppress(trio.RunFinishedError):  # the lab ends, and all tasks with it
                token.run_sync_soon(call, *arguments)


class Tasks:
    """The tasks of one device."""

    __slots__ = ("_limiter", "_lock", "_running", "host")

    def __init__(self) -> None:
        self.host: TaskHost | None = None
        self._lock = threading.Lock()
        self._running: set[Task] = set()
        self._limiter: trio.CapacityLimiter | None = None

    @property
    def served(self) -> bool:
        """Whether they can run: devices are also made where no lab is being served."""
        return self.host is not None and self.host.serving

    def start(self, function: Coroutine, *arguments: object) -> None:
        """Run ``function(*arguments)`` on the trio thread. Any thread.

        Raises RuntimeError when no lab is being served, :class:`TaskStopped` in a task that was stopped.
        """
        if self.host is None:
            raise RuntimeError("the device is in no lab that is being served: it has no tasks")
        task = Task(self._until_done, (function, arguments))
        with self._lock:
            check_current()
            self._running.add(task)
        self.host.begin(task)

    def stop(self) -> None:
        """End all of them. :func:`check_current` raises at once; the coroutines are cancelled soon.

        Under the device's lock. A task may end the others and itself.
        """
        with self._lock:
            running, self._running = self._running, set()
            for task in running:
                task.stopped = True
        for task in running:
            task.stop()
            if self.host is not None:
                self.host.end(task)

    async def in_thread(self, call: Callable[..., Any], *arguments: object) -> Any:
        """``call(*arguments)`` in a thread. A task that is stopped does not wait for the thread."""
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(DMA_THREADS)
        answer = await trio.to_thread.run_sync(
            _called, call, arguments, abandon_on_cancel=True, limiter=self._limiter
        )
        error, result = answer.pop(), answer.pop()
        if error is not None:
            try:
                raise error
            finally:
                del error  # or it would keep this frame, and with it what the call has used
        return result

    async def _until_done(self, function: Coroutine, arguments: tuple[Any, ...]) -> None:
        try:
            await function(*arguments)
        finally:
            task = _current.get()
            with self._lock:
                if task is not None:
                    self._running.discard(task)


def _called(call: Callable[..., Any], arguments: tuple[object, ...]) -> list[Any]:
    """The result of a call, and its error or None, to be taken out of the list. Frames of Trio that the error
    refers to keep what a thread returns or raises: a circle, which would last until a collection."""
    try:
        return [call(*arguments), None]
    except Exception as error:
        return [None, error]
