# SPDX-License-Identifier: Apache-2.0
"""The attributes of PCI functions in every state: which there are, modes, formats, and what writing does."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import one_write
from tests.labs import MountedLab, described
from tests.vfio.client import fails
from tests.vfio.devices import INTX, MSI, MSIX, TRIGGER, bound, eventfd, function_dir, opened

GPU, SECOND, INTEGRATED, CARD = "0000:86:00.0", "0000:87:00.0", "0000:00:05.0", "0000:80:00.0"
VF = "0000:86:00.4"
LAB = f"""
models = {{ card = "card.py:Card" }}

[parents."{GPU}"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
numa_node = 0
vfs = 2
vf_memory = "16M"
options = {{ vectors = 2048 }}
types.small = {{ memory = "16M", description = "a small one" }}

[parents."{SECOND}"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
numa_node = 77
types.small = {{ memory = "16M", description = "a small one" }}

[parents."{INTEGRATED}"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
types.small = {{ memory = "16M", description = "a small one" }}

[parents."{CARD}"]
kind = "gpu"
driver = "cards"
model = "card"
memory = "16M"
types.small = {{ memory = "16M", description = "a small one" }}
"""
MODEL = '''\
# SPDX-License-Identifier: Apache-2.0
"""A card of 1998: I/O ports, memory, a ROM of two images, and no capabilities."""

import struct

from devmodel.sdk import Bar, Identity, Layout, Memory, PciDevice, Register, Registers, Rom

IMAGE = bytearray(1024)
struct.pack_into("<H22xH", IMAGE, 0, 0xAA55, 0x20)
struct.pack_into("<4s12xHxxxB", IMAGE, 0x20, b"PCIR", 1, 0)
struct.pack_into("<H22xH", IMAGE, 512, 0xAA55, 0x1C)
struct.pack_into("<4s12xHxxxB", IMAGE, 512 + 0x1C, b"PCIR", 1, 0x80)
IMAGE[1000:1003] = b"end"


class Card(PciDevice):
    identity = Identity(0x1234, 0xCA2D, 0x1AF4, 0x1100, class_code=0x040100)

    def bars(self):
        ports = Registers(Layout(32, [Register(4 * n, 4, f"r{n}") for n in range(8)]))
        return {0: Bar(ports, io=True), 1: Bar(Memory(4096)), 6: Bar(Rom(bytes(IMAGE), 4096))}
'''
EVERY = {
    "ari_enabled": 0o444,
    "broken_parity_status": 0o644,
    "class": 0o444,
    "config": 0o644,
    "consistent_dma_mask_bits": 0o444,
    "d3cold_allowed": 0o644,
    "device": 0o444,
    "dma_mask_bits": 0o444,
    "driver_override": 0o644,
    "enable": 0o644,
    "irq": 0o444,
    "local_cpulist": 0o444,
    "local_cpus": 0o444,
    "modalias": 0o444,
    "msi_bus": 0o644,
    "numa_node": 0o644,
    "power_state": 0o444,
    "resource": 0o444,
    "revision": 0o444,
    "subsystem_device": 0o444,
    "subsystem_vendor": 0o444,
    "uevent": 0o644,
    "vendor": 0o444,
}
LINK = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")
BUS = Path("/sys/devices/system")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "card.py").write_text(MODEL)
    with described(folder, LAB) as mounted:
        (function_dir(mounted, GPU) / "sriov_numvfs").write_text("2")
        yield mounted


def read(lab: MountedLab, name: str, attribute: str) -> str:
    """The text of an attribute without its newline."""
    text = (function_dir(lab, name) / attribute).read_text()
    assert text.endswith("\n")
    return text[:-1]


def write(lab: MountedLab, name: str, attribute: str, text: str) -> None:
    one_write(function_dir(lab, name) / attribute, text)


def config(lab: MountedLab, name: str, offset: int, size: int = 2) -> int:
    with (function_dir(lab, name) / "config").open("rb") as file:
        file.seek(offset)
        return int.from_bytes(file.read(size), "little")


def set_config(lab: MountedLab, name: str, offset: int, value: int, size: int = 2) -> None:
    with (function_dir(lab, name) / "config").open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(value.to_bytes(size, "little"))


@pytest.fixture
def unbound(lab: MountedLab) -> Iterator[str]:
    """The second GPU, without a driver."""
    directory = function_dir(lab, SECOND)
    (directory / "driver/unbind").write_text(SECOND)
    yield SECOND
    (lab.path / "sys/bus/pci/drivers_probe").write_text(SECOND)


@pytest.fixture
def without_vfs(lab: MountedLab) -> Iterator[None]:
    """Without the virtual functions, which keep the host driver."""
    (function_dir(lab, GPU) / "sriov_numvfs").write_text("0")
    yield
    (function_dir(lab, GPU) / "sriov_numvfs").write_text("2")


# ---- what there is ----


@pytest.mark.parametrize("name", [GPU, SECOND, INTEGRATED, CARD, VF])
def test_every_function_has_these(lab: MountedLab, name: str) -> None:
    found = {attribute: (function_dir(lab, name) / attribute).stat().st_mode & 0o777 for attribute in EVERY}
    assert found == EVERY
    assert (function_dir(lab, name) / "power").is_dir()
    assert os.listdir(function_dir(lab, name) / "link") == []


@pytest.mark.parametrize(
    ("attribute", "mode", "there"),
    [
        *((name, 0o444, {GPU, SECOND, INTEGRATED, VF}) for name in LINK),
        ("boot_vga", 0o444, {GPU, SECOND, INTEGRATED}),
        ("reset", 0o200, {GPU, SECOND, INTEGRATED, CARD, VF}),
        ("reset_method", 0o644, {GPU, SECOND, INTEGRATED, CARD, VF}),
        ("rom", 0o600, {CARD}),
        ("resource0", 0o600, {GPU, SECOND, INTEGRATED, CARD, VF}),
        ("resource0_wc", 0o600, {GPU, SECOND, INTEGRATED, VF}),
        ("resource1", 0o600, {CARD, VF}),
        ("resource1_wc", 0o600, set()),
        ("resource2_wc", 0o600, set()),
        ("msi_irqs", 0o755, set()),
        ("sriov_numvfs", 0o644, {GPU}),
        ("aer_dev_correctable", 0o444, set()),
        ("label", 0o444, set()),
        ("acpi_index", 0o444, set()),
    ],
)
def test_others_are_there_where_they_mean_something(
    lab: MountedLab, attribute: str, mode: int, there: set[str]
) -> None:
    for name in (GPU, SECOND, INTEGRATED, CARD, VF):
        path = function_dir(lab, name) / attribute
        assert path.exists() is (name in there), name
        assert not path.exists() or path.stat().st_mode & 0o777 == mode, name


def test_a_vgpu_is_no_pci_device_to_tools(lab: MountedLab) -> None:
    with lab.create("small", SECOND) as vgpu:
        names = set(os.listdir(vgpu.path))
    assert {"config", "resource", "vendor"} <= names
    assert not names & {"enable", "numa_node", "msi_bus", "power_state", "reset", "local_cpus", "boot_vga"}
    assert not names & {
        *LINK,
        "msi_irqs",
        "resource0_wc",
        "ari_enabled",
        "irq",
        "modalias",
        "driver_override",
    }


# ---- enable, power_state, DMA masks: how they follow the driver ----


def test_a_host_driver_has_its_function_enabled(lab: MountedLab) -> None:
    shown = {
        name: read(lab, GPU, name) for name in ("enable", "power_state", "dma_mask_bits", "irq", "msi_bus")
    }
    assert shown == {"enable": "1", "power_state": "D0", "dma_mask_bits": "64", "irq": "0", "msi_bus": "1"}
    assert read(lab, GPU, "consistent_dma_mask_bits") == "64"
    for text in ("0", "1"):
        fails(errno.EBUSY, write, lab, GPU, "enable", text)
    fails(errno.EINVAL, write, lab, GPU, "enable", "yes")


def test_a_function_that_no_driver_took_has_the_masks_of_the_bus(lab: MountedLab) -> None:
    shown = {name: read(lab, VF, name) for name in ("enable", "power_state", "dma_mask_bits")}
    assert shown == {"enable": "0", "power_state": "D0", "dma_mask_bits": "32"}


def test_a_host_driver_makes_its_function_a_bus_master(lab: MountedLab) -> None:
    for _ in range(2):
        assert config(lab, SECOND, 4) & 0x6 == 0x6
        (function_dir(lab, SECOND) / "driver/unbind").write_text(SECOND)
        assert config(lab, SECOND, 4) & 0x6 == 0x2
        set_config(lab, SECOND, 4, 0)
        (lab.path / "sys/bus/pci/drivers_probe").write_text(SECOND)


def test_enable_counts_and_changes_the_command_register(lab: MountedLab, unbound: str) -> None:
    assert (read(lab, unbound, "enable"), read(lab, unbound, "power_state")) == ("0", "unknown")
    assert read(lab, unbound, "dma_mask_bits") == "64"  # the mask stays
    fails(errno.EIO, write, lab, unbound, "enable", "0")
    set_config(lab, unbound, 4, 0x404)
    write(lab, unbound, "enable", "1\n")
    assert (read(lab, unbound, "enable"), read(lab, unbound, "power_state")) == ("1", "D0")
    assert config(lab, unbound, 4) & 0x407 == 0x6  # memory and master; INTx is let through
    write(lab, unbound, "enable", "0x1")
    set_config(lab, unbound, 4, 0)
    write(lab, unbound, "enable", "5")
    assert read(lab, unbound, "enable") == "3" and config(lab, unbound, 4) & 0x7 == 0
    for left in ("2", "1"):
        write(lab, unbound, "enable", "0")
        assert read(lab, unbound, "enable") == left
    set_config(lab, unbound, 4, 0x6)
    write(lab, unbound, "enable", "0")
    assert config(lab, unbound, 4) & 0x7 == 0x2  # no master any more
    assert (read(lab, unbound, "enable"), read(lab, unbound, "power_state")) == ("0", "unknown")


def test_vfio_pci_enables_a_function_while_a_client_has_it(lab: MountedLab) -> None:
    with bound(lab, SECOND) as groups:
        assert (read(lab, SECOND, "enable"), read(lab, SECOND, "power_state")) == ("0", "D0")
        assert read(lab, SECOND, "power/control") == "auto"
        fails(errno.EBUSY, write, lab, SECOND, "enable", "1")
        with opened(lab, groups[0], SECOND) as client:
            assert read(lab, SECOND, "enable") == "1"
            place = client.device.config(0x34, 1)
            while client.device.config(place, 1) != 1:
                place = client.device.config(place + 1, 1)
            client.device.set_config(place + 4, client.device.config(place + 4) | 3)
            assert read(lab, SECOND, "power_state") == "D3hot"
            client.device.set_config(place + 4, client.device.config(place + 4) & ~3)
            assert read(lab, SECOND, "power_state") == "D0"
        assert read(lab, SECOND, "enable") == "0"
    assert (read(lab, SECOND, "enable"), read(lab, SECOND, "power/control")) == ("1", "on")


def test_runtime_power_management_of_functions(lab: MountedLab, unbound: str) -> None:
    names = (
        "async",
        "control",
        "runtime_status",
        "runtime_enabled",
        "runtime_usage",
        "runtime_suspended_time",
    )
    assert [read(lab, GPU, f"power/{name}") for name in names] == [
        *("enabled", "on", "active", "forbidden", "2", "0")
    ]
    assert read(lab, unbound, "power/runtime_usage") == "1"
    before = int(read(lab, unbound, "power/runtime_active_time"))
    write(lab, unbound, "power/control", "auto")
    assert [read(lab, unbound, f"power/{name}") for name in names[1:5]] == ["auto", "active", "enabled", "0"]
    write(lab, unbound, "power/control", "on\n")
    assert 0 < before <= int(read(lab, unbound, "power/runtime_active_time"))


# ---- flags that are kept ----


@pytest.mark.parametrize("name", [GPU, VF])
@pytest.mark.parametrize("attribute", ["broken_parity_status", "d3cold_allowed", "msi_bus"])
def test_a_flag_is_kept(lab: MountedLab, name: str, attribute: str) -> None:
    before = read(lab, name, attribute)
    try:
        for text, shown in (("1", "1"), ("0\n", "0"), ("42", "1"), ("0x0", "0")):
            write(lab, name, attribute, text)
            assert read(lab, name, attribute) == shown
        for text in ("", "on", "-1", "1 1"):
            fails(errno.EINVAL, write, lab, name, attribute, text or "\n")
    finally:
        write(lab, name, attribute, before)


def test_flags_at_first(lab: MountedLab) -> None:
    assert [read(lab, name, "d3cold_allowed") for name in (SECOND, CARD)] == ["1", "0"]
    assert [read(lab, name, "broken_parity_status") for name in (SECOND, CARD)] == ["0", "0"]


def test_a_function_that_was_removed_comes_back_as_new(lab: MountedLab) -> None:
    names = ("broken_parity_status", "d3cold_allowed", "msi_bus", "numa_node", "power/control", "enable")
    before = [read(lab, SECOND, name) for name in names]
    for name, text in zip(names, ("1", "0", "0", "-1", "auto"), strict=False):
        write(lab, SECOND, name, text)
    write(lab, SECOND, "remove", "1")
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    assert [read(lab, SECOND, name) for name in names] == before == ["0", "1", "1", "77", "on", "1"]


def test_msi_bus_keeps_clients_from_messages(lab: MountedLab, without_vfs: None) -> None:
    with bound(lab, GPU) as groups, opened(lab, groups[0], GPU) as client, eventfd() as fd:
        client.device.eventfds(MSI, TRIGGER, 0, fd)
        write(lab, GPU, "msi_bus", "0")
        client.device.eventfds(MSI, TRIGGER, 0, fd)  # what is set up stays
        client.device.tear_down(MSI)
        for index in (MSI, MSIX):
            fails(errno.EINVAL, client.device.eventfds, index, TRIGGER, 0, fd)
        client.device.eventfds(INTX, TRIGGER, 0, fd)
        client.device.tear_down(INTX)
        write(lab, GPU, "msi_bus", "1")
        client.device.eventfds(MSIX, TRIGGER, 0, fd)


# ---- msi_irqs and irq ----


def messages(lab: MountedLab, name: str) -> dict[int, str]:
    """The kind of each interrupt, by its number."""
    directory = function_dir(lab, name) / "msi_irqs"
    return {int(each.name): each.read_text().strip() for each in directory.iterdir()}


def test_msi_irqs_are_those_that_a_client_has(lab: MountedLab, without_vfs: None) -> None:
    directory = function_dir(lab, GPU)
    links = directory.stat().st_nlink
    with bound(lab, GPU, SECOND) as groups, eventfd() as fd:
        with opened(lab, groups[0], GPU) as client, opened(lab, groups[1], SECOND) as other:
            assert not (directory / "msi_irqs").exists() and read(lab, GPU, "irq") == "0"
            client.device.eventfds(INTX, TRIGGER, 0, fd)
            assert not (directory / "msi_irqs").exists()
            client.device.tear_down(INTX)

            client.device.eventfds(MSIX, TRIGGER, 0, fd, -1, fd)
            found = messages(lab, GPU)
            first = min(found)
            assert found == dict.fromkeys(range(first, first + 3), "msix") and read(lab, GPU, "irq") == "0"
            assert (directory / "msi_irqs").stat().st_mode & 0o777 == 0o755
            assert (directory / f"msi_irqs/{first}").stat().st_mode & 0o777 == 0o444
            assert "msi_irqs" in os.listdir(directory)
            assert directory.stat().st_nlink == 2 + sum(
                each.is_dir(follow_symlinks=False) for each in os.scandir(directory)
            )
            client.device.eventfds(MSIX, TRIGGER, 2047, fd)
            assert messages(lab, GPU).keys() == {*range(first, first + 3), first + 2047}
            inodes = {each.stat().st_ino for each in (directory / "msi_irqs").iterdir()}
            assert len(inodes) == 4 and directory.stat().st_ino not in inodes

            other.device.eventfds(MSI, TRIGGER, 0, fd)
            (number,) = messages(lab, SECOND)
            assert messages(lab, SECOND) == {number: "msi"} and number not in range(first, first + 2048)
            assert read(lab, SECOND, "irq") == str(number)
            for name in (
                str(first + 3),
                f"0{first}",
                f"+{first}",
                "x",
                "-1",
                "\N{SUPERSCRIPT TWO}",
                "9" * 200,
            ):
                assert not (directory / "msi_irqs" / name).exists()

            kept = os.open(directory / f"msi_irqs/{first + 2}", os.O_RDONLY)
            client.device.tear_down(MSIX)
            assert messages(lab, GPU) == {} and (directory / "msi_irqs").is_dir()
            fails(errno.ENODEV, os.pread, kept, 4096, 0)
            os.close(kept)
        assert messages(lab, SECOND) == {}
    assert not (directory / "msi_irqs").exists()
    assert directory.stat().st_nlink == links


# ---- NUMA ----


def test_a_function_is_near_to_the_node_of_the_lab_file(lab: MountedLab) -> None:
    assert [read(lab, name, "numa_node") for name in (GPU, VF, SECOND, CARD)] == ["0", "0", "77", "-1"]
    online = (BUS / "cpu/online").read_text().strip()
    assert read(lab, CARD, "local_cpulist") == read(lab, SECOND, "local_cpulist") == online
    node = BUS / "node/node0"
    if node.exists():
        assert read(lab, GPU, "local_cpulist") == (node / "cpulist").read_text().strip()
    mask = read(lab, GPU, "local_cpus")
    assert set(mask) <= set("0123456789abcdef,") and int(mask.replace(",", ""), 16)


def test_numa_node_takes_nodes_that_there_are(lab: MountedLab) -> None:
    for text in ("77", "-1\n", "0x4d"):
        write(lab, CARD, "numa_node", text)
        assert read(lab, CARD, "numa_node") == str(int(text, 0))
    for text in ("78", "-2", "1024", "none", "", "-", "--1"):
        fails(errno.EINVAL, write, lab, CARD, "numa_node", text or "\n")
    fails(errno.ERANGE, write, lab, CARD, "numa_node", "4294967296")
    write(lab, CARD, "numa_node", "-1")


# ---- link and ARI ----


def test_a_link_is_what_the_capability_says(lab: MountedLab) -> None:
    links = {name: tuple(read(lab, name, attribute) for attribute in LINK) for name in (GPU, INTEGRATED, VF)}
    assert links == {
        GPU: ("16.0 GT/s PCIe", "16", "16.0 GT/s PCIe", "16"),
        INTEGRATED: ("Unknown", "0", "Unknown", "255"),
        VF: ("Unknown", "0", "16.0 GT/s PCIe", "16"),
    }


def test_ari_is_enabled_where_function_0_has_it(lab: MountedLab) -> None:
    names = (GPU, VF, SECOND, INTEGRATED, CARD)
    assert [read(lab, name, "ari_enabled") for name in names] == ["1", "1", "0", "0", "0"]


# ---- reset ----


def test_reset_resets_the_device_and_keeps_its_configuration(lab: MountedLab) -> None:
    set_config(lab, CARD, 0x3C, 0x0B, 1)
    before = (function_dir(lab, CARD) / "config").read_bytes()
    with (function_dir(lab, CARD) / "resource0").open("r+b", buffering=0) as ports:
        os.pwrite(ports.fileno(), b"word", 4)
        for text in ("0", "2", "x", "\n"):
            fails(errno.EINVAL, write, lab, CARD, "reset", text)
        assert os.pread(ports.fileno(), 4, 4) == b"word"
        write(lab, CARD, "reset", "1")
        assert os.pread(ports.fileno(), 4, 4) == bytes(4)
    assert (function_dir(lab, CARD) / "config").read_bytes() == before
    set_config(lab, CARD, 0x3C, 0, 1)


def test_reset_methods_are_chosen(lab: MountedLab) -> None:
    at_first = {name: read(lab, name, "reset_method") for name in (GPU, SECOND, INTEGRATED, CARD, VF)}
    assert at_first == {GPU: "flr bus", SECOND: "flr bus", INTEGRATED: "flr", CARD: "bus", VF: "flr"}
    texts = {
        "bus\n": "bus",
        "bus  flr": "bus flr",
        "default": "flr bus",
        "flr flr": "flr flr",
        " flr ": "flr",
    }
    for text, shown in texts.items():
        write(lab, SECOND, "reset_method", text)
        assert read(lab, SECOND, "reset_method") == shown
        write(lab, SECOND, "reset", "1")
    for text in ("pm", "acpi", "flr pm", "default flr", "FLR", "bus\tflr", "flr " * 8):
        fails(errno.EINVAL, write, lab, SECOND, "reset_method", text)
    assert read(lab, SECOND, "reset_method") == "flr"
    write(lab, SECOND, "reset_method", "\n")
    assert (function_dir(lab, SECOND) / "reset_method").read_text() == ""
    fails(errno.ENOTTY, write, lab, SECOND, "reset", "1")
    write(lab, SECOND, "reset_method", "default")
    assert read(lab, SECOND, "reset_method") == "flr bus"


def test_a_port_resets_what_is_below_it(lab: MountedLab) -> None:
    port = function_dir(lab, CARD).resolve().parent
    assert (port / "reset_subordinate").stat().st_mode & 0o777 == 0o200
    assert not (port / "reset_method").exists() and not (port / "boot_vga").exists()
    with (function_dir(lab, CARD) / "resource0").open("r+b", buffering=0) as ports:
        os.pwrite(ports.fileno(), b"word", 4)
        write(lab, port.name, "reset_subordinate", "0")
        fails(errno.EINVAL, write, lab, port.name, "reset_subordinate", "x")
        assert os.pread(ports.fileno(), 4, 4) == b"word"
        write(lab, port.name, "reset_subordinate", "1")
        assert os.pread(ports.fileno(), 4, 4) == bytes(4)


def test_a_port_is_a_function_of_pcieport(lab: MountedLab) -> None:
    port = function_dir(lab, GPU).resolve().parent.name
    names = ("enable", "power_state", "dma_mask_bits", "numa_node", "ari_enabled", "power/control")
    assert [read(lab, port, name) for name in names] == ["1", "D0", "32", "0", "0", "on"]
    assert {name: read(lab, port, name) for name in LINK} == {name: read(lab, GPU, name) for name in LINK}
    fails(errno.EBUSY, write, lab, port, "enable", "1")


# ---- boot_vga, ROM, I/O ports ----


def test_one_display_is_that_of_the_boot(lab: MountedLab) -> None:
    assert [read(lab, name, "boot_vga") for name in (INTEGRATED, GPU, SECOND)] == ["1", "0", "0"]


def test_a_rom_is_read_after_it_was_enabled(lab: MountedLab) -> None:
    path = function_dir(lab, CARD) / "rom"
    assert path.stat().st_size == 4096
    before = config(lab, CARD, 0x30, 4)
    with path.open("r+b", buffering=0) as rom:

        def put(data: bytes) -> None:
            assert os.pwrite(rom.fileno(), data, 0) == len(data)

        fails(errno.EINVAL, os.pread, rom.fileno(), 16, 0)
        for enabling, disabling in ((b"1", b"0\n"), (b"1\n", b"0"), (b"00", b"0\n"), (b"x", b"0\n")):
            put(enabling)
            image = path.read_bytes()
            assert len(image) == 1024 and image[:2] == b"\x55\xaa" and image[1000:1003] == b"end"
            assert os.pread(rom.fileno(), 100, 1000) == image[1000:]
            assert os.pread(rom.fileno(), 100, 1024) == b""
            put(disabling)
            fails(errno.EINVAL, os.pread, rom.fileno(), 16, 0)
    assert config(lab, CARD, 0x30, 4) == before


def test_io_ports_are_read_and_written_one_at_a_time(lab: MountedLab) -> None:
    with (function_dir(lab, CARD) / "resource0").open("r+b", buffering=0) as ports:
        fd = ports.fileno()
        for data in (b"\x12", b"\x34\x12", b"\x78\x56\x34\x12"):
            assert os.pwrite(fd, data, 8) == len(data)
            assert os.pread(fd, len(data), 8) == data
        assert struct.unpack("<I", os.pread(fd, 4, 8)) == (0x12345678,)
        for size in (3, 5, 8, 32):
            fails(errno.EINVAL, os.pread, fd, size, 0)
            fails(errno.EINVAL, os.pwrite, fd, bytes(size), 0)
        fails(errno.EINVAL, os.pread, fd, 4, 30)
        assert os.pread(fd, 4, 32) == b"" and os.pread(fd, 1, 4096) == b""


def test_a_combining_mapping_is_the_same_memory(lab: MountedLab) -> None:
    directory = function_dir(lab, SECOND)
    assert (directory / "resource0_wc").stat().st_size == (directory / "resource0").stat().st_size
    with (directory / "resource0_wc").open("r+b", buffering=0) as combining:
        combining.write(b"combined")
    with (directory / "resource0").open("rb", buffering=0) as memory:
        assert memory.read(8) == b"combined"
    assert (directory / "resource0_wc").stat().st_ino != (directory / "resource0").stat().st_ino
