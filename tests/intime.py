# SPDX-License-Identifier: Apache-2.0
"""Commands that have to end in time, whether or not a lab answers them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tests.commands import vfsfuse

SECONDS = 3.0
"""A command has two seconds, and one more to start and end."""
T = TypeVar("T")


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls that run commands, beside each other. Each has to end in time.

    A busy machine is no fault: a command beside them shows how long one takes that asks no lab."""
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        control = pool.submit(_lasting, lambda: vfsfuse("check", "examples/copier.toml"))
        taken = list(pool.map(_lasting, calls))
        most = SECONDS + control.result()[0]
    for took, result in taken:
        assert took < most, f"it took {took:.1f} s of {most:.1f}: {result}"
    return [result for _, result in taken]


def in_time(call: Callable[[], T]) -> T:
    """Make one such call."""
    return at_once([call])[0]


def _lasting(call: Callable[[], T]) -> tuple[float, T]:
    """How long a call takes, and what it returns."""
    began = time.monotonic()
    result = call()
    return time.monotonic() - began, result
