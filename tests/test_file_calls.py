# SPDX-License-Identifier: Apache-2.0
"""System calls on the files of a lab: attributes answer as sysfs does, VFIO's files as character devices do.

The expected answers are those of Linux 6.18 for /sys/bus/pci/devices and for a character device.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.iommufd.bound import bind
from tests.labs import MountedLab, Vgpu
from tests.snapshot import PAGE_SIZE, is_attribute, walk

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create("mdpy-vga", "mdpy") as vgpu:
        yield vgpu


def attributes(vgpu: Vgpu) -> dict[Path, int]:
    """A file of each kind in sys/, and how it is opened."""
    return {
        vgpu.lab.gpu / "driver_override": os.O_RDWR,
        vgpu.path / "remove": os.O_WRONLY,
        vgpu.path / "config": os.O_RDWR,
        vgpu.path / "resource0": os.O_RDWR,
    }


def devices(vgpu: Vgpu) -> dict[Path, int]:
    """VFIO's files."""
    dev = vgpu.lab.path / "dev"
    paths = (dev / "vfio/vfio", dev / "iommu", vgpu.cdev, dev / "vfio" / vgpu.group)
    return dict.fromkeys(paths, os.O_RDWR)


KINDS: dict[str, Callable[[Vgpu], dict[Path, int]]] = {"attribute": attributes, "device": devices}


def opened(vgpu: Vgpu, path: Path, flags: int) -> int:
    """Open the file. That of a device is bound, so that it answers as a device."""
    fd = os.open(path, flags)
    if path == vgpu.cdev:
        bind(fd, vgpu.lab.path / "dev")
    return fd


def fallocate(fd: int, mode: int) -> int:
    result = libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(PAGE_SIZE))
    if result:
        raise OSError(ctypes.get_errno(), "fallocate")
    return int(result)


def polled(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, 0xFFFF & ~select.POLLRDHUP)
    return dict(poll.poll(0))[fd]


ALWAYS = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
UNREAD = select.POLLERR | select.POLLPRI

CALLS: dict[str, tuple[Callable[[int], object], int, int]] = {
    "ftruncate to 0": (lambda fd: os.ftruncate(fd, 0), 0, errno.EINVAL),
    "ftruncate": (lambda fd: os.ftruncate(fd, 99), 0, errno.EINVAL),
    "truncate": (lambda fd: os.truncate(f"/proc/self/fd/{fd}", 0), 0, errno.EINVAL),
    "fallocate": (lambda fd: fallocate(fd, 0), errno.EOPNOTSUPP, errno.ENODEV),
    "punch a hole": (lambda fd: fallocate(fd, 3), errno.EOPNOTSUPP, errno.ENODEV),
    "fsync": (os.fsync, 0, errno.EINVAL),
    "fdatasync": (os.fdatasync, 0, errno.EINVAL),
    "flock": (lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), 0, 0),
    "fchmod": (lambda fd: os.fchmod(fd, os.fstat(fd).st_mode & 0o777), 0, 0),
}
"""Each with its errnos for an attribute and for a device, 0 for none."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_calls(vgpu: Vgpu, name: str, kind: str) -> None:
    call, for_attributes, for_devices = CALLS[name]
    expected = for_devices if kind == "device" else for_attributes
    for path, flags in KINDS[kind](vgpu).items():
        fd = opened(vgpu, path, flags)
        before = os.fstat(fd)
        try:
            call(fd)
            found = 0
        except OSError as error:
            found = error.errno or 0
        after = os.fstat(fd)
        assert (path, found) == (path, expected)
        assert (after.st_size, after.st_mode) == (before.st_size, before.st_mode)
        os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_opening_with_o_trunc_succeeds_and_changes_nothing(vgpu: Vgpu, kind: str) -> None:
    for path, flags in KINDS[kind](vgpu).items():
        size = path.stat().st_size
        fd = opened(vgpu, path, flags | os.O_TRUNC)
        assert (os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_END)) == (size, size)
        os.close(fd)


def test_the_end_of_every_attribute_is_a_page(lab: MountedLab, vgpu: Vgpu) -> None:
    """Its st_size, whatever its text has, and whatever was read or written."""
    ends = set()
    for entry in walk(lab.path / "sys"):
        if is_attribute(entry):
            fd = os.open(entry, os.O_RDONLY if entry.stat().st_mode & 0o400 else os.O_WRONLY)
            ends |= {os.lseek(fd, 0, os.SEEK_END), os.lseek(fd, -1, os.SEEK_END) + 1}
            os.close(fd)
    assert ends == {PAGE_SIZE}
    fd = os.open(lab.gpu / "driver_override", os.O_RDWR | os.O_TRUNC)
    assert os.pwrite(fd, b"\n", 2 * PAGE_SIZE) == 1
    os.read(fd, 4)
    assert os.lseek(fd, 0, os.SEEK_END) == PAGE_SIZE
    assert (os.lseek(fd, 5, os.SEEK_DATA), os.lseek(fd, 5, os.SEEK_HOLE)) == (5, PAGE_SIZE)
    with pytest.raises(OSError, match="No such device or address"):
        os.lseek(fd, PAGE_SIZE, os.SEEK_DATA)
    os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_poll_says_what_files_without_a_poll_say(vgpu: Vgpu, kind: str) -> None:
    """epoll_ctl(2) cannot be refused on a FUSE mount; Linux refuses VFIO's files with EPERM."""
    for path, flags in KINDS[kind](vgpu).items():
        fd = os.open(path, flags)
        unread = UNREAD if path.name == "driver_override" else 0
        assert polled(fd) == ALWAYS | unread
        with select.epoll() as epoll:
            epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)
            ((_, found),) = epoll.poll(0)
            assert found & ~select.EPOLLERR == select.EPOLLIN | select.EPOLLOUT
        os.close(fd)


def test_an_attribute_has_changed_until_it_is_read(lab: MountedLab) -> None:
    with (lab.gpu / "driver_override").open("rb", buffering=0) as file:
        for offset in (0, 100):
            assert polled(file.fileno()) == (ALWAYS if offset else ALWAYS | UNREAD)
            os.pread(file.fileno(), 10, offset)
            assert polled(file.fileno()) == ALWAYS
        with (lab.gpu / "driver_override").open("rb", buffering=0) as another:
            assert polled(another.fileno()) == ALWAYS | UNREAD
