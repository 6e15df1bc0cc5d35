# SPDX-License-Identifier: Apache-2.0
"""The file behind a shared mapping of a client, opened without asking a file system that may not answer.

To open, to stat or to close a file of a FUSE mount waits for its server, which may be the client itself or
this very process.  So a file is opened only on a file system of a well-known kind.  The kernel's own tables
tell the kind; until the file is known to be the right one it is held by O_PATH, which asks nobody.
State: none that changes; any thread.
Source: open(2) (O_PATH), proc_pid_mountinfo(5), proc_pid_map_files(5), proc_pid_fd(5), statx(2),
memfd_create(2).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from ioctl_shim._native import lib

FAMILIAR = frozenset(b"tmpfs ramfs hugetlbfs devtmpfs ext2 ext3 ext4 xfs f2fs jfs exfat vfat".split(b" "))
"""Kinds of file systems that the kernel serves by itself, from memory or a local disk.  btrfs and overlay are
none of them, because their files show another device than their mappings do."""
WRITTEN_BACK = frozenset(
    b"9p bcachefs btrfs ceph cifs exfat ext2 ext3 ext4 f2fs gfs2 hfsplus jfs nfs nfs4 nilfs2 ntfs3 ocfs2 "
    b"smb3 udf vfat xfs zfs".split()
)
"""Kinds of file systems that write changed pages back to a disk or a server.  The kernel pins no page of
theirs that a device may write to through a shared mapping.  Overlay and FUSE are none of them, because the
file behind theirs may be memory."""
MEMORY = frozenset(b"tmpfs hugetlbfs devtmpfs".split(b" "))
"""Kinds of file systems whose files are memory that the kernel pins for iommufd."""
MAX_DESCRIPTORS = 1024
"""The most descriptors of a client that are looked at to find a file that map_files does not give us."""
MAX_MOUNTS = 1 << 18
"""The most bytes of a table of mounts that are read.  A client may make a long one."""
_ROW = re.compile(rb"[0-9]+ [0-9]+ ([0-9]+):([0-9]+) [^ ]+ [^ ]+ [^ ]+ (?:[^ ]+ )*?- ([^ ]+) ")
_MFD_CLOEXEC, _MFD_HUGETLB, _MFD_HUGE_SHIFT = 1, 4, 26
_HUGE_PAGES = "/sys/kernel/mm/hugepages"


def open_shared(tid: int, vma: Any, flags: int, still_there: Callable[[], bool]) -> int | None:
    """Open the regular file behind a mapping, `vma` (struct shim_vma), of the process of thread `tid`.

    Its file system is familiar, as far as the caller knows.  `still_there` says whether the process has that
    mapping now.  It is asked while the file is held, and may raise OSError.  The caller must close the
    descriptor.  None when there is no such file or mapping, when the file system is another one now, or when
    we may not have the file.
    """
    # map_files takes a capability; without it, the right to read the memory covers the descriptors too
    for path in chain([f"/proc/{tid}/map_files/{vma.start:x}-{vma.end:x}"], _descriptors(tid, vma)):
        with contextlib.suppress(OSError):
            opened = _open_if(path, tid, vma, flags, still_there)
            if opened is not None:
                return opened
    return None


def is_familiar(device: int, tid: int) -> bool:
    """Whether the file system with this st_dev, which the process of `tid` uses, is of a familiar kind."""
    return device in _kernel_devices() or _is_mounted(device, tid, FAMILIAR)


def is_memory(device: int, tid: int) -> bool:
    """Whether the file system with this st_dev, which the process of `tid` uses, is memory (shmem,
    hugetlbfs)."""
    return device in _kernel_devices() or _is_mounted(device, tid, MEMORY)


def is_written_back(device: int, tid: int) -> bool:
    """Whether the file system with this st_dev, which the process of `tid` uses, writes its pages back."""
    return device not in _kernel_devices() and _is_mounted(device, tid, WRITTEN_BACK)


def _open_if(path: str, tid: int, vma: Any, flags: int, still_there: Callable[[], bool]) -> int | None:
    """Open `path` if it is the file of `vma`.  Raises OSError."""
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    # while we hold the file, no other file system can have its st_dev
    if not lib.shim_is_file(handle, b"", vma) or not is_familiar(os.makedev(vma.major, vma.minor), tid):
        lib.shim_close_stranger(handle)  # the client has put another file there since we looked
        return None
    try:
        # no other file can have its inode number now: who has this mapping has the right to this file
        if not still_there():
            return None
        return os.open(f"/proc/self/fd/{handle}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(handle)


def _descriptors(tid: int, vma: Any) -> Iterator[str]:
    """The client's descriptors of the file of `vma`.

    /proc/TID/fdinfo would tell the inode number too.  But a client can hold that up, with an epoll on a file
    of a FUSE mount, and then no signal ends the wait.
    """
    with contextlib.suppress(OSError), os.scandir(f"/proc/{tid}/fd") as names:
        for name in islice((entry.name for entry in names), MAX_DESCRIPTORS):
            path = f"/proc/{tid}/fd/{name}"
            if lib.shim_is_file(-1, path.encode(), vma):
                yield path


def _is_mounted(device: int, tid: int, kinds: frozenset[bytes]) -> bool:
    """Whether this process or that of `tid` sees a file system of these kinds, with this st_dev, mounted."""
    for pid in ("self", tid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/mountinfo", "rb") as table:
            if device in devices_of(table.read(MAX_MOUNTS), kinds):
                return True
    return False


def devices_of(table: bytes, kinds: frozenset[bytes]) -> set[int]:
    """st_dev of each file system of these kinds in a table of mounts, whose last row may be cut off.

    The kernel escapes only space, tab, newline and backslash in names that a client chooses.  Other bytes,
    such as a carriage return, end no row and no field.  A row that is not understood counts for nothing.
    """
    rows = (_ROW.match(row) for row in table.split(b"\n")[:-1])
    return {os.makedev(int(row[1]), int(row[2])) for row in rows if row and row[3] in kinds}


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """st_dev of the kernel's own mounts: memfds, anonymous shared memory, and huge pages of each size."""
    sizes = [int(name.removeprefix("hugepages-").removesuffix("kB")) << 10 for name in _huge_page_sizes()]
    kinds = [0, *(_MFD_HUGETLB | (size.bit_length() - 1) << _MFD_HUGE_SHIFT for size in sizes)]
    return frozenset(device for kind in kinds if (device := _memfd_device(kind)) is not None)


def _huge_page_sizes() -> list[str]:
    try:
        return os.listdir(_HUGE_PAGES)
    except FileNotFoundError:
        return []


def _memfd_device(flags: int) -> int | None:
    """st_dev of memfds of a kind.  None when the kernel has none of them."""
    try:
        fd = os.memfd_create("kind", flags | _MFD_CLOEXEC)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)
