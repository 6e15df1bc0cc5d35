# SPDX-License-Identifier: Apache-2.0
"""Hot-plug of PCI Express: cards go into slots and come out of them, and slots get and lose their power.

A card is all functions right below the port of its slot, with everything below them. It leaves in an orderly
way, when clients have let go, or by surprise, although they have it open.

State: the lifecycle thread's, under ``Lab.lock``. Source: PCI Express Base 4.0 chapter 6.7, the errnos and
the order of the kernel's pciehp and of its files in sys/bus/pci/slots.
"""

from __future__ import annotations

import errno
import threading

from devmodel.calls.point import CallPoint
from devmodel.lifecycle.binding import DriverCore
from devmodel.lifecycle.bridge import Bridge
from devmodel.lifecycle.change import lifecycle_change
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.hotplug import Hotplug
from devmodel.lifecycle.slots import Slot
from devmodel.pci.slot import Indicator
from devmodel.vfio.group import Assignable


class Cards:
    """Moves the cards of a lab."""

    def __init__(self, lock: threading.RLock, drivers: DriverCore, hotplug: Hotplug) -> None:
        self._lock, self._drivers, self._hotplug = lock, drivers, hotplug

    @property
    def calls(self) -> CallPoint:
        return self._drivers.calls

    def of(self, slot: Slot) -> list[PciFunction]:
        """The functions of the card right below the port that are there now, in the order in which they go:
        the last first."""
        found = (each for each in self._drivers.functions.values() if not each.is_virtual)
        return sorted(
            (each for each in found if each.address.bus_name == slot.bus),
            key=lambda each: each.address,
            reverse=True,
        )

    def held(self, slot: Slot) -> list[Assignable]:
        """What clients may hold and what goes with the card. Under ``Lab.lock``."""
        return [device for function in self.of(slot) for device in self._hotplug.held(function)]

    @lifecycle_change
    def power_on(self, slot: Slot) -> None:
        """Give the slot power, and find the card. Raises ``OSError(ENODEV)`` for a slot that has power, or no
        card."""
        with self._lock:
            if slot.powered or not slot.occupied:
                raise OSError(errno.ENODEV, f"slot {slot.name} {'is on' if slot.powered else 'has no card'}")
            self._find(slot)

    @lifecycle_change
    def power_off(self, slot: Slot) -> None:
        """Remove the card's functions, and take the power away. Raises ``OSError``: ENODEV for a slot without
        power, :class:`InUse` while a client holds one of :meth:`held`."""
        with self._lock:
            if not slot.powered:
                raise OSError(errno.ENODEV, f"slot {slot.name} is off")
            self._hotplug.remove_all(self.of(slot))
            slot.powered = False
            self._show(slot)

    @lifecycle_change
    def plug(self, slot: Slot) -> None:
        """Put the card into the slot, which gets power: its functions are found and probed. Raises
        ``OSError``: EBUSY when it is there already, ENODEV when the lab has no card for the slot."""
        with self._lock:
            if not slot.has_card:
                raise OSError(errno.ENODEV, f"there is no card for slot {slot.name}")
            if slot.occupied:
                raise OSError(errno.EBUSY, f"slot {slot.name} has its card")
            slot.occupied = True
            self._find(slot)

    @lifecycle_change
    def unplug(self, slot: Slot) -> None:
        """Take the card out, as after a press of the attention button: the slot loses its power first. Raises
        ``OSError``: ENODEV for an empty slot, :class:`InUse` while a client holds one of :meth:`held`."""
        with self._lock:
            self._check_occupied(slot)
            if slot.powered:
                self._hotplug.remove_all(self.of(slot))
            self._take_out(slot)

    @lifecycle_change
    def surprise_unplug(self, slot: Slot) -> None:
        """Pull the card out although clients may hold it (:meth:`Device.vanish` says what they see). Raises
        ``OSError(ENODEV)`` for an empty slot."""
        with self._lock:
            self._check_occupied(slot)
            self._hotplug.vanish_all(self.of(slot))
            self._take_out(slot)

    def slot_of(self, port: PciFunction) -> Slot | None:
        """The slot of a port, None without one."""
        slots = self._hotplug.slots.by_bus
        return slots.get(port.bus_below) if isinstance(port, Bridge) else None

    def port_bound(self, port: PciFunction) -> None:
        """A port has pcieport now, which looks into its slot: a card gets power. Under ``Lab.lock``."""
        slot = self.slot_of(port)
        if slot is not None and slot.occupied and not slot.powered:
            self._find(slot)

    def set_attention(self, slot: Slot, indicator: Indicator) -> None:
        """Have the attention indicator do something."""
        with self._lock:
            slot.attention = indicator
            self._show(slot)

    def _find(self, slot: Slot) -> None:
        slot.powered = True
        self._show(slot)
        self._hotplug.rescan(slot.bus)

    def _take_out(self, slot: Slot) -> None:
        slot.occupied = slot.powered = False
        self._show(slot)

    def _check_occupied(self, slot: Slot) -> None:
        if not slot.occupied:
            raise OSError(errno.ENODEV, f"slot {slot.name} has no card")

    def _show(self, slot: Slot) -> None:
        port = self._hotplug.ports.get(slot.bus)
        if port is not None:
            port.tell(slot.shown_by)
