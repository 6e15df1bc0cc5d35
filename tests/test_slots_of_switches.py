# SPDX-License-Identifier: Apache-2.0
"""A card with a switch is plugged in and out with all that is below it: slots in slots, IOMMU groups, virtual
functions and NUMA nodes of nested buses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.labs import MountedLab, described
from tests.test_hotplug import driver_of, functions, group_of, mentions, rescan
from tests.test_slots import EMPTY, HELD, OFF, ON, comings, command, hold, state, write
from tests.test_topology import lspci
from tests.test_uevents import hear, listening
from tests.tool import Tool, need
from tests.vfio.client import Container, Group, fails
from tests.vfio.devices import Device, function_dir, group_device, signals, vfio_pci

PORT, SWITCH, LEFT, RIGHT = "0000:80:01.0", "0000:81:00.0", "0000:82:00.0", "0000:82:01.0"
DISK, NIC, SECOND = "0000:83:00.0", "0000:84:00.0", "0000:84:00.1"
CARD = [SWITCH, LEFT, RIGHT, DISK, NIC, SECOND]
LAB = f"""
[nodes.0]
cpus = "0-3"
memory = "4G"
[nodes.1]
cpus = "4-7"
memory = "4G"
[roots."0000:80"]
numa_node = 1

[functions."0000:00:02.0"]
class = 0x030000
bars = {{ 0 = {{ size = "1M" }} }}
numa_node = 0

[functions."{PORT}"]
bridge = "root-port"
secondary = 0x81
driver = "pcieport"
slot = "1"
[functions."{SWITCH}"]
bridge = "switch-upstream"
secondary = 0x82
driver = "pcieport"
plugged = false
[functions."{LEFT}"]
bridge = "switch-downstream"
secondary = 0x83
driver = "pcieport"
slot = "11"
[functions."{RIGHT}"]
bridge = "switch-downstream"
secondary = 0x84
driver = "pcieport"

[functions."{DISK}"]
vendor = 0x144d
device = 0xa80a
class = 0x010802
driver = "nvme"
capabilities = ["express", "msix:8"]
bars = {{ 0 = {{ size = "16K", kind = "mem64" }} }}
[functions."0000:84:00.{{0-1}}"]
vendor = 0x8086
device = 0x1572
class = 0x020000
driver = "i40e"
capabilities = ["express", "msix:8"]
bars = {{ 0 = {{ size = "1M", kind = "mem64-prefetch" }} }}
[functions."{NIC}"]
vfs = 2
vf = {{ driver = "iavf", bars = {{ 0 = {{ size = "64K", kind = "mem64" }} }} }}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("switch"), LAB) as mounted:
        yield mounted


@pytest.fixture(autouse=True)
def as_it_was(lab: MountedLab) -> Iterator[None]:
    """At the start of each test the card is not plugged in."""
    if state(lab, SWITCH)["adapter"] == "1":
        write(lab, SWITCH, "surprise_unplug")
    assert functions(lab) == ["0000:00:02.0", PORT]
    yield


def slots(lab: MountedLab) -> list[str]:
    return sorted(os.listdir(lab.path / "sys/bus/pci/slots"))


def test_a_switch_comes_with_all_that_is_below_it(lab: MountedLab) -> None:
    assert slots(lab) == ["1"] and state(lab, SWITCH) == EMPTY
    with listening(lab, os.O_NONBLOCK) as fd:
        assert command(lab, "plug", SWITCH) == ""
        assert comings(fd) == [
            *(f"add {name}" for name in CARD),
            *(f"bind {name}" for name in CARD),
        ]
    assert state(lab, SWITCH) == ON and state(lab, DISK) == ON and slots(lab) == ["1", "11"]
    assert [driver_of(lab, name) for name in CARD] == [*["pcieport"] * 3, "nvme", "i40e", "i40e"]
    top = lab.path / "sys/devices/pci0000:80"
    assert function_dir(lab, DISK).resolve() == top / PORT / SWITCH / LEFT / DISK
    assert {(function_dir(lab, name) / "numa_node").read_text() for name in CARD} == {"1\n"}
    assert (function_dir(lab, DISK) / "local_cpulist").read_text() == "4-7\n"
    assert "DLActive+" in lspci(lab, "-vvv", "-s", PORT)
    assert lspci(lab, "-t").count("-[") >= 4


def test_the_buses_come_between_bridges_and_functions(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as fd:
        write(lab, SWITCH, "plug")
        names = [head.rsplit("/", 1)[1] for head, _ in hear(fd) if head.startswith("add@")]
        assert names.index(SWITCH) < names.index("0000:82") < names.index(LEFT)
        assert names.index(LEFT) < names.index("0000:83") < names.index(DISK)
        write(lab, SWITCH, "power", "0")
        gone = [head.rsplit("/", 1)[1] for head, _ in hear(fd) if head.startswith("remove@")]
        assert [name for name in gone if name in CARD] == [DISK, LEFT, NIC, SECOND, RIGHT, SWITCH]
        assert gone.index(DISK) < gone.index("0000:83") < gone.index(LEFT)
        assert gone.index(LEFT) < gone.index("0000:82") < gone.index(SWITCH)
    assert state(lab, SWITCH) == OFF and slots(lab) == ["1"]
    assert all(mentions(lab, name) == [] for name in (*CARD, "0000:82", "0000:83", "0000:84"))


def test_groups_follow(lab: MountedLab) -> None:
    before = sorted(os.listdir(lab.path / "sys/kernel/iommu_groups"))
    write(lab, SWITCH, "plug")
    assert group_of(lab, NIC) == group_of(lab, SECOND) != group_of(lab, DISK)
    members = os.listdir(lab.path / "sys/kernel/iommu_groups" / group_of(lab, NIC) / "devices")
    assert sorted(members) == [NIC, SECOND]
    write(lab, SWITCH, "unplug")
    assert sorted(os.listdir(lab.path / "sys/kernel/iommu_groups")) == before


def test_virtual_functions_go_with_the_card(lab: MountedLab) -> None:
    write(lab, SWITCH, "plug")
    (function_dir(lab, NIC) / "sriov_numvfs").write_text("2")
    vfs = [name for name in functions(lab) if name not in CARD and name.startswith("0000:84")]
    assert len(vfs) == 2 and driver_of(lab, vfs[0]) == "iavf"
    assert (function_dir(lab, vfs[0]) / "numa_node").read_text() == "1\n"
    vfio_pci(lab, vfs[1])
    with ExitStack() as stack:
        fd, _, req = hold(lab, stack, vfs[1])
        fails(errno.EBUSY, write, lab, SWITCH, "unplug")
        assert signals(req) == 1
        assert command(lab, "unplug", "--surprise", SECOND) == ""
        assert signals(req) == 1 and os.pread(fd, 4, 7 << 40) == b"\xff" * 4
        assert all(mentions(lab, name) == [] for name in (*CARD, *vfs))
        write(lab, SWITCH, "plug")
        (function_dir(lab, NIC) / "sriov_numvfs").write_text("2")
        assert driver_of(lab, vfs[1]) == "iavf" and os.pread(fd, 4, 7 << 40) == b"\xff" * 4


def test_a_card_in_a_slot_of_the_switch(lab: MountedLab) -> None:
    write(lab, SWITCH, "plug")
    vfio_pci(lab, DISK)
    with ExitStack() as stack:
        _, _, req = hold(lab, stack, DISK)
        assert command(lab, "unplug", DISK) == f"vfsfuse: unplug: {DISK}: {HELD}\n"
        assert command(lab, "unplug", SWITCH) == f"vfsfuse: unplug: {SWITCH}: {HELD}\n"
        assert signals(req) == 2
        assert state(lab, SWITCH) == ON and state(lab, DISK) == ON
    assert command(lab, "unplug", DISK) == ""  # the nearest slot
    assert state(lab, DISK) == EMPTY and state(lab, SWITCH) == ON
    assert functions(lab) == ["0000:00:02.0", PORT, *(name for name in CARD if name != DISK)]
    rescan(lab)
    assert DISK not in functions(lab)
    for attribute in ("unplug", "plug"):
        write(lab, SWITCH, attribute)
    assert state(lab, DISK) == EMPTY and DISK not in functions(lab)  # nobody has put it in meanwhile
    assert command(lab, "plug", DISK) == "" and driver_of(lab, DISK) == "nvme"


def test_two_clients_hold_functions_of_one_group(lab: MountedLab) -> None:
    """The number of the group is free when both have let go."""
    write(lab, SWITCH, "plug")
    number = vfio_pci(lab, NIC)
    assert vfio_pci(lab, SECOND) == number
    with ExitStack() as first:
        with ExitStack() as second:
            container = first.enter_context(Container(lab.path))
            group = first.enter_context(Group(lab.path, number))
            group.set_container(container)
            container.set_iommu()
            one = first.enter_context(Device(group_device(lab.path, group, NIC)))
            two = second.enter_context(Device(group_device(lab.path, group, SECOND)))
            write(lab, SWITCH, "surprise_unplug")
            assert one.config(0) == two.config(0) == 0xFFFF
            write(lab, SWITCH, "plug")
            assert group_of(lab, NIC) == group_of(lab, SECOND) != number
            write(lab, SWITCH, "unplug")
        write(lab, SWITCH, "plug")
        assert number not in {group_of(lab, name) for name in CARD}
        write(lab, SWITCH, "unplug")
    write(lab, SWITCH, "plug")
    assert number in {group_of(lab, name) for name in CARD}


def test_a_switch_is_removed_and_found_again(lab: MountedLab) -> None:
    write(lab, SWITCH, "plug")
    (function_dir(lab, SWITCH) / "remove").write_text("1")
    assert functions(lab) == ["0000:00:02.0", PORT] and state(lab, SWITCH) == ON
    (lab.path / "sys/class/pci_bus/0000:81/rescan").write_text("1")
    assert functions(lab) == ["0000:00:02.0", PORT, *CARD]
    (function_dir(lab, RIGHT) / "remove").write_text("1")
    assert NIC not in functions(lab) and DISK in functions(lab)
    (function_dir(lab, LEFT) / "rescan").write_text("1")
    assert functions(lab) == ["0000:00:02.0", PORT, *CARD]


def test_lstopo_places_the_card_at_the_node_of_its_root_bus(lab: MountedLab) -> None:
    need("lstopo-no-graphics", "hwloc-nox")
    write(lab, SWITCH, "plug")
    top = ElementTree.fromstring(Tool(lab, "lstopo-no-graphics").quiet("--of", "xml", "--whole-io"))
    above = {child: parent for parent in top.iter("object") for child in parent.findall("object")}
    nodes = {each.get("os_index"): each for each in top.iter("object") if each.get("type") == "NUMANode"}
    found = {each.get("pci_busid"): each for each in top.iter("object") if each.get("pci_busid")}
    for name, node in ((DISK, "1"), (NIC, "1"), ("0000:00:02.0", "0")):
        place = found[name]
        while place.get("type") in ("PCIDev", "Bridge"):
            place = above[place]
        assert place.get("cpuset") == nodes[node].get("cpuset")


def test_a_lab_begins_with_such_a_card(tmp_path: Path) -> None:
    with described(tmp_path, LAB.replace("plugged = false\n", "")) as lab:
        assert functions(lab) == ["0000:00:02.0", PORT, *CARD] and slots(lab) == ["1", "11"]
        assert command(lab, "unplug", "--surprise", SWITCH) == ""
        assert functions(lab) == ["0000:00:02.0", PORT]
