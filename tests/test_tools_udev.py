# SPDX-License-Identifier: Apache-2.0
"""udev's view of a lab, unmodified, under `vfsfuse run`: udevadm info and trigger, and pyudev of the system.

Source of the variables: the uevent() of each bus and class in Linux (Documentation/ABI/testing/sysfs-uevent).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import vfsfuse
from tests.labs import MountedLab, Vgpu
from tests.tool import SYSTEM_PYTHON, Tool, need, need_pyudev

GPU = "0000:86:00.0"
LIST = """
import json, pyudev, sys
found = []
for device in pyudev.Context().list_devices(subsystem=sys.argv[1]):
    found.append({
        "path": device.sys_path,
        "driver": device.driver,
        "properties": dict(device.properties),
        "parents": [parent.sys_path for parent in device.ancestors],
        "node": device.device_node,
    })
print(json.dumps(found))
"""
SUBSYSTEMS = ("pci", "mdev", "mtty", "vfio", "vfio-dev", "iommu", "misc")


@dataclass(frozen=True)
class Objects:
    """What the tests look at, in a mounted lab."""

    lab: MountedLab
    vgpu: Vgpu
    """A vGPU of the GPU."""
    card: Vgpu
    """A serial card of a virtual parent."""
    vf: str
    """A virtual function that vfio-pci has."""

    def path(self, place: str) -> Path:
        """The directory that `place`, a path below sys, leads to."""
        return (self.lab.path / "sys" / place).resolve()

    def devpath(self, place: str) -> str:
        """Its DEVPATH."""
        return "/" + os.path.relpath(self.path(place), self.lab.path / "sys")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Objects]:
    need("udevadm", "udev")
    with MountedLab(tmp_path_factory.mktemp("lab")) as lab:
        vgpu, card = lab.create("vgpu-8"), lab.create("mtty-2", "mtty")
        functions = lab.path / "sys/bus/pci/devices"
        (functions / GPU / "sriov_numvfs").write_text("1")
        vf = (functions / GPU / "virtfn0").readlink().name
        (functions / vf / "driver_override").write_text("vfio-pci")
        (lab.path / "sys/bus/pci/drivers_probe").write_text(vf)
        yield Objects(lab, vgpu, card, vf)


def group(objects: Objects, name: str) -> str:
    return (objects.path(f"bus/pci/devices/{name}") / "iommu_group").readlink().name


def place_of(objects: Objects, what: str) -> str:
    """Where an object is, below sys."""
    places = {
        "GPU": f"bus/pci/devices/{GPU}",
        "root port": os.path.relpath(objects.path(f"bus/pci/devices/{GPU}").parent, objects.path("")),
        "virtual function": f"bus/pci/devices/{objects.vf}",
        "vGPU": f"bus/mdev/devices/{objects.vgpu.name}",
        "serial card": f"bus/mdev/devices/{objects.card.name}",
        "virtual parent": "class/mdev_bus/mtty",
        "group": f"class/vfio/{objects.vgpu.group}",
        "vfio device": f"class/vfio-dev/{objects.vgpu.vfio}",
        "container": "class/misc/vfio",
        "iommufd": "class/misc/iommu",
        "IOMMU": "class/iommu/dmar0",
    }
    return places[what]


def expected(objects: Objects, what: str) -> dict[str, str]:
    """The properties that udev knows of an object, besides DEVPATH and numbers."""
    gpu = {"SUBSYSTEM": "pci", "DRIVER": "vgpu", "PCI_CLASS": "30000", "PCI_ID": "1234:86F0"}
    gpu |= {"PCI_SUBSYS_ID": "1AF4:1100", "PCI_SLOT_NAME": GPU}
    gpu |= {"MODALIAS": "pci:v00001234d000086F0sv00001AF4sd00001100bc03sc00i00"}
    mdev = {"SUBSYSTEM": "mdev", "DRIVER": "vfio_mdev"}
    nodes = {
        "group": ("vfio", f"/dev/vfio/{objects.vgpu.group}"),
        "vfio device": ("vfio-dev", f"/dev/vfio/devices/{objects.vgpu.vfio}"),
        "container": ("misc", "/dev/vfio/vfio"),
        "iommufd": ("misc", "/dev/iommu"),
    }
    kinds = {
        "GPU": gpu,
        "root port": {"SUBSYSTEM": "pci", "DRIVER": "pcieport", "PCI_CLASS": "60400"},
        "virtual function": {"SUBSYSTEM": "pci", "DRIVER": "vfio-pci", "PCI_SLOT_NAME": objects.vf},
        "vGPU": mdev,
        "serial card": mdev,
        "virtual parent": {"SUBSYSTEM": "mtty"},
        "IOMMU": {"SUBSYSTEM": "iommu"},
        **{name: {"SUBSYSTEM": subsystem, "DEVNAME": node} for name, (subsystem, node) in nodes.items()},
    }
    return kinds[what]


WHAT = (
    *("GPU", "root port", "virtual function", "vGPU", "serial card", "virtual parent"),
    *("group", "vfio device", "container", "iommufd", "IOMMU"),
)


@pytest.mark.parametrize("what", WHAT)
def test_udevadm_knows_the_properties_of(objects: Objects, what: str) -> None:
    place = place_of(objects, what)
    shown = Tool(objects.lab, "udevadm").quiet("info", "-q", "property", "-p", f"/sys/{place}")
    properties = dict(line.split("=", 1) for line in shown.splitlines())
    wanted = expected(objects, what) | {"DEVPATH": objects.devpath(place)}
    assert {key: properties.get(key) for key in wanted} == wanted
    if "DEVNAME" in wanted:
        number = (objects.path(place) / "dev").read_text().strip()
        assert f"{properties['MAJOR']}:{properties['MINOR']}" == number
        assert objects.path(f"dev/char/{number}") == objects.path(place)


def test_udevadm_info_walks_up_to_the_host_bridge(objects: Objects) -> None:
    device = place_of(objects, "vfio device")
    shown = Tool(objects.lab, "udevadm").quiet("info", "-a", "-p", f"/sys/{device}")
    looked = [line.split("'")[1] for line in shown.splitlines() if line.startswith("  looking at")]
    chain = [objects.devpath(device)]
    chain += [objects.devpath(f"bus/mdev/devices/{objects.vgpu.name}")]
    above = objects.path(f"bus/pci/devices/{GPU}")
    while above.name != "devices":
        chain.append("/" + os.path.relpath(above, objects.path("")))
        above = above.parent
    assert looked == chain
    assert 'ATTRS{vendor}=="0x1234"' in shown and 'DRIVERS=="vgpu"' in shown


def test_udevadm_trigger_names_each_device_once(objects: Objects) -> None:
    shown = Tool(objects.lab, "udevadm").quiet("trigger", "--dry-run", "--verbose").splitlines()
    own = [line for line in shown if not line.startswith("/sys/devices/virtual/net/")]
    listed = [
        entry.resolve()
        for pattern in ("bus/*/devices/*", "class/*/*")
        for entry in objects.path("").glob(pattern)
        if entry.is_symlink() and entry.parent.name != "vgpu"  # no device, and none to udev
    ]
    assert sorted(own) == sorted({f"/sys{objects.devpath(str(path))}" for path in listed})
    for path in own:
        assert (objects.path(path[5:]) / "uevent").exists() and (
            objects.path(path[5:]) / "subsystem"
        ).exists()


@pytest.mark.parametrize("subsystem", ["pci", "mdev", "vfio", "vfio-dev"])
def test_udevadm_trigger_of_one_subsystem(objects: Objects, subsystem: str) -> None:
    arguments = ("trigger", "--dry-run", "--verbose", f"--subsystem-match={subsystem}")
    shown = Tool(objects.lab, "udevadm").quiet(*arguments).splitlines()
    where = f"bus/{subsystem}/devices" if subsystem in ("pci", "mdev") else f"class/{subsystem}"
    listed = {f"/sys{objects.devpath(f'{where}/{name}')}" for name in os.listdir(objects.path(where))}
    assert sorted(shown) == sorted(listed) and listed


@pytest.fixture(scope="module")
def pyudev() -> None:
    need_pyudev()


@pytest.mark.parametrize("subsystem", SUBSYSTEMS)
def test_pyudev_lists(objects: Objects, pyudev: None, subsystem: str) -> None:
    command = (SYSTEM_PYTHON, "-W", "ignore", "-c", LIST, subsystem)
    done = vfsfuse("run", "--mount", objects.lab.path, "--", *command)
    assert (done.returncode, done.stderr) == (0, "")
    found = {device["path"]: device for device in json.loads(done.stdout)}
    where = f"bus/{subsystem}/devices" if subsystem in ("pci", "mdev") else f"class/{subsystem}"
    names = os.listdir(objects.path(where))
    assert set(found) == {f"/sys{objects.devpath(f'{where}/{name}')}" for name in names} != set()
    for path, device in found.items():
        assert device["properties"]["SUBSYSTEM"] == subsystem
        assert device["properties"]["DEVPATH"] == path.removeprefix("/sys")
        assert all(path.startswith(f"{parent}/") for parent in device["parents"])
        assert not device["node"] or (objects.lab.path / device["node"].lstrip("/")).exists()


def test_pyudev_knows_drivers_and_parents(objects: Objects, pyudev: None) -> None:
    command = (SYSTEM_PYTHON, "-W", "ignore", "-c", LIST, "vfio-dev")
    devices = json.loads(vfsfuse("run", "--mount", objects.lab.path, "--", *command).stdout)
    parents = {
        Path(device["path"]).name: [Path(each).name for each in device["parents"]] for device in devices
    }
    assert parents[objects.vgpu.vfio][:2] == [objects.vgpu.name, GPU]
    assert parents[objects.card.vfio] == [objects.card.name, "mtty"]
    command = (SYSTEM_PYTHON, "-W", "ignore", "-c", LIST, "pci")
    devices = json.loads(vfsfuse("run", "--mount", objects.lab.path, "--", *command).stdout)
    drivers = {Path(device["path"]).name: device["driver"] for device in devices}
    assert drivers.pop(GPU) == "vgpu" and drivers.pop(objects.vf) == "vfio-pci"
    assert set(drivers.values()) == {"pcieport"}
