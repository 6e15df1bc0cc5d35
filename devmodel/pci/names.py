# SPDX-License-Identifier: Apache-2.0
"""The names of the registers of configuration space: those of <linux/pci_regs.h> without the prefix PCI_.

Only the base address registers have the name that people use: BAR0 and so on. The two bytes that every
capability begins with are <capability>_CAP_LIST_ID and _NEXT, and the header of an extended one is
<capability>_EXT_CAP.

State: none. Source: <linux/pci_regs.h>.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

from devmodel.pci import regs
from devmodel.pci.regs import CapId, ExtCapId, Reg
from devmodel.region.names import Place, RegisterNames

Table = Sequence[tuple[int, int, str]]
"""Offset and width in bytes, and name."""

_COMMON: Table = (
    *((0x00, 2, "VENDOR_ID"), (0x02, 2, "DEVICE_ID"), (0x04, 2, "COMMAND"), (0x06, 2, "STATUS")),
    *((0x08, 1, "REVISION_ID"), (0x09, 1, "CLASS_PROG"), (0x0A, 2, "CLASS_DEVICE")),
    *((0x0C, 1, "CACHE_LINE_SIZE"), (0x0D, 1, "LATENCY_TIMER"), (0x0E, 1, "HEADER_TYPE"), (0x0F, 1, "BIST")),
    *((0x34, 1, "CAPABILITY_LIST"), (0x3C, 1, "INTERRUPT_LINE"), (0x3D, 1, "INTERRUPT_PIN")),
)
_HEADERS: Mapping[int, Table] = {
    0: (
        *((0x10 + 4 * index, 4, f"BAR{index}") for index in range(regs.STD_NUM_BARS)),
        *((0x28, 4, "CARDBUS_CIS"), (0x2C, 2, "SUBSYSTEM_VENDOR_ID"), (0x2E, 2, "SUBSYSTEM_ID")),
        *((0x30, 4, "ROM_ADDRESS"), (0x3E, 1, "MIN_GNT"), (0x3F, 1, "MAX_LAT")),
    ),
    1: (
        *((0x10, 4, "BAR0"), (0x14, 4, "BAR1")),
        *((0x18, 1, "PRIMARY_BUS"), (0x19, 1, "SECONDARY_BUS"), (0x1A, 1, "SUBORDINATE_BUS")),
        *((0x1B, 1, "SEC_LATENCY_TIMER"), (0x1C, 1, "IO_BASE"), (0x1D, 1, "IO_LIMIT")),
        *((0x1E, 2, "SEC_STATUS"), (0x20, 2, "MEMORY_BASE"), (0x22, 2, "MEMORY_LIMIT")),
        *((0x24, 2, "PREF_MEMORY_BASE"), (0x26, 2, "PREF_MEMORY_LIMIT")),
        *((0x28, 4, "PREF_BASE_UPPER32"), (0x2C, 4, "PREF_LIMIT_UPPER32")),
        *((0x30, 2, "IO_BASE_UPPER16"), (0x32, 2, "IO_LIMIT_UPPER16")),
        *((0x38, 4, "ROM_ADDRESS1"), (0x3E, 2, "BRIDGE_CONTROL")),
    ),
}
"""By header type: what comes besides the registers of every header."""

_MSI_32, _MSI_64 = 0, regs.MSI_64BIT
_CAPABILITIES: Mapping[int, tuple[str, Table]] = {
    CapId.PM: ("PM", ((0x02, 2, "PM_PMC"), (0x04, 2, "PM_CTRL"), (0x06, 1, "PM_PPB_EXTENSIONS"))),
    CapId.VPD: ("VPD", ((0x02, 2, "VPD_ADDR"), (0x04, 4, "VPD_DATA"))),
    CapId.MSI: ("MSI", ((0x02, 2, "MSI_FLAGS"), (0x04, 4, "MSI_ADDRESS_LO"))),
    CapId.VNDR: ("VNDR", ((0x02, 1, "VNDR_LENGTH"),)),
    CapId.SSVID: ("SSVID", ((0x04, 2, "SSVID_VENDOR_ID"), (0x06, 2, "SSVID_DEVICE_ID"))),
    CapId.EXP: (
        "EXP",
        (
            *((0x02, 2, "EXP_FLAGS"), (0x04, 4, "EXP_DEVCAP"), (0x08, 2, "EXP_DEVCTL")),
            *((0x0A, 2, "EXP_DEVSTA"), (0x0C, 4, "EXP_LNKCAP"), (0x10, 2, "EXP_LNKCTL")),
            *((0x12, 2, "EXP_LNKSTA"), (0x14, 4, "EXP_SLTCAP"), (0x18, 2, "EXP_SLTCTL")),
            *((0x1A, 2, "EXP_SLTSTA"), (0x1C, 2, "EXP_RTCTL"), (0x1E, 2, "EXP_RTCAP")),
            *((0x20, 4, "EXP_RTSTA"), (0x24, 4, "EXP_DEVCAP2"), (0x28, 2, "EXP_DEVCTL2")),
            *((0x2A, 2, "EXP_DEVSTA2"), (0x2C, 4, "EXP_LNKCAP2"), (0x30, 2, "EXP_LNKCTL2")),
            *((0x32, 2, "EXP_LNKSTA2"), (0x34, 4, "EXP_SLTCAP2"), (0x38, 2, "EXP_SLTCTL2")),
            (0x3A, 2, "EXP_SLTSTA2"),
        ),
    ),
    CapId.MSIX: ("MSIX", ((0x02, 2, "MSIX_FLAGS"), (0x04, 4, "MSIX_TABLE"), (0x08, 4, "MSIX_PBA"))),
}
_MSI: Mapping[int, Table] = {
    _MSI_32: ((0x08, 2, "MSI_DATA_32"), (0x0C, 4, "MSI_MASK_32"), (0x10, 4, "MSI_PENDING_32")),
    _MSI_64: (
        *((0x08, 4, "MSI_ADDRESS_HI"), (0x0C, 2, "MSI_DATA_64")),
        *((0x10, 4, "MSI_MASK_64"), (0x14, 4, "MSI_PENDING_64")),
    ),
}
"""By the bit that says how long the address is."""
_EXTENDED: Mapping[int, tuple[str, Table]] = {
    ExtCapId.AER: (
        "ERR",
        (
            *((0x04, 4, "ERR_UNCOR_STATUS"), (0x08, 4, "ERR_UNCOR_MASK"), (0x0C, 4, "ERR_UNCOR_SEVER")),
            *((0x10, 4, "ERR_COR_STATUS"), (0x14, 4, "ERR_COR_MASK"), (0x18, 4, "ERR_CAP")),
            *((0x1C, 16, "ERR_HEADER_LOG"), (0x2C, 4, "ERR_ROOT_COMMAND")),
            *((0x30, 4, "ERR_ROOT_STATUS"), (0x34, 4, "ERR_ROOT_ERR_SRC")),
        ),
    ),
    ExtCapId.DSN: ("DSN", ((0x04, 8, "DSN_SERIAL"),)),
    ExtCapId.VNDR: ("VNDR", ((0x04, 4, "VNDR_HEADER"),)),
    ExtCapId.ACS: ("ACS", ((0x04, 2, "ACS_CAP"), (0x06, 2, "ACS_CTRL"))),
    ExtCapId.ARI: ("ARI", ((0x04, 2, "ARI_CAP"), (0x06, 2, "ARI_CTRL"))),
    ExtCapId.SRIOV: (
        "SRIOV",
        (
            *((0x04, 4, "SRIOV_CAP"), (0x08, 2, "SRIOV_CTRL"), (0x0A, 2, "SRIOV_STATUS")),
            *((0x0C, 2, "SRIOV_INITIAL_VF"), (0x0E, 2, "SRIOV_TOTAL_VF"), (0x10, 2, "SRIOV_NUM_VF")),
            *((0x12, 1, "SRIOV_FUNC_LINK"), (0x14, 2, "SRIOV_VF_OFFSET"), (0x16, 2, "SRIOV_VF_STRIDE")),
            *((0x1A, 2, "SRIOV_VF_DID"), (0x1C, 4, "SRIOV_SUP_PGSIZE"), (0x20, 4, "SRIOV_SYS_PGSIZE")),
            *((0x24 + 4 * index, 4, f"SRIOV_BAR{index}") for index in range(regs.STD_NUM_BARS)),
            (0x3C, 4, "SRIOV_VFM"),
        ),
    ),
    ExtCapId.DVSEC: ("DVSEC", ((0x04, 4, "DVSEC_HEADER1"), (0x08, 2, "DVSEC_HEADER2"))),
}
_LEAST_EXTENDED = 8


def names_of(image: bytes | bytearray) -> RegisterNames:
    """The names of the registers of a configuration space that has these bytes. Devices of the same shape
    share the object."""
    header = image[Reg.HEADER_TYPE] & regs.HEADER_TYPE_MASK
    return _names(header, tuple(_chain(image)), tuple(_extended_chain(image)))


def _chain(image: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Offset and id of each capability, and what else decides how it looks."""
    seen: set[int] = set()
    offset = image[Reg.CAPABILITY_LIST] & ~3 if image[Reg.STATUS] & regs.STATUS_CAP_LIST else 0
    while offset >= regs.STD_HEADER_SIZEOF and offset not in seen:
        seen.add(offset)
        found = image[offset]
        yield offset, found, image[offset + regs.MSI_FLAGS] & regs.MSI_64BIT if found == CapId.MSI else 0
        offset = image[offset + 1] & ~3


def _extended_chain(image: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Offset and id of each extended capability."""
    seen: set[int] = set()
    offset = regs.CFG_SPACE_SIZE
    while regs.CFG_SPACE_SIZE <= offset <= len(image) - _LEAST_EXTENDED and offset not in seen:
        seen.add(offset)
        header = int.from_bytes(image[offset : offset + 4], "little")
        if header:
            yield offset, header & 0xFFFF
        offset = header >> 20 & ~3


@functools.lru_cache(maxsize=256)
def _names(
    header: int, chain: Sequence[tuple[int, int, int]], extended: Sequence[tuple[int, int]]
) -> RegisterNames:
    places = [Place(*each) for each in (*_COMMON, *_HEADERS.get(header, ()))]
    ends = sorted(each[0] for each in (*chain, *extended))
    for offset, found, variant in chain:
        name, table = _CAPABILITIES.get(found, (f"CAP_{found:02X}", ()))
        more = _MSI[variant] if found == CapId.MSI else ()
        first = ((0, 1, f"{name}_CAP_LIST_ID"), (1, 1, f"{name}_CAP_LIST_NEXT"))
        places += _placed(offset, (*first, *table, *more), ends)
    for offset, found in extended:
        name, table = _EXTENDED.get(found, (f"EXT_CAP_{found:04X}", ()))
        places += _placed(offset, ((0, 4, f"{name}_EXT_CAP"), *table), ends)
    return RegisterNames(places)


def _placed(start: int, table: Table, starts: Sequence[int]) -> Iterator[Place]:
    """The registers of the capability at ``start``. A short one ends where the next one starts."""
    end = next((each for each in starts if each > start), regs.CFG_SPACE_EXP_SIZE)
    return (Place(start + at, width, name) for at, width, name in table if start + at + width <= end)
