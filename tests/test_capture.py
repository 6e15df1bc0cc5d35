# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse capture`: labs, this machine and the texts of other machines, captured, mounted and compared as
lspci shows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.labs import MountedLab, described
from tests.tool import need
from vfsfuse.capture import vpd

TEXTS = ROOT / "tests/capture"
REAL = Path("/sys/bus/pci/devices")
VIEWS = ("-nnt", "-nn", "-nnvvv", "-xxxx")
"""What is compared: the tree, names and ids, every detail, every byte."""
SERIAL, MAC = "00-11-22-33-44-55-66-77", "3c:fd:fe:a0:12:34"
VITAL = vpd.pack(
    [
        vpd.Resource(vpd.NAME, b"Made up"),
        vpd.Resource(vpd.READ_ONLY, fields=((b"PN", b"K1"), (b"SN", b"MU1934X01234"), (b"RV", b"\0\0"))),
    ]
)
LAB = f"""
[roots."0000:80"]
numa_node = 1

[iommu.units.dmar0]
scope = ["0000:00"]

[iommu.units.dmar1]
scope = ["0000:80"]

[nodes.0]
cpus = "0-3,8-11"
threads = 2
memory = "4G"
distances = [10, 21]

[nodes.1]
cpus = "4-7"
memory = "4G"
distances = [21, 10]

[functions."0000:00:01.0"]
bridge = "root-port"
secondary = 0x65

[functions."0000:00:02.0"]
bridge = "root-port"
secondary = 0x70
slot = "12"

[functions."0000:65:00.0"]
vendor = 0x8086
device = 0x1572
class = 0x020000
interrupt_pin = 1
slot = "4"
driver = "i40e"
bars = {{ 0 = {{ size = "8M", kind = "mem64-prefetch" }}, 3 = {{ size = "32K", kind = "mem64" }} }}
rom_size = "64K"
capabilities = ["pm", "msi:1", "msix:129@3", "express:8GT,x8", "vpd", "aer", "ari"]
serial = "{SERIAL}"
vpd = "{VITAL.hex(" ")}\\n"
vfs = 8
net = "enp101s0f0"
mac = "{MAC}"
vf.device = 0x154c
vf.bars = {{ 0 = {{ size = "64K", kind = "mem64-prefetch" }}, 3 = {{ size = "16K", kind = "mem64" }} }}
vf.capabilities = ["msix:5@3", "express:8GT,x8"]
vf.driver = "iavf"

[functions."0000:65:00.1"]
vendor = 0x8086
device = 0x1572
class = 0x020000
bars.0 = {{ size = "64G", kind = "mem64-prefetch" }}
capabilities = ["pm", "express:legacy", "acs"]

[functions."0000:80:00.0"]
vendor = 0x8086
device = 0x09a2
class = 0x088000
subsystem_vendor = 0x8086
bars = {{ 0 = {{ size = 64, kind = "io" }}, 1 = {{ size = 256 }} }}

[functions."0000:80:02.0"]
bridge = "pci"
secondary = 0x81
subordinate = 0x82

[functions."0000:81:04.0"]
class = 0x030000
capabilities = ["pm"]
bars.0 = {{ size = "16M", kind = "mem32-prefetch" }}
rom_size = "128K"

[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "256M"
types.half = {{ memory = "128M", description = "a half" }}
"""


def views(sys: Path) -> Mapping[str, str]:
    """What lspci shows of a sysfs, by its options."""
    need("lspci", "pciutils")
    return {view: lspci(sys, view) for view in VIEWS}


def lspci(sys: Path, *options: str) -> str:
    command = ["lspci", "-O", f"sysfs.path={sys}/bus/pci", *options]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout


def groups(sys: Path) -> Mapping[str, list[str]]:
    """The members of the IOMMU groups, by number."""
    folder = sys / "kernel/iommu_groups"
    return {group.name: sorted(os.listdir(group / "devices")) for group in sorted(folder.iterdir())}


def links(sys: Path, name: str) -> Mapping[str, str]:
    """The last part of a link of each function that has it."""
    places = sorted((sys / "bus/pci/devices").iterdir())
    return {
        place.name: os.path.basename(os.readlink(place / name))
        for place in places
        if (place / name).is_symlink()
    }


def capture(*options: str | Path) -> subprocess.CompletedProcess[str]:
    done = vfsfuse("capture", *options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("captured"), LAB) as mounted:
        yield mounted


@pytest.fixture(params=["sysfs", "lspci"])
def again(request: pytest.FixtureRequest, lab: MountedLab, tmp_path: Path) -> Iterator[MountedLab]:
    """A lab of what was captured of the lab, by one of the two ways."""
    options: tuple[str | Path, ...] = ("--sys", lab.path / "sys")
    if request.param == "lspci":
        text = tmp_path / "machine.txt"
        text.write_text(lspci(lab.path / "sys", "-nnvvvxxxx", "-D"))
        options = ("--lspci", text)
    with described(tmp_path, capture("--keep-serials", *options).stdout) as mounted:
        yield mounted


# ---- a lab ----


def test_a_captured_lab_is_the_same_machine(lab: MountedLab, again: MountedLab) -> None:
    before, after = views(lab.path / "sys"), views(again.path / "sys")
    assert before["-nnt"] == after["-nnt"]
    assert before["-nn"] == after["-nn"]
    assert before["-xxxx"] == after["-xxxx"]
    assert before["-nnvvv"] == after["-nnvvv"]
    assert links(lab.path / "sys", "driver") == links(again.path / "sys", "driver")
    assert groups(lab.path / "sys") == groups(again.path / "sys")


def test_what_lspci_cannot_tell_comes_from_sysfs(lab: MountedLab, tmp_path: Path) -> None:
    text = capture("--sys", lab.path / "sys", "--keep-serials").stdout
    found = tomllib.loads(text)
    assert found["iommu"] == {"units": {"dmar0": {"scope": ["0000:00"]}, "dmar1": {"scope": ["0000:80"]}}}
    assert found["functions"]["0000:00:02.0"]["slot"] == "12"
    nodes = found["nodes"]
    assert nodes["0"] == {"cpus": "0-3,8-11", "threads": 2, "memory": "4G", "distances": [10, 21]}
    assert nodes["1"] == {"cpus": "4-7", "memory": "4G", "distances": [21, 10]}
    assert found["roots"]["0000:80"] == {"numa_node": 1}
    nic = found["functions"]["0000:65:00.0"]
    assert (nic["net"], nic["mac"], nic["vfs"]) == (["enp101s0f0"], MAC, 8)
    assert nic["vf"]["bars"] == {
        "0": {"size": "64K", "kind": "mem64-prefetch"},
        "3": {"size": "16K", "kind": "mem64"},
    }
    with described(tmp_path, text) as mounted:
        assert links(mounted.path / "sys", "iommu") == links(lab.path / "sys", "iommu")
        address = mounted.path / "sys/class/net/enp101s0f0/address"
        assert address.read_text() == f"{MAC}\n"


def test_registers_of_a_captured_function_are_live(again: MountedLab) -> None:
    need("setpci", "pciutils")
    function = again.path / "sys/bus/pci/devices/0000:65:00.0"
    before = (function / "config").read_bytes()
    with (function / "config").open("r+b", buffering=0) as config:
        config.seek(0x10)
        config.write(b"\xff" * 4)
        config.seek(0x10)
        assert config.read(4) == (0xFF80000C).to_bytes(4, "little")
        config.seek(0x10)
        config.write(before[0x10:0x14])
    assert (function / "config").read_bytes() == before
    with (again.path / "sys/bus/pci/devices/0000:65:00.1/resource0").open("r+b", buffering=0) as memory:
        memory.seek((64 << 30) - 4)
        memory.write(b"last")
        memory.seek((64 << 30) - 4)
        assert memory.read(4) == b"last"


@pytest.mark.parametrize("way", ["sysfs", "lspci"])
def test_virtual_functions_that_are_enabled_are_captured(tmp_path: Path, way: str) -> None:
    with described(tmp_path, LAB) as mounted:
        sys = mounted.path / "sys"
        (sys / "bus/pci/devices/0000:65:00.0/sriov_numvfs").write_text("2")
        before, before_groups = views(sys), groups(sys)
        text = tmp_path / "machine.txt"
        text.write_text(lspci(sys, "-nnvvvxxxx", "-D"))
        options = ("--sys", sys) if way == "sysfs" else ("--lspci", text)
        captured = capture("--keep-serials", *options).stdout
    assert before["-nn"].count("[8086:154c]") == 2
    with described(tmp_path, captured) as mounted:
        sys = mounted.path / "sys"
        assert {**views(sys), "groups": groups(sys)} == {**before, "groups": before_groups}


def test_serial_numbers_are_replaced(lab: MountedLab, tmp_path: Path) -> None:
    found = tomllib.loads(capture("--sys", lab.path / "sys").stdout)
    nic = found["functions"]["0000:65:00.0"]
    assert nic["mac"] == "02:00:00:00:00:01"
    with described(tmp_path, capture("--sys", lab.path / "sys").stdout) as mounted:
        shown = lspci(mounted.path / "sys", "-vvv", "-s", "65:00.0")
        assert "Device Serial Number 02-00-00-ff-fe-00-00-01" in shown
        assert "[SN] Serial number: 000000000001" in shown and "checksum good" in shown
        assert "Part number: K1" in shown


@needs.root("ROMs are read by root alone")
def test_contents_of_roms_are_files(lab: MountedLab, tmp_path: Path) -> None:
    folder = tmp_path / "roms"
    text = capture("--sys", lab.path / "sys", "--roms", folder).stdout
    assert sorted(os.listdir(folder)) == ["0000:65:00.0.rom", "0000:81:04.0.rom"]
    with described(tmp_path, text) as mounted:
        rom = mounted.path / "sys/bus/pci/devices/0000:81:04.0/rom"
        rom.write_text("1")
        assert rom.read_bytes() == (folder / "0000:81:04.0.rom").read_bytes()
        assert rom.read_bytes().startswith(b"\x55\xaa")


@pytest.mark.parametrize("example", ["desktop", "server", "vendor_host"])
@pytest.mark.parametrize("way", ["sysfs", "lspci"])
def test_the_machines_of_the_examples_come_back(tmp_path: Path, example: str, way: str) -> None:
    with MountedLab(tmp_path, "--config", str(ROOT / f"examples/{example}.toml")) as mounted:
        sys = mounted.path / "sys"
        before = {**views(sys), "groups": groups(sys), "drivers": links(sys, "driver")}
        text = tmp_path / "machine.txt"
        text.write_text(lspci(sys, "-nnvvvxxxx", "-D"))
        options = ("--sys", sys) if way == "sysfs" else ("--lspci", text)
        captured = capture("--keep-serials", *options).stdout
    with described(tmp_path, captured) as mounted:
        sys = mounted.path / "sys"
        assert {**views(sys), "groups": groups(sys), "drivers": links(sys, "driver")} == before


# ---- other machines, by what lspci printed there ----


HEAD = re.compile(
    r"(?P<address>\S+) .*?(?P<code>\[[0-9a-f]{4}\]):.*(?P<ids>\[[0-9a-f]{4}:[0-9a-f]{4}\])"
    r"(?P<rev>( \(rev ..\))?)"
)
FACTS = re.compile(
    r"\t(Region |Expansion ROM|Bus: |I/O behind|Memory behind|Prefetchable memory|NUMA|IOMMU|Physical Slot"
    r"|Kernel driver)|[0-9a-f]{2,3}: "
)
"""Lines that each version of lspci prints in the same way."""


def blocks(text: str) -> Mapping[str, list[str]]:
    """What a text of lspci says of each function: ids, and lines of facts."""
    found = {}
    for block in text.split("\n\n"):
        lines = block.strip("\n").split("\n")
        if head := HEAD.match(lines[0]):
            facts = [line.strip() for line in lines[1:] if FACTS.match(line)]
            found[head["address"]] = ["".join(head.group("code", "ids", "rev")), *facts]
    return found


def differences(before: list[str], after: list[str]) -> list[str]:
    """The lines of the one that the other does not have, in both directions."""
    gone = [f"-{line}" for line in before if line not in after]
    return [*gone, *(f"+{line}" for line in after if line not in before)]


def from_text(tmp_path: Path, name: str) -> MountedLab:
    return described(tmp_path, capture("--lspci", TEXTS / f"{name}.txt", "--keep-serials").stdout)


def test_a_desktop(tmp_path: Path) -> None:
    before = blocks((TEXTS / "desktop.txt").read_text())
    with from_text(tmp_path, "desktop") as mounted:
        need("lspci", "pciutils")
        after = blocks(lspci(mounted.path / "sys", "-nnvvvxxxx", "-D"))
    assert list(after) == list(before)
    assert {name: differences(before[name], after[name]) for name in before} == {name: [] for name in before}


def test_a_server_with_several_root_buses_and_virtual_functions(tmp_path: Path) -> None:
    before = blocks((TEXTS / "server.txt").read_text())
    with from_text(tmp_path, "server") as mounted:
        need("lspci", "pciutils")
        after = blocks(lspci(mounted.path / "sys", "-nnvvvxxx", "-D"))
        roots = sorted(name for name in os.listdir(mounted.path / "sys/devices") if name.startswith("pci"))
    assert roots == ["pci0000:00", "pci0000:40", "pci0000:80", "pci0000:c0"]
    physical, virtual = "0000:01:00.0", [f"0000:01:00.{index}" for index in (2, 3)]
    assert [
        name for name in before if name not in (physical, *virtual) and differences(before[name], after[name])
    ] == []
    assert differences(before[physical], after[physical]) == []
    assert [differences(before[name], after[name]) for name in virtual] == [
        ["-Kernel driver in use: vfio-pci", "+Kernel driver in use: mlx5_core"],
        [],
    ]


def test_a_machine_with_several_domains_of_which_a_user_saw_64_bytes(tmp_path: Path) -> None:
    before = blocks((TEXTS / "arm.txt").read_text())
    done = capture("--lspci", TEXTS / "arm.txt")
    assert "0000:00:01.0 and 8 more: lspci did not run as root" in done.stderr
    with described(tmp_path, done.stdout) as mounted:
        need("lspci", "pciutils")
        after = blocks(lspci(mounted.path / "sys", "-nnvvvx", "-D"))
        tree = lspci(mounted.path / "sys", "-t")
    assert list(after) == list(before)
    assert tree.count("[0004:00]") == tree.count("[10000:e1]") == 1
    hidden = re.compile("[03]0: ")  # they say that there are capabilities, and where
    for name in before:
        assert [line for line in differences(before[name], after[name]) if not hidden.match(line[1:])] == []


# ---- this machine ----


@pytest.mark.skipif(not REAL.is_dir() or not os.listdir(REAL), reason="this machine has no PCI functions")
@needs.root("an ordinary user reads 64 bytes of configuration space")
def test_this_machine(tmp_path: Path) -> None:
    with described(tmp_path, capture("--keep-serials").stdout) as mounted:
        before, after = views(Path("/sys")), views(mounted.path / "sys")
        for view in VIEWS:
            assert static(after[view]) == static(before[view])
        assert list(groups(mounted.path / "sys").values()) == list(groups(Path("/sys")).values())


def static(text: str) -> str:
    """A text of lspci without what changes by itself: the interrupts of the host, and names of modules."""
    return re.sub(r"(?m)^\t(Interrupt|Kernel modules):.*\n", "", text)


@pytest.mark.skipif(not REAL.is_dir() or not os.listdir(REAL), reason="this machine has no PCI functions")
@needs.root("only root becomes another user")
def test_an_ordinary_user_is_told_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ordinary_user", *VFSFUSE, "capture"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0
    said = "only the first 64 bytes of configuration space may be read"
    assert said in done.stderr and said in done.stdout.replace("\n#  ", "")
    with described(tmp_path, done.stdout) as mounted:
        assert lspci(mounted.path / "sys", "-nn") == lspci(Path("/sys"), "-nn")


# ---- mistakes ----


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--sys", "/nowhere"), "/nowhere/bus/pci/devices: cannot be read: No such file or directory"),
        (("--sys", "/proc/self"), "/proc/self/bus/pci/devices: cannot be read: No such file or directory"),
        (("--lspci", "/nowhere"), "/nowhere: No such file or directory"),
        (("--lspci", "/etc/passwd"), "/etc/passwd: line 1: 'root:"),
        (
            ("--lspci", "/dev/null"),
            "/dev/null: describes no PCI function (write it with lspci -nnvvvxxxx -D)",
        ),
        (("--lspci", "/"), "/: Is a directory"),
        (("--lspci", "/dev/null", "--roms", "/tmp"), "--roms: a text has no ROMs"),
    ],
)
def test_a_mistake_is_one_line(options: tuple[str, ...], why: str) -> None:
    done = vfsfuse("capture", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vfsfuse: capture: {why}") and done.stderr.count("\n") == 1


def test_a_text_comes_through_a_pipe() -> None:
    text = (TEXTS / "arm.txt").read_text()
    done = subprocess.run(
        [*VFSFUSE, "capture", "--lspci", "-"],
        input=text,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0 and "0004:01:00.1" in done.stdout
    script = f'exec "$@" --lspci <(sleep 0.3; cat {TEXTS}/arm.txt)'
    again = subprocess.run(
        ["bash", "-c", script, "bash", *VFSFUSE, "capture"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (again.returncode, again.stdout) == (0, done.stdout)
