# SPDX-License-Identifier: Apache-2.0
"""Finds the supervisor of a `vfsfuse run`, for tests that kill it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from vfsfuse.run import keeper

SECONDS = 60.0


def supervisor_of(run: subprocess.Popen[str]) -> int:
    """The supervisor of a run that has just been started.  It keeps the command line that `run` gives up."""
    assert isinstance(run.args, list)
    line = b"\0".join(str(word).encode() for word in run.args)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        paths = [path for path in Path("/proc").glob("[0-9]*") if command(path) == line]
        alike = {int(path.name): parent(path) for path in paths if not is_keeper(path)}
        alike.pop(run.pid, None)
        for pid, whose in alike.items():
            if whose not in alike and whose not in (0, run.pid):  # what it forks is alike for a moment
                return pid
    raise AssertionError("no supervisor")


def parent(path: Path) -> int:
    """The parent of a process, by its folder in /proc.  0 when it has ended."""
    try:
        return int((path / "stat").read_text().rsplit(") ", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def is_keeper(path: Path) -> bool:
    """Whether a process keeps the calls of a supervisor that is killed."""
    try:
        return (path / "comm").read_text().strip() == keeper.NAME
    except (FileNotFoundError, ProcessLookupError):
        return False


def command(path: Path) -> bytes:
    """The command line of a process, without the last NUL.  Empty when it has ended."""
    try:
        return (path / "cmdline").read_bytes().removesuffix(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return b""
