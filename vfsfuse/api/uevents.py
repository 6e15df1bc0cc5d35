# SPDX-License-Identifier: Apache-2.0
"""The uevents of a lab for the time of a `with`: what came, went and changed, as udev hears it.

For one thread at a time.  Source: the file `uevents` of a mount; netlink(7) for the format.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

from vfsfuse.api.files import Files

WAIT_SECONDS = 10.0
_LARGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Uevent:
    """One event: `action` is "add", "remove", "bind", "unbind", "change" and so on, `path` the directory of
    the device below sys, `variables` all that is told."""

    action: str
    path: str
    variables: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of the device."""
        return os.path.basename(self.path)


class Uevents:
    """The uevents from the moment on at which this is made.  As a context manager it is closed at the end."""

    def __init__(self, files: Files) -> None:
        """Raises OSError."""
        self._files, self._path = files, str(files.root / "uevents")
        with files.explained():
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        files.opened.add(self)

    def fileno(self) -> int:
        """The descriptor, for poll(2)."""
        return self._fd

    def take(self) -> list[Uevent]:
        """The events that nobody has asked for yet.  Waits for nothing.  Raises OSError: ENOBUFS if the lab
        has dropped events, because too many had not been asked for."""
        return list(self._ready())

    def wait(self, action: str, name: str | None = None, timeout: float = WAIT_SECONDS) -> Uevent:
        """The next event with this action, of the device with this name if there is one.  Those before it
        are passed over.

        `timeout` is in seconds.  Raises TimeoutError, and OSError as `take`."""
        end = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            for event in self._ready():
                if event.action == action and name in (None, event.name):
                    return event
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                self._files.check()
                raise TimeoutError(
                    f"{self._path}: no {action} of {name or 'a device'} in {timeout:g} seconds"
                )

    def _ready(self) -> Iterator[Uevent]:
        while True:
            with self._files.explained(self._path):
                try:
                    data = os.read(self._fd, _LARGEST)
                except BlockingIOError:
                    return
            head, *lines = data.decode(errors="replace").rstrip("\0").split("\0")
            action, _, path = head.partition("@")
            yield Uevent(action, path, dict(line.split("=", 1) for line in lines if "=" in line))

    def close(self) -> None:
        """Hear no more.  May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Uevents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
