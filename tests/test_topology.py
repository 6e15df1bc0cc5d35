# SPDX-License-Identifier: Apache-2.0
"""The PCI topology of a lab as tools read it: domains, root ports, buses, and where functions are."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import run
from tests.labs import MountedLab, described
from tests.snapshot import walk
from tests.test_uevents import hear, listening
from tests.tool import need
from tests.vfio.devices import function_dir

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
LAB = """
[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
vfs = 4
types.quarter = { memory = "16M", description = "a quarter" }

[parents."0000:03:00.0"]
kind = "gpu"
driver = "acme"
memory = "64M"
types.quarter = { memory = "16M", description = "a quarter" }

[parents."0000:00:02.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
types.quarter = { memory = "16M", description = "a quarter" }

[parents."0001:90:1f.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
vfs = 8
types.quarter = { memory = "8M", description = "a quarter" }

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 2
types.one = { description = "one port" }
"""
PORTS = {"0000:03": "0000:00:01.0", "0000:86": "0000:00:03.0", "0001:90": "0001:00:01.0"}
FUNCTIONS = {
    "0000:03:00.0": "pci0000:00/0000:00:01.0",
    "0000:86:00.0": "pci0000:00/0000:00:03.0",
    "0000:00:02.0": "pci0000:00",
    "0001:90:1f.0": "pci0001:00/0001:00:01.0",
    **{port: f"pci{port[:7]}" for port in PORTS.values()},
}
EDGE = "0001:90:1f.0"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("topology"), LAB) as made:
        yield made


def store(path: Path, text: str) -> int | None:
    """Write to an attribute as echo(1) does; the errno of a failure."""
    try:
        path.write_text(f"{text}\n")
    except OSError as error:
        return error.errno
    return None


@contextmanager
def virtual_functions(machine: MountedLab) -> Iterator[list[str]]:
    """All virtual functions of EDGE: four on its own bus, and four on the next."""
    numvfs = function_dir(machine, EDGE) / "sriov_numvfs"
    numvfs.write_text("8")
    yield [
        os.path.basename(os.readlink(function_dir(machine, EDGE) / f"virtfn{index}")) for index in range(8)
    ]
    numvfs.write_text("0")


def lspci(machine: MountedLab, *arguments: str) -> str:
    need("lspci", "pciutils")
    done = run(["lspci", "-A", "linux-sysfs", "-O", f"sysfs.path={machine.path}/sys/bus/pci", *arguments])
    said = done.stderr.replace("lspci: Unable to load libkmod resources: error -2\n", "")
    assert (done.returncode, said) == (0, "")
    return done.stdout


# ---- the tree ----


def test_functions_are_below_their_root_ports(machine: MountedLab) -> None:
    devices = machine.path / "sys/devices"
    found = {name: function_dir(machine, name).resolve() for name in FUNCTIONS}
    assert found == {name: devices / above / name for name, above in FUNCTIONS.items()}
    assert sorted(os.listdir(machine.path / "sys/bus/pci/devices")) == sorted(FUNCTIONS)


def test_every_link_leads_somewhere(machine: MountedLab) -> None:
    with virtual_functions(machine):
        links = [entry.path for entry in walk(machine.path / "sys") if entry.is_symlink()]
        assert len(links) > 100
        assert [link for link in links if not os.path.exists(link)] == []


def test_files_of_a_port(machine: MountedLab) -> None:
    for bus, name in PORTS.items():
        port = function_dir(machine, name)
        last = "0001:91" if bus == "0001:90" else bus
        assert (port / "secondary_bus_number").read_text() == f"{int(bus[5:], 16)}\n"
        assert (port / "subordinate_bus_number").read_text() == f"{int(last[5:], 16)}\n"
        assert (port / "class").read_text() == "0x060400\n"
        assert (port / "driver").resolve() == machine.path / "sys/bus/pci/drivers/pcieport"
        assert (machine.path / "sys/bus/pci/drivers/pcieport" / name).resolve() == port.resolve()
        assert (port / "iommu_group/devices").resolve().is_dir()
        assert os.listdir(port / "iommu_group/devices") == [name]
        assert "DRIVER=pcieport\nPCI_CLASS=60400\nPCI_ID=1B36:000C\n" in (port / "uevent").read_text()
        rows = (port / "resource").read_text().splitlines()
        assert len(rows) == 17 and all(len(row.split()) == 3 for row in rows)
        others = set(os.listdir(port))
        assert not others & {"vgpu_create", "mdev_supported_types", "resource0", "rom", "vram_total"}


def test_config_of_a_port(machine: MountedLab) -> None:
    config = function_dir(machine, "0000:00:03.0") / "config"
    assert config.stat().st_size == 4096 and config.stat().st_mode & 0o777 == 0o644
    data = config.read_bytes()
    assert len(data) == 4096 and data[:4].hex() == "361b0c00" and data[0x18:0x1B].hex() == "008686"
    with open(config, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"\x0b\xff\x12", 0x3C)
        assert os.pread(file.fileno(), 3, 0x3C) == b"\x0b\x00" + bytes([0x02])
        os.pwrite(file.fileno(), bytes(3), 0x3C)
    assert config.read_bytes() == data


def test_a_port_resets_its_bus(machine: MountedLab) -> None:
    config = function_dir(machine, "0000:86:00.0") / "config"
    before = config.read_bytes()
    with (
        open(config, "r+b", buffering=0) as below,
        open(function_dir(machine, "0000:00:03.0") / "config", "r+b", buffering=0) as port,
    ):
        os.pwrite(below.fileno(), bytes(4), 0x10)  # the address of BAR 0
        assert config.read_bytes() != before
        os.pwrite(port.fileno(), b"\x40", 0x3E)
        assert os.pread(port.fileno(), 1, 0x3E) == b"\x40"
        os.pwrite(port.fileno(), b"\x00", 0x3E)
    assert config.read_bytes() == before


@needs.root("only root's mount is open to other users")
def test_another_user_reads_the_header_of_a_port(machine: MountedLab) -> None:
    command = f"cd {machine.path} && exec {' '.join(NOBODY)} wc -c sys/bus/pci/devices/0000:00:03.0/config"
    assert run(["sh", "-c", command]).stdout.split()[0] == "64"


def test_buses_are_devices_of_a_class(machine: MountedLab) -> None:
    buses = machine.path / "sys/class/pci_bus"
    assert sorted(os.listdir(buses)) == ["0000:00", "0000:03", "0000:86", "0001:00", "0001:90"]
    for name in os.listdir(buses):
        bus = buses / name
        above = (
            function_dir(machine, PORTS[name]) if name in PORTS else machine.path / f"sys/devices/pci{name}"
        )
        assert bus.resolve() == above.resolve() / "pci_bus" / name
        assert (bus / "device").resolve() == above.resolve()
        assert (bus / "subsystem").resolve() == buses
        assert (bus / "uevent").read_text() == ""
        online = Path("/sys/devices/system/cpu/online").read_text()
        assert (bus / "cpulistaffinity").read_text() == online
        assert int((bus / "cpuaffinity").read_text().replace(",", ""), 16) > 0


def test_a_host_bridge_has_no_events(machine: MountedLab) -> None:
    uevent = machine.path / "sys/devices/pci0000:00/uevent"
    with listening(machine, os.O_NONBLOCK) as fd:
        assert uevent.read_text() == "" and store(uevent, "add") is None
        assert store(uevent, "junk") == errno.EINVAL
        assert hear(fd) == []
        (function_dir(machine, "0000:00:03.0") / "uevent").write_text("change")
        assert [head for head, _ in hear(fd)] == ["change@/devices/pci0000:00/0000:00:03.0"]


def test_virtual_functions_are_beside_their_physical_one_on_every_bus(machine: MountedLab) -> None:
    buses = machine.path / "sys/class/pci_bus"
    port = function_dir(machine, PORTS["0001:90"]).resolve()
    with listening(machine, os.O_NONBLOCK) as fd:
        with virtual_functions(machine) as names:
            assert names[3:5] == ["0001:90:1f.7", "0001:91:00.0"]
            assert {function_dir(machine, name).resolve().parent for name in names} == {port}
            assert (buses / "0001:91").resolve() == port / "pci_bus/0001:91"
            assert (buses / "0001:91/device").resolve() == port
        assert not (buses / "0001:91").exists() and (buses / "0001:90").exists()
        heard = [head for head, _ in hear(fd)]
    devpath = "/devices/pci0001:00/0001:00:01.0"
    bus = heard.index(f"add@{devpath}/pci_bus/0001:91")
    assert heard.index(f"add@{devpath}/0001:90:1f.7") < bus < heard.index(f"add@{devpath}/0001:91:00.0")
    assert heard.index(f"remove@{devpath}/0001:91:00.0") < heard.index(f"remove@{devpath}/pci_bus/0001:91")


# ---- drivers ----


def test_vfio_pci_refuses_a_port(machine: MountedLab) -> None:
    name = "0000:00:01.0"
    drivers, port = machine.path / "sys/bus/pci/drivers", function_dir(machine, name)
    assert store(port / "driver_override", "vfio-pci") is None
    assert store(drivers / "vfio-pci/bind", name) == errno.EBUSY
    assert store(drivers / "pcieport/unbind", name) is None
    assert not (port / "driver").exists() and store(drivers / "pcieport/unbind", name) == errno.ENODEV
    assert store(drivers / "pcieport/bind", name) == errno.ENODEV
    assert store(drivers / "vfio-pci/bind", name) == errno.EINVAL
    assert store(machine.path / "sys/bus/pci/drivers_probe", name) is None, "a refusal is no error"
    assert not (port / "driver").exists()
    assert store(port / "driver_override", "") is None
    with listening(machine, os.O_NONBLOCK) as fd:
        assert store(machine.path / "sys/bus/pci/drivers_probe", name) is None
        assert [head for head, _ in hear(fd)] == [f"bind@/devices/pci0000:00/{name}"]
    assert (port / "driver").resolve().name == "pcieport"


# ---- lspci ----


def test_lspci_draws_the_tree(machine: MountedLab) -> None:
    drawn = lspci(machine, "-t").splitlines()
    if drawn[0].startswith("-+-"):  # before pciutils 3.13, a line joins the domains
        drawn = [line[2:] for line in drawn]
    assert drawn == [
        "-[0000:00]-+-01.0-[03]----00.0",
        "           +-02.0",
        "           \\-03.0-[86]----00.0",
        "-[0001:00]---01.0-[90-91]----1f.0",
    ]
    with virtual_functions(machine):
        shown = lspci(machine, "-tv").splitlines()
    assert len(shown) == 12 and shown[-1].endswith("\\-00.3  Device 1234:1111")


def test_lspci_shows_the_way_to_a_function(machine: MountedLab) -> None:
    paths = [line.split()[0] for line in lspci(machine, "-PP", "-D").splitlines()]
    assert "0000:00:03.0/86:00.0" in paths and "0001:00:01.0/90:1f.0" in paths and "0000:00:02.0" in paths


def test_lspci_decodes_a_port(machine: MountedLab) -> None:
    shown = lspci(machine, "-D", "-s", "0001:00:01.0", "-vvv", "-nn")
    for line in (
        "PCI bridge [0604]",
        "(prog-if 00 [Normal decode])",
        "Bus: primary=00, secondary=90, subordinate=91, sec-latency=0",
        "Express (v2) Root Port",
        "Access Control Services",
        "Kernel driver in use: pcieport",
        "Subsystem: Red Hat, Inc.",
        "LnkCap:\tPort #8, Speed 16GT/s, Width x16",
        "DLActive+",
    ):
        assert line in shown
    assert "<chain broken>" not in shown and "!!!" not in shown and "unknown" not in shown.lower()
