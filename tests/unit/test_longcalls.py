# SPDX-License-Identifier: Apache-2.0
"""Calls that go through much memory of a client share the time of one processor."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from ioctl_shim.longcalls import LONGEST_REST, LongCalls

worked = list[float]()
"""The processor time of the thread in pieces, by a clock of this file's own."""


def work(seconds: float) -> None:
    worked.append(seconds)


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each rest, which takes none here."""
    rests: list[float] = []
    clock = SimpleNamespace(sleep=rests.append, thread_time=lambda: sum(worked))
    monkeypatch.setattr("ioctl_shim.longcalls.time", clock)
    return rests


@pytest.mark.parametrize(("others", "seconds"), [(1, 0.02), (2, 0.04), (90, LONGEST_REST)])
def test_a_call_rests_while_others_may_work(rested: list[float], others: int, seconds: float) -> None:
    calls = LongCalls()
    with ExitStack() as stack:
        rests = [stack.enter_context(calls.one()) for _ in range(others + 1)]
        for _ in range(2):  # what it did before the last rest does not count again
            work(0.02)
            rests[-1]()
    assert rested == pytest.approx([seconds] * 2)


def test_a_call_that_is_alone_does_not_rest(rested: list[float]) -> None:
    """A call that has ended does not count."""
    calls = LongCalls()
    with calls.one() as rest:
        with pytest.raises(OSError), calls.one():
            raise OSError
        work(0.02)
        rest()
    assert not rested
