# SPDX-License-Identifier: Apache-2.0
"""Pseudo-terminals of a serial card without a mount: what happens when they and the tasks go away."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from devmodel.device.tasks import TaskHost
from devmodel.models.mtty import Mtty
from tests.unit.fakes import fails
from vfsfuse.testing import Bench

DATA, MCR, LSR = 0, 4, 5
SECONDS = 60


def served(test: Callable[[Mtty, TaskHost], Awaitable[None]]) -> None:
    """Run the test with a card that a client has open, in a lab that is being served."""

    async def main() -> None:
        host = TaskHost()
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(host.serve)
                card = Mtty("serial")
                card.tasks.host = host
                card.opened(None)
                card.write(0, MCR, b"\x0b")
                await test(card, host)
                card.close()
                nursery.cancel_scope.cancel()

    trio.run(main)


def slave(card: Mtty) -> int:
    return os.open(card.show_port(0), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)


async def byte_of(card: Mtty) -> int:
    """The next byte that the client receives."""
    while not card.read(0, LSR, 1)[0] & 1:
        await trio.lowlevel.checkpoint()
    return card.read(0, DATA, 1)[0]


def fill(card: Mtty) -> int:
    """Send until the transmitter waits; returns how many bytes it took."""
    count = 0
    while card.read(0, LSR, 1)[0] & 0x20:
        count += card.write(0, DATA, b"x")
        assert count < 1 << 20
    return count


def test_replugging_at_any_moment_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(card: Mtty, host: TaskHost) -> None:
        for steps in range(40):
            card.store_port(0, "pty")
            fd = slave(card)
            os.write(fd, b"\x42" * 64)
            for _ in range(steps % 8):
                await trio.lowlevel.checkpoint()
            if steps % 2:
                assert await byte_of(card) == 0x42
            card.store_port(0, "loopback")
            os.close(fd)
            while card.read(0, LSR, 1)[0] & 1:
                card.read(0, DATA, 1)

    served(test)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_terminal_closed_by_the_end_of_its_card_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(card: Mtty, host: TaskHost) -> None:
        card.store_port(0, "pty")
        fd = slave(card)
        os.write(fd, b"\x42")
        assert await byte_of(card) == 0x42
        path = Path(card.show_port(0))
        made = path.stat().st_ctime_ns
        os.write(fd, b"\x43" * 40)
        os.close(fd)
        card.close()
        with contextlib.suppress(FileNotFoundError):  # another program may have one of that name already
            assert path.stat().st_ctime_ns > made
        fails(errno.ENODEV, card.store_port, 0, "loopback")
        await trio.testing.wait_all_tasks_blocked()

    served(test)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def received(bench: Bench[Mtty]) -> int:
    """The next byte that the client receives on a bench."""
    bench.wait(lambda: bench.read(0, LSR, 1)[0] & 1, what="a byte")
    return bench.read(0, DATA, 1)[0]


def test_a_transmitter_that_waits_goes_on_when_the_terminal_is_read() -> None:
    with Bench(Mtty) as bench:
        bench.set_attribute("port0", "pty")
        bench.write(0, MCR, b"\x0b")
        bench.settle()
        count, fd, read = fill(bench.device), slave(bench.device), 0

        def take() -> bool:
            nonlocal read
            with contextlib.suppress(BlockingIOError):
                read += len(os.read(fd, count))
            return read == count

        bench.wait(take, what="all that was sent")
        bench.wait(lambda: bench.read(0, LSR, 1)[0] & 0x20, what="room in the transmitter")
        os.close(fd)


def test_what_waited_goes_on_after_a_reset_and_with_the_next_client() -> None:
    with Bench(Mtty) as bench:
        bench.set_attribute("port0", "pty")
        fd = slave(bench.device)
        for restarts in ([bench.reset], [bench.close_device, bench.open_device]):
            bench.write(0, MCR, b"\x0b")
            os.write(fd, bytes(range(100)))
            seen = [received(bench)]
            bench.write(0, MCR, b"\x09")  # RTS is off: the rest stays
            while bench.read(0, LSR, 1)[0] & 1:
                seen.append(received(bench))
            bench.settle()
            assert not bench.read(0, LSR, 1)[0] & 1
            for restart in restarts:
                restart()
            bench.write(0, MCR, b"\x0b")
            seen += [received(bench) for _ in range(len(seen), 100)]
            assert seen == list(range(100))
        os.close(fd)


def test_a_lab_that_is_no_longer_served_wakes_nobody() -> None:
    kept: list[Mtty] = []

    async def test(card: Mtty, host: TaskHost) -> None:
        lone = Mtty("other")
        lone.tasks.host = host
        lone.opened(None)
        lone.write(0, MCR, b"\x0b")
        lone.store_port(0, "pty")
        await trio.testing.wait_all_tasks_blocked()
        kept.append(lone)

    served(test)
    assert fill(kept[0]) > 16  # the last of it found the terminal full, and nobody to wait for it
    kept[0].close()


def test_without_a_lab_a_terminal_can_be_written_to() -> None:
    card = Mtty("serial")
    card.store_port(0, "pty")
    fd = slave(card)
    card.write(0, DATA, b"y")
    assert os.read(fd, 1) == b"y"
    os.close(fd)
    card.close()
