# SPDX-License-Identifier: Apache-2.0
"""examples/server.toml: two sockets, two IOMMU units, accelerators below switches, and a network card with
virtual functions."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import virsh
from tests.commands import vfsfuse
from tests.labs import MountedLab
from tests.machines.machine import (
    driver_of,
    example,
    function_dir,
    group_of,
    lspci,
    members,
    override,
    partition,
    shell,
)
from tests.tool import Tool, need
from tests.vfio.client import fails
from tests.vfio.devices import bound, opened
from tests.vfio.test_device import hot_reset, hot_reset_info

ACCELERATORS = ("0000:03:00.0", "0000:04:00.0", "0000:83:00.0", "0000:84:00.0")
NIC = "0000:85:00.0"
VFS = 8
CPUS = "0-7\n", "8-15\n"
"""Of each NUMA node."""
TREE = """\
-+-[0000:00]---01.0-[01-04]----00.0-[02-04]--+-00.0-[03]----00.0
 |                                           \\-01.0-[04]----00.0
 \\-[0000:80]-+-01.0-[81-84]----00.0-[82-84]--+-00.0-[83]----00.0
             |                               \\-01.0-[84]----00.0
             \\-02.0-[85]----00.0
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with example(tmp_path_factory.mktemp("server"), "server.toml") as made:
        yield made


@pytest.fixture
def vfs(server: MountedLab) -> Iterator[list[str]]:
    """The addresses of the network card's virtual functions, all of which there are for a while."""
    numvfs = function_dir(server, NIC) / "sriov_numvfs"
    numvfs.write_text(str(VFS))
    try:
        yield [os.path.basename(os.readlink(function_dir(server, NIC) / f"virtfn{n}")) for n in range(VFS)]
    finally:
        numvfs.write_text("0")


def node_of(name: str) -> int:
    return int(int(name[5:7], 16) >= 0x80)


# ---- the tree ----


def test_lspci_draws_root_buses_and_switches(server: MountedLab) -> None:
    assert lspci(server, "-t") == TREE


def test_an_accelerator_has_64_gib_behind_each_bridge(server: MountedLab) -> None:
    for name in ACCELERATORS:
        shown = lspci(server, "-vv", "-s", name)
        assert re.search(r"Region 1: .*\(64-bit, prefetchable\).*\[size=64G\]", shown), shown
        start = resource(server, name)[1][0]
        ends = start, start + (64 << 30) - 1
        bridges = [place.name for place in function_dir(server, name).resolve().parents if "." in place.name]
        assert len(bridges) == 3
        for bridge in bridges:
            windows = resource(server, bridge)
            assert any(low <= ends[0] and ends[1] <= high for low, high, _ in windows), windows


def resource(server: MountedLab, name: str) -> list[tuple[int, int, int]]:
    text = (function_dir(server, name) / "resource").read_text()
    rows = [[int(word, 16) for word in line.split()] for line in text.splitlines()]
    return [(start, end, flags) for start, end, flags in rows]


def test_each_port_isolates_what_is_below_it(server: MountedLab) -> None:
    """Switch ports have ACS, so each function is alone in its group."""
    assert all(len(group) == 1 for group in partition(server))
    assert {name for group in partition(server) for name in group} == set(
        os.listdir(server.path / "sys/bus/pci/devices")
    )


def test_a_unit_for_each_socket(server: MountedLab) -> None:
    units = server.path / "sys/class/iommu"
    assert sorted(os.listdir(units)) == ["dmar0", "dmar1"]
    functions = os.listdir(server.path / "sys/bus/pci/devices")
    for number in (0, 1):
        behind = {name for name in functions if node_of(name) == number}
        assert set(os.listdir(units / f"dmar{number}/devices")) == behind
        for name in behind:
            assert (function_dir(server, name) / "iommu").resolve() == (units / f"dmar{number}").resolve()


def test_libvirt_draws_the_tree(server: MountedLab, tmp_path: Path) -> None:
    script = "ask nodedev-list --tree\nask nodedev-dumpxml pci_0000_83_00_0\n"
    tree, xml, _ = virsh.answers(tmp_path, ["--mount", str(server.path)], script)
    names = ("80_01_0", "81_00_0", "82_00_0", "83_00_0", "82_01_0", "84_00_0")
    places = [tree.index(f"pci_0000_{name}\n") for name in names]
    assert places == sorted(places), tree
    device = ElementTree.fromstring(xml)
    assert device.findtext("parent") == "pci_0000_82_00_0"
    numa = device.find("capability/numa")
    assert numa is not None and numa.get("node") == "1"


# ---- NUMA ----


def test_functions_are_near_to_the_node_of_their_root_bus(server: MountedLab) -> None:
    for name in os.listdir(server.path / "sys/bus/pci/devices"):
        function = function_dir(server, name)
        assert (function / "numa_node").read_text() == f"{node_of(name)}\n", name
        assert (function / "local_cpulist").read_text() == CPUS[node_of(name)], name
    for node, bus in enumerate(("0000:00", "0000:80")):
        affinity = server.path / f"sys/class/pci_bus/{bus}/cpulistaffinity"
        assert affinity.read_text() == CPUS[node], bus


def test_lstopo_places_the_accelerators(server: MountedLab) -> None:
    need("lstopo-no-graphics", "hwloc-nox")
    top = ElementTree.fromstring(Tool(server, "lstopo-no-graphics")("--of", "xml", "--no-caches"))
    above = {child: parent for parent in top.iter("object") for child in parent.findall("object")}
    nodes = {each.get("os_index"): each for each in top.iter("object") if each.get("type") == "NUMANode"}
    assert {number: int(node.get("local_memory", 0)) for number, node in nodes.items()} == dict.fromkeys(
        ("0", "1"), 64 << 30
    )
    devices = {each.get("pci_busid"): each for each in top.iter("object") if each.get("type") == "PCIDev"}
    for name in (*ACCELERATORS, NIC):
        place = devices[name]
        while place.get("type") in ("PCIDev", "Bridge"):
            place = above[place]
        assert place.get("cpuset") == nodes[str(node_of(name))].get("cpuset")


def test_numactl_tells_of_the_nodes(server: MountedLab) -> None:
    need("numactl")
    shown = Tool(server, "numactl")("--hardware")
    assert "available: 2 nodes (0-1)" in shown
    assert re.search(r"node 1 cpus: 8 9 10 11 12 13 14 15\n", shown)
    assert re.search(r"node +0 +1 *\n +0: +10 +21 *\n +1: +21 +10", shown)


# ---- the network card ----


def test_lspci_draws_the_virtual_functions(server: MountedLab, vfs: list[str]) -> None:
    tree = lspci(server, "-t")
    assert re.search(r"02\.0-\[85(?:-85)?\]--\+-00\.0\n(?:.*\n){7}.*\\-[0-9a-f.]+\n", tree), tree
    shown = lspci(server, "-D", "-n", "-s", "85:")
    assert shown.splitlines() == [f"{NIC} 0200: 8086:18fe", *(f"{name} 0200: 8086:18fd" for name in vfs)]


def test_each_virtual_function_has_a_group_and_an_interface(server: MountedLab, vfs: list[str]) -> None:
    assert len({group_of(server, name) for name in vfs}) == VFS
    for index, name in enumerate(vfs):
        assert members(server, group_of(server, name)) == [name]
        assert driver_of(server, name) == "iavf"
        assert os.listdir(function_dir(server, name) / "net") == [f"enp133s0v{index}"]
        assert (function_dir(server, name) / "physfn").resolve() == function_dir(server, NIC).resolve()
        assert (function_dir(server, name) / "numa_node").read_text() == "1\n"


def test_driverctl_assigns_a_virtual_function(server: MountedLab, vfs: list[str]) -> None:
    """Its interface is gone while vfio-pci has it. Its neighbours keep theirs."""
    override(server, vfs[2])
    assert driver_of(server, vfs[2]) == "vfio-pci"
    assert not (function_dir(server, vfs[2]) / "net").exists()
    interfaces = os.listdir(server.path / "sys/class/net")
    assert "enp133s0v2" not in interfaces
    assert {"enp133s0", "enp133s0v1", "enp133s0v3"} <= set(interfaces)
    with opened(server, group_of(server, vfs[2]), vfs[2]) as client:
        assert client.device.config(0, 4) == 0x18FD_8086
    shell(server, f"driverctl --nosave unset-override {vfs[2]}")
    assert driver_of(server, vfs[2]) == "iavf"
    assert os.listdir(function_dir(server, vfs[2]) / "net") == ["enp133s0v2"]


def test_dpdk_binds_a_virtual_function(server: MountedLab, vfs: list[str]) -> None:
    need("dpdk-devbind.py", "dpdk")
    devbind = Tool(server, "dpdk-devbind.py")
    devbind("--bind", "vfio-pci", vfs[0])
    shown = devbind("--status-dev", "net")
    assert re.search(rf"{vfs[0]} '.*' .*drv=vfio-pci unused=", shown), shown
    assert re.search(rf"{vfs[1]} '.*' .*if=enp133s0v1 drv=iavf unused=vfio-pci", shown), shown
    devbind("--bind", "iavf", vfs[0])
    assert driver_of(server, vfs[0]) == "iavf"


def test_udevadm_names_the_interface_as_the_lab_file_does(server: MountedLab, vfs: list[str]) -> None:
    """systemd's rule for names needs no more than the tree."""
    need("udevadm", "udev")
    for interface in ("enp133s0", "enp133s0v5"):
        done = Tool(server, "udevadm").run("test-builtin", "net_id", f"/sys/class/net/{interface}")
        assert f"ID_NET_NAME_PATH={interface}\n" in done.stdout, done.stdout + done.stderr


def test_libvirt_lists_virtual_functions_and_interfaces(
    server: MountedLab, vfs: list[str], tmp_path: Path
) -> None:
    asked = ("nodedev-dumpxml pci_0000_85_00_0", "nodedev-dumpxml pci_0000_85_00_5", "nodedev-list --tree")
    script = "".join(f"ask {question}\n" for question in asked)
    physical, virtual, tree, _ = virsh.answers(tmp_path, ["--mount", str(server.path)], script)
    listed = ElementTree.fromstring(physical).find("capability/capability[@type='virt_functions']")
    assert listed is not None and listed.get("maxCount") == str(VFS)
    assert [address_of(each) for each in listed.findall("address")] == vfs
    owner = ElementTree.fromstring(virtual).find("capability/capability[@type='phys_function']/address")
    assert owner is not None and address_of(owner) == NIC
    assert re.search(r"\+- pci_0000_85_00_5\n.*\|\n.*\+- net_enp133s0v1_", tree), tree


def address_of(element: ElementTree.Element) -> str:
    """The PCI address in an element of libvirt's."""
    domain, bus, slot, number = (
        int(element.get(name, ""), 16) for name in ("domain", "bus", "slot", "function")
    )
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{number}"


# ---- slots ----


def test_an_accelerator_is_pulled_and_put_back(server: MountedLab) -> None:
    """Programs see it go and come. While a client has it open, it stays."""
    name = ACCELERATORS[2]
    assert "Physical Slot: 3\n" in lspci(server, "-v", "-s", name)
    with bound(server, name) as (group,), opened(server, group, name):
        refused = vfsfuse("unplug", "--mount", server.path, name)
        assert refused.returncode == 1 and "a program has one of its functions open" in refused.stderr
    for command, there in (("unplug", False), ("plug", True)):
        done = vfsfuse(command, "--mount", server.path, name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (server.path / "sys/bus/pci/slots/3/adapter").read_text() == f"{int(there)}\n"
        assert (lspci(server, "-n", "-s", name) != "") is there
        assert function_dir(server, name).exists() is there
    assert driver_of(server, name) == "nvidia"


# ---- hot reset ----


def test_a_hot_reset_is_of_the_bus_below_the_switch_port(server: MountedLab) -> None:
    """Linux gives the function its configuration back afterwards. Without its group there is no reset."""
    name = ACCELERATORS[0]
    with bound(server, name) as (group,), opened(server, group, name) as client:
        assert hot_reset_info(client.device, 1) == (0, 1, [(int(group), 0, 0x03, 0)])
        client.device.set_config(4, 2)
        hot_reset(client.device, client.group.fd)
        assert client.device.config(4) == 2
        fails(errno.EINVAL, hot_reset, client.device)
