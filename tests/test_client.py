# SPDX-License-Identifier: Apache-2.0
"""The C clients of the README: iommufd on the bare mount with nothing else running, groups under a run."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs
from tests.commands import run, vfsfuse
from tests.labs import MountedLab
from tests.vfio.client import GROUP_GET_DEVICE_FD, GROUP_GET_STATUS, GROUP_SET_CONTAINER, SET_IOMMU

Compile = Callable[..., Path]
CONFIG = 7 << 40
BAR2 = 2 << 40


SAID = f"{'no mmap' if needs.NO_PASSTHROUGH else 'mmap'}\n", "an interrupt, and 42 by DMA\n", "ok\n"
"""What clients/iommufd_client.c prints."""


@pytest.mark.parametrize("linking", [(), ("-static",)], ids=["dynamic", "static"])
def test_the_iommufd_client_works(lab: MountedLab, compile_client: Compile, linking: tuple[str, ...]) -> None:
    with lab.create() as vgpu:
        done = run([compile_client("iommufd_client", *linking), lab.path / "dev", vgpu.vfio])
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "".join(SAID))


def test_two_iommufd_clients_at_once(lab: MountedLab, compile_client: Compile) -> None:
    client = compile_client("iommufd_client")
    with lab.create() as one, lab.create() as two:
        started = [subprocess.Popen([client, lab.path / "dev", vgpu.vfio]) for vgpu in (one, two)]
        assert [each.wait(30) for each in started] == [0, 0]


USERS = """\
import os, subprocess, sys, tempfile
from pathlib import Path
from tests.labs import MountedLab
with tempfile.TemporaryDirectory() as folder, MountedLab(Path(folder)) as lab, lab.create() as vgpu:
    assert os.geteuid()
    sys.exit(subprocess.run([sys.argv[1], lab.path / "dev", vgpu.vfio]).returncode)
"""


@needs.open_fuse
@needs.root("the other tests run as an ordinary user already")
def test_an_ordinary_users_iommufd_client_works(compile_client: Compile) -> None:
    """In a lab of their own, where no memory can be mapped."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        client = shutil.copy(compile_client("iommufd_client", "-static"), folder)
        done = run([sys.executable, "-m", "tests.ordinary_user", sys.executable, "-c", USERS, client])
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "".join(("no mmap\n", *SAID[1:])))


def test_the_vfio_client_works_by_its_group(lab: MountedLab, compile_client: Compile) -> None:
    """Under `vfsfuse run`; what it stores is in the resource file of BAR 0."""
    with lab.create() as vgpu:
        client: list[str | Path] = [
            compile_client("vfio_client"),
            vgpu.group,
            vgpu.name,
            vgpu.path / "resource0",
        ]
        done = vfsfuse("run", "--mount", lab.path, "--", *client)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{SAID[0]}ok\n")


@pytest.mark.parametrize("linking", [(), ("-static",)], ids=["dynamic", "static"])
def test_the_vfio_client_works_with_a_container_of_iommufd(
    lab: MountedLab, compile_client: Compile, tmp_path: Path, linking: tuple[str, ...]
) -> None:
    """Its folder has what `ln -sf /dev/iommu /dev/vfio/vfio` makes of /dev/vfio."""
    with lab.create() as vgpu:
        (tmp_path / "vfio").symlink_to(lab.path / "dev/iommu")
        (tmp_path / vgpu.group).symlink_to(lab.path / "dev/vfio" / vgpu.group)
        client: list[str | Path] = [compile_client("vfio_client", *linking), "-d", tmp_path]
        client += [vgpu.group, vgpu.name, vgpu.path / "resource0"]
        done = vfsfuse("run", "--mount", lab.path, "--", *client)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{SAID[0]}ok\n")


@needs.passthrough
def test_bytes_are_the_same_by_every_way_in(lab: MountedLab) -> None:
    with (
        lab.create() as vgpu,
        open(vgpu.open(), "r+b", 0) as device,
        open(vgpu.path / "resource0", "r+b", 0) as bar,
        mmap.mmap(device.fileno(), 1 << 20) as mapped,
        mmap.mmap(bar.fileno(), 1 << 20) as other,
    ):
        compare(device.fileno(), bar.fileno(), mapped, other)


def compare(device: int, bar: int, mapped: mmap.mmap, other: mmap.mmap) -> None:
    """What is written by any of four ways is read by the others."""
    mapped[0:8] = b"by mmap."
    assert os.pread(device, 8, 0) == os.pread(bar, 8, 0) == other[0:8] == b"by mmap."
    os.pwrite(device, b"by write", 4096)
    assert mapped[4096:4104] == other[4096:4104] == os.pread(bar, 8, 4096) == b"by write"
    os.pwrite(bar, b"by sysfs", 65536)
    assert mapped[65536:65544] == os.pread(device, 8, 65536) == b"by sysfs"


def test_registers_and_config_trap(lab: MountedLab) -> None:
    with lab.create() as vgpu, open(vgpu.open(), "r+b", 0) as device:
        fd = device.fileno()
        assert os.pread(fd, 4, CONFIG) == bytes.fromhex("34121111")
        os.pwrite(fd, b"\xff\xff\xff\xff", CONFIG + 0x10)
        sized = int.from_bytes(os.pread(fd, 4, CONFIG + 0x10), "little")
        assert (sized & 0xF, -(sized & ~0xF) & 0xFFFFFFFF) == (
            8,
            32 << 20,
        )  # an eighth of 256 MiB, prefetchable
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4, BAR2 + 8192)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4, 12 << 40)
        assert caught.value.errno == errno.EINVAL


def test_an_idle_device_has_no_memory_until_it_is_touched(lab: MountedLab) -> None:
    """A gigabyte of address space costs nothing; what a client touches is there for the next one."""
    with lab.create("vgpu-1") as vgpu, open(vgpu.open(), "r+b", 0) as device:
        os.pwrite(device.fileno(), b"here", (256 << 20) - 4)
        resident = int((Path("/proc") / str(lab.pid) / "statm").read_text().split()[1]) * 4096
        assert resident < 120 << 20


def test_no_descriptor_on_the_bare_mount(lab: MountedLab) -> None:
    """GET_DEVICE_FD needs `vfsfuse run`; without, it fails and says so in the log, and loses nothing."""
    with (
        lab.create() as vgpu,
        open(lab.path / "dev/vfio/vfio", "r+b", 0) as container,
        open(lab.path / "dev/vfio" / vgpu.group, "r+b", 0) as group,
    ):
        fd = container.fileno().to_bytes(4, "little")
        fcntl.ioctl(group, GROUP_SET_CONTAINER, fd)
        fcntl.ioctl(container, SET_IOMMU, 3)
        with pytest.raises(OSError) as caught:
            fcntl.ioctl(group, GROUP_GET_DEVICE_FD, vgpu.name.encode() + b"\0")
        assert caught.value.errno == errno.EOPNOTSUPP
        assert "vfsfuse run" in lab.log
        status = bytearray(b"\x08\0\0\0\0\0\0\0")
        fcntl.ioctl(group, GROUP_GET_STATUS, status)
        assert status == b"\x08\0\0\0\x03\0\0\0"
