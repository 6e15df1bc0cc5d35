# SPDX-License-Identifier: Apache-2.0
"""Lifecycle changes that wait until clients have let go.

A lab file says whether a change that takes a device away waits for the client that holds it, as in Linux, or
fails with EBUSY. Every change waits for a moment for what only clients that have ended still hold.

State: none of its own; runs on the lifecycle (trio) thread. Source: vfio_unregister_group_dev() of the
kernel, which asks the client by the REQ interrupt, again every ten seconds, and waits.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeVar

import trio

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev
from devmodel.lifecycle.spec import RemovalPolicy
from devmodel.vfio.group import Assignable
from devmodel.vfio.lingering import PATIENCE, InUse, Lingering

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
        if busy.group.let_goes != busy.seen:
            return
        busy.group.watch(watcher)
    try:
        with trio.move_on_after(seconds):
            await let_go.wait()
    finally:
        with busy.group.lock:
            busy.group.unwatch(watcher)


async def taking_away(lab: Lab, devices: Callable[[], Iterable[Assignable]], change: Callable[[], T]) -> T:
    """What ``change`` returns, which fails with :class:`InUse` while a client holds one of ``devices()``.

    Then it is made again when they are free, or fails, as the lab file says.
    """
    if lab.spec.removal is RemovalPolicy.WAIT:
        return await when_free(lab, devices, change)
    return await patiently(change)


async def remove(lab: Lab, mdev: Mdev) -> None:
    """Remove the vGPU. While a client holds it, wait or fail, as the lab file says."""
    await taking_away(lab, lambda: (mdev,), lambda: lab.remove(mdev))


async def when_free(lab: Lab, devices: Callable[[], Iterable[Assignable]], change: Callable[[], T]) -> T:
    """What ``change`` returns, as soon as no client holds one of ``devices()`` any more.

    No client can open them in the meantime, nor what joins them. If this is cancelled, nothing has changed.
    Raises ``OSError`` as ``change`` does for another reason, such as ENODEV for what went while this waits.
    """
    let_go = trio.lowlevel.ParkingLot()
    leaving: set[Assignable] = set()

    def watcher() -> None:
        lab.tasks.soon(let_go.unpark_all)

    with ExitStack() as undo:
        while True:
            with lab.lock:
                for device in set(devices()) - leaving:
                    leaving.add(device)
                    undo.enter_context(_Leaving(device, watcher))
            try:
                return change()
            except InUse as busy:
                seconds = busy.seconds if isinstance(busy, Lingering) else REQUEST_SECONDS
                with trio.move_on_after(seconds):
                    await let_go.park()


class _Leaving:
    """Within it no client can open the device, and ``watcher`` hears when one lets go."""

    __slots__ = ("_device", "_watcher")

    def __init__(self, device: Assignable, watcher: Callable[[], None]) -> None:
        self._device, self._watcher = device, watcher

    def __enter__(self) -> None:
        with self._device.group.lock:
            self._device.leaving += 1
            self._device.group.watch(self._watcher)

    def __exit__(self, *raised: object) -> None:
        with self._device.group.lock:
            self._device.leaving -= 1
            self._device.group.unwatch(self._watcher)
