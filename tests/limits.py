# SPDX-License-Identifier: Apache-2.0
"""No test waits for ever: each has a limit, and a test that takes longer fails by its name.

A thread that waits for a mount whose server does not answer cannot be interrupted, not even by SIGKILL. So
the test is interrupted first. If that does not help, the processes that this run has started are killed. That
ends every such wait. They are found by a variable in their environment.
Source: signal(7), proc_pid_environ(5).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType

import pytest

from vfsfuse.api.lab import mounted

SECONDS = 300
"""Seconds for the set-up of a test, for the test itself and for what follows it, each. `limit(seconds)` marks
tests that have others."""
QEMU_FACTOR = 3
"""How many times that a test with a guest has."""
GRACE_SECONDS = 5
"""Seconds that an interrupted test has to end, before the processes of the run are killed."""
LAST_SECONDS = 60
"""Seconds after which the whole run ends, because even that did not help."""
MARK = "VFSFUSE_TEST_RUN"


def started_by_this_run() -> Iterator[int]:
    """The processes that this run has started, and that still run."""
    mark = f"{MARK}={os.getpid()}\0".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(path.name) != os.getpid() and mark in (path / "environ").read_bytes():
                yield int(path.name)


class Limits:
    """A plugin of pytest. The hooks run on the main thread; a thread of its own watches each phase."""

    def __init__(self) -> None:
        os.environ[MARK] = str(os.getpid())
        self._late = ""
        self._killed = False
        signal.signal(signal.SIGALRM, self._interrupt)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        with self._limit(item, "set-up"):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        with self._limit(item, "test"):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        with self._limit(item, "end"):
            return (yield)

    @contextlib.contextmanager
    def _limit(self, item: pytest.Item, phase: str) -> Iterator[None]:
        mark = item.get_closest_marker("limit")
        seconds = float(mark.args[0]) if mark else SECONDS
        if item.get_closest_marker("qemu"):
            seconds *= QEMU_FACTOR
        ended = threading.Event()
        what = f"{item.nodeid}: the {phase} takes longer than {seconds:g} seconds"
        threading.Thread(target=self._watch, args=(ended, seconds, what), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            self._late = ""
            self._clear_away()

    def _clear_away(self) -> None:
        """After processes were killed: the exception may have come where nothing unmounts their labs."""
        if self._killed:
            self._killed = False
            for lab in [lab for lab in mounted if lab.server is None or lab.server.wait() is not None]:
                lab.kill()

    def _watch(self, ended: threading.Event, seconds: float, what: str) -> None:
        if ended.wait(seconds):
            return
        print(what, file=sys.stderr)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        self._late = what
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        if ended.wait(GRACE_SECONDS):
            return
        self._killed = True
        for pid in list(started_by_this_run()):  # not those that clean up after the first one's end
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not ended.wait(LAST_SECONDS):
            os.write(2, f"\n{what}, and it cannot be ended\n".encode())
            os._exit(pytest.ExitCode.INTERNAL_ERROR)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        late, self._late = self._late, ""
        if late:
            pytest.fail(late)
