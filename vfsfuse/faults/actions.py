# SPDX-License-Identifier: Apache-2.0
"""What a fault rule has happen to a device: it is gone, it resets itself, it reports an error.  A virtual
function that is about to appear comes late, or no driver takes it.

The device's own part happens at once, on the thread that calls: its registers, its interrupts.  Names and
uevents follow on the trio thread, as those of every change of a lab.  A device that has gone meanwhile, or is
going, is left alone.
Threads: any that holds no lock of the lab; what concerns a virtual function that appears, the trio thread,
within that call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev
from devmodel.lifecycle.physical import VirtualFunction
from devmodel.lifecycle.recovery import opened_of, reset_device, reset_function
from devmodel.pci.errors import Severity

log = logging.getLogger(__name__)


class Actions:
    """The actions of fault rules in one lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def __call__(self, what: str, value: object, device: str) -> Callable[[], None]:
        """What is to be called for the action ``what``: "remove", "reset", "error" (``value`` is its
        severity), "late" (seconds) or "driverless".  ``device`` is the name of its directory.  Any thread,
        under any lock."""
        return partial(self._act, what, value, device)

    def _act(self, what: str, value: object, device: str) -> None:
        action: Callable[..., None] = getattr(self, f"_{what}")
        try:
            action(device, value)
        except OSError as error:  # the device goes at this moment, or the lab does
            log.debug("%s of %s: %s", what, device, error)

    def _remove(self, name: str, _: object) -> None:
        found = self._find(name)
        made = None if found is None else found.made
        if made is not None:
            made.vanish()
        if isinstance(found, PciFunction):
            opened = opened_of(found)
            if opened is not None:
                opened.vanish()
        if found is not None:
            self._lab.later.after(0, partial(self._take_away, found))

    def _take_away(self, found: Mdev | PciFunction) -> None:
        """Trio thread."""
        lab = self._lab
        if isinstance(found, Mdev):
            if lab.by_name.get(found.name) is found:
                lab.surprise_remove(found)
            return
        slot = lab.hotplug.slots.by_bus.get(found.address.bus_name)
        if isinstance(found, VirtualFunction):
            lab.sriov.surprise_remove(found)
        elif slot is not None and slot.is_on and lab.drivers.functions.get(found.name) is found:
            lab.cards.surprise_unplug(slot)
        else:
            lab.hotplug.surprise_remove(found)

    def _reset(self, name: str, _: object) -> None:
        found = self._find(name)
        if isinstance(found, PciFunction):
            reset_function(found)
        elif found is not None and found.made is not None:
            reset_device(found.made)

    def _error(self, name: str, severity: str) -> None:
        found = self._find(name)
        if isinstance(found, PciFunction):
            self._lab.recovery.report(found, Severity(severity))
        elif found is not None:
            self._lab.recovery.report_vgpu(found, Severity(severity))

    def _late(self, name: str, seconds: float) -> None:
        appearing = self._lab.sriov.appearing
        if appearing is not None and appearing.name == name:
            appearing.late = seconds

    def _driverless(self, name: str, _: object) -> None:
        appearing = self._lab.sriov.appearing
        if appearing is not None and appearing.name == name:
            appearing.driverless = True

    def _find(self, name: str) -> Mdev | PciFunction | None:
        lab = self._lab
        return lab.by_name.get(name) or lab.drivers.functions.get(name)
