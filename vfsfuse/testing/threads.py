# SPDX-License-Identifier: Apache-2.0
"""The two threads of a bench: the lane, which is the client's side of the device, and the trio thread, on
which the device's tasks run while the bench waits, and only then.

State: each thread has a queue of calls. A call waits for its answer for so long in real time, because code of
a model may not come to an end. Source: trio's "Reference: tasks" and "Reference: introspection".
"""

import os
import queue
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import pairwise
from types import FrameType
from typing import Any, TypeVar

import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from devmodel.device.tasks import TaskHost
from vfsfuse.testing.clock import VirtualClock
from vfsfuse.testing.errors import ModelFailed

T = TypeVar("T")
Order = tuple["Future[Any]", Callable[[], Any]]
PAUSE = 0.001
"""Real seconds from one look at threads to the next."""
_WAITS = ("wait_task_rescheduled", "acquire_on_behalf_of")
_OURS = ("bench-", "Trio thread", "eventfds", "MainThread")


class Lane:
    """The thread that makes the calls of the client: hooks run here, as on a lab's device lane."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="bench-lane", daemon=True)
        self.thread.start()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Have the thread make a call."""
        future: Future[T] = Future()
        self._orders.put((future, call))
        return future

    def end(self, patience: float) -> None:
        """No call follows. Wait for the thread to end for so many seconds."""
        self._orders.put(None)
        self.thread.join(patience)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            future, call = order
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del order, future, call  # or the thread would keep what the last call used


class TrioThread:
    """The thread of the device's tasks. They run while an order does: between two orders everything stands
    still."""

    def __init__(self, host: TaskHost, clock: VirtualClock) -> None:
        self._host, self._clock = host, clock
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._current: Future[Any] | None = None
        self._ended: BaseException | None = None
        self._own_descriptors = 0
        self._root: trio.lowlevel.Task | None = None
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="bench-trio", daemon=True)
        self.thread.start()

    def submit(self, call: Callable[[], Awaitable[T]]) -> "Future[T]":
        """Have the thread await what ``call`` returns."""
        future: Future[T] = Future()
        with self._lock:
            if self._ended is not None:
                future.set_exception(self._ended)
            else:
                self._orders.put((future, call))
        return future

    def end(self, patience: float) -> None:
        """No order follows, and the tasks end. Wait for the thread to end for so many seconds."""
        self._orders.put(None)
        self.thread.join(patience)

    # ---- orders ----

    async def settle(self) -> None:
        """Let the tasks run until all of them wait for time to pass, or for somebody else; and the threads
        that they wait for, such as those of DMA, have ended."""
        await wait_all_tasks_blocked()
        while any(map(_awaits_thread, _stacks(trio.lowlevel.current_root_task()))):
            await wait_all_tasks_blocked(PAUSE)

    async def advance(self, end: float, stop: Callable[[], bool]) -> None:
        """Let time pass until ``end``, or until ``stop()`` says so at a moment at which something happens."""
        await self.settle()
        while not stop() and await self.step(end):
            pass

    async def step(self, end: float) -> bool:
        """Let time pass until the next moment at which something happens, or until ``end``. False if it is
        ``end`` already."""
        left = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if not self._clock.pass_time(left, end):
            return False
        await self.settle()
        return True

    async def waits_outside(self) -> bool:
        """Whether a task waits for a descriptor, such as that of a pseudo-terminal."""
        return _descriptors_awaited() > self._own_descriptors

    def places(self, files: frozenset[str]) -> list[str]:
        """Where in these files the tasks are. Any thread: it is a guess while they run."""
        stacks = (
            [
                traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name)
                for frame, line in each
            ]
            for each in _stacks(self._root)
        )
        return sorted({place for stack in stacks if (place := _place(stack, files)) is not None})

    async def pause(self) -> None:
        """Let the tasks run, and real time pass."""
        await wait_all_tasks_blocked(PAUSE)
        await self.settle()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._serve, clock=self._clock)
        except BaseException as failure:
            error = failure
        ended = ModelFailed("the tasks of the device have ended all together")
        ended.__cause__ = error
        with self._lock:
            self._ended = ended
            if self._current is not None:
                self._current.set_exception(ended)
            while not self._orders.empty():
                order = self._orders.get()
                if order is not None:
                    order[0].set_exception(ended)

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._host.serve)
            await wait_all_tasks_blocked()
            self._own_descriptors = _descriptors_awaited()
            self._root = trio.lowlevel.current_root_task()
            while (order := self._orders.get()) is not None:  # blocks the loop: time stands still
                self._current, call = order
                try:
                    result, failure = await call(), None
                except Exception as error:
                    result, failure = None, error
                future, self._current = self._current, None
                if failure is None:
                    future.set_result(result)
                else:
                    future.set_exception(failure)
                del order, future, call, result, failure
            nursery.cancel_scope.cancel()


def _descriptors_awaited() -> int:
    waiting = trio.lowlevel.current_statistics().io_statistics
    return sum(getattr(waiting, name, 0) for name in ("tasks_waiting_read", "tasks_waiting_write"))


def _stacks(task: trio.lowlevel.Task | None) -> Iterator[list[tuple[FrameType, int]]]:
    """The stacks of a task and of those below it."""
    if task is not None:
        yield list(task.iter_await_frames())
        for nursery in list(task.child_nurseries):
            for child in list(nursery.child_tasks):
                yield from _stacks(child)


def _awaits_thread(stack: list[tuple[FrameType, int]]) -> bool:
    """Whether a task with this stack waits for a thread to end (trio.to_thread.run_sync)."""
    names = [frame.f_code.co_name for frame, _ in stack]
    return any(each == "to_thread_run_sync" and called in _WAITS for each, called in pairwise(names))


def threads_since(before: frozenset[threading.Thread]) -> bool:
    """Whether there are threads that a model has made: those that were not there ``before``."""
    return any(thread not in before and not thread.name.startswith(_OURS) for thread in threading.enumerate())


def present_threads() -> frozenset[threading.Thread]:
    """The threads that there are. Their numbers would not do, because others get them again."""
    return frozenset(threading.enumerate())


def whereabouts(files: frozenset[str], before: frozenset[threading.Thread]) -> str | None:
    """Where a thread that was not there ``before`` runs code of these files, for an error. None for none."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is not None and thread not in before:
            place = _place(traceback.extract_stack(frame), files)
            if place is not None:
                return f"thread {thread.name!r} is at {place}"
    return None


def place_of(error: BaseException, files: frozenset[str]) -> str:
    """Where an exception comes from, in one of these files if it went through one: "copier.py:31"."""
    entries = traceback.extract_tb(error.__traceback__)
    own = [entry for entry in entries if entry.filename in files] or list(entries)
    return f"{os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else "no place"


def _place(stack: Sequence[traceback.FrameSummary], files: frozenset[str]) -> str | None:
    """The innermost place of a stack that is in these files."""
    return next((_named(entry) for entry in reversed(stack) if entry.filename in files), None)


def _named(entry: traceback.FrameSummary) -> str:
    return f"{os.path.basename(entry.filename)}:{entry.lineno}, in {entry.name}"


def files_of(model: type) -> Iterator[str]:
    """The source files of a model, without those of the classes that all models have."""
    for each in model.__mro__:
        module = sys.modules.get(each.__module__)
        path = getattr(module, "__file__", None)
        if path and not each.__module__.startswith(("devmodel.device.", "builtins")):
            yield path
