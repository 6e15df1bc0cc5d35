# SPDX-License-Identifier: Apache-2.0
"""Which registers of a captured configuration space are live: the bits that a write changes, and those that a
written 1 clears. All others stay as they were captured.

State: none. Source: as of devmodel.pci.image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from devmodel.memo import shared
from devmodel.pci import regs
from devmodel.pci.bridge import BridgeControl, BridgeReg
from devmodel.pci.regs import CapId, Command, ExtCapId, Reg
from devmodel.pci.slot import EXP_FLAGS_SLOT, EXP_SLTCTL, EXP_SLTSTA

_ACS_CTRL, _SLTSTA_EVENTS, _LNKSTA_EVENTS = 0x06, 0x011F, 0xC000
_LNKCTL, _RTCTL, _LNKCTL2 = 0x10, 0x1C, 0x30
_DEVCAP2 = 0x24
_STATUS_ERRORS, _PM_PME_ENABLE, _PM_PME_STATUS = 0xF900, 0x0100, 0x8000
_TYPES_WITH_SLOT = (regs.EXP_TYPE_ROOT_PORT, regs.EXP_TYPE_DOWNSTREAM)
_TYPES_WITH_ROOT = (regs.EXP_TYPE_ROOT_PORT, regs.EXP_TYPE_RC_EC)
_EXP_VERSION, _EXP_TYPE = 0x000F, 0x00F0


def live_bits(data: bytes, offsets: Mapping[int, int], places: Mapping[int, int]) -> tuple[bytes, bytes]:
    """The bits of an image that a write changes, and those that a written 1 clears; without BARs."""
    mask, cleared = bytearray(len(data)), bytearray(len(data))

    def live(offset: int, width: int, bits: int, ones: int = 0) -> None:
        for position, (change, clear) in enumerate(
            zip(bits.to_bytes(width, "little"), ones.to_bytes(width, "little"), strict=True), offset
        ):
            if position < len(data):
                mask[position] |= change
                cleared[position] |= clear

    bridge = data[Reg.HEADER_TYPE] & regs.HEADER_TYPE_MASK == 1
    command = Command.MASTER | Command.PARITY | Command.SERR
    if data[Reg.INTERRUPT_PIN] or bridge:
        command |= Command.INTX_DISABLE
    live(Reg.COMMAND, 2, command | ((Command.IO | Command.MEMORY) if bridge else 0))
    live(Reg.STATUS, 2, 0, _STATUS_ERRORS)
    live(Reg.CACHE_LINE_SIZE, 1, 0xFF)
    live(Reg.INTERRUPT_LINE, 1, 0xFF)
    if CapId.EXP not in offsets:
        live(Reg.LATENCY_TIMER, 1, 0xFF)
    if bridge:
        _live_bridge(data, live)
    for identity, offset in offsets.items():
        _live_capability(data, identity, offset, live)
    if ExtCapId.ACS in places:
        able = int.from_bytes(data[places[ExtCapId.ACS] + 4 :][:2], "little")
        live(places[ExtCapId.ACS] + _ACS_CTRL, 2, able & 0x7F)
    if ExtCapId.AER in places:
        _live_errors(places[ExtCapId.AER], live)
    return shared(bytes(mask)), shared(bytes(cleared))


_Live = Callable[..., None]


def _live_bridge(data: bytes, live: _Live) -> None:
    """The registers of a bridge's header. A window that the bridge does not have reads 0, and stays so."""
    live(BridgeReg.PRIMARY_BUS, 3, 0xFFFFFF)
    live(BridgeReg.SEC_STATUS, 2, 0, _STATUS_ERRORS)
    live(BridgeReg.BRIDGE_CONTROL, 2, sum(BridgeControl))
    live(BridgeReg.MEMORY_BASE, 4, 0xFFF0FFF0)
    io = int.from_bytes(data[BridgeReg.IO_BASE :][:2], "little")
    if io:
        live(BridgeReg.IO_BASE, 2, 0xF0F0)
        if io & 1:
            live(BridgeReg.IO_BASE_UPPER16, 4, 0xFFFFFFFF)
    prefetch = int.from_bytes(data[BridgeReg.PREF_MEMORY_BASE :][:4], "little")
    if prefetch:
        live(BridgeReg.PREF_MEMORY_BASE, 4, 0xFFF0FFF0)
        if prefetch & 1:
            live(BridgeReg.PREF_BASE_UPPER32, 8, (1 << 64) - 1)


def _live_capability(data: bytes, identity: int, offset: int, live: _Live) -> None:
    control = int.from_bytes(data[offset + 2 : offset + 4], "little")
    if identity == CapId.PM:
        pme = bool(control & regs.PM_CAP_PME_MASK)
        live(
            offset + regs.PM_CTRL,
            2,
            regs.PM_CTRL_STATE_MASK | (_PM_PME_ENABLE if pme else 0),
            _PM_PME_STATUS,
        )
    elif identity == CapId.MSI:
        wide = bool(control & regs.MSI_64BIT)
        live(offset + regs.MSI_FLAGS, 2, regs.MSI_ENABLE | regs.MSI_QSIZE)
        live(offset + regs.MSI_ADDRESS_LO, 4, 0xFFFFFFFC)
        if wide:
            live(offset + regs.MSI_ADDRESS_LO + 4, 4, 0xFFFFFFFF)
        live(offset + regs.MSI_DATA_64 - (0 if wide else 4), 2, 0xFFFF)
        if control & regs.MSI_MASKBIT:
            every = (1 << (1 << min(control >> 1 & 7, 5))) - 1
            live(offset + regs.MSI_MASK_64 - (0 if wide else 4), 4, every)
    elif identity == CapId.MSIX:
        live(offset + regs.MSI_FLAGS, 2, regs.MSIX_ENABLE | regs.MSIX_MASKALL)
    elif identity == CapId.VPD:
        live(offset + regs.VPD_ADDR, 6, 0xFFFFFFFFFFFF)
    elif identity == CapId.EXP:
        _live_express(data, offset, control, live)


def _live_errors(offset: int, live: _Live) -> None:
    for place, bits in (
        (regs.AER_UNCOR_STATUS, regs.AER_UNCOR_BITS),
        (regs.AER_COR_STATUS, regs.AER_COR_BITS),
    ):
        live(offset + place, 4, 0, bits)
    for place in (regs.AER_UNCOR_MASK, regs.AER_UNCOR_SEVER):
        live(offset + place, 4, regs.AER_UNCOR_BITS)
    live(offset + regs.AER_COR_MASK, 4, regs.AER_COR_BITS)


def _live_express(data: bytes, offset: int, flags: int, live: _Live) -> None:
    kind = (flags & _EXP_TYPE) >> 4
    devcap = int.from_bytes(data[offset + regs.EXP_DEVCAP :][:4], "little")
    flr = regs.EXP_DEVCTL_BCR_FLR if devcap & regs.EXP_DEVCAP_FLR else 0
    live(offset + regs.EXP_DEVCTL, 2, regs.EXP_DEVCTL_WRITABLE | flr)
    live(offset + regs.EXP_DEVSTA, 2, 0, regs.EXP_DEVSTA_ERRORS)
    link = kind not in (regs.EXP_TYPE_RC_END, regs.EXP_TYPE_RC_EC)
    if link:
        live(offset + _LNKCTL, 2, regs.EXP_LNKCTL_WRITABLE)
        live(offset + regs.EXP_LNKSTA, 2, 0, _LNKSTA_EVENTS)
    if kind in _TYPES_WITH_SLOT and flags & EXP_FLAGS_SLOT:
        live(offset + EXP_SLTCTL, 2, 0x1FFF)
        live(offset + EXP_SLTSTA, 2, 0, _SLTSTA_EVENTS)
    if kind in _TYPES_WITH_ROOT:
        live(offset + _RTCTL, 2, 0x1F)
    if flags & _EXP_VERSION > 1:
        able = int.from_bytes(data[offset + _DEVCAP2 :][:4], "little")  # 0 beyond the end of the space
        forwards = able & regs.EXP_DEVCTL2_ARI
        live(offset + regs.EXP_DEVCTL2, 2, regs.EXP_DEVCTL2_COMP_TMOUT | forwards)
        if link:
            live(offset + _LNKCTL2, 2, regs.EXP_LNKCTL2_TLS)
