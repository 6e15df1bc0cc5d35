# SPDX-License-Identifier: Apache-2.0
"""libvirt's node devices, unmodified, under `vfsfuse run --udev`: virsh asks a libvirtd, which finds the lab
and hears of its changes with libudev."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import virsh

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
NAME = f"mdev_{UUID.replace('-', '_')}_0000_86_00_0"
CREATE = f"echo {UUID} >/sys/class/mdev_bus/0000:86:00.0/mdev_supported_types/vgpu-4/create\n"
SCRIPT = f"""
ask nodedev-list --cap mdev
ask nodedev-list --cap mdev_types
ask nodedev-dumpxml {NAME}
ask nodedev-dumpxml pci_0000_86_00_0
status=0
ask nodedev-destroy {NAME} 2>&1 || status=$?
echo "$status"
ls /sys/bus/mdev/devices
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What virsh printed, one text for each question."""
    return virsh.answers(tmp_path_factory.mktemp("libvirt"), [], SCRIPT, before=CREATE)


def test_the_vgpu_is_listed(answers: list[str]) -> None:
    assert answers[0].split() == [NAME]


def test_the_gpu_is_listed_as_what_has_types(answers: list[str]) -> None:
    assert "pci_0000_86_00_0" in answers[1].split()


def test_a_vgpu_as_xml(answers: list[str]) -> None:
    device = ElementTree.fromstring(answers[2])
    assert device.findtext("name") == NAME
    assert device.findtext("parent") == "pci_0000_86_00_0"
    assert device.findtext("driver/name") == "vfio_mdev"
    capability = device.find("capability[@type='mdev']")
    assert capability is not None
    assert capability.findtext("uuid") == UUID and capability.findtext("parent_addr") == "0000:86:00.0"
    types, group = capability.find("type"), capability.find("iommuGroup")
    assert types is not None and types.get("id") == "vgpu-4"
    assert group is not None and str(group.get("number")).isdigit()


def test_the_gpu_as_xml_has_its_types(answers: list[str]) -> None:
    device = ElementTree.fromstring(answers[3])
    assert device.findtext("driver/name") == "vgpu"
    types = device.findall("capability/capability[@type='mdev_types']/type")
    available = {each.get("id"): each.findtext("availableInstances") for each in types}
    assert available == {"vgpu-1": "0", "vgpu-2": "1", "vgpu-4": "3", "vgpu-8": "6"}
    assert {each.findtext("deviceAPI") for each in types} == {"vfio-pci"}


def test_an_idle_vgpu_is_destroyed(answers: list[str]) -> None:
    """libvirt holds the group open meanwhile, which holds up no removal."""
    assert "error" not in answers[4] and answers[5].split() == ["0"]


# ---- libvirt makes vGPUs, and hears of what others do ----

ONE, TWO, OTHER = (f"6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e1{n}" for n in range(3))
GPU = "/sys/bus/pci/devices/0000:86:00.0"


def name_of(uuid: str) -> str:
    """libvirt's name of a vGPU."""
    return f"mdev_{uuid.replace('-', '_')}_0000_86_00_0"


def device(uuid: str) -> str:
    """The XML by which libvirt makes a vGPU."""
    capability = f"<capability type='mdev'><type id='vgpu-8'/><uuid>{uuid}</uuid></capability>"
    return f"<device><parent>pci_0000_86_00_0</parent>{capability}</device>"


LIFE = f"""
echo "{device(ONE)}" >"$HOME/one.xml"
echo "{device(TWO)}" >"$HOME/two.xml"
tell nodedev-event --event lifecycle --loop >"$HOME/events" &
listener=$!
until_so 'tell nodedev-list --cap pci | grep -q pci_0000_86_00_0'
ask nodedev-create "$HOME/one.xml"
ask nodedev-list --cap mdev
ask nodedev-define "$HOME/two.xml"
ask nodedev-list --cap mdev --inactive
tell nodedev-autostart {name_of(TWO)}
until_so 'tell nodedev-info {name_of(TWO)} | grep -q "^Autostart: *yes"'
ask nodedev-start {name_of(TWO)}
until_so 'tell nodedev-dumpxml {name_of(TWO)} | grep -q "<path>"'  # once libvirt hears of it from udev
ask nodedev-dumpxml {name_of(TWO)}
ls /sys/bus/mdev/devices
echo '{virsh.MARK}'
ask nodedev-destroy {name_of(ONE)}
ask nodedev-destroy {name_of(TWO)}
ls /sys/bus/mdev/devices
echo '{virsh.MARK}'
until_so 'tell nodedev-list --cap mdev --inactive | grep -q .'
ask nodedev-list --cap mdev --inactive
ask nodedev-undefine {name_of(TWO)}
until_so '! tell nodedev-list --cap mdev --all | grep -q .'
until_so 'grep -q Undefined "$HOME/events"'
kill $listener
cat "$HOME/events"
"""


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What virsh printed while it made vGPUs and took them away."""
    return virsh.answers(tmp_path_factory.mktemp("life"), [], LIFE)


def test_a_vgpu_is_created(life: list[str]) -> None:
    """nodedev-create returns when libvirt has heard of the vGPU from udev."""
    assert life[1].split() == [name_of(ONE)]


def test_a_vgpu_is_defined_and_started(life: list[str]) -> None:
    assert life[3].split() == [name_of(TWO)]
    made = ElementTree.fromstring(life[5])
    assert made.findtext("path", "").endswith(f"/0000:86:00.0/{TWO}")
    assert made.findtext("driver/name") == "vfio_mdev"
    assert life[6].split() == [ONE, TWO]


def test_a_defined_vgpu_outlives_its_end(life: list[str]) -> None:
    """It is inactive then, until it is undefined."""
    assert life[9] == "" and life[10].split() == [name_of(TWO)]


def test_virsh_is_told_what_happens(life: list[str]) -> None:
    told = re.findall(r"node device (\S+): (\w+)", life[-1])
    assert [what for name, what in told if name == name_of(ONE)] == ["Created", "Deleted"]
    of_two = [what for name, what in told if name == name_of(TWO)]
    assert (of_two[0], of_two[-1]) == ("Defined", "Undefined") and {"Created", "Deleted"} <= {*of_two}


HEARING = f"""
until_so 'tell nodedev-list --cap pci | grep -q pci_0000_86_00_0'
echo {OTHER} >{GPU}/mdev_supported_types/vgpu-8/create
until_so 'tell nodedev-list --cap mdev | grep -q .'
ask nodedev-list --cap mdev
echo 1 >{GPU}/{OTHER}/remove
until_so '! tell nodedev-list --cap mdev | grep -q .'
echo 1 >{GPU}/sriov_numvfs
function=$(basename "$(readlink {GPU}/virtfn0)")
echo "$function"
until_so 'tell nodedev-list --cap pci | grep -q "$(echo "pci_$function" | tr :. __)"'
echo 0 >{GPU}/sriov_numvfs
until_so '! tell nodedev-list --cap pci | grep -q "$(echo "pci_$function" | tr :. __)"'
"""


def test_libvirt_hears_of_what_other_programs_do(tmp_path: Path) -> None:
    """It lists what udev told of: vGPUs and virtual functions that come and go."""
    listed, function = virsh.answers(tmp_path, [], HEARING)
    assert listed == name_of(OTHER) and function.startswith("0000:86:")
