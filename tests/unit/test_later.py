# SPDX-License-Identifier: Apache-2.0
"""Changes that happen by themselves: when they happen, and that none happens once it is called off."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from devmodel.device.tasks import TaskHost
from devmodel.lifecycle.later import Later
from tests.unit.fakes import fails


def served(script: Callable[[Later, list[str]], Awaitable[None]]) -> list[str]:
    """What happens while `script` runs in a served lab, with the times; time passes when all wait."""
    happened: list[str] = []

    async def publish() -> None:
        happened.append("published")

    async def main() -> None:
        host = TaskHost()
        later = Later(host)
        later.publish = publish
        async with trio.open_nursery() as nursery:
            await nursery.start(host.serve)
            await script(later, happened)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return happened


def noting(happened: list[str], what: str) -> Callable[[], None]:
    def change() -> None:
        happened.append(f"{what} at {trio.current_time():g}")

    return change


def test_a_change_happens_at_its_time_and_is_told() -> None:
    async def script(later: Later, happened: list[str]) -> None:
        start = trio.current_time()
        for seconds in (2, 1):
            later.after(seconds, noting(happened, f"{seconds}"))
        await trio.sleep(0.5)
        assert happened == []
        await trio.sleep(5)
        assert happened == [f"1 at {start + 1:g}", "published", f"2 at {start + 2:g}", "published"]

    assert len(served(script)) == 4


def test_what_is_called_off_never_happens() -> None:
    async def script(later: Later, happened: list[str]) -> None:
        at_once, sleeping = (later.after(1, noting(happened, "a change")) for _ in range(2))
        at_once.cancel()
        await trio.sleep(0.5)
        sleeping.cancel()
        await trio.sleep(5)

    assert served(script) == []


def test_the_end_of_the_lab_calls_all_off() -> None:
    async def script(later: Later, happened: list[str]) -> None:
        later.after(1, noting(happened, "a change"))
        await trio.sleep(0.5)

    assert served(script) == []


def test_without_a_lab_there_is_nothing_to_wait_for() -> None:
    fails(errno.ENODEV, Later(TaskHost()).after, 1, list)


def test_a_change_that_fails_is_logged_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def change() -> None:
        raise OSError(errno.ENOSPC, "no room any more")

    async def script(later: Later, happened: list[str]) -> None:
        later.after(1, change)
        later.after(2, noting(happened, "another"))
        await trio.sleep(5)

    with caplog.at_level(logging.ERROR):
        happened = served(script)
    assert "no room any more" in caplog.text
    assert (happened[0], happened[1].split()[0], happened[2]) == ("published", "another", "published")
