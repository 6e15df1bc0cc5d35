# SPDX-License-Identifier: Apache-2.0
"""sys/bus/pci/slots: the physical slots of the machine, and the files by which a card is plugged in and out.

State is devmodel's. show() is called on the trio thread and on the device lane, store() on the trio thread.
Source: Documentation/ABI/testing/sysfs-bus-pci (slots), the formats and errnos of drivers/pci/slot.c and
drivers/pci/hotplug.
"""

from __future__ import annotations

import re

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.removal import taking_away
from devmodel.lifecycle.slots import Slot
from devmodel.pci.slot import Indicator
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import attribute, link, store_only, waiting, waiting_store
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.modules import PCIEHP
from vfsfuse.sysfs.pcicore import UNKNOWN, current_link_speed, max_link_speed

_NUMBER = re.compile(r"\d*", re.ASCII)


def lenient_number(text: str) -> int:
    """The number that pci_hotplug_core reads: the digits that the text begins with, 0 without any. Only the
    lowest byte counts."""
    found = _NUMBER.match(text)
    return int(found[0] or 0) & 0xFF if found is not None else 0


class SlotDir(Kobject):
    """sys/bus/pci/slots/<slot>: a physical slot. `port` is the port above it, None for a fixed one."""

    __slots__ = ("place", "port")

    def __init__(self, name: str, place: str, port: PciFunction | None = None) -> None:
        super().__init__(name)
        self.place, self.port = place, port

    @attribute()
    def address(self) -> str:
        """Where the card is: domain, bus and device number."""
        return self.place

    @attribute()
    def max_bus_speed(self) -> str:
        """The fastest speed of the port's link, such as `16.0 GT/s PCIe`; `Unknown` for a slot on a root
        bus."""
        return UNKNOWN if self.port is None else max_link_speed(self.port.device)

    @attribute()
    def cur_bus_speed(self) -> str:
        """The speed of the port's link, `Unknown` for a slot on a root bus."""
        return UNKNOWN if self.port is None else current_link_speed(self.port.device)


class HotplugSlotDir(SlotDir):
    """sys/bus/pci/slots/<slot>: the slot of a port, while the port is bound to pcieport."""

    __slots__ = ("slot", "view")

    def __init__(self, view: View, slot: Slot, port: PciFunction) -> None:
        super().__init__(slot.name, slot.address, port)
        self.view, self.slot = view, slot

    @waiting()
    def power(self) -> int:
        """1 while the slot has power, else 0."""
        return int(self.slot.powered)

    @power.store
    async def _store_power(self, text: str) -> None:
        """0 removes all functions of the card, and takes the power away; 1 gives it back, and finds them. A
        text that does not begin with a digit is 0, and only the lowest byte counts. EINVAL: another number;
        ENODEV: it is so already, or 1 and there is no card; EBUSY: a client holds one of the functions, or
        with `remove = "wait"` the write waits for the client."""
        cards, slot, number = self.view.lab.cards, self.slot, lenient_number(text)
        if number > 1:
            raise ValueError(f"{number} is neither 0 nor 1")
        if number:
            cards.power_on(slot)
        else:
            await taking_away(self.view.lab, lambda: cards.held(slot), lambda: cards.power_off(slot))

    @attribute(0o644)
    def attention(self) -> int:
        """What the attention indicator does: 0 is off, 1 on, 2 blinks."""
        return self.slot.attention

    @attention.store
    def _store_attention(self, text: str) -> None:
        """Sets it. A text that does not begin with a digit is 0, and only the lowest byte counts. EINVAL:
        more than 2."""
        self.view.lab.cards.set_attention(self.slot, Indicator(lenient_number(text)))

    @attribute()
    def latch(self) -> int:
        """1 while the latch is open, else 0: it is closed while a card is in the slot."""
        return int(not self.slot.occupied)

    @attribute()
    def adapter(self) -> int:
        """1 while a card is in the slot, also without power, else 0."""
        return int(self.slot.occupied)

    @store_only()
    def plug(self, text: str) -> None:
        """A file of the lab's own: 1 puts the card into the slot, which gets power. EINVAL: no number; EBUSY:
        it is there; ENODEV: the lab has no card for the slot."""
        if parse_number(text):
            self.view.lab.cards.plug(self.slot)

    @waiting_store()
    async def unplug(self, text: str) -> None:
        """A file of the lab's own: 1 removes all functions of the card and takes it out, as after a press of
        the attention button. EINVAL: no number; ENODEV: the slot is empty; EBUSY: as for `power`."""
        if parse_number(text):
            cards, slot = self.view.lab.cards, self.slot
            await taking_away(self.view.lab, lambda: cards.held(slot), lambda: cards.unplug(slot))

    @store_only()
    def surprise_unplug(self, text: str) -> None:
        """A file of the lab's own: 1 pulls the card out although clients have its functions open. EINVAL:
        no number; ENODEV: the slot is empty."""
        if parse_number(text):
            self.view.lab.cards.surprise_unplug(self.slot)

    @link()
    def module(self) -> Entry | None:
        """To the module of the hot-plug driver, pciehp."""
        return self.view.module_dir(PCIEHP)
