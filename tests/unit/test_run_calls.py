# SPDX-License-Identifier: Apache-2.0
"""vfsfuse.run.calls and ioctl_shim.takers: how many threads take the calls of a real filter, and what becomes
of one that fails."""

from __future__ import annotations

import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ioctl_shim.seccomp import SeccompListener, TrappedCall
from ioctl_shim.takers import StatAnswers, Takers
from tests.commands import ROOT
from vfsfuse.run.calls import CallTakers

SECONDS = 60.0
HELD = 8
MOST = 3
"""Threads that are left when no call is under way: one waits for a call, two for their turn."""

TRAPPED = 0xAA01
PROGRAM = f"""
import array, fcntl, os, socket, sys, threading
from ioctl_shim import seccomp
link = socket.socket(fileno=int(sys.argv[1]))
listener = seccomp.install([{TRAPPED}])
socket.send_fds(link, [b"x"], [listener])
os.close(listener)
def call(number):
    link.send(bytes([fcntl.ioctl(0, {TRAPPED}, number)]))
threads = [threading.Thread(target=call, args=(number,)) for number in range(1, {HELD} + 1)]
for thread in threads:
    thread.start()
link.recv(1)
call(0)
os.fstat(0)
for thread in threads:
    thread.join()
"""


@contextmanager
def program() -> Iterator[tuple[socket.socket, SeccompListener]]:
    """A program that makes calls 1 to HELD at once, call 0 when it is told to, and then a stat."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, "-c", PROGRAM, str(theirs.fileno())]
    with subprocess.Popen(words, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL) as made:
        theirs.close()
        ours.settimeout(SECONDS)
        listener = SeccompListener(socket.recv_fds(ours, 1, 1)[1][0])
        try:
            yield ours, listener
            assert made.wait(SECONDS) == 0
        finally:
            made.kill()
            ours.close()
            listener.close()


def takers_of(listener: SeccompListener, answer: Callable[[TrappedCall], None]) -> CallTakers:
    folder = os.open("/", os.O_PATH)  # no file of the program's is a node of a lab
    try:
        return CallTakers(Takers(listener, StatAnswers(listener, folder)), answer)
    finally:
        os.close(folder)


def takers() -> set[threading.Thread]:
    """The threads that take calls.  Others, such as pytest's own, come and go."""
    return {thread for thread in threading.enumerate() if thread.name == "calls"}


def test_held_calls_keep_no_other_waiting_and_their_threads_end() -> None:
    go, before = threading.Event(), takers()
    held: queue.SimpleQueue[int] = queue.SimpleQueue()

    with program() as (link, listener):

        def answer(made: TrappedCall) -> None:
            assert made.cmd == TRAPPED
            if made.arg:
                held.put(made.arg)
                go.wait(SECONDS)
            listener.succeed(made, made.arg)

        threads = takers_of(listener, answer)
        threads.start()
        assert sorted(held.get(timeout=SECONDS) for _ in range(HELD)) == list(range(1, HELD + 1))
        link.send(b"go")
        assert link.recv(1) == b"\0"
        go.set()
        assert sorted(link.recv(1)[0] for _ in range(HELD)) == list(range(1, HELD + 1))
        deadline = time.monotonic() + SECONDS
        while len(takers() - before) > MOST and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(takers() - before) <= MOST
    assert threads.failure is None
    threads.end()


def test_a_listener_that_fails_is_a_failure() -> None:
    listener = SeccompListener(os.eventfd(0))
    threads = takers_of(listener, lambda made: None)
    threads.start()
    assert select.select([threads.failed_fd], [], [], SECONDS)[0]
    assert "receiving a call" in str(threads.failure)
    threads.end()
    listener.close()
