# SPDX-License-Identifier: Apache-2.0
"""vfsfuse.run.calls: how many threads there are, and what becomes of a listener that fails."""

from __future__ import annotations

import errno
import queue
import select
import threading
import time
from typing import cast

from ioctl_shim.seccomp import SeccompListener, TrappedCall
from vfsfuse.run.calls import SPARE, CallTakers

SECONDS = 10.0


class Calls:
    """A listener whose calls the test makes."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[TrappedCall | OSError] = queue.SimpleQueue()
        self.receivers = threading.Semaphore(0)

    def put(self, call: TrappedCall | OSError) -> None:
        self._calls.put(call)

    def receive(self) -> TrappedCall:
        self.receivers.release()
        found = self._calls.get()
        if isinstance(found, OSError):
            raise found
        return found


def call(number: int) -> TrappedCall:
    return TrappedCall(number, 0, 0, (0,) * 6)


def takers() -> set[threading.Thread]:
    """The threads that take calls.  Others, such as pytest's own, come and go."""
    return {thread for thread in threading.enumerate() if thread.name == "calls"}


def test_held_calls_keep_no_other_waiting_and_their_threads_end() -> None:
    calls, go = Calls(), threading.Event()
    answered: queue.SimpleQueue[int] = queue.SimpleQueue()

    def answer(made: TrappedCall) -> None:
        if made.id:
            go.wait(SECONDS)
        answered.put(made.id)

    threads = CallTakers(cast(SeccompListener, calls), answer)
    before = takers()
    threads.start()
    for number in range(1, 9):
        calls.put(call(number))
    calls.put(call(0))
    assert answered.get(timeout=SECONDS) == 0
    go.set()
    assert sorted(answered.get(timeout=SECONDS) for _ in range(8)) == list(range(1, 9))
    deadline = time.monotonic() + SECONDS
    while len(takers() - before) > SPARE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(takers() - before) == SPARE
    threads.end()
    for _ in range(SPARE):
        calls.put(OSError(errno.ENOENT, "the last one has ended"))


def test_a_caller_that_ended_is_no_failure_and_another_error_is() -> None:
    calls = Calls()
    threads = CallTakers(cast(SeccompListener, calls), lambda made: None)
    threads.start()
    calls.put(OSError(errno.ENOENT, "it has ended"))
    assert all(calls.receivers.acquire(timeout=SECONDS) for _ in range(2))
    assert threads.failure is None
    calls.put(OSError(errno.ENOMEM, "no memory"))
    assert select.select([threads.failed_fd], [], [], SECONDS)[0]
    assert "no memory" in str(threads.failure)
