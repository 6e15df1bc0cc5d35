# SPDX-License-Identifier: Apache-2.0
"""uevents: what the kernel tells udev of devices that come, go and change, and who listens to it.

State: events are emitted and delivered on the lifecycle (trio) thread; listeners come, read and go on any
thread, under the hub's lock. Source: the format that kobject_uevent_env() gives a NETLINK_KOBJECT_UEVENT
datagram (udev(7), Documentation/ABI/testing/sysfs-uevent), netlink(7) for what becomes of slow listeners.
"""

import errno
import threading
from collections import deque
from collections.abc import Callable, Mapping

BACKLOG = 4096
"""Events that a listener may be behind; then it loses the oldest."""


class UeventListener:
    """One who hears every event from now on. ``wake`` is called, on the lifecycle thread and with no lock
    held, after there are new ones."""

    __slots__ = ("_events", "_hub", "_lost", "wake")

    def __init__(self, hub: "Uevents", wake: Callable[[], None]) -> None:
        """For :meth:`Uevents.listen`."""
        self._hub, self.wake = hub, wake
        self._events: deque[bytes] = deque(maxlen=BACKLOG)
        self._lost = False

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` has something to say. Any thread."""
        return self._lost or bool(self._events)

    def take(self) -> bytes | None:
        """The oldest event, None when there is none. Any thread.

        Raises ``OSError(ENOBUFS)``, once, after events were lost.
        """
        with self._hub.lock:
            if self._lost:
                self._lost = False
                raise OSError(errno.ENOBUFS, "events were lost")
            return self._events.popleft() if self._events else None

    def put_back(self, event: bytes) -> None:
        """It was not delivered after all: it is the oldest again. Any thread."""
        with self._hub.lock:
            if len(self._events) < BACKLOG:
                self._events.appendleft(event)
            else:
                self._lost = True

    def put(self, event: bytes) -> None:
        """For the hub, under its lock."""
        self._lost |= len(self._events) == BACKLOG
        self._events.append(event)

    def close(self) -> None:
        """Hear no more. Any thread."""
        with self._hub.lock:
            self._hub.listeners.discard(self)


class Uevents:
    """The events of one lab, numbered in the order of what they tell of."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.listeners: set[UeventListener] = set()
        self.seqnum = 0
        self._emitted: list[bytes] = []

    def emit(
        self,
        action: str,
        devpath: str,
        subsystem: str,
        variables: Mapping[str, str],
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """An event of the device at ``devpath`` (from sys/ on, with a slash before it), heard once it is
        delivered. ``extra`` comes before the device's own ``variables``."""
        self.seqnum += 1
        head = {"ACTION": action, "DEVPATH": devpath, "SUBSYSTEM": subsystem}
        said = {**head, **(extra or {}), **variables, "SEQNUM": str(self.seqnum)}
        lines = [f"{action}@{devpath}", *(f"{key}={value}" for key, value in said.items())]
        self._emitted.append("".join(f"{line}\0" for line in lines).encode())

    def take(self) -> list[bytes]:
        """The events since the last call, for :meth:`deliver` when everybody can see what they tell of."""
        emitted, self._emitted = self._emitted, []
        return emitted

    def deliver(self, events: list[bytes]) -> None:
        """Let every listener hear ``events``."""
        if not events:
            return
        with self.lock:
            told = list(self.listeners)
            for listener in told:
                for event in events:
                    listener.put(event)
        for listener in told:
            listener.wake()

    def listen(self, wake: Callable[[], None]) -> UeventListener:
        """A new listener. Any thread."""
        listener = UeventListener(self, wake)
        with self.lock:
            self.listeners.add(listener)
        return listener
