# SPDX-License-Identifier: Apache-2.0
"""What a lab tells the supervisor of a `vfsfuse run` of its files: vfsfuse.run.labinfo, the file `.run`."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfsfuse
from ioctl_shim.abi import RUN_NODE, NodeKind
from tests import needs
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import Container, Group, fails
from tests.vfio.devices import LAB, NEIGHBOUR, UNPROTECTED, bound, group_device
from vfsfuse.run.labinfo import LabInfo, Node

DT_UNKNOWN, DT_REG = 0, 8  # <dirent.h>
READ_ONLY_NUMBER = RUN_NODE & ~(3 << 30) | 2 << 30
"""RUN_NODE's number, but as an ioctl that only reads."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab with devices behind an IOMMU and without one."""
    with described(tmp_path_factory.mktemp("nodes"), LAB) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def info(lab: MountedLab) -> Iterator[LabInfo]:
    with asking(lab.path) as asked:
        yield asked


@pytest.fixture
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create("own") as made:
        yield made


@contextlib.contextmanager
def asking(root: Path) -> Iterator[LabInfo]:
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        with LabInfo(folder) as asked:
            yield asked
    finally:
        os.close(folder)


def nodes(root: Path) -> dict[str, Node]:
    """The character devices of a lab, by their paths in dev, with the numbers that sysfs shows."""
    found = {}
    for link in (root / "sys/dev/char").iterdir():
        variables = dict(line.split("=", 1) for line in (link / "uevent").read_text().splitlines())
        major, minor = (link / "dev").read_text().strip().split(":")
        assert link.name == f"{major}:{minor}"
        found[variables["DEVNAME"]] = Node(NodeKind.CHARACTER, int(major), int(minor))
    return found


def asked(root: Path, info: LabInfo) -> dict[str, Node | None]:
    """What the lab says of each file in dev."""
    files = (path for path in (root / "dev").rglob("*") if path.is_file())
    return {str(path.relative_to(root / "dev")): info.node_of(path.stat().st_ino) for path in files}


def test_each_character_device_has_the_number_that_sysfs_shows(
    lab: MountedLab, info: LabInfo, vgpu: Vgpu
) -> None:
    with bound(lab, NEIGHBOUR) as groups:
        told = nodes(lab.path)
        assert asked(lab.path, info) == told
        assert told["vfio/vfio"] == (NodeKind.CHARACTER, 10, 196)
        own = (vgpu.path / "vfio-dev").iterdir()
        assert {"iommu", f"vfio/{vgpu.group}", f"vfio/{groups[0]}"} < set(told)
        assert {f"vfio/devices/{each.name}" for each in own} < set(told)


def test_so_have_those_of_a_device_without_iommu(lab: MountedLab, info: LabInfo) -> None:
    parameter = lab.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    parameter.write_text("Y")
    try:
        with bound(lab, UNPROTECTED) as groups:
            told = nodes(lab.path)
            assert asked(lab.path, info) == told
            assert f"vfio/noiommu-{groups[0]}" in told
            assert any(name.startswith("vfio/devices/noiommu-") for name in told)
    finally:
        parameter.write_text("N")


def test_a_lab_without_character_devices_of_its_devices(tmp_path: Path) -> None:
    with (
        described(tmp_path, f"[mount]\ncdevs = false\n{LAB}") as lab,
        asking(lab.path) as info,
        lab.create("own") as vgpu,
    ):
        told = nodes(lab.path)
        assert asked(lab.path, info) == told
        assert set(told) == {"iommu", "vfio/vfio", f"vfio/{vgpu.group}"}


def test_a_device_of_a_group_is_an_anonymous_inode(lab: MountedLab, info: LabInfo, vgpu: Vgpu) -> None:
    with Container(lab.path) as container, Group(lab.path, vgpu.group) as group:
        group.set_container(container)
        container.set_iommu()
        device = group_device(lab.path, group, vgpu.name)
        inode = os.fstat(device).st_ino
        assert info.node_of(inode) == (NodeKind.ANONYMOUS, 0, 0)
        os.close(device)
    assert info.node_of(inode) is None


def test_other_files_are_what_they_are(lab: MountedLab, info: LabInfo, vgpu: Vgpu) -> None:
    """Also those that the device lane serves, as it serves the nodes."""
    function = lab.gpu
    names = ("config", "resource0", "vendor", "sriov_numvfs", "subsystem", "remove")
    others = [function / name for name in names if (function / name).exists()]
    others += [*lab.path.iterdir(), lab.path / ".run", lab.path / "dev/vfio", vgpu.path]
    assert len(others) > 10
    for path in others:
        assert info.node_of(path.lstat().st_ino) is None, path


def test_a_number_stands_for_one_file_for_ever(lab: MountedLab, info: LabInfo) -> None:
    def inodes() -> set[int]:
        vgpu = lab.create("own")
        files = (lab.path / "dev/vfio" / vgpu.group, vgpu.cdev)
        found = {path.stat().st_ino for path in files}
        assert all(map(info.node_of, found))
        vgpu.remove()
        assert not any(map(info.node_of, found))
        return found

    first, second = inodes(), inodes()
    assert not first & second


@pytest.mark.parametrize(
    "inode", [0, 1, (1 << 46), (1 << 46) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 0xFFFF_0000_0000_0001]
)
def test_any_number_can_be_asked_for(info: LabInfo, inode: int) -> None:
    assert info.node_of(inode) is None


def test_the_file_is_found_and_not_listed(lab: MountedLab) -> None:
    assert ".run" not in os.listdir(lab.path)
    assert (lab.path / ".run").stat().st_mode & 0o777 == 0o666


def test_it_answers_its_own_ioctls_and_nothing_else(lab: MountedLab) -> None:
    file = os.open(lab.path / ".run", os.O_RDWR | os.O_CLOEXEC)
    try:
        for number in (READ_ONLY_NUMBER, RUN_NODE + 1, ord(";") << 8 | 100):
            fails(errno.ENOTTY, fcntl.ioctl, file, number, bytes(24))
        fails(errno.EFAULT, fcntl.ioctl, file, RUN_NODE, 8)
        fails(errno.EINVAL, os.read, file, 24)
        fails(errno.EINVAL, os.write, file, bytes(24))
        fails(errno.ESPIPE, os.pread, file, 24, 0)
    finally:
        os.close(file)


@needs.root("asking as somebody else")
def test_every_user_may_ask(lab: MountedLab, vgpu: Vgpu) -> None:
    inode = vgpu.cdev.stat().st_ino
    folder = os.open(lab.path, os.O_PATH | os.O_DIRECTORY)
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            with LabInfo(folder) as asked:
                status = 0 if asked.node_of(inode) else 2
        os._exit(status)
    os.close(folder)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_lab_that_has_ended_is_an_error(tmp_path: Path) -> None:
    with vfsfuse.Lab(folder=tmp_path) as lab, asking(lab.path) as info:
        inode = (lab.path / "dev/iommu").stat().st_ino
        assert info.node_of(inode) == (NodeKind.CHARACTER, 10, 256)
        os.kill(lab.pid, signal.SIGKILL)
        with pytest.raises(OSError, match=r"connect|aborted"):
            while True:
                info.node_of(inode)


def test_a_listing_tells_no_types_of_nodes(lab: MountedLab, vgpu: Vgpu) -> None:
    """Programs that see DT_REG would not ask stat(2)."""
    for folder, name in (("dev", "iommu"), ("dev/vfio", vgpu.group), ("dev/vfio/devices", vgpu.vfio)):
        assert entry_type(lab.path / folder, name) == DT_UNKNOWN
    assert entry_type(lab.path / "sys/bus/pci", "rescan") == DT_REG
    assert entry_type(lab.gpu, "config") == DT_REG


def entry_type(folder: Path, name: str) -> int:
    """d_type of an entry, by readdir(3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir64.restype = ctypes.POINTER(DirectoryEntry)
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(folder)))
    assert stream.value
    try:
        while entry := libc.readdir64(stream):
            if entry.contents.d_name == name.encode():
                return int(entry.contents.d_type)
    finally:
        libc.closedir(stream)
    raise AssertionError(f"no {name} in {folder}")


class DirectoryEntry(ctypes.Structure):
    """struct dirent64"""

    _fields_ = [
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    ]
