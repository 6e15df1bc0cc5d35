# SPDX-License-Identifier: Apache-2.0
"""Machines as a text of lspci describes them: parsed, without serial numbers, as a lab file."""

from __future__ import annotations

import struct
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.test_plain import captured
from vfsfuse.capture import vpd
from vfsfuse.capture.lspci import read_lspci
from vfsfuse.capture.machine import CaptureError, FoundBar, FoundFunction, FoundNet, FoundVfs, Machine
from vfsfuse.capture.scopes import scopes
from vfsfuse.capture.serials import Replacements, without_serials
from vfsfuse.capture.spaces import Space
from vfsfuse.capture.writer import Written
from vfsfuse.labfile.reader import load

HEAD = "0000:65:00.0 Ethernet controller [0200]: Made Up [Network] Card [1234:5678] (rev 02)"
TEXT = f"""\
{HEAD}
	Subsystem: Made Up Card [1234:0001]
	Physical Slot: 3
	Control: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+
	Status: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
	Latency: 0, Cache Line Size: 64 bytes
	Interrupt: pin B routed to IRQ 16
	NUMA node: 1
	IOMMU group: 27
	Region 0: Memory at f0000000 (64-bit, prefetchable) [size=8M]
	Region 3: I/O ports at e000 [disabled] [size=32]
	Region 4: Memory at <unassigned> (32-bit, non-prefetchable) [size=16K]
	Expansion ROM at fb000000 [disabled] [size=512K]
	Capabilities: [40] Power Management version 3
		Flags: PMEClk- DSI+ D1- D2- AuxCurrent=0mA PME(D0+,D1-,D2-,D3hot+,D3cold+)
	Capabilities: [50] MSI: Enable- Count=1/4 Maskable+ 64bit+
	Capabilities: [70] MSI-X: Enable+ Count=129 Masked-
		Vector table: BAR=4 offset=00000000
	Capabilities: [a0] Express (v2) Endpoint, MSI 00
	Capabilities: [100 v2] Advanced Error Reporting
	Capabilities: [140 v1] Device Serial Number 3c-fd-fe-ff-ff-a0-12-34
	Kernel driver in use: made_up
	Kernel modules: made_up, other
"""


def read(text: str) -> Machine:
    return read_lspci(text, "text")


def function(text: str, address: str = "0000:65:00.0") -> FoundFunction:
    return read(text).functions[address]


def rows(data: bytes) -> str:
    return "".join(f"{at:02x}: {data[at : at + 16].hex(' ')}\n" for at in range(0, len(data), 16))


def made(folder: Path, machine: Machine) -> dict[str, object]:
    """The lab file of a machine, which the reader of lab files takes."""
    text = Written(machine).text
    (folder / "lab.toml").write_text(text)
    load(folder / "lab.toml")
    return tomllib.loads(text)


# ---- texts of lspci ----


def test_every_line_of_a_function_is_understood() -> None:
    found = function(TEXT)
    assert (found.vendor, found.device, found.class_code, found.revision) == (0x1234, 0x5678, 0x020000, 2)
    assert (found.subsystem_vendor, found.subsystem_device, found.interrupt_pin) == (0x1234, 1, 2)
    assert (found.slot, found.numa_node, found.group, found.driver) == ("3", 1, 27, "made_up")
    assert found.bars == (
        FoundBar(0, 8 << 20, "mem64-prefetch", 0xF0000000),
        FoundBar(3, 32, "io", 0xE000),
        FoundBar(4, 16384, "mem32", 0),
    )
    assert found.rom_size == 512 << 10
    assert found.words == ("pm", "msi:4", "msix:129", "express", "aer")
    assert found.serial == 0x3CFDFEFFFFA01234
    assert found.description == "Ethernet controller: Made Up [Network] Card"


def test_a_text_without_bytes_becomes_a_lab_file(tmp_path: Path) -> None:
    lab = made(tmp_path, read(TEXT))
    assert lab["functions"] == {
        "0000:65:00.0": {
            "vendor": 0x1234,
            "device": 0x5678,
            "subsystem_vendor": 0x1234,
            "subsystem_device": 1,
            "class": 0x020000,
            "revision": 2,
            "interrupt_pin": 2,
            "capabilities": ["pm", "msi:4", "msix:129", "express", "aer"],
            "serial": "3c-fd-fe-ff-ff-a0-12-34",
            "driver": "made_up",
            "group": 27,
            "slot": "3",
            "bars": {
                "0": {"size": "8M", "kind": "mem64-prefetch", "address": 0xF0000000},
                "3": {"size": 32, "kind": "io", "address": 0xE000},
                "4": {"size": "16K"},
            },
            "rom_size": "512K",
        }
    }
    assert lab["roots"] == {"0000:65": {"numa_node": 1}}


@pytest.mark.parametrize(
    ("line", "becomes", "bars"),
    [
        ("Region 0: [virtual] Memory at f0000000 (64-bit, prefetchable) [size=8M]", 0xF0000000, 1),
        ("Region 0: Memory at f0000000 (64-bit, prefetchable) [virtual] [size=8M]", 0xF0000000, 1),
        ("Region 0: Memory at <ignored> (64-bit, prefetchable) [disabled] [size=8M]", 0, 1),
        ("Region 0: Memory at f0000000 (64-bit, prefetchable) [disabled]", 0, 0),
        ("[virtual] Expansion ROM at fb000000 [disabled] [size=512K]", 0, 0),
    ],
)
def test_older_and_newer_spellings(line: str, becomes: int, bars: int) -> None:
    found = function(f"{HEAD}\n\t{line}\n")
    assert len(found.bars) == bars and sum(bar.address for bar in found.bars) == becomes
    assert found.rom_size == (0 if "Region" in line else 512 << 10)


def test_bytes_count_more_than_words() -> None:
    data = bytes(captured())
    found = function(f"{HEAD}\n\tInterrupt: pin D routed to IRQ 3\n{rows(data)}\n")
    assert found.config == data and found.interrupt_pin == 1 and not found.words
    assert (found.vendor, found.class_code) == (0x1234, 0x010802)


def test_functions_without_domains_and_with_long_ones(tmp_path: Path) -> None:
    text = TEXT.replace("0000:65:00.0", "65:00.0") + "\n10000:E1:00.0 Other [ff00]: X [1234:0001]\n"
    machine = read(text)
    assert list(machine.functions) == ["0000:65:00.0", "10000:e1:00.0"]
    lab = made(tmp_path, machine)
    assert lab["roots"] == {"0000:65": {"numa_node": 1}, "10000:e1": {}}


def test_a_bridge_and_what_is_below() -> None:
    bridge = "0000:00:01.0 PCI bridge [0604]: A Port [8086:1901] (rev 07) (prog-if 00 [Normal decode])\n"
    text = (
        f"{bridge}\tBus: primary=00, secondary=65, subordinate=66, sec-latency=0\n\tIOMMU group: 1\n\n{TEXT}"
    )
    machine = read(text)
    port = machine.functions["0000:00:01.0"]
    assert (port.secondary, port.subordinate, port.above) == (0x65, 0x66, None)
    assert machine.functions["0000:65:00.0"].above == "0000:00:01.0"
    assert list(machine.roots) == ["0000:00"]
    assert not [note for note in machine.notes if "no bridge" in note]
    (note,) = [note for note in read(TEXT).notes if "no bridge" in note]
    assert note.startswith("0000:65:00.0: the text has no bridge above")
    assert 'bridge = "root-port"\nsecondary = 0x65\nsubordinate = 0x66' in Written(machine).text


def test_virtual_functions_are_those_of_their_physical_one(tmp_path: Path) -> None:
    data = captured()
    struct.pack_into("<I", data, 0x158, 0x2001000D)
    sriov = struct.pack("<IIHHHHHBBHHHHII", 0x00010010, 0, 0x19, 0, 8, 8, 2, 0, 0, 16, 1, 0, 0x154C, 1, 1)
    data[0x200 : 0x200 + len(sriov)] = sriov
    vf = bytearray(256)
    vf[:4], vf[6] = b"\xff" * 4, 0
    virtual = "".join(
        f"0000:65:02.{index} Ethernet controller [0200]: A VF [1234:154c]\n\tIOMMU group: {30 + index}\n"
        "\tRegion 0: Memory at 384000000000 (64-bit, prefetchable) [virtual] [size=64K]\n"
        f"\tKernel driver in use: made_up_vf\n{rows(bytes(vf))}\n"
        for index in range(2)
    )
    machine = read(f"{HEAD}\n\tIOMMU group: 27\n{rows(bytes(data))}\n{virtual}")
    physical = machine.functions["0000:65:00.0"]
    assert physical.vfs == FoundVfs(
        8, 2, 16, 1, 0x154C, (FoundBar(0, 65536, "mem64-prefetch", 0x384000000000),)
    )
    assert machine.functions["0000:65:02.1"].physical == "0000:65:00.0"
    lab = made(tmp_path, machine)
    functions = lab["functions"]
    assert isinstance(functions, dict) and list(functions) == ["0000:65:00.0"]
    assert functions["0000:65:00.0"]["vfs"] == 8
    assert functions["0000:65:00.0"]["vf"] == {
        "device": 0x154C,
        "bars": {"0": {"size": "64K", "kind": "mem64-prefetch"}},
        "offset": 16,
        "stride": 1,
        "driver": "made_up_vf",
        "groups": [30, 31],
        "config": "00: ff ff ff ff" + " 00" * 12 + "\nf0:" + " 00" * 16 + "\n",
        "enabled": 2,
    }


def test_a_virtual_function_of_nobody_is_a_function(tmp_path: Path) -> None:
    header = b"\xff" * 4 + bytes(4) + b"\1\0\0\2" + bytes(52)
    region = "\tRegion 0: Memory at f0000000 (64-bit, prefetchable) [virtual] [size=64K]\n"
    lab = made(tmp_path, read(f"{HEAD}\n{region}{rows(header)}\n"))
    function = lab["functions"]["0000:65:00.0"]  # type: ignore[index]
    assert (function["vendor"], function["device"]) == (0x1234, 0x5678)
    assert function["bars"] == {"0": {"size": "64K", "kind": "mem64-prefetch", "address": 0xF0000000}}
    model = load(tmp_path / "lab.toml").functions[0].model
    assert model is not None and model.identity.vendor == 0x1234


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (
            "65:00.0 Ethernet controller: A [Network] Card (rev 02)",
            "Ethernet controller: A [Network] Card (rev 02)",
        ),
        ("0000:65:00.0 0200: 1234:5678 (rev 02)", "0200: 1234:5678 (rev 02)"),
        ("65:00.0", ""),
    ],
)
def test_without_nn_the_bytes_have_the_ids(head: str, names: str) -> None:
    """As `lspci -vvvxxxx`, `lspci -n` and `lspci -F` have it."""
    image = captured()
    found = function(f"{head}\n{rows(bytes(image))}")
    vendor, device = struct.unpack_from("<HH", image)
    assert (found.vendor, found.device, found.class_code) == (vendor, device, Space(bytes(image)).class_code)
    assert found.description == names
    with pytest.raises(CaptureError, match="line 1: the function has no ids"):
        read(f"{head}\n{rows(bytes([255] * 4 + [0] * 60))}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "describes no PCI function"),
        ("\n# nothing\n", "describes no PCI function"),
        ("hello\n", "line 1: 'hello' is no line of lspci"),
        ("65:00.0 Ethernet controller: A card (rev 02)\n", "line 1: the function has no ids"),
        ("65:00.0 Ethernet controller [0200]: A card\n", "line 1: the function has no ids"),
        ("00: 86 80" + " 00" * 14 + "\n", "line 1: bytes come before the first function"),
        (f"{HEAD}\n{TEXT}", "line 2: 0000:65:00.0 is described twice, first in line 1"),
        (f"{HEAD}\n\n\tRegion 9: Memory at 0 (32-bit)\n", "line 3: 'Region 9.* is no region"),
        (
            f"{HEAD}\n\tRegion 0: Memory at 0 [size=1K]\n\tRegion 0: Memory at 0 [size=1K]\n",
            "line 3: .* twice",
        ),
        (f"{HEAD}\n\tBus: primary=xx, secondary=01\n", "line 2: .* bus numbers"),
        (f"{HEAD}\n\tIOMMU group: many\n", "line 2: 'many' is no number"),
        (f"{HEAD}\n\tNUMA node: {'9' * 5000}\n", "line 2: '9+...' is no number"),
        (f"{HEAD}\n00: 86 80\n", "line 2: the row at 0x0 does not have 16 bytes"),
        (f"{HEAD}\n10:{' 00' * 16}\n", "line 2: the row is at 0x10 and not at 0x0"),
        (f"{HEAD}\n{rows(bytes(96))}", "line 1: 0000:65:00.0 has 96 bytes"),
        (f"{HEAD}\n{rows(bytes(4096))}1000:{' 00' * 16}\n", "line 258: the row at 0x1000"),
        (f"{HEAD}\n\t{'x' * 70000}\n", "line 2: the text is too long"),
    ],
)
def test_a_text_that_is_broken_is_one_line(text: str, why: str) -> None:
    with pytest.raises(CaptureError, match=why) as caught:
        read(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@given(st.integers(0, len(TEXT)), st.integers(0, len(TEXT)), st.text(max_size=20))
def test_any_damage_is_a_machine_or_an_error_with_a_line(start: int, end: int, other: str) -> None:
    try:
        written = Written(read(TEXT[:start] + other + TEXT[end:])).text
    except CaptureError as error:
        assert "line" in str(error) or "no PCI function" in str(error)
    else:
        tomllib.loads(written)


def test_what_a_text_lacks_is_said() -> None:
    text = f"{HEAD}\n\tCapabilities: <access denied>\n{rows(bytes(captured()[:64]))}\n"
    notes = Written(read(text)).notes
    assert any("0000:65:00.0: lspci did not run as root" in note for note in notes)
    assert any("no IOMMU groups" in note for note in notes)
    dead = Written(read(f"{HEAD}\n{rows(bytes([255] * 256))}\n"))
    assert any("did not answer" in note for note in dead.notes) and "vendor = 0x1234" in dead.text


def test_comments_and_names_of_a_text_stay_comments(tmp_path: Path) -> None:
    evil = 'A "card" \\ """ \x07\u2028[functions]'
    text = TEXT.replace("Made Up [Network] Card", evil).replace("made_up\n", 'a"b\n')
    lab = made(tmp_path, read(text))
    assert list(lab) == ["roots", "functions"]
    assert "driver" not in lab["functions"]["0000:65:00.0"]  # type: ignore[index]


# ---- what the writer leaves out ----


def found(address: str = "0000:65:00.0", **fields: object) -> FoundFunction:
    return FoundFunction(address, 0x1234, 0x5678, 0x020000, **fields)  # type: ignore[arg-type]


def machine_of(*functions: FoundFunction, roots: Mapping[str, int | None] | None = None) -> Machine:
    return Machine("test", {each.address: each for each in functions}, roots=roots or {"0000:65": None})


def test_bars_that_no_function_has_are_left_out(tmp_path: Path) -> None:
    bars = (
        FoundBar(0, 4096, "mem64"),
        FoundBar(1, 4096, "mem32"),
        FoundBar(2, 3000, "mem32"),
        FoundBar(3, 0, "mem32"),
        FoundBar(4, 1 << 50, "mem64"),
        FoundBar(5, 4096, "mem64"),
    )
    machine = machine_of(found(bars=bars, rom_size=1000))
    lab = made(tmp_path, machine)
    assert lab["functions"]["0000:65:00.0"]["bars"] == {"0": {"size": "4K", "kind": "mem64"}}  # type: ignore[index]
    assert len([note for note in Written(machine).notes if "is left out" in note]) == 6


@pytest.mark.parametrize("last", [0x66, 0x69])
def test_what_is_below_a_cardbus_bridge_is_left_out_with_it(tmp_path: Path, last: int) -> None:
    header = bytes(14) + b"\2" + bytes(10) + bytes([0x66, last]) + bytes(37)
    bridge = found(config=header, config_size=64)
    cards = [replace(found(), address=f"0000:{bus:02x}:00.0") for bus in (0x66, 0x69, 0x6A)]
    roots = dict.fromkeys(("0000:65", "0000:69", "0000:6a"))
    written = Written(machine_of(bridge, *cards, roots=roots))
    left = [note.split()[0] for note in written.notes if "is left out" in note]
    assert left == [bridge.address, *(card.address for card in cards[:2] if int(card.bus[-2:], 16) <= last)]


KNOWN = (0x01, 0x03, 0x05, 0x09, 0x0D, 0x10, 0x11)
CHAINS = st.lists(st.tuples(st.sampled_from(KNOWN), st.integers(0, 0xFFFF)), max_size=6)
SPACES = st.tuples(
    st.sampled_from((64, 256, 4096)),
    st.lists(st.tuples(st.integers(0, 0x17F), st.integers(0, 255)), max_size=40),
    CHAINS,
)


def space(size: int, spots: list[tuple[int, int]], chain: list[tuple[int, int]]) -> bytes:
    """Configuration space with bytes at any places, and a list of capabilities with any registers."""
    data = bytearray(4096)
    for offset, value in spots:
        data[offset] = value
    data[0x06] |= 0x10 if chain else 0
    data[0x0E] &= 0x80
    data[0x34] = 0x40 if chain else 0
    for place, (identity, control) in enumerate(chain):
        following = 0x40 + 0x1C * (place + 1) if place + 1 < len(chain) else 0
        struct.pack_into("<BBH", data, 0x40 + 0x1C * place, identity, following, control)
    return bytes(data[:size])


SOME_BARS = st.lists(
    st.builds(
        FoundBar,
        st.integers(0, 5),
        st.integers(0, 44).map(lambda shift: 1 << shift),
        st.sampled_from(("io", "mem32", "mem32-prefetch", "mem64", "mem64-prefetch")),
        st.integers(0, 1 << 64),
    ),
    max_size=6,
    unique_by=lambda bar: bar.index,
)


@given(SPACES.map(lambda parts: space(*parts)), SOME_BARS, st.integers(0, 1 << 24), st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_function_of_any_bytes_is_a_function_of_a_lab(
    tmp_path: Path, config: bytes, bars: list[FoundBar], rom_size: int, vital: bytes
) -> None:
    function = found(config=config, bars=tuple(bars), rom_size=rom_size, vpd=vital, group=3)
    made(tmp_path, without_serials(machine_of(function)))


def test_units_are_above_as_few_names_as_tell_them() -> None:
    functions = [
        found("0000:00:00.0", unit="dmar1"),
        found("0000:00:02.0", unit="dmar0"),
        found("0000:00:1c.0", unit="dmar1", secondary=1, subordinate=1),
        found("0000:01:00.0", unit="dmar1", above="0000:00:1c.0"),
        found("0000:80:01.0", unit="dmar2", secondary=0x81, subordinate=0x81),
        found("0000:81:00.0", unit="dmar2", above="0000:80:01.0"),
        found("0000:ff:00.0"),
    ]
    assert scopes(functions, {"0000:00": None, "0000:80": None, "0000:ff": None}) == {
        "dmar0": ["0000:00:02.0"],
        "dmar1": ["0000:00:00.0", "0000:00:1c.0"],
        "dmar2": ["0000:80"],
    }


# ---- serial numbers ----


def test_serial_numbers_become_the_same_made_up_ones_everywhere() -> None:
    data = captured()
    mac = bytes.fromhex("3cfdfea01234")
    data[0x14C:0x154] = bytes.fromhex("3cfdfeffffa01234")[::-1]
    data[0x300:0x306], data[0x310:0x316] = mac, mac[::-1]
    vital = vpd.pack(
        [
            vpd.Resource(vpd.NAME, b"Made Up"),
            vpd.Resource(
                vpd.READ_ONLY,
                fields=(
                    (b"PN", b"K1234-01"),
                    (b"SN", b"MT2034X12345"),
                    (b"V3", b"a1b2c3d4e5f6071809"),
                    (b"V0", b"PCIe x16"),
                    (b"RV", b"\0"),
                ),
            ),
        ]
    )
    one = found(config=bytes(data), vpd=vital, net=(FoundNet("eth0", mac), FoundNet("eth1", None)))
    two = replace(one, address="0000:65:00.1", net=(FoundNet("eth2", bytes.fromhex("3cfdfea01235")),))
    shown = without_serials(machine_of(one, two))
    first, second = shown.functions.values()
    assert first.config == second.config and mac not in first.config and mac[::-1] not in first.config
    assert first.config[0x14C:0x154][::-1].hex() == "020000fffe000001"
    assert first.config[0x300:0x306].hex() == "020000000001"
    assert first.config[0x310:0x316] == first.config[0x300:0x306][::-1]
    assert [net.mac and net.mac.hex() for net in (*first.net, *second.net)] == [
        "020000000001",
        None,
        "020000000002",
    ]
    changed = set(range(0x14C, 0x154)) | set(range(0x300, 0x306)) | set(range(0x310, 0x316))
    assert all(first.config[at] == data[at] for at in range(4096) if at not in changed)
    resources = vpd.parse(first.vpd)
    assert resources is not None and vpd.checksum_is_good(first.vpd)
    assert dict(resources[1].fields)[b"SN"] == b"000000000001"
    assert dict(resources[1].fields)[b"V3"] == b"000000000000000002"
    assert dict(resources[1].fields)[b"PN"] == b"K1234-01" and dict(resources[1].fields)[b"V0"] == b"PCIe x16"


def test_a_serial_number_that_is_none_stays() -> None:
    made_up = Replacements([])
    assert made_up.serial(0) == 0 and made_up.serial((1 << 64) - 1) == (1 << 64) - 1
    assert made_up.serial(7) == made_up.serial(7) != made_up.serial(8)


@given(st.binary(max_size=300))
def test_vital_product_data_that_are_broken_are_left_out(data: bytes) -> None:
    made_up = Replacements([]).vpd(data)
    assert made_up == b"" or vpd.parse(data) is not None


def test_vital_product_data_come_back_from_their_text() -> None:
    text = (
        f"{HEAD}\n\tCapabilities: [d0] Vital Product Data\n\t\tProduct Name: Made \\\\ Up\\x01\n"
        "\t\tRead-only fields:\n\t\t\t[PN] Part number: K1234\n\t\t\t[V1] Vendor specific: a: b\n"
        "\t\t\t[RV] Reserved: checksum good, 2 byte(s) reserved\n"
        "\t\tRead/write fields:\n\t\t\t[YA] Asset tag: \n"
        "\t\t\t[RW] Read-write area: 5 byte(s) free\n\t\tEnd\n"
        "\tCapabilities: [e0] MSI: Enable- Count=1/1 Maskable- 64bit-\n"
    )
    resources = vpd.parse(function(text).vpd)
    assert resources == [
        vpd.Resource(vpd.NAME, b"Made \\ Up\1"),
        vpd.Resource(
            vpd.READ_ONLY,
            fields=(
                (b"PN", b"K1234"),
                (b"V1", b"a: b"),
                (b"RV", resources[1].fields[2][1] if resources else b""),
            ),
        ),
        vpd.Resource(vpd.READ_WRITE, fields=((b"YA", b""), (b"RW", bytes(5)))),
    ]
    assert vpd.checksum_is_good(function(text).vpd)


def test_isolation_is_what_acs_says() -> None:
    data = captured()
    assert Space(bytes(data)).isolated is True, "able, and not switched on by anybody"
    struct.pack_into("<HH", data, 0x15C, 0x5F, 0x01)
    assert Space(bytes(data)).isolated is False
    struct.pack_into("<HH", data, 0x15C, 0x5F, 0x1D)
    assert Space(bytes(data)).isolated is True
    assert Space(bytes(data[:256])).isolated is None
