# SPDX-License-Identifier: Apache-2.0
"""ioctl_shim.callthreads: who waits for whom."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest

from ioctl_shim import callthreads
from ioctl_shim.callthreads import FREE, CallThreads


class Held:
    """Calls that wait until `go` is set; `begun` counts those that have a thread."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def __call__(self) -> None:
        self.begun.release()
        self.go.wait()
        self.ended.release()


def all_of(semaphore: threading.Semaphore, count: int) -> bool:
    return all(semaphore.acquire(timeout=60) for _ in range(count))


def waiting_threads() -> set[threading.Thread]:
    """The threads for calls.  Others, such as pytest's own, come and go."""
    return {thread for thread in threading.enumerate() if thread.name == "waiting-call"}


def test_a_held_call_holds_up_no_other_one() -> None:
    threads, held = CallThreads(), Held()
    for _ in range(FREE):
        threads.submit(held, os.getpid())
    assert all_of(held.begun, FREE)
    held.go.set()
    assert all_of(held.ended, FREE)


def test_a_process_with_many_held_calls_waits_for_itself_alone() -> None:
    threads, held, more = CallThreads(), Held(), Held()
    for _ in range(FREE):
        threads.submit(held, os.getpid())
    assert all_of(held.begun, FREE)
    for _ in range(3):
        threads.submit(more, threading.get_native_id())
    with subprocess.Popen(["sleep", "60"]) as other:
        theirs = threading.Event()
        threads.submit(theirs.set, other.pid)
        assert theirs.wait(60)
        other.kill()
    assert not more.begun.acquire(timeout=0.1)
    more.go.set()
    held.go.set()
    assert all_of(more.ended, 3) and all_of(held.ended, FREE)


def test_work_of_our_own_waits_for_no_client() -> None:
    """Nor for calls that clients have left behind: nobody knows any more which process they are of."""
    with subprocess.Popen(["true"]) as ended:
        pass
    threads, held, ours = CallThreads(), Held(), threading.Event()
    for _ in range(FREE):
        threads.submit(held, ended.pid)
    assert all_of(held.begun, FREE)
    threads.submit(ours.set, 0)
    assert ours.wait(60)
    held.go.set()
    assert all_of(held.ended, FREE)


def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callthreads, "IDLE_SECONDS", 0.05)
    threads, before = CallThreads(), waiting_threads()
    done = threading.Semaphore(0)
    for _ in range(5):
        threads.submit(done.release, os.getpid())
    assert all_of(done, 5)
    for _ in range(100):
        if waiting_threads() <= before:
            break
        threading.Event().wait(0.05)
    assert waiting_threads() <= before
    threads.submit(done.release, os.getpid())
    assert all_of(done, 1)


def test_no_more_threads_is_an_error_of_that_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads, done = CallThreads(), threading.Event()
    with monkeypatch.context() as patched, pytest.raises(OSError) as caught:
        patched.setattr(threading.Thread, "start", refuse)
        threads.submit(done.set, os.getpid())
    assert os.strerror(caught.value.errno or 0) == "Cannot allocate memory"
    threads.submit(done.set, os.getpid())
    assert done.wait(60)
