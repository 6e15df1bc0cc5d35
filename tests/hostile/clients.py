# SPDX-License-Identifier: Apache-2.0
"""Handles of the two kinds of clients: a hostile one, and everybody else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest

from tests import needs
from tests.commands import ROOT
from tests.descriptors import descriptors
from tests.labs import MountedLab

LIMIT = 0.5
"""The longest that a call of another client may take, in seconds, beyond the longest in the control lab."""
WORK = 0.3
"""How long the others work while a call is held, in seconds."""
SETTLE = 60.0
"""How long the server may take to put away what a client left behind, in seconds."""
SECONDS = 60.0
"""How long a client may take for whatever it does while nothing holds it, in seconds.  It ends by itself, and
what is held with it, after more than twice that."""
SKIP = 77


class Reader:
    """Lines of a pipe, with a time limit."""

    def __init__(self, fd: int) -> None:
        self._fd, self._rest = fd, b""

    def line(self, seconds: float) -> str | None:
        """The next line; None when none comes within so many seconds, "" at the end."""
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                return None
            data = os.read(self._fd, 4096)
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class Hostile:
    """A hostile client under way.  `held` has what it holds, `returned` the outcome of its call (an errno's
    name, or "0"), `said` its other lines."""

    def __init__(self, command: list[str], uid: int | None = None) -> None:
        """`uid`: the ordinary user that it runs as."""
        pipe = subprocess.PIPE
        who = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, **who)  # type: ignore[call-overload]
        self._lines = Reader(self.process.stdout.fileno())
        self.held: list[str] = []
        self.returned: str | None = None
        self.said: list[str] = []

    def __enter__(self) -> Hostile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.process:
            self.process.stdin.close()  # its server ends, and what is held with it
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def wait(self, true: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
        """Read its lines until `true`.  Fails after so many seconds, with what it has said."""
        end = time.monotonic() + seconds
        while not true():
            line = self._lines.line(end - time.monotonic())
            if line is None:
                raise AssertionError(f"{what}: not within {seconds} s; held {self.held}, {self.said}")
            if not line:
                status = self.process.wait(SECONDS)
                if status == SKIP:
                    pytest.skip(needs.NO_USERFAULTFD or ", ".join(self.said))
                raise AssertionError(f"{what}: it ended with {status}: {self.process.stderr.read().decode()}")
            self._note(line)

    def _note(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "held":
            self.held.append(rest)
        elif word == "returned":
            self.returned = rest
        else:
            self.said.append(line)

    def wait_for_call(self) -> None:
        """Wait until something is held, or the call has returned."""
        self.wait(lambda: self.held or self.returned, "the call is neither held nor has it returned")

    def let_go(self) -> None:
        """Release what is held."""
        self.process.stdin.write(b"g")
        self.process.stdin.flush()

    def release(self) -> str:
        """Release what is held, and wait for the end; the outcome of the call."""
        self.let_go()
        self.wait(lambda: self.returned, "the call does not return although nothing holds it")
        status = self.process.wait(SECONDS)
        assert status == 0, self.process.stderr.read().decode()
        while line := self._lines.line(1):
            self._note(line)
        assert self.returned is not None
        return self.returned


class Bystander:
    """Everybody else: tests.hostile.bystander in the lab."""

    def __init__(self, lab: MountedLab, control: MountedLab, parent: str, type_name: str) -> None:
        places = [str(lab.path), parent, type_name, str(control.path)]
        command = [sys.executable, "-m", "tests.hostile.bystander", *places]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin = self.process.stdin
        self._lines = Reader(self.process.stdout.fileno())
        assert self._lines.line(SECONDS) == "ready"

    def close(self) -> None:
        with self.process:
            self._stdin.close()

    def stalled(self, seconds: float = WORK) -> dict[str, float]:
        """Let everybody work for so many seconds; the calls that took too long, with their seconds.

        Who seems to wait works twice more: a client that is held up waits each time, but not one that was
        only late on a busy machine.
        """
        found = self._slow(seconds)
        for _ in range(2):
            if found:
                late = {what.partition(":")[0] for what in found}
                found = {
                    what: took for what, took in self._slow(seconds).items() if what.partition(":")[0] in late
                }
        return found

    def _slow(self, seconds: float) -> dict[str, float]:
        self._stdin.write(f"{seconds}\n".encode())
        self._stdin.flush()
        line = self._lines.line(seconds + SECONDS)
        assert line, "the other clients have ended, or say nothing"
        times: dict[str, float] = json.loads(line)
        control = max((took for what, took in times.items() if what.startswith("control")), default=0.0)
        return {what: round(took, 2) for what, took in times.items() if took > LIMIT + control}


class Leaks:
    """What the server has open, and its threads."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._open()

    def _open(self) -> Counter[str]:
        """How many descriptors it has of each kind: numbers of processes and inodes are left out."""
        return Counter(re.sub(r"\d+", "N", link) for link in descriptors(self._pid))

    def check(self) -> None:
        """Fails unless the server has what it had when this was made, and no more."""
        end = time.monotonic() + SETTLE
        while more := self._open() - self._before:
            if time.monotonic() > end:
                raise AssertionError(f"the server has left these open: {dict(more)}")
            time.sleep(0.01)

    def check_threads(self, most: int) -> None:
        """Fails unless the server gets along with so many threads."""
        end = time.monotonic() + SETTLE
        while len(self.threads) > most:
            assert time.monotonic() < end, f"more than {most} threads: {self.threads}"
            time.sleep(0.01)

    @property
    def threads(self) -> list[str]:
        """The names of the server's threads."""
        folder = Path(f"/proc/{self._pid}/task")
        names = []
        for task in folder.iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                names.append((task / "comm").read_text().strip())
        return sorted(names)
