# SPDX-License-Identifier: Apache-2.0
"""The slot of a PCI Express port, in the port's capability: what the slot can do, and how it is now.

State: none; the registers belong to the port's device, under its lock. Source: PCI Express Base 4.0 chapters
7.5.3.9 to 7.5.3.11, <linux/pci_regs.h> (PCI_EXP_SLT*).
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum, IntFlag

from devmodel.pci.bridge import EXP_LNKCAP_DLLLARC, EXP_LNKSTA_DLLLA
from devmodel.pci.capability import Capability
from devmodel.pci.config import ConfigSpace
from devmodel.pci.express import ExpressRegisters
from devmodel.pci.regs import EXP_LNKCAP, EXP_LNKSTA, CapId

EXP_FLAGS, EXP_FLAGS_SLOT = 0x02, 0x0100
EXP_SLTCAP, EXP_SLTCTL, EXP_SLTSTA = 0x14, 0x18, 0x1A
MAX_SLOT_NUMBER = (1 << 13) - 1
"""The largest physical slot number that the capability has room for."""
_PSN_SHIFT = 19


class SlotCap(IntFlag):
    """What a slot can do."""

    ATTENTION_BUTTON = 0x01
    POWER_CONTROLLER = 0x02
    MRL_SENSOR = 0x04
    ATTENTION_INDICATOR = 0x08
    POWER_INDICATOR = 0x10
    SURPRISE = 0x20
    HOTPLUG = 0x40
    NO_COMMAND_COMPLETED = 0x4_0000


class SlotControl(IntFlag):
    """What pciehp has switched on: the notices that it asks for, indicators, and the power."""

    ATTENTION_BUTTON = 0x0001
    POWER_FAULT = 0x0002
    MRL_SENSOR = 0x0004
    HOTPLUG_INTERRUPT = 0x0020
    POWER_INDICATOR_ON = 0x0100
    POWER_INDICATOR_OFF = 0x0300
    POWER_OFF = 0x0400
    LINK_CHANGED = 0x1000


class SlotStatus(IntFlag):
    """What the slot senses."""

    LATCH_OPEN = 0x20
    CARD_PRESENT = 0x40


class Indicator(IntEnum):
    """What the attention indicator does, as sysfs `attention` says it."""

    OFF = 0
    ON = 1
    BLINK = 2


_ATTENTION = {Indicator.OFF: 0xC0, Indicator.ON: 0x40, Indicator.BLINK: 0x80}
_ATTENTION_MASK = 0xC0
_ABLE = SlotCap(sum(SlotCap))
_NOTICES = (
    SlotControl.ATTENTION_BUTTON
    | SlotControl.POWER_FAULT
    | SlotControl.MRL_SENSOR
    | SlotControl.HOTPLUG_INTERRUPT
    | SlotControl.LINK_CHANGED
)


def with_slot(express: Capability, number: int) -> Capability:
    """The PCI Express capability of a port, with a hot-plug slot whose physical number is ``number``."""
    registers = ExpressRegisters.of(express)
    if registers is None:
        raise ValueError("a slot needs the second version of the PCI Express capability")
    able = registers._replace(
        flags=registers.flags | EXP_FLAGS_SLOT, sltcap=_ABLE | number << _PSN_SHIFT, sltctl=_NOTICES
    )
    return replace(express, body=able.pack())


def show_slot(config: ConfigSpace, occupied: bool, powered: bool, attention: Indicator) -> None:
    """Have the registers of a port say how its slot is, also after a reset. Under the port's lock. A client
    cannot change them. What the slot does not have stays as it is; a port without a slot in its registers
    does not change."""
    place = config.find(CapId.EXP)
    if not place or not config.value(place + EXP_FLAGS, 2) & EXP_FLAGS_SLOT:
        return
    able = config.value(place + EXP_SLTCAP, 4)
    power = SlotControl.POWER_INDICATOR_ON if powered else SlotControl.POWER_INDICATOR_OFF
    control = (
        (SlotCap.ATTENTION_INDICATOR, _ATTENTION_MASK, _ATTENTION[attention]),
        (SlotCap.POWER_INDICATOR, SlotControl.POWER_INDICATOR_OFF, power),
        (SlotCap.POWER_CONTROLLER, SlotControl.POWER_OFF, 0 if powered else SlotControl.POWER_OFF),
    )
    status = (
        (SlotCap.HOTPLUG, SlotStatus.CARD_PRESENT, SlotStatus.CARD_PRESENT if occupied else 0),
        (SlotCap.MRL_SENSOR, SlotStatus.LATCH_OPEN, 0 if occupied else SlotStatus.LATCH_OPEN),
    )
    for register, bits in ((EXP_SLTCTL, control), (EXP_SLTSTA, status)):
        value = config.value(place + register, 2)
        for needed, mask, shown in bits:
            if able & needed:
                value = value & ~mask | shown
        config.preset(place + register, 2, value)
    if config.value(place + EXP_LNKCAP, 4) & EXP_LNKCAP_DLLLARC:
        link = config.value(place + EXP_LNKSTA, 2) & ~EXP_LNKSTA_DLLLA
        config.preset(place + EXP_LNKSTA, 2, link | (EXP_LNKSTA_DLLLA if occupied and powered else 0))
