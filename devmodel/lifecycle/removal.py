# SPDX-License-Identifier: Apache-2.0
"""Removing a vGPU that a client holds, by waiting until it has let go.

State: none of its own; runs on the lifecycle (trio) thread. Source: VFIO asks the holder of a device that is
to go through the REQ interrupt, again every ten seconds, and waits.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev

REQUEST_SECONDS = 10
"""From one request to let go to the next."""


async def remove_when_free(lab: Lab, mdev: Mdev) -> None:
    """Remove the vGPU once nobody holds it; nobody can open it meanwhile. Cancelled, it stays as it was.

    Raises ``OSError(ENODEV)`` when it is gone, if only while this waits.
    """
    let_go = trio.lowlevel.ParkingLot()
    with _leaving(lab, mdev, let_go):
        while not _removed(lab, mdev):
            with trio.move_on_after(REQUEST_SECONDS):
                await let_go.park()


def _removed(lab: Lab, mdev: Mdev) -> bool:
    """Remove it, or ask its holder to let go."""
    try:
        lab.remove(mdev)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@contextmanager
def _leaving(lab: Lab, mdev: Mdev, let_go: trio.lowlevel.ParkingLot) -> Iterator[None]:
    def watcher() -> None:
        lab.tasks.soon(let_go.unpark_all)

    with mdev.group.lock:
        mdev.leaving += 1
        mdev.group.watch(watcher)
    try:
        yield
    finally:
        with mdev.group.lock:
            mdev.leaving -= 1
            mdev.group.unwatch(watcher)
