# SPDX-License-Identifier: Apache-2.0
"""/run/udev/data of `vfsfuse run --udev`: which devices udev has dealt with, and since when.

A device with a file is initialized to libudev.  The file says when, in microseconds of the monotonic clock.
It says nothing else, because no rules are run.  Files are links to a common one that is not older than
_FRESH: a file of its own takes a page of memory, and a lab may have 30,000 devices.

For one thread.  Source: udev(7); sd-device's names of these files.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping

FOLDER = "data"
LOOPBACK = "n1"
"""The id of lo, which a network namespace has from the start."""

_STAMP = ".stamp"
_FRESH = 1_000_000
_READ = 4096


class DeviceData:
    """The files of the folder `data`, in the directory `udev_fd`, which must stay open."""

    def __init__(self, udev_fd: int) -> None:
        self._folder = udev_fd
        self._stamp = 0

    def initialized(self, device: str) -> int:
        """When the device with the id `device` was initialized, now if it is new.  Raises OSError."""
        with self._data() as data:
            try:
                return self._read(device, data)
            except FileNotFoundError:
                self._freshen()
            os.link(_STAMP, device, src_dir_fd=self._folder, dst_dir_fd=data)
        return self._stamp

    def forget(self, device: str) -> None:
        """The device is gone.  Raises OSError."""
        with contextlib.suppress(FileNotFoundError), self._data() as data:
            os.unlink(device, dir_fd=data)

    @contextlib.contextmanager
    def _data(self) -> Iterator[int]:
        """The folder of the files.  The program may have put a symlink there, which would lead us out of its
        namespaces.  Raises OSError."""
        fd = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            yield fd
        finally:
            os.close(fd)

    def _read(self, device: str, data: int) -> int:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=data)
        try:
            lines = os.read(fd, _READ).decode("ascii", "replace").splitlines()
        finally:
            os.close(fd)
        said = next((line[2:] for line in lines if line.startswith("I:")), "")
        return int(said) if said.isascii() and said.isdigit() else self._stamp

    def _freshen(self) -> None:
        now = time.monotonic_ns() // 1000
        if self._stamp and now - self._stamp < _FRESH:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_STAMP, dir_fd=self._folder)
        fd = os.open(_STAMP, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._folder)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(f"I:{now}\nV:1\n")
        self._stamp = now


def id_of(properties: Mapping[str, str]) -> str | None:
    """The id of the device that an event is about.  None for one that has no file."""
    subsystem = properties.get("SUBSYSTEM", "")
    name = os.path.basename(properties.get("DEVPATH", ""))
    if "MAJOR" in properties and "MINOR" in properties:
        kind = "b" if subsystem == "block" else "c"
        made = f"{kind}{properties['MAJOR']}:{properties['MINOR']}"
    elif "IFINDEX" in properties:
        made = f"n{properties['IFINDEX']}"
    elif subsystem == "drivers":
        made = f"+drivers:{_bus_of(properties.get('DEVPATH', ''))}:{name}"
    else:
        made = f"+{subsystem}:{name}" if subsystem and name else ""
    return made if made and "/" not in made else None


def _bus_of(devpath: str) -> str:
    """The bus of a driver: the directory above `drivers`."""
    return os.path.basename(os.path.dirname(os.path.dirname(devpath)))


def ids_in(lab_fd: int) -> Iterator[str]:
    """The ids of all devices in the lab whose root directory is `lab_fd`.  Raises OSError."""
    numbered = set()
    for number in _names(lab_fd, "sys/dev/char"):
        numbered.add(os.path.basename(_target(lab_fd, f"sys/dev/char/{number}")))
        yield f"c{number}"
    for bus in _names(lab_fd, "sys/bus"):
        for name in _names(lab_fd, f"sys/bus/{bus}/devices"):
            yield f"+{bus}:{name}"
    for kind in _names(lab_fd, "sys/class"):
        for name in _names(lab_fd, f"sys/class/{kind}"):
            if name not in numbered and _is_device_of_class(lab_fd, kind, name):
                yield _id_in_class(lab_fd, kind, name)


def _is_device_of_class(lab_fd: int, kind: str, name: str) -> bool:
    """Whether an entry of a class is a device of the class.  Some are links to devices of a bus, and some no
    devices at all."""
    path = f"sys/class/{kind}/{name}"
    if os.path.basename(os.path.dirname(_target(lab_fd, path))) != kind:
        return False
    return os.access(f"{path}/uevent", os.F_OK, dir_fd=lab_fd)


def _id_in_class(lab_fd: int, kind: str, name: str) -> str:
    if kind == "net":
        with (
            contextlib.suppress(OSError),
            open(f"/proc/self/fd/{lab_fd}/sys/class/net/{name}/ifindex", encoding="ascii") as file,
        ):
            return f"n{file.read().strip()}"
    return f"+{kind}:{name}"


def _names(lab_fd: int, path: str) -> list[str]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=lab_fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _target(lab_fd: int, path: str) -> str:
    try:
        return os.readlink(path, dir_fd=lab_fd)
    except OSError:  # the device went meanwhile
        return ""
