# SPDX-License-Identifier: Apache-2.0
"""What is called after a close(2) finds the file closed, also on a busy machine.

The pump may stand still there in the middle of the release, and another one goes on.  A release that does not
end holds up nobody for long.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tests.commands
from tests.iommufd.bound import open_bound
from tests.iommufd.client import Iommufd
from tests.iommufd.devices import Copier
from tests.labs import MountedLab, Vgpu
from tests.late_server import NEVER, SECONDS
from tests.nvidia import host
from tests.vfio.client import Container, Group, fails
from tests.vfio.devices import group_device


def late_lab(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, *options: str | Path
) -> MountedLab:
    """A lab whose releases take so long."""
    monkeypatch.setenv("LATE", str(seconds))
    monkeypatch.setattr(tests.commands, "VFSFUSE", [sys.executable, "-m", "tests.late_server"])
    return MountedLab(folder, *map(str, options))


@pytest.fixture
def vgpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vgpu]:
    with late_lab(tmp_path, monkeypatch, SECONDS) as lab:
        yield lab.create()


def close_and_open(vgpu: Vgpu) -> None:
    os.close(vgpu.open())
    os.close(vgpu.open())


def close_and_open_the_group(vgpu: Vgpu) -> None:
    os.close(vgpu.open())
    Group(vgpu.lab.path, vgpu.group).close()


def close_the_group_and_open(vgpu: Vgpu) -> None:
    Group(vgpu.lab.path, vgpu.group).close()
    os.close(open_bound(vgpu.cdev))


def close_and_remove(vgpu: Vgpu) -> None:
    os.close(vgpu.open())
    vgpu.remove()


def close_and_unbind(vgpu: Vgpu) -> None:
    os.close(vgpu.open())
    (vgpu.lab.path / "sys/bus/mdev/drivers/vfio_mdev/unbind").write_text(vgpu.name)


def close_and_destroy(vgpu: Vgpu) -> None:
    """The IOAS that the device was attached to."""
    with Iommufd(vgpu.lab.path) as iommufd:
        with Copier(vgpu.cdev) as device:
            device.bind(iommufd)
            ioas = iommufd.ioas()
            device.attach(ioas)
        iommufd.destroy(ioas)


def close_and_leave(vgpu: Vgpu) -> None:
    """The container."""
    with Container(vgpu.lab.path) as container, Group(vgpu.lab.path, vgpu.group) as group:
        group.set_container(container)
        container.set_iommu()
        os.close(group_device(vgpu.lab.path, group, vgpu.name))
        group.unset_container()


CALLS = (
    *(close_and_open, close_and_open_the_group, close_the_group_and_open, close_and_remove),
    *(close_and_unbind, close_and_destroy, close_and_leave),
)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_call_comes_after_the_close_before_it(vgpu: Vgpu, call: Callable[[Vgpu], None]) -> None:
    call(vgpu)


def test_the_type_of_a_vgpu_is_taken_away_after_the_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NVIDIA's framework, whose stores are no tasks."""
    (tmp_path / "lab.toml").write_text(host.LAB)
    with late_lab(tmp_path, monkeypatch, SECONDS, "--config", tmp_path / "lab.toml") as lab:
        function = host.Host(lab).enable()[0]
        function.set(11)
        os.close(open_bound(function.cdev))
        function.set(0)
        assert function.type == 0


def test_a_release_that_does_not_end_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with late_lab(tmp_path, monkeypatch, NEVER) as lab:
        vgpu, other = lab.create(), lab.create()
        held, free = vgpu.open(), other.open()
        os.close(held)
        fails(errno.EBUSY, Group, lab.path, vgpu.group)
        fails(errno.EBUSY, vgpu.remove)
        for _ in range(20):
            assert len(os.pread(free, 4, 7 << 40)) == 4
            with Container(lab.path) as container:
                assert container.fd >= 0
