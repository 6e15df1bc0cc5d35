# SPDX-License-Identifier: Apache-2.0
"""Directories that are removed while somebody has them open: they are empty, and a name in them is ENOENT.

What is expected is what Linux 6.18 does with /sys/devices/virtual/block/zram<N>, which comes and goes.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ioctl_shim._native import lib
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import fails
from vfsfuse.kernfs.tree import BLOCK_SHIFT


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def look(fd: int) -> list[str]:
    """Have the kernel know all names in a directory, and what they are."""
    names = os.listdir(fd)
    for name in names:
        shown = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISREG(shown.st_mode):
            os.close(os.open(name, os.O_RDONLY if shown.st_mode & 0o400 else os.O_WRONLY, dir_fd=fd))
        if stat.S_ISLNK(shown.st_mode):
            os.readlink(name, dir_fd=fd)
    return names


CALLS: dict[str, Callable[[str, int], object]] = {
    "open": lambda name, fd: os.open(name, os.O_RDONLY, dir_fd=fd),
    "open to write": lambda name, fd: os.open(name, os.O_WRONLY, dir_fd=fd),
    "stat": lambda name, fd: os.stat(name, dir_fd=fd, follow_symlinks=False),
    "chmod": lambda name, fd: os.chmod(name, 0o600, dir_fd=fd),
    "utime": lambda name, fd: os.utime(name, dir_fd=fd),
    "read the link": lambda name, fd: os.readlink(name, dir_fd=fd),
}
LINKS = {"subsystem", "driver", "iommu_group", "mdev_type"}


@pytest.mark.parametrize("call", CALLS)
def test_a_name_is_enoent(lab: MountedLab, call: str) -> None:
    vgpu = lab.create("mdpy-vga", "mdpy")
    group = lab.path / "sys/kernel/iommu_groups" / vgpu.group
    paths = [Path(path) for top in (vgpu.path, group) for path, _, _ in os.walk(top)]
    assert len(paths) > 4
    held = [os.open(path, os.O_RDONLY) for path in paths]
    names = [look(fd) for fd in held]
    vgpu.remove()
    for path, fd, inside in zip(paths, held, names, strict=True):
        for name in inside if call != "read the link" else LINKS.intersection(inside):
            with pytest.raises(OSError) as caught:
                CALLS[call](name, fd)
            assert (path, name, caught.value.errno) == (path, name, errno.ENOENT)
        os.close(fd)


def test_a_function_that_is_removed_and_found_again(fresh_lab: MountedLab) -> None:
    gpu = fresh_lab.gpu
    paths = [Path(path) for path, _, _ in os.walk(gpu)]
    held = [os.open(path, os.O_RDONLY) for path in paths]
    names = [look(fd) for fd in held]
    (gpu / "remove").write_text("1")
    for path, fd, inside in zip(paths, held, names, strict=True):
        for name in inside:
            for call in ("open", "stat"):
                with pytest.raises(OSError) as caught:
                    CALLS[call](name, fd)
                assert (path, name, call, caught.value.errno) == (path, name, call, errno.ENOENT)
        assert stat.filemode(os.fstat(fd).st_mode) == "drwxr-xr-x" and os.listdir(fd) == []
        os.close(fd)
    (fresh_lab.path / "sys/bus/pci/rescan").write_text("1")
    assert (gpu / "vendor").read_text().startswith("0x")


def test_the_directory_itself_is_still_one(lab: MountedLab) -> None:
    vgpu = lab.create("mdpy-vga", "mdpy")
    paths = [Path(path) for path, _, _ in os.walk(vgpu.path)]
    held = [os.open(path, os.O_RDONLY) for path in paths]
    for fd in held:
        look(fd)
    vgpu.remove()
    for fd in held:
        shown = os.fstat(fd)
        assert (stat.filemode(shown.st_mode), shown.st_nlink, shown.st_size) == ("drwxr-xr-x", 2, 0)
        assert os.listdir(fd) == [] == os.listdir(f"/proc/self/fd/{fd}")
        os.fchmod(fd, 0o755)
        os.utime(fd)
        fails(errno.EPERM, os.mkdir, "new", dir_fd=fd)
        fails(errno.EACCES, os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        os.close(fd)


SHELL = """
cd "$1" && cat vgpu_uuid && ls >/dev/null && stat -c %n vgpu_uuid power power/control && echo 1 > remove
ls; echo "ls $?"
cat vgpu_uuid; cat power/control; [ -e vgpu_uuid ] || echo gone
cd power 2>/dev/null || echo "no power"
cd .. && ls -d .
"""


def test_a_shell_in_a_directory_that_it_removes(lab: MountedLab) -> None:
    vgpu = lab.create("mdpy-vga", "mdpy")
    done = subprocess.run(
        ["sh", "-c", SHELL, "sh", vgpu.path], capture_output=True, text=True, check=True, timeout=60
    )
    said = [vgpu.name, "vgpu_uuid", "power", "power/control", "ls 0", "gone", "no power", "."]
    assert done.stdout.splitlines() == said
    missing = [line for line in done.stderr.splitlines() if line.endswith("No such file or directory")]
    assert len(missing) == len(done.stderr.splitlines()) == 2, done.stderr


def test_files_that_are_open_are_enodev(lab: MountedLab) -> None:
    vgpu = lab.create("mdpy-vga", "mdpy")
    shown, stored = os.open(vgpu.path / "vgpu_uuid", os.O_RDONLY), os.open(vgpu.path / "uevent", os.O_RDWR)
    vgpu.remove()
    fails(errno.ENODEV, os.pread, shown, 9, 0)
    fails(errno.ENODEV, os.pwrite, stored, b"add", 0)
    fails(errno.ENODEV, os.lseek, shown, 0, os.SEEK_END)
    os.fsync(stored)
    os.close(shown)
    os.close(stored)


def test_what_comes_again_under_the_name_is_another_directory(lab: MountedLab) -> None:
    vgpu = lab.create("mdpy-vga", "mdpy")
    with opened(vgpu.path) as fd:
        look(fd)
        vgpu.remove()
        (lab.parent("mdpy") / "mdev_supported_types/mdpy-vga/create").write_text(vgpu.name)
        again = Vgpu(lab, vgpu.name)
        assert again.path == vgpu.path and (again.path / "vgpu_uuid").read_text() == f"{vgpu.name}\n"
        fails(errno.ENOENT, os.open, "vgpu_uuid", os.O_RDONLY, dir_fd=fd)
        assert os.listdir(fd) == []
        assert os.stat(again.path).st_ino != os.fstat(fd).st_ino
    again.remove()


def test_the_pump_knows_where_the_number_of_a_device_is() -> None:
    assert BLOCK_SHIFT == lib.LANE_BLOCK_SHIFT
