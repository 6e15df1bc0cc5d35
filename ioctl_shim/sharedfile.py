# SPDX-License-Identifier: Apache-2.0
"""The file behind a shared mapping of a client, opened without asking a file system that may not answer.

To open, to stat or to close a file of a FUSE mount waits for its server, which may be the client itself or
this very process.  So a file is opened only on a file system of a well-known kind.  The kernel's own tables
tell the kind; until the file is known to be the right one it is held by O_PATH, which asks nobody.
State: none that changes; any thread.
Source: open(2) (O_PATH), proc_pid_mountinfo(5), proc_pid_map_files(5), proc_pid_fdinfo(5), memfd_create(2).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ioctl_shim._native import lib

FAMILIAR = frozenset(
    ["tmpfs", "ramfs", "hugetlbfs", "devtmpfs", "ext2", "ext3", "ext4", "xfs", "f2fs", "jfs", "exfat", "vfat"]
)
"""Kinds of file systems that the kernel serves by itself, from memory or a local disk.  btrfs and overlay are
none of them, because their files show another device than their mappings do."""
MAX_DESCRIPTORS = 1024
"""The most descriptors of a client that are looked at to find a file that map_files does not give us."""
MAX_MOUNTS = 1 << 18
"""The most bytes of a table of mounts that are read.  A client may make a long one."""
_MFD_CLOEXEC, _MFD_HUGETLB, _MFD_HUGE_SHIFT = 1, 4, 26
_HUGE_PAGES = "/sys/kernel/mm/hugepages"


def open_shared(tid: int, start: int, end: int, vma: Any, flags: int) -> int | None:
    """Open the regular file behind a mapping, `vma` (struct shim_vma), of the process of thread `tid`.

    Its file system is familiar, as far as the caller knows.  The caller must close the descriptor.  None when
    there is no such file, when its file system is another one now, or when we may not have it.
    """
    # map_files takes a capability; without it, the right to read the memory covers the descriptors too
    for path in (f"/proc/{tid}/map_files/{start:x}-{end:x}", *_descriptors(tid, vma.inode)):
        with contextlib.suppress(OSError):
            opened = _open_if(path, tid, vma, flags)
            if opened is not None:
                return opened
    return None


def is_familiar(device: int, tid: int) -> bool:
    """Whether the file system with this st_dev, which the process of `tid` uses, is of a familiar kind."""
    return device in _kernel_devices() or any(device in _mounted(pid) for pid in ("self", str(tid)))


def _open_if(path: str, tid: int, vma: Any, flags: int) -> int | None:
    """Open `path` if it is the file of `vma`.  Raises OSError."""
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    # while we hold the file, no other file system can have its st_dev
    if not lib.shim_is_file(handle, vma) or not is_familiar(os.makedev(vma.major, vma.minor), tid):
        lib.shim_close_stranger(handle)  # the client has put another file there since we looked
        return None
    try:
        return os.open(f"/proc/self/fd/{handle}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(handle)


def _descriptors(tid: int, inode: int) -> Iterator[str]:
    """The client's descriptors of a file with this inode number, which the kernel tells by itself."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{tid}/fd") as names:
        for name in islice((entry.name for entry in names), MAX_DESCRIPTORS):
            with contextlib.suppress(OSError):
                if b"\nino:\t%d\n" % inode in Path(f"/proc/{tid}/fdinfo/{name}").read_bytes():
                    yield f"/proc/{tid}/fd/{name}"


def _mounted(pid: str) -> set[int]:
    """st_dev of each mounted file system of a familiar kind that process `pid` sees."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/mountinfo", "rb") as table:
        found = [line.partition(b" - ") for line in table.read(MAX_MOUNTS).splitlines()]
        return {_device(before) for before, _, behind in found if behind.split(b" ")[0].decode() in FAMILIAR}
    return set()


def _device(mount: bytes) -> int:
    major, minor = mount.split()[2].split(b":")
    return os.makedev(int(major), int(minor))


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
