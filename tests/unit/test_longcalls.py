# SPDX-License-Identifier: Apache-2.0
"""Calls that go through much memory of a client share the time of one processor."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from ioctl_shim.longcalls import LONGEST_REST, LongCalls


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each rest, which takes none here."""
    rests: list[float] = []
    clock = SimpleNamespace(sleep=rests.append, thread_time=time.thread_time)
    monkeypatch.setattr("ioctl_shim.longcalls.time", clock)
    return rests


@pytest.mark.parametrize(
    ("others", "least", "most"), [(1, 0.02, 0.03), (2, 0.04, 0.06), (90, LONGEST_REST, LONGEST_REST)]
)
def test_a_call_rests_while_others_may_work(
    rested: list[float], others: int, least: float, most: float
) -> None:
    calls = LongCalls()
    with ExitStack() as stack:
        rests = [stack.enter_context(calls.one()) for _ in range(others + 1)]
        for _ in range(2):  # what it did before the last rest does not count again
            work(0.02)
            rests[-1]()
    assert len(rested) == 2 and all(least <= each <= most for each in rested)


def test_a_call_that_is_alone_does_not_rest(rested: list[float]) -> None:
    """A call that has ended does not count."""
    calls = LongCalls()
    with calls.one() as rest:
        with pytest.raises(OSError), calls.one():
            raise OSError
        work(0.02)
        rest()
    assert not rested
