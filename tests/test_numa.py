# SPDX-License-Identifier: Apache-2.0
"""The machine that a lab file describes: NUMA nodes and CPUs in sysfs, and as lstopo, lscpu and libnuma see
them."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.commands import VFSFUSE, run, vfsfuse
from tests.labs import MountedLab, described
from tests.snapshot import walk
from tests.test_uevents import hear, listening
from tests.tool import Tool, need
from tests.vfio.client import fails
from tests.vfio.devices import function_dir

FIRST, SECOND, FAR, NOWHERE = "0000:03:00.0", "0001:86:00.0", "0002:90:00.0", "0000:00:02.0"
GPU = """
[parents."{}"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
vfs = 2
types.quarter = {{ memory = "16M", description = "a quarter" }}
"""
LAB = f"""
[nodes.1]
cpus = "4-7,36-39"
threads = 2
memory = "32G"
distances = [21, 10, 17]

[nodes.0]
cpus = "0-3, 32-35"
threads = 2
memory = "64G"

[nodes.5]
memory = "128G"
distances = [28, 17, 10]

{GPU.format(FIRST)}numa_node = 0
{GPU.format(SECOND)}numa_node = 1
{GPU.format(FAR)}numa_node = 5
{GPU.format(NOWHERE)}
"""
NUMA = '''
"""What libnuma knows of the machine."""
import ctypes, json

numa, size = ctypes.CDLL("libnuma.so.1"), ctypes.c_longlong()
numa.numa_node_size64.restype = ctypes.c_longlong
print(json.dumps({
    "max": numa.numa_max_node(),
    "cpus": numa.numa_num_configured_cpus(),
    "nodes of CPUs": [numa.numa_node_of_cpu(cpu) for cpu in (0, 35, 4, 39)],
    "distances": [numa.numa_distance(0, 5), numa.numa_distance(5, 0), numa.numa_distance(1, 1)],
    "memory": [numa.numa_node_size64(node, ctypes.byref(size)) for node in (0, 1, 5)],
}))
'''


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("numa"), LAB) as mounted:
        yield mounted


def system(lab: MountedLab) -> Path:
    return lab.path / "sys/devices/system"


def texts(directory: Path, *names: str) -> dict[str, str]:
    return {name: (directory / name).read_text() for name in names}


# ---- nodes ----


def test_which_nodes_there_are(lab: MountedLab) -> None:
    assert texts(
        system(lab) / "node", "possible", "online", "has_cpu", "has_memory", "has_normal_memory"
    ) == {
        "possible": "0-1,5\n",
        "online": "0-1,5\n",
        "has_cpu": "0-1\n",
        "has_memory": "0-1,5\n",
        "has_normal_memory": "0-1,5\n",
    }
    directories = {each for each in os.listdir(system(lab) / "node") if each.startswith("node")}
    assert directories == {"node0", "node1", "node5"}


def test_the_cpus_of_a_node(lab: MountedLab) -> None:
    node = system(lab) / "node/node1"
    assert texts(node, "cpulist", "cpumap") == {"cpulist": "4-7,36-39\n", "cpumap": "f0,000000f0\n"}
    links = {name: (node / name).resolve() for name in os.listdir(node) if re.fullmatch(r"cpu\d+", name)}
    assert links == {f"cpu{n}": system(lab) / f"cpu/cpu{n}" for n in (4, 5, 6, 7, 36, 37, 38, 39)}
    assert os.readlink(node / "cpu36") == "../../cpu/cpu36"
    assert os.readlink(system(lab) / "cpu/cpu36/node1") == "../../node/node1"
    assert texts(system(lab) / "node/node5", "cpulist", "cpumap") == {
        "cpulist": "\n",
        "cpumap": "00,00000000\n",
    }


def test_distances(lab: MountedLab) -> None:
    found = [(system(lab) / f"node/node{number}/distance").read_text() for number in (0, 1, 5)]
    assert found == ["10 20 20\n", "21 10 17\n", "28 17 10\n"]


def test_the_memory_of_a_node_is_free(lab: MountedLab) -> None:
    node = system(lab) / "node/node1"
    lines = (node / "meminfo").read_text().splitlines()
    assert lines[:4] == [
        "Node 1 MemTotal:       33554432 kB",
        "Node 1 MemFree:        33554432 kB",
        "Node 1 MemUsed:               0 kB",
        "Node 1 SwapCached:            0 kB",
    ]
    assert lines[-1] == "Node 1 HugePages_Surp:      0"
    assert all(re.fullmatch(r"Node 1 [\w()]+: +\d+( kB)?", line) for line in lines)
    assert (node / "vmstat").read_text().startswith(f"nr_free_pages {32 << 18}\n")
    counts = "numa_hit 0\nnuma_miss 0\nnuma_foreign 0\ninterleave_hit 0\nlocal_node 0\nother_node 0\n"
    assert (node / "numastat").read_text() == counts


@pytest.mark.parametrize("name", ["meminfo", "vmstat"])
def test_the_lines_are_those_of_linux(lab: MountedLab, name: str) -> None:
    """In the same order; this kernel may lack some, and have some that are newer."""
    real = Path(f"/sys/devices/system/node/node0/{name}")
    if not real.exists():
        pytest.skip("this machine's kernel has no NUMA")

    def labels(path: Path) -> list[str]:
        return [line.removeprefix("Node 0 ").split()[0] for line in path.read_text().splitlines()]

    known, shown = labels(real), labels(system(lab) / f"node/node0/{name}")
    both = [label for label in known if label in shown]
    assert [label for label in shown if label in known] == both and len(both) > len(shown) * 0.8


# ---- CPUs ----


def test_which_cpus_there_are(lab: MountedLab) -> None:
    cpu = system(lab) / "cpu"
    everything = "0-7,32-39\n"
    assert texts(cpu, "possible", "present", "online", "offline", "isolated", "kernel_max") == {
        **dict.fromkeys(("possible", "present", "online"), everything),
        **dict.fromkeys(("offline", "isolated"), "\n"),
        "kernel_max": "8191\n",
    }
    found = {name for name in os.listdir(cpu) if re.fullmatch(r"cpu\d+", name)}
    assert found == {f"cpu{number}" for number in (*range(8), *range(32, 40))}
    assert texts(cpu / "smt", "active", "control") == {"active": "1\n", "control": "notimplemented\n"}
    fails(errno.ENODEV, (cpu / "smt/control").write_text, "off")


def test_a_node_with_cpus_is_a_package(lab: MountedLab) -> None:
    topology = system(lab) / "cpu/cpu37/topology"
    ids = {"physical_package_id": "1\n", "die_id": "0\n", "core_id": "1\n", "cluster_id": "65535\n"}
    core = dict.fromkeys(("thread_siblings", "core_cpus", "cluster_cpus"), "20,00000020\n")
    cores = dict.fromkeys(("thread_siblings_list", "core_cpus_list", "cluster_cpus_list"), "5,37\n")
    package = dict.fromkeys(("core_siblings", "package_cpus", "die_cpus"), "f0,000000f0\n")
    lists = dict.fromkeys(("core_siblings_list", "package_cpus_list", "die_cpus_list"), "4-7,36-39\n")
    expected = {**ids, **core, **cores, **package, **lists}
    assert texts(topology, *os.listdir(topology)) == expected


def test_cpus_and_nodes_are_on_buses(lab: MountedLab) -> None:
    for bus, device in (("cpu", "cpu36"), ("node", "node5")):
        directory, path = lab.path / "sys/bus" / bus, system(lab) / bus / device
        assert (directory / "devices" / device).resolve() == path
        assert (path / "subsystem").resolve() == directory and os.listdir(directory / "drivers") == []
        assert (path / "uevent").read_text() == ""
        with listening(lab, os.O_NONBLOCK) as fd:
            (path / "uevent").write_text("change")
            ((head, said),) = hear(fd)
            assert head == f"change@/devices/system/{bus}/{device}" and said["SUBSYSTEM"] == bus
            (path.parent / "uevent").write_text("change")
            assert hear(fd) == []
        (directory / "drivers_probe").write_text(device)
        fails(errno.ENODEV, (directory / "drivers_probe").write_text, "cpu99")
        assert (directory / "drivers_autoprobe").read_text() == "1\n"


def test_every_link_leads_somewhere(lab: MountedLab) -> None:
    links = [entry.path for entry in walk(lab.path / "sys") if entry.is_symlink()]
    assert [link for link in links if not os.path.exists(link)] == []


# ---- functions ----


@pytest.mark.parametrize(
    ("name", "node", "cpulist", "mask"),
    [
        (FIRST, "0", "0-3,32-35", "0f,0000000f"),
        (SECOND, "1", "4-7,36-39", "f0,000000f0"),
        (FAR, "5", "", "00,00000000"),
        (NOWHERE, "-1", "0-7,32-39", "ff,000000ff"),
    ],
)
def test_functions_are_near_to_the_cpus_of_their_node(
    lab: MountedLab, name: str, node: str, cpulist: str, mask: str
) -> None:
    expected = {"numa_node": f"{node}\n", "local_cpulist": f"{cpulist}\n", "local_cpus": f"{mask}\n"}
    function = function_dir(lab, name)
    (function / "sriov_numvfs").write_text("1")
    for directory in (function, function / "virtfn0"):
        assert texts(directory, *expected) == expected
    (function / "sriov_numvfs").write_text("0")
    bus = lab.path / "sys/class/pci_bus" / name[:7]
    assert texts(bus, "cpulistaffinity", "cpuaffinity") == {
        "cpulistaffinity": f"{cpulist}\n",
        "cpuaffinity": f"{mask}\n",
    }


def test_a_function_moves_to_a_node_that_there_is(lab: MountedLab) -> None:
    function = function_dir(lab, FIRST)
    for node in ("2", "4", "1024", "-2", "x"):
        fails(errno.EINVAL, (function / "numa_node").write_text, node)
    (function / "numa_node").write_text("1")
    assert (function / "local_cpulist").read_text() == "4-7,36-39\n"
    (function / "numa_node").write_text("0")


# ---- programs ----


def assert_is_the_machine(top: ElementTree.Element) -> None:
    """The nodes with their memory and cores, and each function below the package of its node."""
    nodes = {each.get("os_index"): each for each in top.iter("object") if each.get("type") == "NUMANode"}
    sizes = {number: int(node.get("local_memory", "0")) >> 30 for number, node in nodes.items()}
    assert sizes == {"0": 64, "1": 32, "5": 128}
    kinds = [each.get("type") for each in top.iter("object")]
    assert (kinds.count("Package"), kinds.count("Core"), kinds.count("PU")) == (2, 8, 16)
    assert not any("Cache" in (kind or "") for kind in kinds)
    above = {child: parent for parent in top.iter("object") for child in parent.findall("object")}
    functions = {each.get("pci_busid"): each for each in top.iter("object") if each.get("type") == "PCIDev"}
    for name, node in ((FIRST, "0"), (SECOND, "1")):
        place = functions[name]
        while place.get("type") in ("PCIDev", "Bridge"):
            place = above[place]
        assert place.get("cpuset") == nodes[node].get("cpuset")


def test_lstopo_shows_the_machine(lab: MountedLab) -> None:
    need("lstopo-no-graphics", "hwloc-nox")
    top = ElementTree.fromstring(Tool(lab, "lstopo-no-graphics").quiet("--of", "xml"))
    assert_is_the_machine(top)
    (distances,) = top.findall("distances2")
    values = " ".join(each.text or "" for each in distances.findall("u64values")).split()
    assert values == ["10", "20", "20", "21", "10", "17", "28", "17", "10"]


def test_lstopo_reads_the_mount(lab: MountedLab) -> None:
    need("lstopo-no-graphics", "hwloc-nox")
    command = ["lstopo-no-graphics", "--if", "fsroot", "-i", str(lab.path), "--of", "xml"]
    assert_is_the_machine(ElementTree.fromstring(run(command).stdout))


def test_hwloc_does_as_its_user_says(lab: MountedLab) -> None:
    script = "echo $HWLOC_COMPONENTS $HWLOC_ALLOW"
    command = [*VFSFUSE, "run", "--mount", str(lab.path), "--", "sh", "-c", script]
    done = run(command, HWLOC_COMPONENTS="synthetic")
    assert done.stdout == "synthetic all\n"


def test_lscpu_shows_the_machine(lab: MountedLab) -> None:
    need("lscpu", "util-linux")
    rows = json.loads(Tool(lab, "lscpu").quiet("--json"))["lscpu"]
    found = {row["field"]: row["data"] for row in rows}
    assert found["CPU(s):"] == "16" and found["On-line CPU(s) list:"] == "0-7,32-39"
    assert found["Socket(s):"] == "2" and found["Core(s) per socket:"] == "4"
    assert found["Thread(s) per core:"] == "2" and found["NUMA node(s):"] == "3"
    assert found["NUMA node1 CPU(s):"] == "4-7,36-39"
    real = Path("/sys/devices/system/cpu/vulnerabilities")
    assert any(field.startswith("Vulnerability") for field in found) == real.exists()


def test_libnuma_knows_the_machine(lab: MountedLab) -> None:
    done = vfsfuse("run", "--mount", lab.path, "--", "/usr/bin/python3", "-c", NUMA)
    if "libnuma.so.1: cannot open" in done.stderr:
        pytest.skip("libnuma is not installed (apt-get install libnuma1)")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "max": 5,
        "cpus": 16,
        "nodes of CPUs": [0, 0, 1, 1],
        "distances": [20, 28, 10],
        "memory": [64 << 30, 32 << 30, 128 << 30],
    }


def test_without_nodes_the_machine_is_the_real_one(tmp_path: Path) -> None:
    with described(tmp_path, GPU.format(FIRST)) as lab:
        assert os.listdir(system(lab)) == []
        shown = Tool(lab, "sh").quiet("-c", "ls /sys/devices/system; env | grep HWLOC || true").split()
        assert shown == sorted(os.listdir("/sys/devices/system"))
        online = Path("/sys/devices/system/cpu/online").read_text()
        assert (function_dir(lab, FIRST) / "local_cpulist").read_text() == online
