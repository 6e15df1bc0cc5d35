# SPDX-License-Identifier: Apache-2.0
"""Groups that follow from bridges and from a lab file, on a real mount: which functions are together, that
bridges harm no group, physical and virtual functions in one, and IOMMU units with scopes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.labs import MountedLab, described
from tests.vfio.client import Container, Group, fails
from tests.vfio.devices import Device, function_dir, give_back, group_device, vfio_pci
from tests.vfio.test_device import hot_reset, hot_reset_info
from tests.vfio.test_shared_groups import driver, members, number_of, unbind

DESKTOP, SOUND, CARD, SLOT = "0000:01:00.0", "0000:01:00.1", "0000:06:01.0", "0000:06:02.0"
PORT, UP, DOWN, BELOW, BRIDGE = "0000:00:01.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0", "0000:05:00.0"
NIC, DISK, FAR = "0000:08:00.0", "0000:00:05.0", "0000:81:00.0"
FIRST, SECOND = "0000:0a:00.0", "0000:0b:00.0"
LAB = f"""
roots."0000:80" = {{}}
[functions]
"0000:00:00.0" = {{ class = 0x060000 }}
"{PORT}" = {{ bridge = "root-port", secondary = 1, acs = false }}
"{DESKTOP}" = {{ driver = "gfx", class = 0x030000, capabilities = ["express"] }}
"{SOUND}" = {{ driver = "snd", class = 0x040300, capabilities = ["express"] }}
"0000:00:02.0" = {{ bridge = "root-port", secondary = 2, subordinate = 4 }}
"{UP}" = {{ bridge = "switch-upstream", secondary = 3 }}
"{DOWN}" = {{ bridge = "switch-downstream", secondary = 4, acs = false }}
"{BELOW}" = {{ driver = "nvme" }}
"0000:00:03.0" = {{ bridge = "root-port", secondary = 5, subordinate = 6 }}
"{BRIDGE}" = {{ bridge = "pci", secondary = 6 }}
"{CARD}" = {{ driver = "snd" }}
"{SLOT}" = {{ driver = "serial" }}
"{NIC}" = {{ driver = "ice", vfs = 2, vf = {{ group = "physical" }}, group = 40 }}
"{DISK}" = {{ driver = "ahci", group = 3 }}
"{FAR}" = {{ driver = "ice", group = 3 }}
"{FIRST}" = {{ driver = "nvme", group = "pair", slot = "5" }}
"{SECOND}" = {{ driver = "nvme", group = "pair", slot = "6", plugged = false }}

[iommu.units]
ivhd0 = {{ scope = ["0000:00:02.0", "0000:00:03.0"] }}
ivhd1 = {{}}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("bridged"), LAB) as mounted:
        yield mounted


def driverless(machine: MountedLab, name: str) -> None:
    if (function_dir(machine, name) / "driver").exists():
        unbind(machine, name)


# ---- which functions are together ----


def test_groups_follow_from_bridges_and_names(machine: MountedLab) -> None:
    groups = machine.path / "sys/kernel/iommu_groups"
    found = {number: members(machine, number) for number in sorted(os.listdir(groups), key=int)}
    assert found == {
        "0": ["0000:00:00.0"],
        "1": [PORT, DESKTOP, SOUND],
        "2": ["0000:00:02.0"],
        "3": [DISK, FAR],
        "4": ["0000:00:03.0"],
        "5": [UP],
        "6": [DOWN, BELOW],
        "7": [BRIDGE, CARD, SLOT],
        "8": [FIRST],
        **{str(9 + index): [name] for index, name in enumerate(("0000:00:04.0", "0000:00:06.0"))},
        **{str(11 + index): [name] for index, name in enumerate(("0000:00:07.0", "0000:80:01.0"))},
        "40": [NIC],
    }


# ---- viability ----


def test_bridges_harm_no_group(machine: MountedLab) -> None:
    """Neither with pcieport, nor without a driver; but its endpoints do."""
    number = number_of(machine, DESKTOP)
    vfio_pci(machine, DESKTOP)
    with Container(machine.path) as container, Group(machine.path, number) as group:
        assert group.flags == 0
        vfio_pci(machine, SOUND)
        assert group.flags == 1
        group.set_container(container)
        container.set_iommu()
        unbind(machine, PORT)
        (machine.path / "sys/bus/pci/drivers/pcieport/bind").write_text(PORT)
        with ExitStack() as stack:
            devices = [
                stack.enter_context(Device(group_device(machine.path, group, name)))
                for name in (DESKTOP, SOUND)
            ]
            fails(errno.ENODEV, group.device_fd, PORT)
            mine = int(number)
            assert hot_reset_info(devices[0], 2) == (0, 2, [(mine, 0, 1, 0), (mine, 0, 1, 1)])
            hot_reset(devices[0], group.fd)
            hot_reset(devices[1], group.fd)
    for name in (DESKTOP, SOUND):
        give_back(machine, name)


def test_a_card_behind_a_bridge_needs_its_neighbours(machine: MountedLab) -> None:
    number = vfio_pci(machine, CARD)
    with Container(machine.path) as container, Group(machine.path, number) as group:
        fails(errno.EPERM, group.set_container, container)
        unbind(machine, SLOT)
        group.set_container(container)
        fails(errno.EBUSY, (machine.path / "sys/bus/pci/drivers/serial/bind").write_text, SLOT)
        group.unset_container()
    for name in (CARD, SLOT):
        give_back(machine, name)


def test_what_is_below_a_bridge_is_reset_with_it(machine: MountedLab) -> None:
    """And vfio-pci drives no bridge, so that a bus with one on it is not reset."""
    with ExitStack() as stack:
        for name in (DOWN, UP):
            unbind(machine, name)
        number = vfio_pci(machine, BELOW)
        container = stack.enter_context(Container(machine.path))
        group = stack.enter_context(Group(machine.path, number))
        group.set_container(container)
        container.set_iommu()
        device = stack.enter_context(Device(group_device(machine.path, group, BELOW)))
        assert hot_reset_info(device, 1) == (0, 1, [(int(number), 0, 4, 0)])
        hot_reset(device, group.fd)
    give_back(machine, BELOW)
    for name in (DOWN, UP):
        (machine.path / "sys/bus/pci/drivers/pcieport/bind").write_text(name)


# ---- physical and virtual functions in one group ----


def test_virtual_functions_join_the_group_of_their_physical_one(machine: MountedLab) -> None:
    number, function = number_of(machine, NIC), function_dir(machine, NIC)
    (function / "sriov_numvfs").write_text("2")
    names = [os.path.basename(os.readlink(function / f"virtfn{index}")) for index in range(2)]
    assert members(machine, number) == sorted([NIC, *names])
    for name in names:
        (function_dir(machine, name) / "driver_override").write_text("vfio-pci")
        (machine.path / "sys/bus/pci/drivers_probe").write_text(name)
    with Container(machine.path) as container, Group(machine.path, number) as group:
        assert group.flags == 0, "the physical function has its host driver"
        fails(errno.EPERM, group.set_container, container)
    (function / "sriov_numvfs").write_text("0")
    assert members(machine, number) == [NIC]
    assert not (machine.path / "dev/vfio" / number).exists()


def test_virtual_functions_come_to_a_group_that_a_client_has(machine: MountedLab) -> None:
    number, function = vfio_pci(machine, NIC), function_dir(machine, NIC)
    parameter = machine.path / "sys/module/vfio_pci/parameters/enable_sriov"
    parameter.write_text("Y")
    with Container(machine.path) as container, Group(machine.path, number) as group:
        group.set_container(container)
        container.set_iommu()
        (function / "sriov_numvfs").write_text("1")
        virtual = os.path.basename(os.readlink(function / "virtfn0"))
        assert members(machine, number) == sorted([NIC, virtual]) and group.flags == 3
        assert os.path.basename(os.readlink(function_dir(machine, virtual) / "driver")) == "vfio-pci"
        (function / "sriov_numvfs").write_text("0")
        assert members(machine, number) == [NIC] and group.flags == 3
    parameter.write_text("N")
    give_back(machine, NIC)


# ---- cards that come and go ----


def plug(machine: MountedLab, what: str, slot: str) -> None:
    (machine.path / "sys/bus/pci/slots" / slot / what).write_text("1")


def test_a_card_comes_to_a_group_that_a_client_has(machine: MountedLab) -> None:
    number = vfio_pci(machine, FIRST)
    with ExitStack() as stack:
        container = stack.enter_context(Container(machine.path))
        group = stack.enter_context(Group(machine.path, number))
        group.set_container(container)
        container.set_iommu()
        device = stack.enter_context(Device(group_device(machine.path, group, FIRST)))
        plug(machine, "plug", "6")
        assert members(machine, number) == [FIRST, SECOND] and group.flags == 3
        assert driver(machine, SECOND) is None, "its host driver may not even try"
        fails(errno.EBUSY, (machine.path / "sys/bus/pci/drivers/nvme/bind").write_text, SECOND)
        fails(errno.ENODEV, group.device_fd, SECOND)
        (function_dir(machine, SECOND) / "driver_override").write_text("vfio-pci")
        (machine.path / "sys/bus/pci/drivers_probe").write_text(SECOND)
        with Device(group_device(machine.path, group, SECOND)) as second:
            assert second.config(0) == device.config(0)
            fails(errno.EBUSY, plug, machine, "unplug", "6")
        plug(machine, "unplug", "6")
        assert members(machine, number) == [FIRST] and device.config(0) != 0xFFFF
        plug(machine, "plug", "6")
        (function_dir(machine, SECOND) / "driver_override").write_text("vfio-pci")
        (machine.path / "sys/bus/pci/drivers_probe").write_text(SECOND)
        pulled = stack.enter_context(Device(group_device(machine.path, group, SECOND)))
        plug(machine, "surprise_unplug", "6")
        assert pulled.config(0) == 0xFFFF and device.config(0) != 0xFFFF, "the other one goes on"
        assert group.flags == 3
    give_back(machine, FIRST)
    assert driver(machine, FIRST) == "nvme"


# ---- units ----


def test_units_have_scopes(machine: MountedLab) -> None:
    units = machine.path / "sys/class/iommu"
    assert sorted(os.listdir(units)) == ["ivhd0", "ivhd1"]
    first = ["0000:00:02.0", "0000:00:03.0", UP, DOWN, BELOW, BRIDGE, CARD, SLOT]
    assert sorted(os.listdir(units / "ivhd0/devices")) == first
    everything = os.listdir(machine.path / "sys/bus/pci/devices")
    assert sorted(os.listdir(units / "ivhd1/devices")) == sorted(set(everything) - set(first))
    for name in everything:
        unit = (function_dir(machine, name) / "iommu").resolve()
        assert unit.name == ("ivhd0" if name in first else "ivhd1")
    function = function_dir(machine, NIC)
    (function / "sriov_numvfs").write_text("1")
    assert ((function / "virtfn0").resolve() / "iommu").resolve() == (units / "ivhd1").resolve()
    (function / "sriov_numvfs").write_text("0")


def test_a_unit_of_amd(machine: MountedLab) -> None:
    unit = machine.path / "sys/class/iommu/ivhd0"
    assert sorted(os.listdir(unit)) == ["amd-iommu", "devices", "power", "subsystem", "uevent"]
    assert sorted(os.listdir(unit / "amd-iommu")) == ["cap", "features"]
    header = int((unit / "amd-iommu/cap").read_text(), 16)
    assert header & 0xFF == 0x0F and header >> 16 & 7 == 3 and header >> 27 & 1
    first, second = ((int(each, 16)) for each in (unit / "amd-iommu/features").read_text().split(":"))
    assert first >> 52 & 1 and not second, "it marks what devices write"
