# SPDX-License-Identifier: Apache-2.0
"""Removal of what is held: waiting for the holder, by a clock of the test's own, and not waiting at all."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from devmodel.irq.eventfd import Eventfd, Watcher
from devmodel.irq.irqs import Action
from devmodel.irq.kinds import ClientFds, PciIrq
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev
from devmodel.lifecycle.removal import REQUEST_SECONDS, when_free
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.groupfile import open_group
from ioctl_shim._native import lib
from tests.unit.fakes import fails
from tests.unit.test_lab import BDF, SPEC, Recorder, snapshot

JUMP_SECONDS = 0.01
"""The clock jumps when nobody has anything to do for so long."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    recorder = Recorder()
    recorder.lab = made = Lab(SPEC, recorder)
    yield made
    made.close()


@pytest.fixture
def mdev(lab: Lab) -> Mdev:
    return lab.create(lab.parents[BDF].types["vgpu-8"], UUID(int=1))


@pytest.fixture
def asked(mdev: Mdev) -> Iterator[int]:
    """The eventfd by which the device's holder is asked to let go."""
    fd, watcher = os.eventfd(0, os.EFD_NONBLOCK), Watcher()
    data = ClientFds([fd], lambda number: Eventfd(os.dup(number), lib.shim_signal), watcher)
    mdev.device.irq.set(PciIrq.REQ, Action.TRIGGER, 0, 1, data)
    yield fd
    watcher.close()
    os.close(fd)


def count(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def in_trio(lab: Lab, main: Callable[[trio.Nursery], Awaitable[None]]) -> float:
    """Run `main` while the lab is served; returns how long it took, by a clock that jumps."""
    clock = MockClock(autojump_threshold=JUMP_SECONDS)

    async def serve() -> float:
        async with trio.open_nursery() as nursery:
            await nursery.start(lab.tasks.serve)
            before = trio.current_time()
            await main(nursery)
            after = trio.current_time()
            nursery.cancel_scope.cancel()
        return after - before

    return trio.run(serve, clock=clock)


async def close_in_thread(held: DeviceFile) -> None:
    """The clock does not jump meanwhile, however long the thread takes to start."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    clock.autojump_threshold = math.inf
    await trio.to_thread.run_sync(held.close)
    clock.autojump_threshold = JUMP_SECONDS


async def remove_when_free(lab: Lab, mdev: Mdev) -> None:
    await when_free(lab, lambda: (mdev,), lambda: lab.remove(mdev))


def test_the_holder_is_asked_again_every_ten_seconds(lab: Lab, mdev: Mdev, asked: int) -> None:
    held = DeviceFile(mdev)

    async def main(nursery: trio.Nursery) -> None:
        nursery.start_soon(remove_when_free, lab, mdev)
        await trio.sleep(3.5 * REQUEST_SECONDS)
        assert count(asked) == 4
        await close_in_thread(held)
        await trio.sleep(0.1)
        assert mdev.gone and not lab.mdevs

    assert in_trio(lab, main) == pytest.approx(3.5 * REQUEST_SECONDS + 0.1, abs=1)


def test_a_group_that_is_open_holds_nothing(lab: Lab, mdev: Mdev, asked: int) -> None:
    opened = open_group(mdev.group)

    async def main(nursery: trio.Nursery) -> None:
        await remove_when_free(lab, mdev)
        assert mdev.gone and count(asked) == 0

    assert in_trio(lab, main) == pytest.approx(0, abs=0.1)
    fails(errno.ENODEV, opened.status)
    opened.close()


def test_nobody_can_open_it_meanwhile_and_everybody_when_nobody_waits_any_more(lab: Lab, mdev: Mdev) -> None:
    held = DeviceFile(mdev)
    before = snapshot(lab)

    async def main(nursery: trio.Nursery) -> None:
        for _ in range(2):
            with trio.CancelScope() as scope, trio.CancelScope():
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(remove_when_free, lab, mdev)
                    waiting.start_soon(remove_when_free, lab, mdev)
                    await wait_all_tasks_blocked()
                    fails(errno.ENODEV, DeviceFile, mdev)
                    fails(errno.ENODEV, open_group, mdev.group)
                    scope.cancel()
            assert (mdev.leaving, mdev.group.watchers) == (0, ()) and snapshot(lab) == before
            DeviceFile(mdev).close()
            open_group(mdev.group).close()

    in_trio(lab, main)
    held.close()


def test_what_vanishes_ends_the_wait(lab: Lab, mdev: Mdev) -> None:
    held = DeviceFile(mdev)
    ended: list[int | None] = []

    async def remove() -> None:
        with pytest.raises(OSError) as caught:
            await remove_when_free(lab, mdev)
        ended.append(caught.value.errno)

    async def main(nursery: trio.Nursery) -> None:
        nursery.start_soon(remove)
        await wait_all_tasks_blocked()
        lab.surprise_remove(mdev)
        await trio.sleep(1)
        assert ended == [errno.ENODEV]
        parent = lab.parents[BDF]
        assert parent.memory_free < parent.spec.memory and mdev.type.taken == 1
        await close_in_thread(held)
        await trio.sleep(1)
        assert parent.memory_free == parent.spec.memory and mdev.type.taken == 0

    in_trio(lab, main)


def test_what_vanishes_answers_nothing_and_takes_nothing(lab: Lab, mdev: Mdev) -> None:
    held = DeviceFile(mdev)
    device = held.device
    device.write(0, 0, b"kept")
    lab.surprise_remove(mdev)
    for index in (0, 2, 7):
        device.write(index, 0, b"lost")
        assert device.read(index, 0, 4) == b"\xff" * 4
    fails(errno.EINVAL, device.read, 5, 0, 4)
    fails(errno.ENODEV, device.reset)
    fails(errno.ENODEV, device.check_present)
    fails(errno.ENODEV, lab.surprise_remove, mdev)
    fails(errno.ENODEV, lab.remove, mdev)
    with device.backing.map(0, 4096) as memory:
        assert memory[:4] == b"kept"


def test_what_vanishes_unused_leaves_nothing(lab: Lab) -> None:
    before = snapshot(lab)
    numbers = []
    for _ in range(3):
        made = lab.create(lab.parents[BDF].types["vgpu-8"], UUID(int=2))
        numbers.append((made.group.number, made.minor, made.vfio_minor))
        lab.surprise_remove(made)
        fails(errno.ENODEV, lambda gone=made: gone.device)
    assert snapshot(lab) == before and len(set(numbers)) == 1
