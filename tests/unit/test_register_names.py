# SPDX-License-Identifier: Apache-2.0
"""What an access touches, by the names of registers: of a model's layout, and of configuration space."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devmodel.models.registry import MODELS
from devmodel.pci import names
from devmodel.pci.config import ConfigSpace
from devmodel.pci.image import Image, ImageSpace
from devmodel.pci.names import names_of
from devmodel.region.names import Place, RegisterNames
from devmodel.region.registers import Layout, Register, Registers
from tests.unit.test_models import make

HEADER = Path("/usr/include/linux/pci_regs.h")
THREE = RegisterNames([Place(8, 4, "C"), Place(0, 4, "A"), Place(4, 2, "B")])


@pytest.mark.parametrize(
    ("offset", "size", "described"),
    [
        (0, 4, "A"),
        (0, 2, "A+0"),
        (2, 2, "A+2"),
        (3, 1, "A+3"),
        (0, 6, "A..B"),
        (2, 4, "A+2..B"),
        (0, 12, "A..C"),
        (6, 2, ""),
        (6, 6, "C"),
        (6, 3, "C+0"),
        (12, 4, ""),
        (0, 1 << 40, "A..C"),
        (1 << 40, 4, ""),
        (4, 0, ""),
    ],
)
def test_an_access_is_described(offset: int, size: int, described: str) -> None:
    assert THREE.describe(offset, size) == described


def test_a_region_without_registers_describes_nothing() -> None:
    assert RegisterNames([]).describe(0, 4) == ""


def test_the_regions_of_a_layout_share_its_names() -> None:
    layout = Layout(16, [Register(4, 4, "CTRL")])
    first, second = Registers(layout), Registers(layout)
    names = first.names
    assert names is not None and names is second.names
    assert names.describe(4, 4) == "CTRL"


def config_of(model: str) -> ConfigSpace:
    device = make(model, 64 << 20)
    region = device.config
    device.close()
    return region


@pytest.mark.parametrize("model", sorted(MODELS))
def test_each_register_of_a_models_configuration_space_has_its_name(model: str) -> None:
    config = config_of(model)
    found = config.names
    assert found is not None and config_of(model).names is found  # devices of one shape share it
    expected = {0: "VENDOR_ID", 4: "COMMAND", 0x10: "BAR0", 0x24: "BAR5", 0x2E: "SUBSYSTEM_ID"}
    widths = {offset: 4 if 0x10 <= offset < 0x28 else 2 for offset in expected}
    assert {offset: found.describe(offset, widths[offset]) for offset in expected} == expected
    for identity, capability, name in (
        *((0x11, "MSIX", "MSIX_FLAGS"), (0x05, "MSI", "MSI_FLAGS")),
        *((0x01, "PM", "PM_PMC"), (0x10, "EXP", "EXP_FLAGS")),
    ):
        offset = config.find(identity)
        if offset:
            assert found.describe(offset + 2, 2) == name
            assert found.describe(offset, 2) == f"{capability}_CAP_LIST_ID..{capability}_CAP_LIST_NEXT"


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_captured_configuration_space_has_the_same_names(model: str) -> None:
    config = config_of(model)
    captured = ImageSpace(Image.of(config.read(0, config.size)))
    assert captured.names is not None and captured.names is config.names


def test_capabilities_are_found_where_they_are() -> None:
    image = bytearray(4096)
    image[0x06] = 0x10
    image[0x34] = 0x40
    image[0x40:0x44] = bytes([0x10, 0x54, 2, 0])  # PCI Express, cut short by the next one
    image[0x54:0x58] = bytes([0x05, 0x70, 0x80, 0])  # MSI with 64 bits
    image[0x70:0x74] = bytes([0x05, 0x80, 0, 0])  # MSI with 32 bits
    image[0x80:0x84] = bytes([0x14, 0x40, 0, 0])  # unknown, and a chain without an end
    image[0x100:0x104] = (0x0001 | 1 << 16 | 0x150 << 20).to_bytes(4, "little")
    image[0x150:0x154] = (0x7777 | 1 << 16 | 0x100 << 20).to_bytes(4, "little")
    found = names_of(image)
    described = {
        (0x42, 2): "EXP_FLAGS",
        (0x52, 2): "EXP_LNKSTA",
        (0x54, 1): "MSI_CAP_LIST_ID",
        (0x5C, 4): "MSI_ADDRESS_HI",
        (0x60, 2): "MSI_DATA_64",
        (0x78, 2): "MSI_DATA_32",
        (0x80, 2): "CAP_14_CAP_LIST_ID..CAP_14_CAP_LIST_NEXT",
        (0x100, 4): "ERR_EXT_CAP",
        (0x104, 4): "ERR_UNCOR_STATUS",
        (0x150, 4): "EXT_CAP_7777_EXT_CAP",
    }
    assert {access: found.describe(*access) for access in described} == described


def test_a_bridge_has_the_registers_of_a_bridge() -> None:
    image = bytearray(256)
    image[0x0E] = 0x81
    assert names_of(image).describe(0x19, 1) == "SECONDARY_BUS"


@pytest.mark.skipif(not HEADER.exists(), reason="linux/pci_regs.h is not installed (linux-libc-dev)")
def test_names_and_offsets_are_those_of_the_header() -> None:
    """Those that the header has under the same name, which are most."""
    lines = re.findall(r"^#define\s+PCI_(\w+)\s+(0x[0-9a-fA-F]+|\d+)\b", HEADER.read_text(), re.M)
    header = {name: int(value, 0) for name, value in lines}
    tables = [names._COMMON, *names._HEADERS.values(), *names._MSI.values()]
    tables += [table for _, table in (*names._CAPABILITIES.values(), *names._EXTENDED.values())]
    declared = {name: offset for table in tables for offset, _, name in table}
    shared = declared.keys() & header.keys()
    assert {name: declared[name] for name in shared} == {name: header[name] for name in shared}
    ours = {name for name in declared if name not in header}
    assert {name for name in ours if not re.fullmatch(r"(SRIOV_)?BAR\d", name)} == {
        "VNDR_LENGTH",
        "DSN_SERIAL",
    }
