# SPDX-License-Identifier: Apache-2.0
"""What is above the functions in sysfs: host bridges, other bridges, and the buses below them.

No state but what devmodel has. Source: Documentation/ABI/testing/sysfs-bus-pci, and the behaviour of
drivers/pci/probe.c.
"""

from __future__ import annotations

from devmodel.lifecycle.bridge import Bridge
from devmodel.lifecycle.spec import BridgeKind
from devmodel.pci.errors import Severity
from vfsfuse.kernfs.kobject import Entry
from vfsfuse.kernfs.members import attribute, link, store_only
from vfsfuse.sysfs.cpus import list_line
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.uevent import BareDeviceDir, DeviceDir


class HostBridgeDir(BareDeviceDir):
    """sys/devices/pci<domain>:<number>: a host bridge, and what is below its root bus."""

    __slots__ = ("numa_node",)

    def __init__(self, name: str, numa_node: int) -> None:
        """`numa_node` is the node that it is near to."""
        super().__init__(name)
        self.numa_node = numa_node


class BridgeDir(PciFunctionDir):
    """<function>: a bridge, with the functions below it."""

    __slots__ = ("bridge",)

    def __init__(self, view: View, bridge: Bridge) -> None:
        super().__init__(view, bridge)
        self.bridge = bridge

    @attribute()
    def secondary_bus_number(self) -> int:
        """The number of the bus right below the bridge, in decimal digits."""
        return self.bridge.secondary

    @attribute()
    def subordinate_bus_number(self) -> int:
        """The number of the last bus below the bridge, in decimal digits."""
        return self.bridge.subordinate

    def collects_errors(self) -> bool:
        """Whether it is a root port with Advanced Error Reporting."""
        spec = self.bridge.spec.bridge
        return self.reports_errors() and spec is not None and spec.kind is BridgeKind.ROOT_PORT

    @attribute(when=collects_errors)
    def aer_rootport_total_err_cor(self) -> int:
        """How many messages of errors that were corrected came from the functions below and the port itself;
        present for a root port with Advanced Error Reporting."""
        return self.bridge.core.errors.messages(Severity.CORRECTED)

    @attribute(when=collects_errors)
    def aer_rootport_total_err_fatal(self) -> int:
        """The same for errors that were fatal."""
        return self.bridge.core.errors.messages(Severity.FATAL)

    @attribute(when=collects_errors)
    def aer_rootport_total_err_nonfatal(self) -> int:
        """The same for errors that were neither corrected nor fatal."""
        return self.bridge.core.errors.messages(Severity.NONFATAL)

    @store_only()
    def reset_subordinate(self, text: str) -> None:
        """A number other than 0 resets all functions below the bridge; their configuration space stays."""
        if parse_number(text):
            for function in self.bridge.functions:
                if function.made is not None:  # an idle one is as after a reset
                    function.reset_kept()


class PciBusNodeDir(DeviceDir):
    """<bridge>/pci_bus/<domain>:<number>: a bus below the bridge."""

    __slots__ = ("bridge", "view")
    uevent_subsystem = "pci_bus"

    def __init__(self, name: str, view: View, bridge: BridgeDir | HostBridgeDir) -> None:
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
        """The CPUs of the bridge's NUMA node."""
        above = self.bridge
        node = above.numa_node if isinstance(above, HostBridgeDir) else above.bridge.core.numa_node
        return self.view.numa.near(node)

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
