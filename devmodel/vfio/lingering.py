# SPDX-License-Identifier: Apache-2.0
"""What a client no longer has in use, or only for a moment, and how others wait for that moment to pass.

On Linux the files of a process are closed before anybody sees that it has ended. Here a supervisor of
`vfsfuse run` may hold a copy for a moment longer, and the kernel may tell us of a close a moment late. A file
that a client closes while we look at its descriptors is closed when the look is over (``devmodel.looks``).

Threads: any. State is under the group's lock.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from devmodel.iommu.api import MustWait
from devmodel.looks import GRACE, looks

T = TypeVar("T")
PATIENCE = 0.5
"""Seconds for which a call waits for what a client left in use when it ended."""


class InUse(OSError):
    """EBUSY because a client uses a device that is to go. It passes when the client lets go."""


class Lingering(InUse):
    """EBUSY that may be about to pass: a client that has ended uses ``group``, or our own look at its file.

    It is a plain EBUSY if it has not passed in ``seconds``: the files of the client may have gone to other
    processes, and what we looked at may be in use.
    """

    def __init__(self, group: Held, seconds: float) -> None:
        super().__init__(errno.EBUSY, f"{group} is still in use")
        self.group, self.seconds = group, seconds
        self.seen = group.let_goes


class Renewing(Lingering):
    """The device of ``group`` is about to get another model (devmodel.lifecycle.renewal)."""


class Held:
    """A group, as far as others wait for it: it has a lock, and calls watchers when a client lets go."""

    __slots__ = ("let_goes", "lock", "watchers")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.watchers: tuple[Callable[[], None], ...] = ()
        """Called each time that a client has closed the group or a device, under :attr:`lock`, on the device
        lane. So they must not wait."""
        self.let_goes = 0
        """How often clients have let go."""

    def let_go(self) -> None:
        """Call the watchers. Under :attr:`lock`."""
        self.let_goes += 1
        for watcher in self.watchers:
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Add a watcher. Under :attr:`lock`."""
        self.watchers += (watcher,)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Remove a watcher. Under :attr:`lock`."""
        self.watchers = tuple(each for each in self.watchers if each is not watcher)

    def patiently(self, attempt: Callable[[], T], may_wait: bool) -> T:
        """What ``attempt`` returns, which is called under :attr:`lock`.

        While it raises :class:`Lingering`, wait until a client lets go, :data:`PATIENCE` at most, and call it
        again. When the thread may not wait, raise :class:`MustWait` instead.
        """
        deadline: float | None = None
        while True:
            with self.lock:
                try:
                    return attempt()
                except Lingering as busy:
                    if not may_wait:
                        raise MustWait from None
                    now = time.monotonic()
                    deadline = now + PATIENCE if deadline is None else deadline
                    seconds = min(busy.seconds, deadline - now)
                    if seconds <= 0:
                        raise
                    let_go = threading.Event()
                    watcher = let_go.set
                    self.watch(watcher)
            let_go.wait(seconds)
            with self.lock:
                self.unwatch(watcher)


def check_looks(group: Held) -> None:
    """Raise :class:`Lingering` when ``group`` may be in use because of a look alone. Under its lock."""
    if looks.may_hold:
        raise Lingering(group, GRACE)


def lives() -> bool:
    """The client has not ended."""
    return False


class LastClient:
    """The client that used a file of ``group`` last. Under the group's lock."""

    __slots__ = ("_ended", "_group", "_until")

    def __init__(self, group: Held, ended: Callable[[], bool]) -> None:
        """``ended`` tells later whether the client's process has ended. It is called under the group's lock,
        and so must not wait."""
        self._group, self._ended = group, ended
        self._until: float | None = None

    def check(self) -> None:
        """Raise :class:`Lingering` as :func:`check_looks`, and when the client has ended, for
        :data:`PATIENCE` from the first time that this is found out."""
        check_clients(self._group, (self,))

    @property
    def lingers(self) -> float:
        """Seconds for which to wait for a client that has ended, 0 for any other."""
        now = time.monotonic()
        if self._until is None:
            if not self._ended():
                return 0
            self._until = now + PATIENCE
        return max(self._until - now, 0)


def check_clients(group: Held, clients: Sequence[LastClient]) -> None:
    """Raise :class:`Lingering` as :func:`check_looks`, and when all ``clients``, those that use ``group``,
    are to be waited for (:attr:`LastClient.lingers`)."""
    check_looks(group)
    waits = [each.lingers for each in clients]
    if waits and all(waits):
        raise Lingering(group, max(waits))
