# SPDX-License-Identifier: Apache-2.0
"""Which descriptors of the recorded processes are files of VFIO, and which open file each of them is.

A descriptor is looked up when it is used.  One that is not known is compared with those that are (kcmp(2)),
so duplicates of every kind are found, also in other processes.  The recorder keeps no copy: a device that it
had open would stay in use after its program has closed it.  So what closes a descriptor is told here.

The program's descriptors are hostile: nothing here touches the file system of a file.  State belongs to the
thread of the ptrace loop.  Source: proc_pid_fd(5), proc_pid_fdinfo(5), kcmp(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ioctl_shim.abi import Kind
from vfsfuse.mounts import FSTYPE

DEVICE_LINK = "anon_inode:[vfio-device]"
_PATH = re.compile(r"(.*)(/dev/(?:vfio/(vfio|(?:noiommu-)?\d+|devices/vfio\d+)|(iommu)))")
_MOST_INFO = 1 << 16


@dataclass(eq=False, slots=True)
class HostFile:
    """An open file of VFIO or iommufd."""

    kind: Kind
    link: str
    """Where the link in /proc/PID/fd leads to."""
    path: str = ""
    """The path below the directory that has its /dev; empty for a device of a group."""
    sysfs: str = ""
    """Where sysfs has the device of a character device of dev/vfio/devices."""
    device: int = -1
    """Index of the device in the recording, -1 for none."""
    sent: bool = False
    """Whether it was sent over a socket, and may be open where nobody has used it yet."""


def file_of_path(path: str) -> HostFile | None:
    """A file of VFIO that is at this path, None for any other path."""
    found = _PATH.fullmatch(path)
    if not found:
        return None
    prefix, inner, name, _ = found.groups()
    if name is None:
        kind = Kind.IOMMUFD
    elif name == "vfio":
        kind = Kind.CONTAINER
    else:
        kind = Kind.DEVICE if name.startswith("devices/") else Kind.GROUP
    return HostFile(kind, path, inner, f"{prefix}/sys/class/vfio-dev/{os.path.basename(inner)}/device")


class HostFiles:
    """The files of VFIO that recorded processes have open.  `same` tells whether two descriptors, each a
    thread and a number there, are one open file."""

    def __init__(self, same: Callable[[tuple[int, int], tuple[int, int]], bool]) -> None:
        self._same = same
        self._known: dict[tuple[int, int], HostFile] = {}
        """By process and descriptor."""
        self._on_the_way: list[HostFile] = []
        """Sent over a socket, and closed by all that are known to have had them."""

    def known(self, tgid: int, fd: int) -> HostFile | None:
        """The file, if it was used under this number before."""
        return self._known.get((tgid, fd))

    def find(self, tid: int, tgid: int, fd: int) -> HostFile | None:
        """The file behind descriptor `fd` of a stopped thread, None for a file that is not of VFIO."""
        file = self._known.get((tgid, fd))
        if file is not None:
            return file
        link = _link(tid, fd)
        like = [(key, each) for key, each in self._known.items() if each.link == link]
        for key, each in like:
            if self._same((tid, fd), key):
                return self.add(tgid, fd, each)
        lost = [each for each in self._on_the_way if each.link == link]
        if len(lost) == 1:  # of several nobody knows which one it is
            self._on_the_way.remove(lost[0])
            lost[0].sent = False
            return self.add(tgid, fd, lost[0])
        if link == DEVICE_LINK:
            return self.add(tgid, fd, HostFile(Kind.DEVICE, link))
        file = file_of_path(link)
        return self.add(tgid, fd, file) if file and _is_genuine(file, tid, fd) else None

    def add(self, tgid: int, fd: int, file: HostFile) -> HostFile:
        """Descriptor `fd` is `file` from now on."""
        self._known[tgid, fd] = file
        return file

    def add_device(self, tid: int, tgid: int, fd: int, device: int) -> HostFile:
        """A group has given the descriptor `fd` of a device."""
        return self.add(tgid, fd, HostFile(Kind.DEVICE, _link(tid, fd), device=device))

    def fork(self, tgid: int, child: int) -> None:
        """`child` has a copy of every descriptor of `tgid`."""
        for (process, fd), file in list(self._known.items()):
            if process == tgid:
                self._known[child, fd] = file

    def close(self, tgid: int, fds: Iterable[int]) -> list[HostFile]:
        """These descriptors are closed.  Returns the files that nobody has open any more."""
        gone: list[HostFile] = []
        for fd in fds:
            file = self._known.pop((tgid, fd), None)
            if file is not None and file not in self._known.values():
                (self._on_the_way if file.sent else gone).append(file)
        return gone

    def have(self, device: int) -> bool:
        """Whether any process has a file of the device open."""
        return any(file.device == device for file in (*self._known.values(), *self._on_the_way))

    def lost(self) -> list[HostFile]:
        """The files that were sent and that nobody has used since."""
        return self._on_the_way

    def of(self, tgid: int) -> list[int]:
        """The descriptors of a process that are known."""
        return [fd for process, fd in self._known if process == tgid]

    def left_by_exec(self, tgid: int) -> list[HostFile]:
        """The process has another program, and its close-on-exec descriptors are closed.  Returns the files
        that nobody has open any more."""
        return self.close(tgid, [fd for fd in self.of(tgid) if _link(tgid, fd) != self._known[tgid, fd].link])


def _link(tid: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{tid}/fd/{fd}")
    except OSError:
        return ""


def is_hidden(tid: int) -> bool:
    """Whether the kernel refuses to show the descriptors of a thread, as those of a program whose file its
    user cannot read."""
    try:
        os.readlink(f"/proc/{tid}/cwd")
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM)
    return False


def info(tid: int, fd: int, key: str) -> str:
    """The value of a line of /proc/PID/fdinfo; empty if there is none."""
    with contextlib.suppress(OSError), open(f"/proc/{tid}/fdinfo/{fd}", errors="replace") as lines:
        for line in lines.read(_MOST_INFO).splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return value.strip()
    return ""


def _is_genuine(file: HostFile, tid: int, fd: int) -> bool:
    """Whether a file with such a path is a lab's, or a character device of the kernel, whose place in sysfs
    is noted then.  A FUSE server of the program's might never answer the recorder."""
    kind = _file_system(tid, fd)
    if kind == FSTYPE:
        return True
    if not kind or kind.startswith("fuse"):
        return False
    try:
        found = os.stat(f"/proc/{tid}/fd/{fd}")
    except OSError:
        return False
    file.sysfs = f"/sys/dev/char/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}/device"
    return stat.S_ISCHR(found.st_mode)


def _file_system(tid: int, fd: int) -> str:
    """The kind of file system that a file is on, empty if its mount is not to be seen."""
    mount = info(tid, fd, "mnt_id")
    for process in (tid, "self"):
        with contextlib.suppress(OSError), open(f"/proc/{process}/mountinfo", errors="replace") as table:
            for line in table:
                if line.partition(" ")[0] == mount:
                    return line.partition(" - ")[2].partition(" ")[0]
    return ""
