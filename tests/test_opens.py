# SPDX-License-Identifier: Apache-2.0
"""open(2) of every kind of file: with O_DIRECT, and when the server has no descriptor left for a moment."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests import needs
from tests.iommufd.bound import bind
from tests.labs import MountedLab
from tests.snapshot import walk
from tests.vfio.client import PAGE, fails

MODES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)


def outcome(call: Callable[[], object]) -> str:
    """The errno by name, or nothing for a success."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def opening(path: Path, flags: int) -> str:
    return outcome(lambda: os.close(os.open(path, flags | os.O_CLOEXEC)))


def reading(fd: int) -> list[str]:
    return [outcome(partial(os.pread, fd, size, 0)) for size in (3, PAGE)]


def files(lab: MountedLab) -> Iterator[Path]:
    """All that are listed."""
    for entry in walk(lab.path):
        if entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def test_no_file_has_direct_io(lab: MountedLab) -> None:
    """As in sysfs, and as with a character device. What cannot be opened at all says why."""
    seen = set()
    with lab.create(), lab.create("mtty-2", "mtty"):
        for path in files(lab):
            for mode in MODES:
                plain, direct = opening(path, mode), opening(path, mode | os.O_DIRECT)
                seen.add(plain)
                expected = "EINVAL" if plain in ("", "ENODATA") else plain
                assert direct == expected, f"{path} {mode}"
        assert seen == {"", "EACCES", "ENODATA"}
        for path in (lab.path, lab.gpu):
            assert opening(path, os.O_RDONLY | os.O_DIRECT) == "EINVAL"


def test_direct_io_that_is_set_later_changes_nothing(lab: MountedLab) -> None:
    """For a file of FUSE the kernel lets fcntl(2) set it, so reads have to work."""
    with lab.create(), lab.create("mtty-2", "mtty"):
        for path in files(lab):
            if not opening(path, os.O_RDONLY):
                with open(path, "rb", buffering=0) as file:
                    if path.parent.name == "devices":
                        bind(file.fileno(), lab.path / "dev")
                    before = reading(file.fileno())
                    fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
                    assert reading(file.fileno()) == before, path


def test_writes_after_direct_io_is_set(lab: MountedLab) -> None:
    with lab.create() as vgpu:
        for what, offset in ((vgpu.path / "resource0", 8), (vgpu.path / "config", 0x3C), (vgpu.open(), 8)):
            with open(what, "r+b", buffering=0) as file:
                fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
                assert os.pwrite(file.fileno(), b"\7", offset) == 1
                assert os.pread(file.fileno(), 1, offset) == b"\7"
        with open(vgpu.path / "engine_timeout_ms", "r+b", buffering=0) as file:
            fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
            assert os.write(file.fileno(), b"100\n") == 4
            assert os.pread(file.fileno(), PAGE, 0) == b"100\n"


@contextlib.contextmanager
def without_descriptors(lab: MountedLab) -> Iterator[None]:
    limits = resource.prlimit(lab.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(lab.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(lab.pid, resource.RLIMIT_NOFILE, limits)


@needs.passthrough
def test_a_first_open_that_fails_leaves_later_ones_as_they_are(fresh_lab: MountedLab) -> None:
    """The backing file of files without mmap is not given up for good."""
    attribute = fresh_lab.gpu / "vendor"
    with without_descriptors(fresh_lab):
        dev = fresh_lab.path / "dev"
        for path in (attribute, fresh_lab.gpu / "config", dev / "vfio/vfio", dev / "iommu"):
            fails(errno.EMFILE, os.open, path, os.O_RDONLY)
    for path in (attribute, fresh_lab.gpu / "config"):
        with path.open("rb") as file:
            assert file.read(2)
            fails(errno.ENODEV, mmap.mmap, file.fileno(), PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ)


@needs.passthrough
def test_a_device_whose_first_open_fails_can_be_mapped_later(lab: MountedLab) -> None:
    with lab.create() as vgpu:
        paths = (vgpu.cdev, vgpu.path / "resource0")
        with without_descriptors(lab):
            for path in paths:
                fails(errno.EMFILE, os.open, path, os.O_RDWR)
        for what in (vgpu.open(), vgpu.path / "resource0"):
            with open(what, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), PAGE) as memory:
                memory[:4] = b"here"
                assert os.pread(file.fileno(), 4, 0) == b"here"
