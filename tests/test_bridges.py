# SPDX-License-Identifier: Apache-2.0
"""A machine of bridges as tools read it: switches, a bridge to conventional PCI, several root buses and
domains, in sysfs, lspci, lstopo and libudev."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.commands import ROOT
from tests.labs import MountedLab, described
from tests.machines.machine import function_dir, lspci, shell
from tests.test_uevents import hear, listening
from tests.tool import SYSTEM_PYTHON, Tool, need, need_pyudev

LAB = """
[nodes.0]
cpus = "0-1"
memory = "4G"

[nodes.1]
cpus = "2-3"
memory = "4G"

[roots."0000:80"]
numa_node = 1

[roots."10000:e0"]

[functions."0000:00:01.0"]
bridge = "root-port"
secondary = 0x01

[functions."0000:01:00.0"]
bridge = "switch-upstream"
secondary = 0x02
vendor = 0x1000
device = 0xc010

[functions."0000:02:{00-01}.0"]
model = "plain"
vendor = 0x1000
device = 0xc011

[functions."0000:02:00.0"]
bridge = "switch-downstream"
secondary = 0x03

[functions."0000:02:01.0"]
bridge = "switch-downstream"
secondary = 0x04
subordinate = 0x07

[functions."0000:03:00.0"]
class = 0x030200
driver = "card"
bars.0 = { size = "16M" }
bars.2 = { size = "64G", kind = "mem64-prefetch" }
bars.5 = { size = 128, kind = "io" }
capabilities = ["pm", "msi:1", "express"]
serial = "00-11-22-33-44-55-66-77"

[functions."0000:03:00.1"]
class = 0x040300
driver = "sound"
bars = { 0 = { size = "16K" } }
capabilities = ["pm", "express"]

[functions."0000:00:1c.0"]
bridge = "root-port"
secondary = 0x10

[functions."0000:10:00.0"]
bridge = "pci"
secondary = 0x11

[functions."0000:11:{01-02}.0"]
class = 0x020000
driver = "old"
bars = { 0 = { size = "4K" }, 1 = { size = 64, kind = "io" } }

[functions."0000:80:02.0"]
class = 0x010601
driver = "ahci"

[functions."0000:81:00.0"]
class = 0x020000
driver = "ice"
capabilities = ["pm", "msix:8", "express"]
bars = { 0 = { size = "32M", kind = "mem64" } }

[functions."10000:e1:00.0"]
class = 0x010802
driver = "nvme"
capabilities = ["express"]
bars = { 0 = { size = "16K", kind = "mem64" } }
"""
PLACES = {
    "0000:00:01.0": "pci0000:00",
    "0000:01:00.0": "pci0000:00/0000:00:01.0",
    "0000:02:01.0": "pci0000:00/0000:00:01.0/0000:01:00.0",
    "0000:03:00.1": "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0",
    "0000:11:02.0": "pci0000:00/0000:00:1c.0/0000:10:00.0",
    "0000:80:02.0": "pci0000:80",
    "0000:81:00.0": "pci0000:80/0000:80:01.0",
    "10000:e1:00.0": "pci10000:e0/10000:e0:01.0",
}
UDEV = """
import json, pyudev
devices = pyudev.Context().list_devices(subsystem="pci")
print(json.dumps({each.sys_name: [up.sys_name for up in each.ancestors] for each in devices}))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("bridges"), LAB) as made:
        yield made


def test_directories_are_as_deep_as_the_buses(machine: MountedLab) -> None:
    devices = machine.path / "sys/devices"
    assert {name: function_dir(machine, name).resolve().parent for name in PLACES} == {
        name: devices / place for name, place in PLACES.items()
    }
    bus = machine.path / "sys/class/pci_bus/0000:04"
    assert bus.resolve() == function_dir(machine, "0000:02:01.0").resolve() / "pci_bus/0000:04"
    assert (bus / "device").resolve() == function_dir(machine, "0000:02:01.0").resolve()
    assert sorted(os.listdir(machine.path / "sys/class/pci_bus")) == sorted(
        [*(f"0000:{bus:02x}" for bus in (0, 1, 2, 3, 4, 0x10, 0x11, 0x80, 0x81)), "10000:e0", "10000:e1"]
    )


def test_drivers_of_bridges(machine: MountedLab) -> None:
    names = ("0000:00:01.0", "0000:01:00.0", "0000:02:00.0", "0000:10:00.0", "0000:80:01.0")
    links = [function_dir(machine, name) / "driver" for name in names]
    assert [os.path.basename(os.readlink(link)) if link.is_symlink() else None for link in links] == [
        *("pcieport", "pcieport", "pcieport", None, "pcieport")
    ]


def test_files_of_bridges(machine: MountedLab) -> None:
    def numbers(name: str) -> tuple[str, str]:
        bridge = function_dir(machine, name)
        return (
            (bridge / "secondary_bus_number").read_text(),
            (bridge / "subordinate_bus_number").read_text(),
        )

    assert numbers("0000:00:01.0") == ("1\n", "7\n") and numbers("0000:02:01.0") == ("4\n", "7\n")
    assert (function_dir(machine, "0000:02:01.0") / "device").read_text() == "0xc011\n"
    assert len((function_dir(machine, "0000:10:00.0") / "resource").read_text().splitlines()) == 17
    near = [
        (function_dir(machine, name) / "numa_node").read_text() for name in ("0000:81:00.0", "0000:03:00.0")
    ]
    assert near == ["1\n", "-1\n"]
    assert (machine.path / "sys/class/pci_bus/0000:80/cpulistaffinity").read_text() == "2-3\n"


def test_a_reset_goes_down_all_buses(machine: MountedLab) -> None:
    below = [function_dir(machine, name) / "config" for name in ("0000:03:00.0", "0000:02:00.0")]
    before = [config.read_bytes() for config in below]
    for config in below:
        with open(config, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"\x07", 0x3C)
    assert [config.read_bytes() for config in below] != before
    with open(function_dir(machine, "0000:00:01.0") / "config", "r+b", buffering=0) as port:
        os.pwrite(port.fileno(), b"\x40", 0x3E)
        os.pwrite(port.fileno(), b"\0", 0x3E)
    assert [config.read_bytes() for config in below] == before


def test_lspci_draws_the_machine(machine: MountedLab) -> None:
    drawn = lspci(machine, "-t").splitlines()
    if drawn[0].startswith("-+-"):  # a line joins root buses; since pciutils 3.13, those of a domain only
        drawn = [line if line.startswith("-[") else line[2:] for line in drawn]
    assert drawn == [
        "-[0000:00]-+-01.0-[01-07]----00.0-[02-07]--+-00.0-[03]--+-00.0",
        "           |                               |            \\-00.1",
        "           |                               \\-01.0-[04-07]--",
        "           \\-1c.0-[10-11]----00.0-[11]--+-01.0",
        "                                        \\-02.0",
        "-[0000:80]-+-01.0-[81]----00.0",
        "           \\-02.0",
        "-[10000:e0]---01.0-[e1]----00.0",
    ]


def test_the_manual_draws_its_machine(tmp_path: Path) -> None:
    section = (ROOT / "docs/lab.md").read_text().split("\n## Buses and bridges\n")[1].split("\n## ")[0]
    text = section.split("```toml\n")[1].split("```")[0]
    drawn = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    with described(tmp_path, text) as lab:
        assert lspci(lab, "-t").splitlines() == drawn


def test_lspci_decodes_the_bridges(machine: MountedLab) -> None:
    for name, lines in {
        "0000:01:00.0": (
            "Express (v2) Upstream Port",
            "Bus: primary=01, secondary=02, subordinate=07, sec-latency=0",
            "Prefetchable memory behind bridge: ",
            "[size=64G]",
            "I/O behind bridge: ",
        ),
        "0000:02:00.0": ("Express (v2) Downstream Port", "Access Control Services", "Memory behind bridge: "),
        "0000:02:01.0": ("Memory behind bridge: [disabled]", "Bus: primary=02, secondary=04, subordinate=07"),
        "0000:10:00.0": ("Express (v2) PCI-Express to PCI/PCI-X Bridge", "PCI bridge", "[size=1M]"),
        "0000:03:00.0": ("Device Serial Number 00-11-22-33-44-55-66-77", "[size=64G]"),
    }.items():
        shown = lspci(machine, "-D", "-s", name, "-vv")
        assert [line for line in lines if line not in shown] == [], shown
        assert "<chain broken>" not in shown and "!!!" not in shown


def test_lspci_shows_the_ways(machine: MountedLab) -> None:
    ways = {line.split()[0] for line in lspci(machine, "-PP", "-D").splitlines()}
    assert "0000:00:01.0/01:00.0/02:00.0/03:00.1" in ways and "0000:00:1c.0/10:00.0/11:02.0" in ways


def test_multifunction_headers(machine: MountedLab) -> None:
    def kind(name: str) -> int:
        return (function_dir(machine, name) / "config").read_bytes()[0x0E]

    assert [kind(f"0000:{name}") for name in ("03:00.0", "03:00.1", "81:00.0", "01:00.0")] == [
        *(0x80, 0x80, 0x00, 0x01)
    ]


def test_lstopo_shows_the_bridges(machine: MountedLab) -> None:
    need("lstopo-no-graphics", "hwloc-nox")
    done = Tool(machine, "lstopo-no-graphics").run("--of", "xml", "--filter", "io:all")
    top = ElementTree.fromstring(done.stdout)  # it complains of the domain of more than 16 bits
    above = {child: parent for parent in top.iter("object") for child in parent.findall("object")}
    found = {each.get("pci_busid"): each for each in top.iter("object") if each.get("pci_busid")}
    way = []
    place = found["0000:03:00.1"]
    while place.get("type") in ("PCIDev", "Bridge"):
        way.append(place.get("pci_busid"))
        place = above[place]
    assert way == ["0000:03:00.1", "0000:02:00.0", "0000:01:00.0", "0000:00:01.0", None]


def test_udev_knows_what_is_above(machine: MountedLab) -> None:
    need_pyudev()
    found = json.loads(shell(machine, f"{SYSTEM_PYTHON} -c '{UDEV}'"))
    assert found["0000:03:00.1"] == ["0000:02:00.0", "0000:01:00.0", "0000:00:01.0", "pci0000:00"]
    assert found["10000:e1:00.0"] == ["10000:e0:01.0", "pci10000:e0"]


def test_a_switch_goes_and_comes(machine: MountedLab) -> None:
    switch = "/devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    upstream = function_dir(machine, "0000:01:00.0")
    inside = ("0000:01:00.0", "0000:02:00.0", "0000:02:01.0", "0000:03:00.0", "0000:03:00.1")
    before = {name: (function_dir(machine, name) / "resource").read_text() for name in inside}
    with listening(machine, os.O_NONBLOCK) as fd:
        (upstream / "remove").write_text("1")
        assert not any(function_dir(machine, name).exists() for name in inside)
        assert not (machine.path / "sys/class/pci_bus/0000:03").exists()
        gone = [head for head, _ in hear(fd) if head.startswith("remove@") and "pci_bus" not in head]
        (machine.path / "sys/class/pci_bus/0000:01/rescan").write_text("1")
        came = [head for head, _ in hear(fd) if head.startswith("add@") and "pci_bus" not in head]
    cards = [f"{switch}/0000:02:00.0/0000:03:00.{number}" for number in (0, 1)]
    ports = [f"{switch}/0000:02:00.0", f"{switch}/0000:02:01.0"]
    assert [head.removeprefix("remove@") for head in gone] == [*cards, *ports, switch]
    assert [head.removeprefix("add@") for head in came] == [switch, *ports, *cards]
    assert {name: (function_dir(machine, name) / "resource").read_text() for name in inside} == before
    assert os.path.basename(os.readlink(function_dir(machine, "0000:03:00.1") / "driver")) == "sound"
