# SPDX-License-Identifier: Apache-2.0
"""The plain model: functions as a lab file describes them, and functions from a captured configuration
space."""

import mmap
import struct
import tracemalloc
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest

from devmodel.device.options import TextOption
from devmodel.device.pci import PciDevice, PciRegion
from devmodel.models.plain import PlainBar, PlainSpec, plain_model, rom_image
from devmodel.pci import regs
from devmodel.pci.barkind import BarKind
from devmodel.pci.capability import ExtendedCapability, alternative_routing, single_root_io
from devmodel.pci.config import Aperture
from devmodel.pci.fields import Bar, Identity
from devmodel.pci.image import Image
from devmodel.pci.regs import CapId, Command, ExtCapId, Reg
from devmodel.pci.rom import image_size
from devmodel.region.region import Memory

CONFIG = PciRegion.CONFIG
GIB = 1 << 30
ALL_KINDS = (
    PlainBar(0, 16 << 20),
    PlainBar(1, 64 * GIB, BarKind.MEM64_PREFETCH),
    PlainBar(3, 32, BarKind.MEM32_PREFETCH),
    PlainBar(4, 128, BarKind.IO),
)


def make(spec: PlainSpec, aperture: Aperture | None = None) -> PciDevice:
    return plain_model(spec)("0000:65:00.0", 0, {}, aperture)


def config(device: PciDevice, offset: int, width: int) -> int:
    return int.from_bytes(device.read(CONFIG, offset, width), "little")


def set_config(device: PciDevice, offset: int, width: int, value: int) -> None:
    device.write(CONFIG, offset, value.to_bytes(width, "little"))


def chained(device: PciDevice) -> list[int]:
    """The ids of its capabilities, as a client finds them."""
    found, place = [], config(device, Reg.CAPABILITY_LIST, 1)
    while place:
        found.append(config(device, place, 1))
        place = config(device, place + 1, 1)
    return found


def extended(device: PciDevice) -> dict[int, int]:
    """The offsets of its extended capabilities by id, as a client finds them."""
    found, place = {}, 0x100
    while place and (header := config(device, place, 4)):
        found[header & 0xFFFF] = place
        place = header >> 20
    return found


# ---- described by a lab file ----


def test_the_same_description_gives_the_same_class() -> None:
    spec = PlainSpec(vendor=0x8086, device=0x1572, bars=ALL_KINDS)
    again = PlainSpec(vendor=0x8086, device=0x1572, bars=tuple(ALL_KINDS))
    assert plain_model(spec) is plain_model(again)
    assert plain_model(spec) is not plain_model(PlainSpec(vendor=0x8086, device=0x1573, bars=ALL_KINDS))


def test_identity_class_and_pin() -> None:
    device = make(PlainSpec(0x8086, 0x1572, 0x8086, 0x0008, 0x020000, 2, 1))
    assert device.read(CONFIG, 0, 4).hex() == "86807215"
    assert device.read(CONFIG, 0x2C, 4).hex() == "86800800"
    assert device.read(CONFIG, 8, 4).hex() == "02000002"
    assert config(device, Reg.INTERRUPT_PIN, 1) == 1
    assert device.identity == Identity(0x8086, 0x1572, 0x8086, 0x0008, 0x020000, 2, 1)
    device.close()


def test_bars_of_every_kind_are_sized_by_a_client() -> None:
    device = make(PlainSpec(bars=ALL_KINDS), Aperture())
    found = {}
    for index in range(6):
        place = Reg.BASE_ADDRESS_0 + 4 * index
        before = config(device, place, 4)
        set_config(device, place, 4, 0xFFFFFFFF)
        found[index] = config(device, place, 4)
        set_config(device, place, 4, before)
    assert found == {0: 0xFF000000, 1: 0x0000000C, 2: 0xFFFFFFF0, 3: 0xFFFFFFE8, 4: 0xFFFFFF81, 5: 0}
    rows = device.resource_rows()
    assert [row.end - row.start + 1 for row in rows[:2]] == [16 << 20, 64 * GIB]
    assert rows[1].flags == 0x14220C and rows[4].flags == 0x40101
    device.close()


def test_a_bar_of_64_gib_keeps_what_is_written_and_takes_a_page_for_it() -> None:
    tracemalloc.start()
    device = make(PlainSpec(bars=ALL_KINDS), Aperture())
    assert not device.backing.created
    assert device.write(1, 64 * GIB - 8, b"the last") == 8
    assert device.read(1, 64 * GIB - 8, 100) == b"the last"
    assert device.read(1, 32 * GIB, 4) == b"\0\0\0\0"
    assert device.backing.allocated == mmap.PAGESIZE
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    device.close()


def test_bars_below_a_page_and_ports_keep_what_is_written() -> None:
    device = make(PlainSpec(bars=ALL_KINDS), Aperture())
    for index, size in ((3, 32), (4, 128)):
        assert not device.region(index).mappable
        assert device.read(index, 0, size) == bytes(size)
        assert device.write(index, size - 2, b"abcd") == 2
        assert device.write(index, 4, b"xy") == 2
        assert device.read(index, 0, size) == (b"\0" * 4 + b"xy").ljust(size - 2, b"\0") + b"ab"
    device.close()


def test_capabilities_come_in_the_order_of_their_words() -> None:
    words = ("pm", "msi:4", "express:8GT,x4,legacy", "msix:33@0", "vpd", "aer", "acs", "ari")
    device = make(PlainSpec(bars=ALL_KINDS, capabilities=words, serial=0x0011223344556677))
    assert chained(device) == [CapId.PM, CapId.MSI, CapId.EXP, CapId.MSIX, CapId.VPD]
    assert list(extended(device)) == [ExtCapId.AER, ExtCapId.ACS, ExtCapId.ARI, ExtCapId.DSN]
    number = device.read(CONFIG, extended(device)[ExtCapId.DSN] + 4, 8)
    assert number == bytes.fromhex("7766554433221100")
    express = device.config.find(CapId.EXP)
    assert config(device, express + 2, 2) == 0x12
    assert config(device, express + regs.EXP_LNKCAP, 4) & 0x3FF == 0x43
    table = device.msix_table
    assert table is not None and (table.bar, table.offset, table.size) == (0, 8 << 20, 33 * 16)
    assert [index.count for index in device.irqs[1:3] if index] == [4, 33]
    device.close()


@pytest.mark.parametrize(("size", "offset"), [(4 * GIB, 2 * GIB), (64 * GIB, 2 * GIB), (2 * GIB, GIB)])
def test_the_table_of_a_large_bar_is_where_its_offset_reaches(size: int, offset: int) -> None:
    device = make(PlainSpec(bars=(PlainBar(0, size, BarKind.MEM64_PREFETCH),), capabilities=("msix:2048",)))
    table = device.msix_table
    assert table is not None and (table.bar, table.offset, table.size) == (0, offset, 2048 * 16)
    place = device.config.find(CapId.MSIX)
    assert config(device, place + 4, 4) == offset and config(device, place + 8, 4) == offset + 2048 * 16
    device.close()


def test_vital_product_data_are_read_through_their_registers() -> None:
    data = b"\x82\x04\0NAME\x78"
    device = make(PlainSpec(capabilities=("vpd",), vpd=data))
    place = device.config.find(CapId.VPD)
    found = b""
    for offset in (0, 4, 8):
        set_config(device, place + regs.VPD_ADDR, 2, offset)
        assert config(device, place + regs.VPD_ADDR, 2) == offset | regs.VPD_ADDR_F
        found += device.read(CONFIG, place + regs.VPD_DATA, 4)
    assert found == data.ljust(12, b"\0")
    set_config(device, place + regs.VPD_ADDR, 2, 4 | regs.VPD_ADDR_F)
    assert config(device, place + regs.VPD_ADDR, 2) == 4
    device.close()


@pytest.mark.parametrize(("content", "size", "decoded"), [(b"", 65536, 65536), (b"\x55\xaa" * 2000, 0, 4096)])
def test_a_rom_has_its_content_or_an_image_that_does_nothing(content: bytes, size: int, decoded: int) -> None:
    device = make(PlainSpec(rom=content, rom_size=size), Aperture())
    assert device.bar_map[regs.ROM_BAR].size == decoded
    read = device.read(regs.ROM_BAR, 0, decoded)
    assert len(read) == decoded and read.endswith(b"\xff")
    if content:
        assert read.startswith(content)
    else:
        assert image_size(lambda at, count: read[at : at + count], decoded) == 2048
    device.close()


def test_an_image_that_does_nothing_is_valid() -> None:
    image = rom_image(Identity(0x8086, 0x1572, 0, 0, 0x020000), 2048)
    assert len(image) == 2048 and image[:2] == b"\x55\xaa" and image[2] * 512 == len(image)
    start = struct.unpack_from("<H", image, 0x18)[0]
    assert image[start : start + 4] == b"PCIR" and image[start + 0x15] & 0x80
    assert struct.unpack_from("<HH", image, start + 4) == (0x8086, 0x1572)
    assert not sum(image) & 0xFF


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (PlainSpec(vendor=1 << 16), "vendor"),
        (PlainSpec(class_code=1 << 24), "class"),
        (PlainSpec(interrupt_pin=5), "interrupt pin"),
        (PlainSpec(bars=(PlainBar(0, 3000),)), "power of two"),
        (PlainSpec(bars=(PlainBar(0, 8),)), "power of two"),
        (PlainSpec(bars=(PlainBar(0, 1 << 17, BarKind.IO),)), "power of two"),
        (PlainSpec(bars=(PlainBar(0, 1 << 41, BarKind.MEM64),)), "power of two"),
        (PlainSpec(bars=(PlainBar(0, 4 * GIB),)), "mem64"),
        (PlainSpec(bars=(PlainBar(5, 4096, BarKind.MEM64),)), "no room"),
        (PlainSpec(bars=(PlainBar(-1, 4096),)), "no room"),
        (PlainSpec(bars=(PlainBar(0, 4096, BarKind.MEM64), PlainBar(1, 4096))), "upper half"),
        (PlainSpec(bars=(PlainBar(0, 4096, address=0x1234),)), "cannot be at 0x1234"),
        (PlainSpec(rom_size=1000), "power of two"),
        (PlainSpec(rom_size=2048, rom=bytes(2049)), "no room"),
        (PlainSpec(capabilities=("pm", "pm")), "twice"),
        (PlainSpec(capabilities=("flying",)), "no capability"),
        (PlainSpec(capabilities=("pm:3",)), "no capability"),
        (PlainSpec(capabilities=("msi:3",)), "power of two"),
        (PlainSpec(capabilities=("msi:¹",)), "not a number"),
        (PlainSpec(capabilities=("msix:8",)), "needs a memory BAR"),
        (PlainSpec(bars=(PlainBar(0, 4096),), capabilities=("msix:8@1",)), "memory BAR 1"),
        (PlainSpec(bars=(PlainBar(0, 4096),), capabilities=("msix:0",)), "1 to 2048"),
        (PlainSpec(capabilities=("aer",)), "express"),
        (PlainSpec(capabilities=("express:9GT",)), "9GT"),
        (PlainSpec(capabilities=("express:x3",)), "3 lanes"),
        (PlainSpec(capabilities=("express:legacy,integrated",)), "integrated"),
        (PlainSpec(serial=1), "express"),
        (PlainSpec(capabilities=("express",), serial=1 << 64), "64 bits"),
        (PlainSpec(vpd=b"\x78"), "vpd"),
        (PlainSpec(capabilities=("vpd",), vpd=bytes(40000)), "VPD"),
    ],
)
def test_a_function_that_cannot_be_is_an_error(spec: PlainSpec, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        plain_model(spec)


# ---- captured ----


def captured() -> bytearray:
    """The configuration space of a made-up disk: BARs, MSI without masks, PM with PME, MSI-X, PCI Express
    and three extended capabilities."""
    data = bytearray(4096)
    struct.pack_into("<HHHHI", data, 0, 0x1B4B, 0x9999, 0x0406, 0x0810, 0x01080203)
    data[0x0C:0x10] = bytes([0x10, 0, 0x80, 0])
    struct.pack_into("<6I", data, 0x10, 0xFB100004, 0, 0xE001, 0, 0x4200000C, 0x38)
    struct.pack_into("<HH", data, 0x2C, 0x1028, 0x2151)
    data[0x30:0x34] = bytes.fromhex("000020fb")
    data[0x34], data[0x3C], data[0x3D], data[0x3F] = 0x40, 11, 1, 0x20
    struct.pack_into("<BBHHH", data, 0x40, CapId.PM, 0x50, 0xC803, 0x000B, 0)
    struct.pack_into("<BBHII", data, 0x50, CapId.MSI, 0x60, 0x0004, 0xFEE00000, 0x4041)
    struct.pack_into("<BBHII", data, 0x60, CapId.MSIX, 0x70, 0x8010, 0x2000, 0x3000)
    struct.pack_into("<BBHIHHIHH", data, 0x70, CapId.EXP, 0xB0, 2, 0x10008FE2, 0x2810, 9, 0x43, 0x40, 0x1043)
    data[0xB0:0xB8] = bytes([CapId.VNDR, 0, 8, 1, 2, 3, 4, 5])
    struct.pack_into("<III", data, 0x100, 0x14820001, 0, 0)
    struct.pack_into("<IQ", data, 0x148, 0x15810003, 0x00253855B1234567)
    struct.pack_into("<II", data, 0x158, 0x0001000D, 0x005F)
    return data


BARS = (PlainBar(0, 16384), PlainBar(2, 256), PlainBar(4, 1 << 25))


def test_every_byte_is_as_captured() -> None:
    data = bytes(captured())
    data = data[:0x44] + b"\x08" + data[0x45:]
    spec = PlainSpec(config=bytes(captured()), bars=BARS, rom_size=65536)
    device = make(spec, Aperture())
    assert device.read(CONFIG, 0, 4096) == data, "only the power state is D0"
    assert device.identity == Identity(0x1B4B, 0x9999, 0x1028, 0x2151, 0x010802, 3, 1)
    assert [cap.id for cap in device.caps] == chained(device) == [1, 5, 17, 16, 9]
    assert [index.count for index in device.irqs[:3] if index] == [1, 4, 17]
    assert device.has_flr and device.config.has_extended(ExtCapId.ACS)
    starts = [device.resource_rows()[index].start for index in (0, 2, 4, 6)]
    assert starts == [0xFB100000, 0xE000, 0x3842000000, 0xFB200000]
    table = device.msix_table
    assert table is not None and table == (0, 0x2000, 17 * 16)
    device.reset()
    live = {4, 5, 0x62, 0x63}
    after = device.read(CONFIG, 0, 4096)
    assert all(after[at] == data[at] for at in range(4096) if at not in live)
    device.close()


def test_live_registers_of_an_image_are_live() -> None:
    device = make(PlainSpec(config=bytes(captured()), bars=BARS), Aperture())
    written = {
        "BAR 0": (0x10, 4, 0xFFFFFFFF, 0xFFFFC004),
        "BAR 2, ports": (0x18, 4, 0xFFFFFFFF, 0xFFFFFF01),
        "BAR 4, upper half": (0x24, 4, 0xFFFFFFFF, 0xFFFFFFFF),
        "no ROM is known": (0x30, 4, 0xFFFFFFFF, 0xFB200000),
        "ids": (0x00, 4, 0x12345678, 0x99991B4B),
        "interrupt line": (0x3C, 1, 7, 7),
        "status: errors": (0x06, 2, 0x0800, 0x0010),
        "PME": (0x44, 2, 0x0100, 0x0108),
        "MSI of 32 bits": (0x54, 4, 0xFFFFFFFF, 0xFFFFFFFC),
        "MSI data": (0x58, 4, 0xFFFFFFFF, 0x0000FFFF),
        "device status": (0x7A, 2, 0x0001, 0x0008),
        "link control": (0x80, 2, 0xFFFF, 0x00CB),
        "vendor": (0xB4, 4, 0, 0x05040302),
        "ACS": (0x15E, 2, 0xFFFF, 0x005F),
        "serial number": (0x14C, 4, 0, 0xB1234567),
    }
    found = {}
    for name, (offset, width, value, _) in written.items():
        set_config(device, offset, width, value)
        found[name] = config(device, offset, width)
    assert found == {name: after for name, (*_, after) in written.items()}
    set_config(device, 0x44, 2, 3)
    assert device.power_state == 3 and not device.memory_enabled
    device.close()


def test_a_driver_finds_the_function_as_it_was_captured() -> None:
    device = make(PlainSpec(config=bytes(captured()), bars=BARS), Aperture())
    device.reset()
    device.clear_master()
    assert device.config.command == 0x0402 and not config(device, 0x62, 2) & regs.MSIX_ENABLE
    device.enable_for_host(Command.MASTER)
    assert device.config.command == 0x0406 and config(device, 0x62, 2) == 0x8010
    device.clear_master()
    device.enable_for_host()
    assert device.config.command == Command.IO | Command.MEMORY
    assert device.interrupt_line == 11
    device.close()


def test_a_driver_that_needs_no_bus_master_has_none() -> None:
    data = captured()
    data[4:6] = b"\3\0"
    device = make(PlainSpec(config=bytes(data), bars=BARS), Aperture())
    device.enable_for_host(Command.MASTER)
    assert device.config.command == Command.IO | Command.MEMORY
    device.close()


def test_captured_addresses_are_kept_if_they_are_free() -> None:
    spec = PlainSpec(config=bytes(captured()), bars=BARS)
    aperture = Aperture()
    first = make(spec, aperture)
    second = make(spec, aperture)
    starts = [[device.resource_rows()[bar].start for bar in (0, 2, 4)] for device in (first, second)]
    assert starts[0] == [0xFB100000, 0xE000, 0x3842000000]
    assert not set(starts[0]) & set(starts[1])
    assert second.config.bar_value(0) == starts[1][0] | 4
    moved = make(
        PlainSpec(config=bytes(captured()), bars=(PlainBar(0, 16384, address=0x1_4000_0000),)), aperture
    )
    assert moved.resource_rows()[0].start == 0x1_4000_0000
    for device in (first, second, moved):
        device.close()


def test_a_bar_of_32_bits_may_be_above_them_for_the_host() -> None:
    """As on Arm servers, and with Enhanced Allocation. The register has the lower half."""
    bar = PlainBar(2, 1 << 20, address=0x8430_0010_0000)
    for spec in (PlainSpec(bars=(bar,)), PlainSpec(bars=(bar,), config=bytes(256))):
        device = make(spec, Aperture())
        assert device.resource_rows()[2].start == bar.address
        assert config(device, 0x18, 4) == 0x0010_0000
        device.close()


def test_given_addresses_and_chosen_ones_do_not_overlap() -> None:
    aperture = Aperture()
    bar = Bar(Memory(1 << 20))
    assert aperture.take(bar, wanted=0x8010_0000) == 0x8010_0000
    assert aperture.take(bar) == 0x8000_0000
    assert aperture.take(bar) == 0x8020_0000
    assert aperture.take(bar, wanted=0x8010_0000) == 0x8030_0000, "it is taken"
    assert aperture.take(bar, wanted=0x8000_0000) == 0x8040_0000, "so is this"
    assert aperture.take(bar, count=2, wanted=0x9000_0000) == 0x9000_0000
    assert aperture.take(bar, wanted=0x9010_0000) == 0x8050_0000


def test_a_header_alone_takes_capabilities_by_words() -> None:
    header = bytes(captured()[:64])
    plain = make(PlainSpec(config=header, bars=BARS), Aperture())
    assert plain.config.size == 256 and not chained(plain)
    assert plain.read(CONFIG, 0, 6) == header[:6] and config(plain, 6, 2) == 0x0800
    plain.close()
    words = ("pm", "express", "msix:4", "aer")
    given = make(PlainSpec(config=header, bars=BARS, capabilities=words, serial=5), Aperture())
    assert given.config.size == 4096 and chained(given) == [1, 16, 17]
    assert list(extended(given)) == [ExtCapId.AER, ExtCapId.DSN]
    given.close()


def test_a_serial_number_takes_the_place_of_the_captured_one() -> None:
    device = make(PlainSpec(config=bytes(captured()), serial=0x0123456789ABCDEF))
    assert device.read(CONFIG, 0x14C, 8) == bytes.fromhex("efcdab8967452301")
    device.close()


def test_the_image_of_a_virtual_function_takes_ids_and_bars_from_the_description() -> None:
    data = captured()
    data[:4], data[0x10:0x34] = b"\xff" * 4, bytes(0x24)
    bars = (PlainBar(0, 16384, BarKind.MEM64_PREFETCH),)
    device = make(PlainSpec(0x8086, 0x154C, config=bytes(data), bars=bars), Aperture())
    assert device.read(CONFIG, 0, 4).hex() == "86804c15"
    assert device.identity.vendor == 0x8086 and device.identity.class_code == 0x010802
    start = device.resource_rows()[0].start
    assert config(device, 0x10, 4) == start & 0xFFFFFFFF | 0xC and config(device, 0x14, 4) == start >> 32
    device.close()


class WithVfs(PciDevice):
    """Mixed into a model: virtual functions."""

    __slots__ = ()

    def extended_capabilities(self) -> Sequence[ExtendedCapability]:
        sriov = single_root_io(8, 16, 2, 0x154C, [0xF000000C, 1, 0, 0, 0, 0])
        return (*super().extended_capabilities(), alternative_routing(), sriov)


def test_an_image_is_given_virtual_functions() -> None:
    data = captured()
    device = type("Physical", (WithVfs, plain_model(PlainSpec(config=bytes(data)))), {"__slots__": ()})("it")
    assert list(extended(device)) == [ExtCapId.AER, ExtCapId.DSN, ExtCapId.ACS, ExtCapId.ARI, ExtCapId.SRIOV]
    at = device.config.extended(ExtCapId.SRIOV)
    assert [config(device, at + register, 2) for register in (0x0E, 0x14, 0x16)] == [8, 16, 2]
    now = device.read(CONFIG, 0, 4096)
    data[0x44] = 8
    data[0x15A:0x15C] = struct.pack("<H", at - 0x10 << 4 | 1)
    assert now[: at - 0x10] == data[: at - 0x10]
    device.close()


def test_an_image_keeps_its_virtual_functions() -> None:
    data = captured()
    struct.pack_into("<I", data, 0x158, 0x2001000D)
    bars = [4, 5] * 3
    sriov = struct.pack(
        "<IIHHHHHBBHHHHII6II", 0x10010, 2, 0, 7, 7, 7, 0, 0, 0, 1, 1, 0, 0x1520, 9, 1, *bars, 0
    )
    data[0x200 : 0x200 + len(sriov)] = sriov
    model = plain_model(PlainSpec(config=bytes(data)))
    assert model.vf_addresses == {0: 0x500000000, 2: 0x500000000, 4: 0x500000000}
    device = type("Physical", (WithVfs, model), {"__slots__": ()})("it")
    data[0x44] = 8
    assert device.read(CONFIG, 0, 4096) == data
    device.close()


def test_an_image_without_room_for_virtual_functions_is_an_error() -> None:
    data = captured()
    data[0xFFF] = 1
    model = plain_model(PlainSpec(config=bytes(data)))
    with pytest.raises(ValueError, match="no room for an SR-IOV capability"):
        type("Physical", (WithVfs, model), {"__slots__": ()})("it")


@pytest.mark.parametrize(
    ("changes", "spec", "why"),
    [
        ({}, {"capabilities": ("pm",)}, "leave capabilities out"),
        ({}, {"bars": (PlainBar(0, 4096, BarKind.IO),)}, "mem64"),
        ({0x41: 0x40}, {}, "broken"),
        ({0x40: 0xFF}, {}, "broken"),
        ({0x0E: 2}, {}, "header type"),
        ({0x148: 0}, {"serial": 1}, "no capability for a serial"),
        (dict.fromkeys(range(64), 255), {}, "all ones"),
    ],
)
def test_an_image_that_cannot_be_is_an_error(
    changes: dict[int, int], spec: dict[str, object], why: str
) -> None:
    data = captured()
    for offset, value in changes.items():
        data[offset] = value
    with pytest.raises(ValueError, match=why):
        plain_model(PlainSpec(config=bytes(data), **spec))  # type: ignore[arg-type]


def test_an_image_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="64, 256 or 4096"):
        plain_model(PlainSpec(config=bytes(100)))


@pytest.mark.parametrize("capability", [CapId.PM, CapId.VPD, CapId.MSI, CapId.EXP, CapId.MSIX])
@pytest.mark.parametrize("place", [0xF0, 0xFC])
def test_a_capability_that_the_space_ends_in_is_kept(capability: int, place: int) -> None:
    data = captured()[:256]
    data[0x34], data[place : place + 4] = place, bytes([capability, 0, 2, 0xFF])
    device = plain_model(PlainSpec(config=bytes(data)))("it")
    assert device.config.find(capability) == place
    assert device.read(PciRegion.CONFIG, place, 4)[0] == capability
    device.write(PciRegion.CONFIG, 0xFC, b"\xff" * 4)
    device.reset()
    device.close()


def test_a_broken_list_of_extended_capabilities_ends() -> None:
    data = captured()
    struct.pack_into("<I", data, 0x158, 0x1001000D)
    assert list(Image.of(bytes(data)).places) == [ExtCapId.AER, ExtCapId.DSN, ExtCapId.ACS]


def test_functions_of_one_image_share_it() -> None:
    spec = PlainSpec(config=bytes(captured()), bars=BARS)
    plain_model(spec)
    tracemalloc.start()
    devices = [make(spec) for _ in range(50)]
    each = tracemalloc.get_traced_memory()[0] / len(devices)
    tracemalloc.stop()
    assert each < 16384, "4096 bytes of it are the registers"
    for device in devices:
        device.close()


# ---- options that are texts ----


class Card(PciDevice):
    """A device with a firmware file and a serial number."""

    __slots__ = ()
    identity = Identity(0x1234, 0x0001, 0, 0, 0xFF0000)
    TEXTS: ClassVar[Mapping[str, TextOption]] = {
        "firmware": TextOption(path=True),
        "serial": TextOption("00-00", "[0-9a-f]{2}(-[0-9a-f]{2})+", "write 00-11"),
    }


class OldCard(PciDevice):
    """A model with the signature of models without texts."""

    __slots__ = ()
    identity = Identity(0x1234, 0x0002, 0, 0, 0xFF0000)

    def __init__(
        self,
        name: str,
        memory: int = 0,
        options: dict[str, int] | None = None,
        aperture: Aperture | None = None,
    ) -> None:
        super().__init__(name, memory, options, aperture)


def test_texts_are_checked_and_have_defaults() -> None:
    card = Card("it", texts={"firmware": "/lib/firmware/card.bin"})
    assert card.texts == {"firmware": "/lib/firmware/card.bin", "serial": "00-00"}
    assert OldCard("it").texts == {}
    with pytest.raises(ValueError, match=r"option 'serial' cannot be '0' \(write 00-11\)"):
        Card("it", texts={"serial": "0"})
    with pytest.raises(ValueError, match="cannot be"):
        Card.validate_texts({"firmware": "a\nb"})
    with pytest.raises(ValueError, match="no option 'colour' that is a text"):
        Card.validate_texts({"colour": "red"})
