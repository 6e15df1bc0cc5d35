# SPDX-License-Identifier: Apache-2.0
"""PCI capabilities as values: an id, the bytes behind the header, and which bits of them are writable.

State: none; capabilities are values. Source: PCI 3.0 chapter 6.8 (MSI, MSI-X), PCI PM 1.2, SR-IOV 1.1, PCI
Express Base 4.0 chapters 7.7.7 (ACS), 7.9.3 (serial number), 10.5.1 (ATS) and 10.5.2 (PRI),
<linux/pci_regs.h>.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

from devmodel.pci import regs

MAX_MSI_VECTORS = 32
MAX_MSIX_VECTORS = 2048


class Acs(IntFlag):
    """Bits of the ACS capability and control registers."""

    SOURCE_VALIDATION = 0x01
    TRANSLATION_BLOCKING = 0x02
    REQUEST_REDIRECT = 0x04
    COMPLETION_REDIRECT = 0x08
    UPSTREAM_FORWARDING = 0x10


@dataclass(frozen=True, slots=True)
class Capability:
    """One capability: ``body`` follows the 2-byte header, ``mask`` has the bits of it that a write changes.

    ``vectors`` is the number of interrupt messages of MSI and MSI-X. ``ones`` has the bits that a written 1
    clears.
    """

    id: int
    body: bytes
    mask: bytes
    vectors: int = 0
    ones: bytes = b""

    @property
    def size(self) -> int:
        """Bytes it takes in configuration space, the header included."""
        return 2 + len(self.body)


@dataclass(frozen=True, slots=True)
class ExtendedCapability:
    """One capability of extended configuration space: ``body`` follows the 4-byte header, ``mask`` and
    ``ones`` are as in :class:`Capability`."""

    id: int
    body: bytes
    mask: bytes
    version: int = 1
    ones: bytes = b""

    @property
    def size(self) -> int:
        """Bytes it takes in configuration space, the header included."""
        return 4 + len(self.body)


def vendor(payload: bytes) -> Capability:
    """A vendor-specific capability; a client reads ``payload`` after id, next and length."""
    body = bytes([3 + len(payload)]) + payload
    return Capability(regs.CapId.VNDR, body, bytes(len(body)))


def power_management() -> Capability:
    """Power management with D0 and D3hot. The device keeps its state over D3hot (NO_SOFT_RESET)."""
    body = struct.pack("<HHH", regs.PM_CAP_VER, regs.PM_CTRL_NO_SOFT_RESET, 0)
    return Capability(regs.CapId.PM, body, struct.pack("<HHH", 0, regs.PM_CTRL_STATE_MASK, 0))


def msi(vectors: int = 1) -> Capability:
    """MSI with 64-bit addresses and per-vector masking; ``vectors``: a power of two up to 32 (ValueError)."""
    if vectors not in (1, 2, 4, 8, 16, 32):
        raise ValueError(f"MSI cannot have {vectors} vectors: a power of two up to {MAX_MSI_VECTORS}")
    control = regs.MSI_64BIT | regs.MSI_MASKBIT | (vectors.bit_length() - 1) << 1
    every_vector = (1 << vectors) - 1
    layout = "<HIIHHII"  # control, address low and high, data, reserved, mask bits, pending bits
    body = struct.pack(layout, control, 0, 0, 0, 0, 0, 0)
    writable = regs.MSI_ENABLE | regs.MSI_QSIZE
    mask = struct.pack(layout, writable, 0xFFFFFFFC, 0xFFFFFFFF, 0xFFFF, 0, every_vector, 0)
    return Capability(regs.CapId.MSI, body, mask, vectors)


def msix(vectors: int, table: tuple[int, int], pending: tuple[int, int]) -> Capability:
    """MSI-X with ``vectors`` (1 to 2048) entries; ``table`` and ``pending`` are (BAR index, offset in bytes).

    Raises ValueError for a count out of range or an offset that is not a multiple of 8.
    """
    if not 1 <= vectors <= MAX_MSIX_VECTORS:
        raise ValueError(f"MSI-X cannot have {vectors} vectors: 1 to {MAX_MSIX_VECTORS}")
    places = [_place(*table), _place(*pending)]
    body = struct.pack("<HII", vectors - 1, *places)
    mask = struct.pack("<HII", regs.MSIX_ENABLE | regs.MSIX_MASKALL, 0, 0)
    return Capability(regs.CapId.MSIX, body, mask, vectors)


def alternative_routing() -> ExtendedCapability:
    """ARI: the function number has 8 bits, so that a device may have more than 8 functions."""
    return ExtendedCapability(regs.ExtCapId.ARI, bytes(4), bytes(4))


def serial_number(serial: int) -> ExtendedCapability:
    """The serial number of a device, 64 bits (ValueError otherwise)."""
    if not 0 <= serial < 1 << 64:
        raise ValueError(f"a serial number has 64 bits, {serial:#x} has more")
    return ExtendedCapability(regs.ExtCapId.DSN, struct.pack("<Q", serial), bytes(8))


def error_reporting() -> ExtendedCapability:
    """AER, version 2, as after power-on: no error has happened."""
    # status, mask and severity of uncorrectable errors; status and mask of correctable ones; control
    control = (0, 0, regs.AER_SEVER_DEFAULT, 0, regs.AER_COR_MASK_DEFAULT, 0)
    writable = (0, regs.AER_UNCOR_BITS, regs.AER_UNCOR_BITS, 0, regs.AER_COR_BITS, 0)
    cleared = (regs.AER_UNCOR_BITS, 0, 0, regs.AER_COR_BITS, 0, 0)
    log = bytes(regs.AER_SIZE - 28)
    body, mask, ones = (struct.pack("<6I", *each) + log for each in (control, writable, cleared))
    return ExtendedCapability(regs.ExtCapId.AER, body, mask, 2, ones)


def address_translation() -> ExtendedCapability:
    """ATS: the function may cache translations of its IOMMU, of whole pages."""
    writable = regs.ATS_CTRL_STU | regs.ATS_CTRL_ENABLE
    body, mask = struct.pack("<HH", regs.ATS_CAP_PAGE_ALIGNED, 0), struct.pack("<HH", 0, writable)
    return ExtendedCapability(regs.ExtCapId.ATS, body, mask)


def page_requests(capacity: int = 32) -> ExtendedCapability:
    """PRI: the function may ask its IOMMU for pages, ``capacity`` of them at once. It needs
    :func:`address_translation` too."""
    layout = struct.Struct("<HHII")  # control, status, capacity, allocation
    body = layout.pack(0, regs.PRI_STATUS_STOPPED, capacity, 0)
    return ExtendedCapability(regs.ExtCapId.PRI, body, layout.pack(regs.PRI_CTRL_ENABLE, 0, 0, 2**32 - 1))


def vital_product_data() -> Capability:
    """VPD: a register for the address and one for the data, which the device serves."""
    return Capability(regs.CapId.VPD, bytes(6), b"\xff" * 6)


def access_control() -> ExtendedCapability:
    """ACS as Linux enables it: requests go up to the IOMMU, so that peers do not reach each other."""
    able = Acs.SOURCE_VALIDATION | Acs.TRANSLATION_BLOCKING | Acs.REQUEST_REDIRECT
    able |= Acs.COMPLETION_REDIRECT | Acs.UPSTREAM_FORWARDING
    body = struct.pack("<HH", able, able & ~Acs.TRANSLATION_BLOCKING)
    return ExtendedCapability(regs.ExtCapId.ACS, body, struct.pack("<HH", 0, able))


def single_root_io(
    total: int, offset: int, stride: int, device: int, bars: Sequence[int]
) -> ExtendedCapability:
    """SR-IOV with ``total`` virtual functions of device id ``device``. The first is ``offset`` routing ids
    behind the physical function, and each next one ``stride`` further. ``bars`` are the 6 VF BAR registers.

    A client can write nothing of it: only the host's driver enables virtual functions.
    """
    one_page = 1
    control = (0, regs.SRIOV_CTRL_ARI, 0)  # capabilities, control, status
    head = struct.pack("<IHHHHHBxHHxxH", *control, total, total, 0, 0, offset, stride, device)
    body = head + struct.pack("<II6II", one_page, one_page, *bars, 0)
    return ExtendedCapability(regs.ExtCapId.SRIOV, body, bytes(len(body)))


def _place(bar: int, offset: int) -> int:
    if not 0 <= bar < regs.STD_NUM_BARS or offset % 8:
        raise ValueError(
            f"MSI-X structure at BAR {bar} offset {offset:#x}: not a BAR, or not a multiple of 8"
        )
    return offset | bar
