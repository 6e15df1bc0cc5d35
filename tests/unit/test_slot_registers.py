# SPDX-License-Identifier: Apache-2.0
"""The registers of a port with a slot: what they say, and what a captured port keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devmodel.device.bridge import BridgeDevice, Wiring
from devmodel.pci.capability import Capability
from devmodel.pci.config import ConfigSpace
from devmodel.pci.express import ExpressRegisters, express
from devmodel.pci.fields import Identity
from devmodel.pci.regs import CapId
from devmodel.pci.slot import EXP_SLTCAP, EXP_SLTCTL, EXP_SLTSTA, Indicator, show_slot, with_slot

IDENTITY = Identity(0x1B36, 0x000C, 0x1AF4, 0x1100, 0x060400)
LNKSTA, DLACTIVE, BUTTON, HOTPLUG, SURPRISE = 0x12, 0x2000, 0x1, 0x40, 0x20


def registers(config: ConfigSpace) -> tuple[int, int, int]:
    """Slot control, slot status, and whether the link is up."""
    place = config.find(CapId.EXP)
    control, status = (config.value(place + register, 2) for register in (EXP_SLTCTL, EXP_SLTSTA))
    return control, status, config.value(place + LNKSTA, 2) & DLACTIVE


def space(**changes: int) -> ConfigSpace:
    """The configuration space of a function whose PCI Express capability has these registers."""
    values = ExpressRegisters.of(express())
    assert values is not None
    capability = replace(express(), body=values._replace(**changes).pack())
    return ConfigSpace(IDENTITY, {}, [capability])


def test_a_port_of_the_lab() -> None:
    port = BridgeDevice("0000:00:01.0", wiring=Wiring(slot=77))
    place = port.config.find(CapId.EXP)
    assert port.config.value(place + EXP_SLTCAP, 4) == 77 << 19 | 0x4007F
    for occupied, powered, attention, shown in (
        (True, True, Indicator.OFF, (0x11E7, 0x40, DLACTIVE)),
        (True, False, Indicator.ON, (0x1767, 0x40, 0)),
        (False, False, Indicator.BLINK, (0x17A7, 0x20, 0)),
    ):
        show_slot(port.config, occupied, powered, attention)
        assert registers(port.config) == shown
        port.config.write(place + EXP_SLTCTL, b"\0\0")
        assert registers(port.config) == shown
    port.reset_now()
    assert registers(port.config) == (0x17A7, 0x20, 0)


def test_what_a_captured_slot_lacks_stays_as_it_was() -> None:
    """A slot for NVMe disks: hot-plug by surprise, without power controller, indicators and latch."""
    capacity = BUTTON | HOTPLUG | SURPRISE
    link = 0x10_0000 | 0x103
    config = space(flags=0x142, sltcap=capacity, sltctl=0x10F1, sltsta=0x48, lnkcap=link, lnksta=0x2043)
    show_slot(config, True, True, Indicator.BLINK)
    assert registers(config) == (0x10F1, 0x48, DLACTIVE)
    show_slot(config, False, False, Indicator.OFF)
    assert registers(config) == (0x10F1, 0x08, 0)


@pytest.mark.parametrize("flags", [0x42, 0x2])
def test_a_port_without_a_slot_does_not_change(flags: int) -> None:
    config = space(flags=flags, sltctl=0x10F1, sltsta=0x48, lnkcap=0x10_0103, lnksta=0x2043)
    before = config.read(0, config.size)
    show_slot(config, False, False, Indicator.OFF)
    assert config.read(0, config.size) == before
    show_slot(ConfigSpace(IDENTITY, {}, []), False, False, Indicator.OFF)


def test_a_slot_needs_the_capability_of_today() -> None:
    with pytest.raises(ValueError, match="second version"):
        with_slot(Capability(CapId.EXP, bytes(18), bytes(18)), 1)
