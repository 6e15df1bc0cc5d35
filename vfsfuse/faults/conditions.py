# SPDX-License-Identifier: Apache-2.0
"""The files that rules with ``while`` look for.

A call never looks itself: whoever can hold up a look at a path must not hold up the lab.  A thread for each
path looks again and again, and calls see what it saw last.  A look touches only file systems of this machine:
it opens one name after the other with O_PATH, and asks the kernel which mount that is on before it looks
anything up there.  State: under the lock of :class:`Conditions`, which is taken after every other one.
Source: open(2), proc_pid_fdinfo(5), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import Counter
from contextlib import suppress

LOOK_SECONDS = 0.01
"""Seconds between two looks."""
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


def exists(path: str) -> bool:
    """Whether there is a file at an absolute path.  Raises Foreign, and any other OSError but that there is
    none."""
    fd = -1
    try:
        fd = _walk(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True


def _walk(path: str) -> int:
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


class Conditions:
    """Whether there are files at paths.  Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._seen: dict[str, bool] = {}

    def use(self, path: str) -> None:
        """A rule needs the path from now on.  It looks once, so a thread that may wait calls it.

        Raises OSError: EXDEV for a path on a file system that somebody else answers for, ENOSPC for too many
        paths.
        """
        seen = _look(path)
        with self._lock:
            if path not in self._users and len(self._users) >= MOST_PATHS:
                raise OSError(errno.ENOSPC, f"rules wait for {MOST_PATHS} files already")
            self._users[path] += 1
            if path in self._seen:
                return
            self._seen[path] = seen
        threading.Thread(target=self._watch, args=(path,), name="fault-condition", daemon=True).start()

    def leave(self, path: str) -> None:
        """The opposite."""
        with self._lock:
            self._users[path] -= 1
            if not self._users[path]:
                del self._users[path]

    def holds(self, path: str) -> bool:
        """Whether there was a file at the last look."""
        return self._seen.get(path, False)

    def _watch(self, path: str) -> None:
        """The thread of one path."""
        pause = threading.Event()
        while not pause.wait(LOOK_SECONDS):
            seen = False
            with suppress(OSError):
                seen = _look(path)
            with self._lock:
                if path not in self._users:
                    del self._seen[path]
                    return
                self._seen[path] = seen


def _look(path: str) -> bool:
    """Whether there is a file.  Raises Foreign.  What the server may not look at is not there."""
    try:
        return exists(path)
    except Foreign:
        raise
    except OSError:
        return False
