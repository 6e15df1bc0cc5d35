# SPDX-License-Identifier: Apache-2.0
"""What is above the functions in sysfs: host bridges, root ports, and the buses below them.

No state but what devmodel has. Source: Documentation/ABI/testing/sysfs-bus-pci, and the behaviour of
drivers/pci/probe.c.
"""

from __future__ import annotations

from devmodel.lifecycle.pcicore import NO_NODE
from devmodel.lifecycle.rootport import RootPort
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import attribute, link, store_only
from vfsfuse.sysfs.cpus import list_line
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.uevent import BareDeviceDir, DeviceDir


class HostBridgeDir(BareDeviceDir):
    """sys/devices/pci<domain>:<number>: the host bridge of a domain, and what is below it."""

    __slots__ = ()


class RootPortDir(PciFunctionDir):
    """<function>: a root port, with the functions below it."""

    __slots__ = ("bridge",)

    def __init__(self, view: View, port: RootPort) -> None:
        super().__init__(view, port)
        self.bridge = port

    @attribute()
    def secondary_bus_number(self) -> int:
        """The number of the bus right below the bridge, in decimal digits."""
        return self.bridge.buses.secondary

    @attribute()
    def subordinate_bus_number(self) -> int:
        """The number of the last bus below the bridge, in decimal digits."""
        return self.bridge.buses.subordinate

    @store_only()
    def reset_subordinate(self, text: str) -> None:
        """A number other than 0 resets all functions below the bridge; their configuration space stays."""
        if parse_number(text):
            for function in self.bridge.functions:
                function.reset_kept()


class PciBusNodeDir(DeviceDir):
    """<bridge>/pci_bus/<domain>:<number>: a bus below the bridge."""

    __slots__ = ("bridge", "view")
    uevent_subsystem = "pci_bus"

    def __init__(self, name: str, view: View, bridge: Kobject) -> None:
        super().__init__(name)
        self.view, self.bridge = view, bridge

    @attribute()
    def cpuaffinity(self) -> str:
        """The CPUs that are near to the bus, as a mask in hexadecimal."""
        return self.view.numa.mask(self._near())

    @attribute()
    def cpulistaffinity(self) -> str:
        """The CPUs that are near to the bus, as a list."""
        return list_line(self._near())

    def _near(self) -> frozenset[int]:
        """The CPUs of the bridge's NUMA node; a host bridge has none."""
        port = self.bridge
        return self.view.numa.near(
            port.assignable.core.numa_node if isinstance(port, RootPortDir) else NO_NODE
        )

    @store_only()
    def rescan(self, text: str) -> None:
        """1 finds the functions that were removed from the bus, and from the buses below. EINVAL: no
        number."""
        if parse_number(text):
            self.view.lab.hotplug.rescan(self.name)

    @link()
    def device(self) -> Entry | None:
        """To the bridge that the bus is below."""
        return self.bridge

    @link()
    def subsystem(self) -> Entry | None:
        """To `sys/class/pci_bus`."""
        return self.view.subsystems.classes.get("pci_bus")
