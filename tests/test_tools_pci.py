# SPDX-License-Identifier: Apache-2.0
"""Programs that look at PCI functions, unmodified, under `vfsfuse run`: lspci, setpci, lstopo, a shell that
removes a function and finds it again, and a tool that enables a GPU and maps its BARs."""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import needs
from tests.commands import vfsfuse
from tests.labs import MountedLab, described
from tests.tool import Tool, need

GPU, CARD = "0000:86:00.0", "0000:87:00.0"
MODEL = Path(__file__).parent / "vfio/models/accelerator.py"
LAB = f"""
models = {{ accelerator = "{MODEL}:Accelerator" }}

[parents."{GPU}"]
kind = "gpu"
driver = "vgpu"
memory = "256M"
numa_node = 0
vfs = 2
types.half = {{ memory = "128M", description = "a half" }}

[parents."{CARD}"]
kind = "gpu"
driver = "accel"
model = "accelerator"
memory = "16M"
types.one = {{ memory = "4M", description = "a share" }}
"""
TOOL = '''
"""Peek and poke at the BARs of a function that no driver has, as tools for GPUs do."""
import mmap, os, struct, sys

base = f"/sys/bus/pci/devices/{sys.argv[1]}"

def attribute(name, value=None):
    with open(f"{base}/{name}", "r" if value is None else "w") as file:
        return file.read().strip() if value is None else file.write(value)

class Bar:
    def __init__(self, index):
        start, end, flags = (int(word, 16) for word in attribute("resource").splitlines()[index].split())
        self.fd = os.open(f"{base}/resource{index}", os.O_RDWR | os.O_SYNC)
        assert os.fstat(self.fd).st_size == end - start + 1
        self.size = end - start + 1

    def map(self):
        return mmap.mmap(self.fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

if os.path.exists(f"{base}/driver"):
    with open(f"{base}/driver/unbind", "w") as file:
        file.write(sys.argv[1])
assert attribute("enable") == "0", attribute("enable")
attribute("enable", "1")
assert attribute("enable") == "1"
command = struct.unpack("<H", os.pread(os.open(f"{base}/config", os.O_RDONLY), 2, 4))[0]
assert command & 2, "memory is not decoded"
memory = Bar(int(sys.argv[2]))
with memory.map() as mapping:
    mapping[4096:4100] = b"peek"
    assert os.pread(memory.fd, 4, 4096) == b"peek"
    os.pwrite(memory.fd, b"poke", memory.size - 4)
    assert mapping[-4:] == b"poke"
attribute("enable", "0")
print(attribute("vendor"), attribute("device"), attribute("enable"))
'''


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A GPU at NUMA node 0 with SR-IOV, and an accelerator."""
    with described(tmp_path_factory.mktemp("lab"), LAB) as made:
        yield made


def lspci(lab: MountedLab, *arguments: str) -> str:
    need("lspci", "pciutils")
    return Tool(lab, "lspci").quiet(*arguments)


def shell(lab: MountedLab, script: str) -> subprocess.CompletedProcess[str]:
    return vfsfuse("run", "--mount", lab.path, "--", "sh", "-c", script)


def function(lab: MountedLab, name: str) -> Path:
    return lab.path / "sys/bus/pci/devices" / name


# ---- lspci and setpci ----


def test_lspci_draws_the_functions_below_their_root_ports(lab: MountedLab) -> None:
    tree = lspci(lab, "-tv")
    assert re.search(r"-\[0000:00\]-\+-01\.0-\[86(?:-86)?\]----00\.0  Device 1234:86f0\n", tree), tree
    assert re.search(r"\\-02\.0-\[87(?:-87)?\]----00\.0  Device 1234:c0f6\n", tree), tree


def test_lspci_draws_virtual_functions_beside_their_physical_one(lab: MountedLab) -> None:
    count = function(lab, GPU) / "sriov_numvfs"
    count.write_text("2")
    try:
        tree = lspci(lab, "-t")
        assert re.search(r"-01\.0-\[86(?:-86)?\]-+\+-00\.0\n.*\+-00\.4\n.*\\-00\.5\n", tree), tree
    finally:
        count.write_text("0")


@pytest.mark.parametrize("name", [GPU, CARD])
def test_lspci_tells_all_of_a_function_and_complains_of_nothing(lab: MountedLab, name: str) -> None:
    shown = lspci(lab, "-vvv", "-s", name)
    for word in ("Unknown", "unknown", "access denied", "!!!", "Width x0", "ignored", "virtual"):
        assert word not in shown, word
    assert not re.search(r"Region \d.*\[disabled\]", shown), shown
    for pattern in (
        r"IOMMU group: \d+",
        r"Express \(v2\) Endpoint",
        r"RBE\+ FLReset\+",
        r"LnkCap:\s.*Speed [\d.]+GT/s, Width x\d+",
        r"LnkSta:\s.*Speed [\d.]+GT/s.*Width x\d+",
        r"NoSoftRst\+",
        r"Kernel driver in use: ",
    ):
        assert re.search(pattern, shown), pattern
    assert ("NUMA node: 0" in shown) is (name == GPU)


def test_lspci_tells_all_of_a_root_port(lab: MountedLab) -> None:
    port = function(lab, GPU).resolve().parent
    shown = lspci(lab, "-vvv", "-s", port.name)
    for text in ("PCI bridge", "secondary=86", "Root Port", "Kernel driver in use: pcieport", "IOMMU group:"):
        assert text in shown, text
    assert re.search(r"LnkSta:\s.*Speed [\d.]+GT/s.*Width x[1-9]", shown), shown


def test_lspci_as_scripts_read_it(lab: MountedLab) -> None:
    records = [
        dict(line.split(":\t", 1) for line in record.splitlines())
        for record in lspci(lab, "-Dvmmnnk").strip().split("\n\n")
    ]
    found = {record["Slot"]: record for record in records}
    assert found[GPU]["Class"].endswith("[0300]") and found[CARD]["Class"].endswith("[1200]")
    assert (found[GPU]["Driver"], found[CARD]["Driver"]) == ("vgpu", "accel")
    assert (found[GPU].get("NUMANode"), found[CARD].get("NUMANode")) == ("0", None)
    for name, record in found.items():
        assert record["IOMMUGroup"] == (function(lab, name) / "iommu_group").readlink().name


def test_lspci_finds_the_path_to_a_function(lab: MountedLab) -> None:
    port = function(lab, GPU).resolve().parent.name.removeprefix("0000:")
    assert lspci(lab, "-PP", "-n", "-s", GPU).startswith(f"{port}/86:00.0 0300: 1234:86f0")


def test_setpci_writes_device_control_and_resets_the_function(lab: MountedLab) -> None:
    need("setpci", "pciutils")
    setpci = Tool(lab, "setpci").quiet
    place = ("-s", CARD)
    before = setpci(*place, "CAP_EXP+8.w", "LATENCY_TIMER", "INTERRUPT_LINE").split()
    assert setpci(*place, "CAP_EXP+8.w=000f:000f", "CAP_EXP+8.w").strip()[-1] == "f"
    assert setpci(*place, "CAP_EXP+8.w=8000:8000", "CAP_EXP+8.w").split()[0][0] in "01234567"
    assert setpci(*place, f"CAP_EXP+8.w={before[0]}", "CAP_EXP+8.w").split() == before[:1]


# ---- removing and finding a function ----


def test_a_function_is_removed_and_found_again(lab: MountedLab) -> None:
    need("lspci", "pciutils")
    before = lspci(lab, "-Dnk")
    done = shell(
        lab,
        f"""set -e
        cd /sys/bus/pci
        echo 1 > devices/{CARD}/remove
        lspci -Dn | grep -c {CARD} || true
        ls -d devices/{CARD} drivers/accel/{CARD} || true
        echo 1 > rescan
        lspci -Dn | grep -c {CARD}
        """,
    )
    assert (done.returncode, done.stdout) == (0, "0\n1\n"), done.stderr
    assert done.stderr.count("No such file or directory") == 2
    assert lspci(lab, "-Dnk") == before


def test_a_bus_finds_its_function_again(lab: MountedLab) -> None:
    port = function(lab, GPU).resolve().parent.name
    done = shell(
        lab,
        f"""set -e
        cd /sys/bus/pci/devices
        echo 1 > {GPU}/remove
        test ! -e {GPU}
        echo 1 > {port}/rescan
        cat {GPU}/vendor
        echo 1 > {GPU}/rescan
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0x1234\n", "")


def test_removing_a_function_removes_its_vgpus_and_virtual_functions(lab: MountedLab) -> None:
    done = shell(
        lab,
        f"""set -e
        cd /sys/bus/pci/devices/{GPU}
        echo 1 > sriov_numvfs
        echo 6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01 > mdev_supported_types/half/create
        ls /sys/bus/mdev/devices | wc -l
        echo 1 > remove
        ls /sys/bus/mdev/devices /sys/class/mdev_bus | grep -c '^[06]' || true
        ls /sys/bus/pci/devices | grep -c 86: || true
        echo 1 > /sys/bus/pci/rescan
        cat /sys/bus/pci/devices/{GPU}/sriov_numvfs
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n1\n0\n0\n", "")
    assert (function(lab, GPU) / "mdev_supported_types/half/available_instances").read_text() == "2\n"


# ---- hwloc ----


def test_lstopo_places_the_functions_behind_bridges_at_their_node(lab: MountedLab) -> None:
    need("lstopo-no-graphics", "hwloc-nox")
    top = ElementTree.fromstring(Tool(lab, "lstopo-no-graphics")("--of", "xml", "--no-caches"))
    above = {child: parent for parent in top.iter("object") for child in parent.findall("object")}
    found = {each.get("pci_busid"): each for each in top.iter("object") if each.get("type") == "PCIDev"}
    assert {GPU, CARD} <= set(found)
    for name, port_number in ((GPU, "01"), (CARD, "02")):
        bridge = above[found[name]]
        assert bridge.get("type") == "Bridge" and bridge.get("bridge_type") == "1-1"
        assert bridge.get("pci_busid") == f"0000:00:{port_number}.0"
        assert float(found[name].get("pci_link_speed", "0")) > 0
    place = found[GPU]
    while place.get("type") in ("PCIDev", "Bridge"):
        place = above[place]
    (node,) = (
        each for each in top.iter("object") if (each.get("type"), each.get("os_index")) == ("NUMANode", "0")
    )
    assert place.get("cpuset") == node.get("cpuset")


def test_lstopo_prints_the_tree(lab: MountedLab) -> None:
    need("lstopo-no-graphics", "hwloc-nox")
    shown = Tool(lab, "lstopo-no-graphics").quiet("--of", "console")
    assert re.search(r"HostBridge\n\s+PCIBridge\n\s+PCI 86:00\.0 \(VGA\)", shown), shown


# ---- tools for GPUs ----


@needs.passthrough
@pytest.mark.parametrize(("name", "bar", "ids"), [(GPU, "0", "0x86f0"), (CARD, "2", "0xc0f6")])
def test_a_tool_enables_a_function_and_maps_its_memory(
    lab: MountedLab, name: str, bar: str, ids: str
) -> None:
    driver = (function(lab, name) / "driver").readlink().name
    try:
        done = vfsfuse("run", "--mount", lab.path, "--", "/usr/bin/python3", "-c", TOOL, name, bar)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"0x1234 {ids} 0\n", "")
    finally:
        (lab.path / "sys/bus/pci/drivers" / driver / "bind").write_text(name)


def test_a_function_with_a_driver_is_not_enabled_by_hand(lab: MountedLab) -> None:
    enable = function(lab, GPU) / "enable"
    assert enable.read_text() == "1\n"
    with pytest.raises(OSError) as caught:
        enable.write_text("1")
    assert caught.value.errno == errno.EBUSY


# ---- programs that look at everything ----


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("find /sys -xdev", "findutils"),
        ("ls -lR /sys/bus /sys/class /sys/devices/pci0000:00 /sys/kernel/iommu_groups", "coreutils"),
        ("tree /sys/bus /sys/class", "tree"),
        ("lshw -quiet -c display -businfo", "lshw"),
        ("lspci -k", "pciutils"),
    ],
)
def test_a_program_that_looks_at_everything_has_no_complaint(
    lab: MountedLab, command: str, package: str
) -> None:
    name, *arguments = command.split()
    need(name, package)
    shown = Tool(lab, name).quiet(*arguments)
    assert "86:00.0" in shown
