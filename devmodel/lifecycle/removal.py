# SPDX-License-Identifier: Apache-2.0
"""Lifecycle changes that wait until clients have let go.

A lab file says whether removing a vGPU waits for a client that holds it. Every change waits for a moment for
what only clients that have ended still hold.

State: none of its own; runs on the lifecycle (trio) thread. Source: vfio_unregister_group_dev() of the
kernel, which asks the client by the REQ interrupt, again every ten seconds, and waits.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev
from devmodel.vfio.lingering import PATIENCE, Lingering

REQUEST_SECONDS = 10
"""From each request to let go to the next."""
T = TypeVar("T")


async def patiently(change: Callable[[], T]) -> T:
    """What ``change`` returns, a lifecycle change or a store.

    While it fails because of clients that have ended (:class:`Lingering`), wait until they have let go,
    ``PATIENCE`` at most, and make it again. Nothing has changed when this is cancelled.
    """
    deadline = trio.current_time() + PATIENCE
    while True:
        try:
            return change()
        except Lingering as busy:
            left = min(busy.seconds, deadline - trio.current_time())
            if left <= 0:
                raise
            await _let_go(busy, left)


async def _let_go(busy: Lingering, seconds: float) -> None:
    token, let_go = trio.lowlevel.current_trio_token(), trio.Event()

    def watcher() -> None:
        token.run_sync_soon(let_go.set)

    with busy.group.lock:
        if not busy.group.in_use:
            return
        busy.group.watch(watcher)
    try:
        with trio.move_on_after(seconds):
            await let_go.wait()
    finally:
        with busy.group.lock:
            busy.group.unwatch(watcher)


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
