# SPDX-License-Identifier: Apache-2.0
"""How a bench makes calls on its two threads: it waits for the answer, and raises what the model does wrong.

State: belongs to the thread that makes the bench; failures are noted on any thread. Source: none.
"""

from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from devmodel.device.tasks import TaskHost
from vfsfuse.testing.clock import VirtualClock
from vfsfuse.testing.errors import BenchError, ModelFailed, ModelHangs
from vfsfuse.testing.threads import (
    Lane,
    TrioThread,
    files_of,
    place_of,
    present_threads,
    threads_since,
    whereabouts,
)

T = TypeVar("T")


class Calls:
    """Calls on the lane and the trio thread of a bench for a device of ``model``.

    All methods that call raise :class:`ModelFailed` for what has failed since the last call, and
    :class:`ModelHangs` when there is no answer within ``patience`` real seconds. After that, and after
    :meth:`end`, they raise :class:`BenchError`. Otherwise they raise what the call raises.
    """

    def __init__(self, model: type, host: TaskHost, clock: VirtualClock, patience: float) -> None:
        self._model, self._clock, self.patience = model, clock, patience
        self._files = frozenset(files_of(model))
        self._before = present_threads()
        self._failures: list[tuple[str, BaseException]] = []
        self._broken: BenchError | None = None
        host.failed = self._failed
        self._lane = Lane()
        self.trio = TrioThread(host, clock)

    @property
    def has_failed(self) -> bool:
        """Whether the model has failed since the last call. Any thread."""
        return bool(self._failures)

    @property
    def has_threads(self) -> bool:
        """Whether the model has threads of its own."""
        return threads_since(self._before)

    def on_lane(self, call: Callable[[], T]) -> T:
        """Make a call on the lane."""
        self._check()
        return self._answer(self._lane.submit(call))

    def on_trio(self, call: Callable[[], T]) -> T:
        """Make a call on the trio thread."""
        return self.order(_awaitable(call))

    def order(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await what ``call`` returns on the trio thread, while tasks run."""
        self._check()
        return self._answer(self.trio.submit(call))

    def end(self, on_lane: Callable[[], None], on_trio: Callable[[], None]) -> None:
        """Make these last calls, unless the model hangs, and end the threads. What the calls raise is noted
        as a failure of the model. Raises :class:`ModelHangs`."""
        try:
            if self._broken is None:
                self._last(self._lane.submit(on_lane))
                self._last(self.trio.submit(_awaitable(on_trio)))
        finally:
            self._broken = self._broken or BenchError("the bench is closed")
            hangs = isinstance(self._broken, ModelHangs)
            self._lane.end(0.0 if hangs else self.patience)
            self.trio.end(0.0 if hangs else self.patience)

    def raise_failures(self) -> None:
        """Raise :class:`ModelFailed` for what has failed since the last call."""
        failures, self._failures = self._failures, []
        if failures:
            raised = ModelFailed(self._told(*failures[0]))
            for more in failures[1:]:
                raised.add_note(f"and: {self._told(*more)}")
            raise raised from failures[0][1]

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _answer(self, future: Future[T]) -> T:
        self._finish(future)
        self.raise_failures()
        error = future.exception()
        if isinstance(error, SystemExit):
            raise ModelFailed(f"the model calls sys.exit({error.code!r})") from error
        return future.result()

    def _finish(self, future: Future[T]) -> None:
        if wait((future,), self.patience).done:
            return
        where = whereabouts(self._files, self._before)
        if where is None:
            where = f"its tasks are at {'; '.join(self.trio.places(self._files)) or 'no place of its own'}"
        self._broken = ModelHangs(
            f"{self._model.__name__} does not come to rest within {self.patience:g} s, its virtual time is "
            f"{self._clock.now:g} s: {where} (patience= gives it longer)"
        )
        raise self._broken

    def _last(self, future: Future[None]) -> None:
        self._finish(future)
        error = future.exception()
        if error is not None and not isinstance(error, ModelFailed):
            self._failed("the end of the device failed", error)

    def _failed(self, what: str, error: BaseException) -> None:
        self._failures.append((what, error))

    def _told(self, what: str, error: BaseException) -> str:
        return f"{what}: {type(error).__name__}: {error} ({place_of(error, self._files)})"


def _awaitable(call: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    async def run() -> T:
        return call()

    return run
