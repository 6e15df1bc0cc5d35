# SPDX-License-Identifier: Apache-2.0
"""The relay of `vfsfuse run --udev`: it tells the program of the lab's uevents, as a kernel and udev do.

An event of the lab is sent as the kernel's.  The relay hears it in turn, with whatever else the kernel tells
in that network namespace, and does udev's part: it notes the device in /run/udev/data and tells the listeners
of udev.  No rules are run.  /run/udev/control takes what udevadm sends.  `udevadm settle` is answered when no
event of the lab waits.

A thread of the supervisor's, which ends with the supervisor.  The lab's server may hold it up, listeners may
not: Linux drops what a slow listener has no room for.  Source: udev(7), udevadm(8), unix(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from vfsfuse.run.udevdata import LOOPBACK, DeviceData, id_of, ids_in
from vfsfuse.run.udevmessage import properties_of, to_libudev, without_number
from vfsfuse.run.ueventsocket import UeventSocket

_LARGEST = 1 << 16
_AT_ONCE = 64
"""Events that are relayed before the control socket has its turn."""

_CONTROL = struct.Struct("=16sII")
"""A request to udev: its version, a magic number, and what it is."""

_END_OF_REQUESTS = 0
_CONNECTIONS = 64
_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class UdevFiles:
    """What the program's process hands over: see vfsfuse.run.udevspace."""

    events: socket.socket
    """Bound to the kernel's events in the program's network namespace."""
    control: socket.socket
    """Listens at /run/udev/control."""
    folder: int
    """/run/udev, open."""

    @property
    def descriptors(self) -> list[int]:
        """For SCM_RIGHTS; `received` is the other end."""
        return [self.events.fileno(), self.control.fileno(), self.folder]

    @classmethod
    def received(cls, descriptors: list[int]) -> Self:
        events, control, folder = descriptors
        return cls(socket.socket(fileno=events), socket.socket(fileno=control), folder)

    def close(self) -> None:
        self.events.close()
        self.control.close()
        os.close(self.folder)


class UdevRelay:
    """Relays the events of the lab whose root directory is `lab_fd`, from the moment on at which it is made.

    All devices that the lab has then are initialized to libudev.
    """

    def __init__(self, files: UdevFiles, lab_fd: int, say: Callable[[str], None]) -> None:
        """`say` tells the program what goes wrong; any thread.  Raises OSError, and
        ueventsocket.OtherNamespace."""
        self._say = say
        self._socket = UeventSocket(files.events)
        self._control = files.control
        self._uevents = os.open("uevents", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=lab_fd)
        self._data = DeviceData(files.folder)
        for device in (LOOPBACK, *ids_in(lab_fd)):
            self._data.initialized(device)
        self._poll = select.poll()
        for fd in (self._uevents, self._socket.fileno(), self._control.fileno()):
            self._poll.register(fd, select.POLLIN)
        self._talks: dict[int, socket.socket] = {}
        self._settling: list[socket.socket] = []
        self._quiet = False
        """Whether no event of the lab waits."""

    def start(self) -> None:
        """Relay from now on."""
        threading.Thread(target=self._run, name="udev", daemon=True).start()

    def _run(self) -> None:
        try:
            while True:
                self._turn({fd for fd, _ in self._poll.poll(None if self._quiet else 0)})
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)  # into the log
            self._say(f"{type(error).__name__}: {error}: no uevent of the lab comes from now on")

    def _turn(self, ready: set[int]) -> None:
        if self._control.fileno() in ready:
            self._accept()
        for fd in ready & self._talks.keys():
            self._listen_to(fd)
        self._take_events()
        self._tell_heard()
        if self._quiet:
            for talk in self._settling:
                talk.close()
            self._settling.clear()

    # ---- events ----

    def _take_events(self) -> None:
        """Send some of the lab's events."""
        self._quiet = False
        for _ in range(_AT_ONCE):
            try:
                event = os.read(self._uevents, _LARGEST)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self._say("uevents of the lab are lost: too many came at once")
                    continue
                self._end_of_lab()
                break
            self._send(event)
            self._tell_heard()
        else:
            return
        self._quiet = True

    def _end_of_lab(self) -> None:
        """The lab's server has ended: no event comes any more."""
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._uevents)

    def _send(self, event: bytes) -> None:
        try:
            self._socket.send_as_kernel(without_number(event))
        except OSError as error:
            print(f"vfsfuse: run: udev: sending an event: {error.strerror}", file=sys.stderr, flush=True)

    def _tell_heard(self) -> None:
        """Do udev's part for each event that the kernel has sent."""
        for datagram in self._socket.heard():
            properties = properties_of(datagram)
            with contextlib.suppress(OSError):
                self._note(properties)
            with contextlib.suppress(OSError):
                self._socket.send_as_udev(to_libudev(properties))

    def _note(self, properties: dict[str, str]) -> None:
        """Make of the kernel's properties what udev tells, and note the device."""
        if name := properties.get("DEVNAME"):
            properties["DEVNAME"] = name if name.startswith("/") else f"/dev/{name}"
        if (device := id_of(properties)) is None:
            return
        properties["USEC_INITIALIZED"] = str(self._data.initialized(device))
        if properties.get("ACTION") == "remove":
            self._data.forget(device)

    # ---- /run/udev/control ----

    def _accept(self) -> None:
        try:
            talk, _ = self._control.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is left
            time.sleep(_PAUSE)
            return
        talk.setblocking(False)
        if len(self._talks) + len(self._settling) >= _CONNECTIONS:
            talk.close()
            return
        self._talks[talk.fileno()] = talk
        self._poll.register(talk.fileno(), select.POLLIN)

    def _listen_to(self, fd: int) -> None:
        """Read a request.  After the last one, the answer is the end of the connection."""
        talk = self._talks[fd]
        try:
            request = talk.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            request = b""
        if len(request) >= _CONTROL.size and _CONTROL.unpack_from(request)[2] != _END_OF_REQUESTS:
            return
        self._poll.unregister(fd)
        self._settling.append(self._talks.pop(fd))
