# SPDX-License-Identifier: Apache-2.0
"""Which processes have a lab's device files open, as far as /proc shows it.

The kernel tells of each descriptor its path (a link) and its mount and inode (fdinfo), without a question to
any file system.  So `look` waits for no server.  `files_of_clients` then asks the lab whether such a file is
the one that has this name now.  State: none.  Source: proc(5): /proc/PID/fd, fdinfo, mountinfo, status.

Each look holds the files of other processes for a moment (devmodel.looks says what that means for the lab).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

MOST_FDS = 1 << 20
"""So many descriptors are looked at in all; the kernel's limit for one process by default."""
_DELETED = " (deleted)"
_NODE = re.compile(
    r".*/(vfio/devices/[^/]+|vfio/(?:noiommu-)?\d+|vfio/vfio|iommu|\.(?:device(?:-state)?|fault-queue)-\d+)",
    re.DOTALL,
)
_REGION = re.compile(r".*/([^/]+/(?:resource\d(?:_wc)?|rom|config))", re.DOTALL)


class Place(NamedTuple):
    """Where a lab is mounted: an absolute path without symlinks.  `minor` is the minor number of its device,
    `server` the process that serves it (0: not known), `user` who mounted it, and `shared` says whether it is
    open to other users."""

    path: str
    minor: int
    server: int
    user: int
    shared: bool


class Client(NamedTuple):
    """A process that has device files of the lab open.  `files` are their paths below `dev`, or for files of
    sysfs the device's name and the file's, in order."""

    pid: int
    uid: int
    comm: str
    files: tuple[str, ...]


class Opened(NamedTuple):
    """A file that a process has open: its name as in Client, and its inode number, 0 if not told."""

    name: str
    inode: int


class Look(NamedTuple):
    """What a look has found.  `unseen` counts the processes that may have files of the lab open and cannot be
    looked at; -1 if /proc does not even show which processes there are."""

    found: dict[int, list[Opened]]
    unseen: int


def clients(place: Place) -> tuple[list[Client], int]:
    """The clients of a lab, by pid, and how many processes are unseen (see Look).  Asks the lab."""
    seen = look(place)
    there: dict[str, int] = {}
    result = []
    for pid, opened in sorted(seen.found.items()):
        names = {each.name for each in opened if _is_there(place.path, each, there)}
        if names:
            with contextlib.suppress(OSError):  # it has ended
                result.append(Client(pid, _uid(pid), _comm(pid), tuple(sorted(names))))
    return result, seen.unseen


def look(place: Place) -> Look:
    """Look at the descriptors of all processes.  Waits for nobody."""
    tables: dict[str, frozenset[int]] = {}
    found: dict[int, list[Opened]] = {}
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    unseen, left = 0, MOST_FDS
    for pid in pids:
        if pid == place.server:
            continue
        try:
            opened = list(_opened(pid, place.minor, tables))
        except PermissionError:
            unseen += _may_have(pid, place)
            continue
        except OSError:
            continue  # it has ended
        left -= len(opened)
        if opened:
            found[pid] = opened
        if left < 0:
            return Look(found, -1)
    return Look(found, unseen if 1 in pids else -1)


def _opened(pid: int, minor: int, tables: dict[str, frozenset[int]]) -> Iterator[Opened]:
    """The device files of the mount that a process has open.  Raises OSError."""
    fds = os.listdir(f"/proc/{pid}/fd")
    if not fds:
        return
    mounted = _mounted(pid, minor, tables)
    for fd in fds if mounted else ():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = _device_file(os.readlink(f"/proc/{pid}/fd/{fd}"))
            if name is not None:
                mount_id, inode = _place(f"/proc/{pid}/fdinfo/{fd}")
                if mount_id in mounted:
                    yield Opened(name, inode)


def _mounted(pid: int, minor: int, tables: dict[str, frozenset[int]]) -> frozenset[int]:
    """The ids of the mounts of the lab, or of parts of it, in the mount namespace of a process."""
    namespace = os.readlink(f"/proc/{pid}/ns/mnt")
    if namespace not in tables:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace", newline="\n") as table:
            rows = [line.split(" ", 3) for line in table]
        ours = f"0:{minor}"
        tables[namespace] = frozenset(int(row[0]) for row in rows if len(row) > 3 and row[2] == ours)
    return tables[namespace]


def _device_file(link: str) -> str | None:
    """The device file that a descriptor's link may lead to, None for any other file."""
    link = link.removesuffix(_DELETED)
    found = _NODE.fullmatch(link) or _REGION.fullmatch(link)
    return None if found is None else found[1]


def _place(path: str) -> tuple[int, int]:
    """The id of the mount of an open file, and its inode number (0 before Linux 5.14)."""
    told = {}
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file.read(4096).split("\n"):
            key, _, value = line.partition(":")
            if key in ("mnt_id", "ino") and value.strip().isdecimal():
                told[key] = int(value)
    return told.get("mnt_id", -1), told.get("ino", 0)


def _is_there(lab: str, opened: Opened, there: dict[str, int]) -> bool:
    """Whether the file is still the one of this name: it may have been of a device that is gone.  A device
    or another file that was handed over has no name any more."""
    if not opened.inode or opened.name.startswith("."):
        return True
    if opened.name not in there:
        there[opened.name] = 0
        with contextlib.suppress(FileNotFoundError):
            there[opened.name] = os.stat(_path(lab, opened.name)).st_ino
    return there[opened.name] == opened.inode


def _path(lab: str, name: str) -> str:
    if name == "iommu" or name.startswith("vfio/"):
        return f"{lab}/dev/{name}"
    device, _, file = name.partition("/")
    function = f"{lab}/sys/bus/pci/devices/{device}"
    return f"{function}/{file}" if os.path.lexists(function) else f"{lab}/sys/bus/mdev/devices/{name}"


def _may_have(pid: int, place: Place) -> bool:
    """Whether a process that cannot be looked at may have files of the lab open: a lab that is for its user
    alone is closed to others."""
    if place.shared:
        return _has_descriptors(pid)
    try:
        return _uid(pid) == place.user
    except OSError:
        return False


def _has_descriptors(pid: int) -> bool:
    """Whether a process has any: a kernel thread, which has no memory, does not."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            return "\nVmSize:" in status.read()
    except OSError:
        return False


def _uid(pid: int) -> int:
    """The real user of a process.  Raises OSError."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        found = re.search(r"^Uid:\s*(\d+)", status.read(), re.MULTILINE)
    return -1 if found is None else int(found[1])


def _comm(pid: int) -> str:
    """The name of a process, which it chooses itself.  Raises OSError."""
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
        return comm.read().removesuffix("\n")
