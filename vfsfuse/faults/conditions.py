# SPDX-License-Identifier: Apache-2.0
"""The files that rules with ``while`` look for.

A call never looks itself: a program that can hold up a look at a path must not hold up the lab.  A thread for
each path looks whenever something has changed on the way to it, and calls see what it saw last.  A look
touches only file systems of this machine: it opens one name after the other with O_PATH, and asks the kernel
which mount that is on before it looks anything up there.  State: under the lock of :class:`Conditions`, which
is taken after every other one.
Source: open(2), proc_pid_fdinfo(5), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from vfsfuse.faults.watching import FolderWatch

LOOK_SECONDS = 0.005
"""Seconds between two looks at least."""
MOST_PATHS = 64
MOST_LINKS = 40
"""Symbolic links on a path that are followed, as Linux does."""
LOCAL = frozenset(
    {
        *("bcachefs", "btrfs", "cramfs", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs"),
        *("hugetlbfs", "iso9660", "jfs", "nilfs2", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs"),
        *("squashfs", "tmpfs", "ubifs", "udf", "vfat", "xfs", "zfs"),
    }
)
"""File systems that no program and no other machine answers for."""


class Foreign(OSError):
    """A path leads to a file system that somebody else answers for."""


Visit = Callable[[int, str], None]
"""Is called before a name is looked up in a folder, an open file."""


def _nothing(folder: int, name: str) -> None:
    """Of a look that nobody follows."""


def exists(path: str, visit: Visit = _nothing) -> bool:
    """Whether there is a file at an absolute path.  Raises Foreign, and any other OSError but that there is
    none."""
    fd = -1
    try:
        fd = _walk(path, visit)
    except (FileNotFoundError, NotADirectoryError):
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True


def _walk(path: str, visit: Visit) -> int:
    """A descriptor of what is at a path, opened with O_PATH."""
    kinds: dict[int, str] = {}
    names, links = [*reversed(path.split("/"))], 0
    opened = [_open("/", None)]  # the folders from the root on
    try:
        while names:
            name = names.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if len(opened) > 1:
                    os.close(opened.pop())
                continue
            _check_local(opened[-1], kinds, path)
            visit(opened[-1], name)
            found = _open(name, opened[-1])
            if _is_link(found, opened[-1], kinds, path):
                links += 1
                target = _target(found)
                if links > MOST_LINKS:
                    raise OSError(errno.ELOOP, "too many symbolic links")
                names += reversed(target.split("/"))
                if target.startswith("/"):
                    while len(opened) > 1:
                        os.close(opened.pop())
                continue
            opened.append(found)
        _check_local(opened[-1], kinds, path)
        return opened.pop()
    finally:
        for fd in opened:
            os.close(fd)


def _open(name: str, folder: int | None) -> int:
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


def _target(link: int) -> str:
    """Where a symbolic link leads; closes it."""
    try:
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _is_link(fd: int, folder: int, kinds: dict[int, str], path: str) -> bool:
    """Whether it is a symbolic link.  What has another mount on it is none."""
    if _mount_of(fd) != _mount_of(folder):
        return False
    return stat.S_ISLNK(os.fstat(fd).st_mode)


def _check_local(fd: int, kinds: dict[int, str], path: str) -> None:
    mount = _mount_of(fd)
    if mount not in kinds:
        kinds.update(_kinds())
    kind = kinds.get(mount, "unknown")
    if kind not in LOCAL:
        raise Foreign(errno.EXDEV, f"{path} is on a file system of type {kind}")


def _mount_of(fd: int) -> int:
    """The id of the mount that an open file is on."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as rows:
        return next(int(row.split()[1]) for row in rows if row.startswith("mnt_id:"))


def _kinds() -> dict[int, str]:
    """The types of all file systems, by the ids of their mounts."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as rows:
        fields = [row.split(" ") for row in rows]
    return {int(row[0]): row[row.index("-", 6) + 1].partition(".")[0] for row in fields}


class _Path:
    """A path that rules wait for."""

    def __init__(self, path: str) -> None:
        self.path, self.users, self.seen = path, 0, False
        self.watch = FolderWatch()

    def look(self) -> None:
        """Look whether the file is there.  Raises Foreign.  What the server may not look at is not there."""
        self.watch.begin()
        try:
            self.seen = exists(self.path, self.watch.add)
        except Foreign:
            self.seen = False
            raise
        except OSError:
            self.seen = False


class Conditions:
    """Whether there are files at paths.  Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, _Path] = {}

    def use(self, path: str) -> None:
        """A rule needs the path from now on.  It looks once, so a thread that may wait calls it.

        Raises OSError: EXDEV for a path on a file system that somebody else answers for, ENOSPC for too many
        paths.
        """
        if self._joins(path, None):
            return
        new = _Path(path)
        try:
            new.look()
            if self._joins(path, new):
                new.watch.close()
                return
        except BaseException:
            new.watch.close()
            raise
        threading.Thread(target=self._run, args=(new,), name="fault-condition", daemon=True).start()

    def _joins(self, path: str, new: _Path | None) -> bool:
        """Whether somebody looks already; if not, `new` begins."""
        with self._lock:
            known = self._paths.get(path)
            if known is not None:
                known.users += 1
            elif len(self._paths) >= MOST_PATHS:
                raise OSError(errno.ENOSPC, f"rules wait for {MOST_PATHS} files already")
            elif new is not None:
                new.users = 1
                self._paths[path] = new
            return known is not None

    def leave(self, path: str) -> None:
        """The opposite."""
        with self._lock:
            known = self._paths[path]
            known.users -= 1
            if known.users:
                return
            del self._paths[path]
            known.watch.wake()

    def holds(self, path: str) -> bool:
        """Whether there was a file at the last look."""
        known = self._paths.get(path)
        return known is not None and known.seen

    def _run(self, known: _Path) -> None:
        """The thread of one path."""
        try:
            while known.users:
                known.watch.wait()
                if known.users:
                    with suppress(Foreign):
                        known.look()
                    time.sleep(LOOK_SECONDS)
        finally:
            with self._lock:  # nobody wakes it any more
                known.watch.close()
