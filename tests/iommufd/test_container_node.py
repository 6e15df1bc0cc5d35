# SPDX-License-Identifier: Apache-2.0
"""A lab whose dev/vfio/vfio opens iommufds: `container = "iommufd"` of `[mount]`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator

import pytest

from tests.commands import vfsfuse
from tests.iommufd.client import RLIMIT_MODE, Cdev, Iommufd
from tests.labs import MountedLab, described
from tests.vfio import client
from tests.vfio.client import Container
from tests.vfio.copiers import LAB
from tests.vfio.devices import GPU, bound, opened


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("kernel"), LAB + '\n[mount]\ncontainer = "iommufd"\n') as mounted:
        yield mounted


def test_it_is_an_iommufd(lab: MountedLab) -> None:
    """It charges processes for memory, as containers do; an open of dev/iommu charges users."""
    with Iommufd(os.open(lab.path / "dev/vfio/vfio", os.O_RDWR)) as context:
        assert context.ioas() == 1
        assert context.get_option(RLIMIT_MODE) == 1
    with Iommufd(lab.path) as context:
        assert context.get_option(RLIMIT_MODE) == 0


def test_what_sysfs_shows(lab: MountedLab) -> None:
    assert stat.S_IMODE((lab.path / "dev/vfio/vfio").stat().st_mode) == 0o666
    assert (lab.path / "sys/class/misc/vfio/dev").read_text() == "10:196\n"
    assert not (lab.path / "sys/module/vfio_iommu_type1").exists()
    assert not (lab.path / "sys/module/vfio/holders/vfio_iommu_type1").exists()
    assert (lab.path / "sys/module/iommufd").is_dir()


def test_a_client_of_containers(lab: MountedLab) -> None:
    with bound(lab, GPU) as (number,), opened(lab, number, GPU, client.TYPE1) as function:
        assert function.container.check_extension(client.UPDATE_VADDR) == 0
        assert function.container.dma_avail == 2**32 - 1
        assert function.device.config(0)


def test_bind_takes_it(lab: MountedLab) -> None:
    with (
        lab.create("copier-1", "copiers") as vgpu,
        Container(lab.path) as container,
        Cdev(vgpu.cdev) as device,
    ):
        assert device.bind(container) == 1


def test_a_program_under_run(lab: MountedLab) -> None:
    with lab.create("copier-1", "copiers") as vgpu:
        command = [sys.executable, "-c", PROGRAM, vgpu.group, vgpu.name]
        done = vfsfuse("run", "--mount", lab.path, "--", *command)
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


PROGRAM = """
import sys
from tests.vfio.client import PAGE, Container, Group, Memory
from tests.vfio.devices import Device
container, group, memory = Container("/"), Group("/", sys.argv[1]), Memory(PAGE)
group.set_container(container)
container.set_iommu()
container.map(0, memory.address, PAGE)
with Device(group.device_fd(sys.argv[2])) as device:
    assert device.config(0)
print("ok")
"""
