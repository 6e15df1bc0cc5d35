# SPDX-License-Identifier: Apache-2.0
"""Extended attributes of a lab's files, as sysfs and devtmpfs have them: trusted.* and security.*, for those
who have CAP_SYS_ADMIN.

Source: xattr(7), setxattr(2); what they say is compared with the machine's own sysfs.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT
from tests.labs import MountedLab, Vgpu

NAMES = ("trusted.libvirt.security.dac", "security.lab")
FILES = ("sys", "sys/bus/pci/devices", "sys/kernel/iommu_groups/0", "dev/vfio", "dev/vfio/vfio", "dev/iommu")
of_admin = needs.capability("CAP_SYS_ADMIN")


def refused(action: Callable[[], object]) -> int:
    """The errno of an action that fails, 0 of one that does not."""
    try:
        action()
    except OSError as error:
        return error.errno or 0
    return 0


@of_admin
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_one_is_set_read_listed_replaced_and_removed(lab: MountedLab, file: str, name: str) -> None:
    path = lab.path / file
    assert refused(lambda: os.getxattr(path, name)) == errno.ENODATA
    os.setxattr(path, name, b"one")
    assert os.getxattr(path, name) == b"one"
    assert os.listxattr(path) == [name]
    os.setxattr(path, name, b"\0two\0")
    assert os.getxattr(path, name) == b"\0two\0"
    os.removexattr(path, name)
    assert refused(lambda: os.getxattr(path, name)) == errno.ENODATA
    assert os.listxattr(path) == []


def the_errnos(path: Path) -> list[int]:
    """What calls on a file fail with."""
    calls: list[Callable[[], object]] = [
        lambda: os.setxattr(path, "trusted.a", b"", os.XATTR_REPLACE),
        lambda: os.setxattr(path, "trusted.a", b"", os.XATTR_CREATE),
        lambda: os.setxattr(path, "trusted.a", b"", os.XATTR_CREATE),
        lambda: os.setxattr(path, "trusted.a", b"x" * 65536, os.XATTR_REPLACE),
        lambda: os.setxattr(path, "trusted.a", b"x" * 65537, os.XATTR_REPLACE),
        lambda: os.removexattr(path, "trusted.a"),
        lambda: os.removexattr(path, "trusted.a"),
        lambda: os.getxattr(path, "security.selinux"),
        lambda: os.setxattr(path, "user.a", b"1"),
        lambda: os.removexattr(path, "user.a"),
        lambda: os.setxattr(path, "other.a", b"1"),
    ]
    return [refused(call) for call in calls]


@of_admin
@pytest.mark.skipif(not os.access("/sys/kernel/uevent_seqnum", os.F_OK), reason="needs sysfs at /sys")
def test_the_errnos_are_those_of_sysfs(lab: MountedLab) -> None:
    ours = the_errnos(lab.parent("0000:86:00.0") / "uevent")
    assert ours == the_errnos(Path("/sys/kernel/uevent_seqnum"))
    assert ours[:3] == [errno.ENODATA, 0, errno.EEXIST]


@of_admin
def test_they_do_not_outlive_their_file(lab: MountedLab) -> None:
    with lab.create() as vgpu:
        group = group_of(lab, vgpu)
        for path in (group, vgpu.path):
            os.setxattr(path, "trusted.a", b"1")
    with lab.create() as again:
        assert group_of(lab, again) == group
        for path in (group, again.path):
            assert os.listxattr(path) == []


def group_of(lab: MountedLab, vgpu: Vgpu) -> Path:
    """The file of a vGPU's group."""
    return lab.path / "dev/vfio" / (vgpu.path / "iommu_group").resolve().name


@of_admin
def test_they_leave_mode_and_owner(lab: MountedLab) -> None:
    path = lab.path / "dev/vfio/vfio"
    before = os.stat(path)
    os.setxattr(path, "trusted.a", b"1")
    os.chown(path, 1, 1)
    os.removexattr(path, "trusted.a")
    assert os.stat(path).st_uid == 1
    os.chown(path, before.st_uid, before.st_gid)
    assert os.stat(path).st_mode == before.st_mode


AS_A_USER = """
import os, sys
path, errnos = f"/proc/self/fd/{sys.argv[1]}", []
for call in (
    lambda: os.setxattr(path, "trusted.a", b"2"), lambda: os.getxattr(path, "trusted.a"),
    lambda: os.setxattr(path, "security.a", b"2"), lambda: os.removexattr(path, "trusted.a"),
):
    try:
        call()
    except OSError as error:
        errnos.append(error.errno)
print(errnos, os.listxattr(path))
"""


@of_admin
@needs.root("it acts as root and as somebody else")
def test_a_user_neither_sets_nor_sees_trusted_ones(lab: MountedLab) -> None:
    path = lab.path / "sys/bus"
    fd = os.open(path, os.O_RDONLY)  # the directories above are closed to others
    os.setxattr(path, "trusted.a", b"1")
    os.setxattr(path, "security.a", b"1")
    try:
        command = [sys.executable, "-m", "tests.ordinary_user", sys.executable, "-c", AS_A_USER]
        done = subprocess.run(
            [*command, str(fd)], cwd=ROOT, capture_output=True, text=True, check=True, pass_fds=[fd]
        )
        expected = [errno.EPERM, errno.ENODATA, errno.EPERM, errno.EPERM]
        assert done.stdout == f"{expected} ['security.a']\n"
    finally:
        os.close(fd)
        for name in ("trusted.a", "security.a"):
            os.removexattr(path, name)
