# SPDX-License-Identifier: Apache-2.0
"""sys/bus/cpu and sys/bus/node: the buses of a lab's CPUs and NUMA nodes, which have no drivers.

State: whether drivers_autoprobe is on, which is the trio thread's. Source: the behaviour of
drivers/base/bus.c for the buses of drivers/base/cpu.c and node.c.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from devmodel.lifecycle.lab import Lab
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.sysfs.drivers import BusDir


@dataclass(slots=True)
class NoDrivers:
    """The drivers of a bus that has none."""

    autoprobe: bool = True


class SystemBusDir(BusDir):
    """sys/bus/<system>: the bus `cpu` or `node`, if the lab file describes its NUMA nodes."""

    __slots__ = ()

    def __init__(self, name: str, lab: Lab) -> None:
        super().__init__(name, lab, NoDrivers())

    def probe(self, device: str) -> None:
        """No driver takes a device of the bus."""
        devices = self.child("devices")
        if not isinstance(devices, Kobject) or devices.child(device) is None:
            raise OSError(errno.ENODEV, f"no {self.name} {device!r}")
