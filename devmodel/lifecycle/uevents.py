# SPDX-License-Identifier: Apache-2.0
"""uevents: messages that a device came, went or changed, as the kernel sends them to udev.

State: events are emitted and delivered on the lifecycle (trio) thread. Listeners come, read and go on any
thread, under ``Uevents.lock``. Source: the format of a NETLINK_KOBJECT_UEVENT datagram from
kobject_uevent_env() (udev(7), Documentation/ABI/testing/sysfs-uevent); netlink(7) for slow listeners.
"""

import errno
import threading
from collections import deque
from collections.abc import Callable, Mapping

BACKLOG = 4096
"""Events that are kept for a listener. Beyond that the oldest are lost."""


class UeventListener:
    """Gets every event from now on. ``wake`` is called when there are new ones, on the lifecycle thread and
    with no lock held."""

    __slots__ = ("_events", "_hub", "_lost", "wake")

    def __init__(self, hub: "Uevents", wake: Callable[[], None]) -> None:
        """For :meth:`Uevents.listen`."""
        self._hub, self.wake = hub, wake
        self._events: deque[bytes] = deque(maxlen=BACKLOG)
        self._lost = False

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` would return an event or raise. Any thread."""
        return self._lost or bool(self._events)

    def take(self, room: int | None = None) -> bytes | None:
        """The oldest event, None when there is none; without what is beyond ``room`` bytes. Any thread.

        Raises ``OSError(ENOBUFS)``, once, after events were lost.
        """
        with self._hub.lock:
            if self._lost:
                self._lost = False
                raise OSError(errno.ENOBUFS, "events were lost")
            return self._events.popleft()[:room] if self._events else None

    def put_back(self, event: bytes) -> None:
        """Undo a :meth:`take`: the event is the oldest again. Any thread."""
        with self._hub.lock:
            if len(self._events) < BACKLOG:
                self._events.appendleft(event)
            else:
                self._lost = True

    def put(self, event: bytes) -> None:
        """For :meth:`Uevents.deliver`, under its lock."""
        self._lost |= len(self._events) == BACKLOG
        self._events.append(event)

    def close(self) -> None:
        """Get no more events. Any thread."""
        with self._hub.lock:
            self._hub.listeners.discard(self)


class Uevents:
    """The events of one lab. Their numbers follow the order of the changes."""

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
        """Make an event of the device at ``devpath``, which begins with a slash and leaves out /sys.

        :meth:`deliver` sends it. ``extra`` comes before the device's own ``variables``.
        """
        self.seqnum += 1
        head = {"ACTION": action, "DEVPATH": devpath, "SUBSYSTEM": subsystem}
        said = {**head, **(extra or {}), **variables, "SEQNUM": str(self.seqnum)}
        lines = [f"{action}@{devpath}", *(f"{key}={value}" for key, value in said.items())]
        self._emitted.append("".join(f"{line}\0" for line in lines).encode())

    def take(self) -> list[bytes]:
        """The events since the last call. Pass them to :meth:`deliver` when clients can see the changes."""
        emitted, self._emitted = self._emitted, []
        return emitted

    def deliver(self, events: list[bytes]) -> None:
        """Send ``events`` to every listener."""
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
