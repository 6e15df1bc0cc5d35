# SPDX-License-Identifier: Apache-2.0
"""Where the character devices of devices are, as the lab file says: in dev/vfio/devices and in sysfs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import run
from tests.iommufd.client import Cdev, Iommufd
from tests.iommufd.devices import LAB, UNPROTECTED, Copier, cdev_of
from tests.labs import MountedLab, described
from tests.vfio.client import PAGE, Memory, fails
from tests.vfio.copiers import DONE, GPU
from tests.vfio.devices import bound, function_dir, opened

NOIOMMU = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


def lab(folder: Path, *keys: str) -> MountedLab:
    """A lab with these keys of `[mount]`."""
    return described(folder, "\n".join([LAB, "[mount]", *keys]))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("nodes"), LAB) as mounted:
        yield mounted


@pytest.fixture
def noiommu(machine: MountedLab) -> Iterator[Path]:
    """The character device of a function without an IOMMU."""
    (machine.path / NOIOMMU).write_text("Y")
    with bound(machine, UNPROTECTED):
        yield cdev_of(machine, UNPROTECTED)
    (machine.path / NOIOMMU).write_text("N")


def numbers_agree(machine: MountedLab, device: Path, name: str) -> None:
    """Assert that all files in sysfs say the same of the character device `name`."""
    sys = machine.path / "sys"
    assert os.listdir(device / "vfio-dev") == [name]
    own = device / "vfio-dev" / name
    number = (own / "dev").read_text().strip()
    assert number == f"510:{name.rpartition('vfio')[2]}"
    for link in (sys / "class/vfio-dev" / name, sys / "dev/char" / number):
        assert link.resolve() == own.resolve()
    uevent = (own / "uevent").read_text().split()
    assert uevent == [
        f"MAJOR={number.partition(':')[0]}",
        f"MINOR={number.partition(':')[2]}",
        f"DEVNAME=vfio/devices/{name}",
    ]
    assert (own / "device").resolve() == device.resolve()
    assert (machine.path / "dev" / uevent[2].removeprefix("DEVNAME=")).is_file()


def test_a_device_is_where_sysfs_says(machine: MountedLab) -> None:
    with machine.create("copier-1", "copiers") as vgpu, bound(machine, GPU):
        numbers_agree(machine, vgpu.path, vgpu.vfio)
        numbers_agree(machine, function_dir(machine, GPU), cdev_of(machine, GPU).name)
        assert sorted(os.listdir(machine.path / "dev/vfio/devices")) == sorted(
            [vgpu.vfio, cdev_of(machine, GPU).name]
        )


def test_without_an_iommu_it_has_another_name(machine: MountedLab, noiommu: Path) -> None:
    assert noiommu.name.startswith("noiommu-vfio") and noiommu.exists()
    numbers_agree(machine, function_dir(machine, UNPROTECTED), noiommu.name)
    assert (
        f"noiommu-{os.readlink(function_dir(machine, UNPROTECTED) / 'iommu_group').rpartition('/')[2]}"
        in (os.listdir(machine.path / "dev/vfio"))
    )


def test_it_takes_cap_sys_rawio(machine: MountedLab, noiommu: Path) -> None:
    if not needs.has_capability("CAP_SYS_RAWIO"):
        fails(errno.EPERM, Cdev, noiommu)
        return
    without = ["setpriv", "--bounding-set", "-sys_rawio", "--inh-caps", "-sys_rawio"]
    done = run([*without, "sh", "-c", f"exec 3<>{noiommu}"])
    assert "Operation not permitted" in done.stderr
    Cdev(noiommu).close()


@needs.capability("CAP_SYS_RAWIO")
def test_it_attaches_to_pages_of_software(noiommu: Path, iommufd: Iommufd) -> None:
    with Copier(noiommu) as device:
        assert device.ready(iommufd) == 1
        ioas = iommufd.ioas()
        assert device.attach(ioas) == 3
        assert iommufd.ranges(ioas)[1] == PAGE
        assert device.attach(ioas) == 3
        device.detach()
        fails(errno.ENOENT, iommufd.destroy, 3)


# ---- as kernels differ ----


def test_without_cdevs(tmp_path: Path) -> None:
    with (
        lab(tmp_path, "cdevs = false") as machine,
        machine.create("copier-1", "copiers") as vgpu,
        Iommufd(machine.path) as iommufd,
    ):
        assert sorted(os.listdir(machine.path / "dev/vfio")) == sorted([vgpu.group, "vfio"])
        own = machine.path / "sys/class/vfio-dev" / vgpu.vfio
        assert not (own / "dev").exists() and not (own / "uevent").read_text().strip()
        assert not any(name.startswith("510:") for name in os.listdir(machine.path / "sys/dev/char"))
        with opened(machine, vgpu.group, vgpu.name) as found, Cdev(os.dup(found.device.fd)) as device:
            fails(errno.ENOTTY, device.bind, iommufd)
            fails(errno.ENOTTY, device.bind, iommufd, argsz=0)


def test_without_groups(tmp_path: Path) -> None:
    with lab(tmp_path, "groups = false") as machine:
        sys = machine.path / "sys"
        with machine.create("copier-1", "copiers") as vgpu, Iommufd(machine.path) as iommufd:
            assert os.listdir(machine.path / "dev/vfio") == ["devices"]
            assert not (sys / "class/vfio").exists() and not (sys / "class/misc/vfio").exists()
            assert not (sys / "devices/virtual/vfio").exists()
            assert not (sys / "module/vfio_iommu_type1").exists() and (sys / "module/vfio").exists()
            assert not any(name.startswith("511:") for name in os.listdir(sys / "dev/char"))
            assert not (vgpu.path / "iommu_group").exists()
            numbers_agree(machine, vgpu.path, vgpu.vfio)
            with Copier(vgpu.cdev) as copier:
                copier.ready(iommufd)
                ioas, memory = iommufd.ioas(), Memory(2 * PAGE)
                iommufd.map(ioas, memory.address, memory.size, 0x10000)
                copier.attach(ioas)
                assert copier.copy(0x10000, 0x10000 + PAGE, 8) == DONE
        with bound(machine, GPU):
            assert (function_dir(machine, GPU) / "iommu_group").exists()


def test_without_either(tmp_path: Path) -> None:
    with (
        lab(tmp_path, "cdevs = false", "groups = false") as machine,
        machine.create("copier-1", "copiers") as vgpu,
    ):
        assert os.listdir(machine.path / "dev") == ["iommu"]
        assert os.listdir(vgpu.path / "vfio-dev") == [vgpu.vfio]
