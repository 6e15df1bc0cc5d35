# SPDX-License-Identifier: Apache-2.0
"""Waiting for what comes soon, without a fixed time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

SECONDS = 60
SETTLE_SECONDS = 0.3
T = TypeVar("T")


def wait_for(true: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until `true` returns something true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.001)


def comes_to(measure: Callable[[], T], expected: T) -> None:
    """Wait until `measure` gives this: what a test closes, the server releases a moment later."""
    with contextlib.suppress(AssertionError):
        wait_for(lambda: measure() == expected)
    assert measure() == expected


def settled(measure: Callable[[], T]) -> T:
    """What `measure` gives when it stays the same for a while: what a test closes, the server releases a
    moment later."""
    last, since = measure(), time.monotonic()
    deadline = since + SECONDS
    while time.monotonic() - since < SETTLE_SECONDS:
        assert time.monotonic() < deadline, f"{last} does not settle"
        time.sleep(0.02)
        if (now := measure()) != last:
            last, since = now, time.monotonic()
    return last


def stop(pid: int) -> None:
    """Stop a process.  Until each of its threads has noticed, they may still answer."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: all(_state(task) in "TZX" for task in Path(f"/proc/{pid}/task").iterdir()))


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
