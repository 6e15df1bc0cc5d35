# SPDX-License-Identifier: Apache-2.0
"""Calls that go through much memory of a client share the time of one processor."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from ioctl_shim.longcalls import LONGEST_REST, LongCalls


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize(("others", "least", "most"), [(0, 0, 0.01), (1, 0.02, 0.2), (90, LONGEST_REST, 1)])
def test_a_call_rests_while_others_may_work(others: int, least: float, most: float) -> None:
    calls = LongCalls()
    with ExitStack() as stack:
        rests = [stack.enter_context(calls.one()) for _ in range(others + 1)]
        for _ in range(2):  # what it did before the last rest does not count again
            work(0.02)
            began = time.monotonic()
            rests[-1]()
            assert least <= time.monotonic() - began < most


def test_a_call_that_has_ended_counts_no_more() -> None:
    calls = LongCalls()
    with calls.one() as rest:
        with pytest.raises(OSError), calls.one():
            raise OSError
        work(0.02)
        began = time.monotonic()
        rest()
        assert time.monotonic() - began < 0.01
