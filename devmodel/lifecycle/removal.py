# SPDX-License-Identifier: Apache-2.0
"""Removing a vGPU that a client holds: wait until the client has let go, then remove it.

State: none of its own; runs on the lifecycle (trio) thread. Source: vfio_unregister_group_dev() of the
kernel, which asks the client by the REQ interrupt, again every ten seconds, and waits.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev

REQUEST_SECONDS = 10
"""From each request to let go to the next."""


async def remove_when_free(lab: Lab, mdev: Mdev) -> None:
    """Remove the vGPU when no client holds it any more. No client can open it in the meantime.

    If this is cancelled, the vGPU stays. Raises ``OSError(ENODEV)`` when it is gone, or goes while this
    waits."""
    let_go = trio.lowlevel.ParkingLot()
    with _leaving(lab, mdev, let_go):
        while not _removed(lab, mdev):
            with trio.move_on_after(REQUEST_SECONDS):
                await let_go.park()


def _removed(lab: Lab, mdev: Mdev) -> bool:
    """Remove it, or ask its client to let go. Whether it was removed."""
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
