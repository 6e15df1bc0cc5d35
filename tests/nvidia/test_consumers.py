# SPDX-License-Identifier: Apache-2.0
"""Programs that manage vGPUs find in examples/vendor_host.toml what they look for, and can use it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.labs import MountedLab
from tests.nvidia import consumers
from tests.nvidia.consumers import DeviceManager, Unusable, VfioManager
from tests.nvidia.host import Host, Vf
from tests.vfio.devices import opened

VFS = 32


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    config = str(ROOT / "examples/vendor_host.toml")
    with MountedLab(tmp_path_factory.mktemp("vendor"), "--config", config) as lab:
        found = Host(lab)
        found.enable(VFS)
        yield found


@pytest.fixture
def sys(host: Host) -> Iterator[Path]:
    """The tree, with no vGPU again in the end."""
    yield host.lab.path / "sys"
    for index in range(VFS):
        if host.vf(index).type:
            host.vf(index).set(0)


def test_vgpu_device_manager_by_nvpci(host: Host, sys: Path) -> None:
    manager = DeviceManager(sys)
    (gpu,) = manager.gpus
    assert (gpu.device, gpu.class_, gpu.driver, gpu.vfs) == (0x2AB0, 0x0300, "nvidia", VFS)
    assert (len(manager.vfs), manager.config()) == (VFS, {})
    used = [manager.create(name) for name in ("LABA48-8Q", "LABA48-8A", "LABA48-8Q")]
    assert len(set(used)) == 3 and manager.config() == {"1306": 2, "1346": 1}
    with pytest.raises(Unusable):
        manager.create("LABA48-4Q")
    for _ in range(3):
        manager.create("LABA48-8C")
    with pytest.raises(Unusable):
        manager.create("LABA48-8C")
    manager.clear()
    assert manager.config() == {} and host.vgpus == 0


def test_vgpu_device_manager_by_files(host: Host, sys: Path) -> None:
    manager = VfioManager(sys)
    (gpu,) = manager.gpus
    assert [folder.parent.name for folder in manager.vfs(gpu)] == [
        host.vf(index).name for index in range(VFS)
    ]
    manager.set_config({"LABA48-4Q": 3, "LABA48-4A": 2})
    assert [host.vf(index).type for index in range(6)] == [1304, 1304, 1304, 1334, 1334, 0]
    manager.set_config({"LABA48-24Q": 2})
    assert [host.vf(index).type for index in range(3)] == [1309, 1309, 0]
    with pytest.raises(Unusable):
        manager.set_config({"LABA48-24Q": 3})


def test_device_plugins_of_kubevirt(host: Host, sys: Path) -> None:
    assert consumers.gpu_device_plugin(sys) == {} and consumers.virt_handler(sys, "10DE:2AB0") == []
    vfs = [host.vf(index) for index in (0, 5, 31)]
    for vf, number in zip(vfs, (1306, 1346, 1306), strict=True):
        vf.set(number)
    places = [(vf.name, vf.group, -1) for vf in vfs]
    assert consumers.gpu_device_plugin(sys) == {
        "NVIDIA_LABA48-8Q": [places[0], places[2]],
        "NVIDIA_LABA48-8A": [places[1]],
    }
    assert consumers.virt_handler(sys, "10de:2ab0") == [("nvidia", vf.name, vf.group) for vf in vfs]


def test_proxmox(host: Host, sys: Path) -> None:
    vf = host.vf(0)
    assert consumers.proxmox_start(sys, vf.name, "nvidia-1306") == ["-device", f"vfio-pci,host={vf.name}"]
    consumers.proxmox_start(sys, vf.name, "nvidia-1306")  # it has the type already
    consumers.proxmox_start(sys, vf.name, "nvidia-1304")
    assert vf.type == 1304
    with pytest.raises(Unusable):
        consumers.proxmox_start(sys, host.vf(1).name, "nvidia-1306")
    consumers.proxmox_stop(sys, vf.name)
    consumers.proxmox_stop(sys, vf.name)
    assert vf.type == 0


def test_harvester(host: Host, sys: Path) -> None:
    vf, other = host.vf(0), host.vf(1)
    types = consumers.harvester_types(sys, vf.name)
    assert len(types) == 16 and types["NVIDIA LABA48-8Q"] == "1306"
    consumers.harvester_set(sys, vf.name, types["NVIDIA LABA48-48Q"])
    assert consumers.harvester_types(sys, vf.name) == consumers.harvester_types(sys, other.name) == {}
    consumers.harvester_set(sys, vf.name, "0")
    assert consumers.harvester_types(sys, other.name) == types


def test_open_nebula(host: Host, sys: Path) -> None:
    assert consumers.open_nebula_default(sys, host.vf(3).name) == "1301"


def test_hypeman(host: Host, sys: Path) -> None:
    vf = host.vf(0)
    types = consumers.hypeman_types(sys, vf.name)
    assert types[1306] == ("NVIDIA LABA48-8Q", 8) and len(types) == 16
    vf.set(1306)
    assert not consumers.hypeman_in_use(host.lab.path / "dev", vf.vfio, vf.group)
    with opened(host.lab, vf.group, vf.name):
        assert consumers.hypeman_in_use(host.lab.path / "dev", vf.vfio, vf.group)
    Vf(host, 0).write("vgpu_params", " ")


def test_the_mdev_form_is_not_taken_for_this_one(tmp_path: Path) -> None:
    with MountedLab(tmp_path, "--config", str(ROOT / "examples/vendor_mdev.toml")) as lab:
        with pytest.raises(Unusable, match="mdev"):
            VfioManager(lab.path / "sys")
        parent = lab.parent("0000:86:00.0")
        types = parent / "mdev_supported_types"
        shown = {name: (types / name / "name").read_text().strip() for name in os.listdir(types)}
        assert len(shown) == 16 and shown["nvidia-1306"] == "NVIDIA LABA48-8Q"
        with lab.create("nvidia-1306"):
            left = {name: int((types / name / "available_instances").read_text()) for name in shown}
            assert {name: count for name, count in left.items() if count} == {
                "nvidia-1306": 5,
                "nvidia-1346": 5,
                "nvidia-1356": 5,
            }
            with pytest.raises(OSError, match="No space left"):
                lab.create("nvidia-1301")
