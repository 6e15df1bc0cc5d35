# SPDX-License-Identifier: Apache-2.0
"""libvirt's node devices, unmodified, under `vfsfuse run`: libvirtd finds a lab with libudev, virsh asks."""

from __future__ import annotations

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
