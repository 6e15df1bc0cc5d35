# SPDX-License-Identifier: Apache-2.0
"""The directory of a PCI function that drivers can be bound to, physical or virtual
(Documentation/ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

from collections.abc import Mapping

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.physical import VirtualFunction
from devmodel.lifecycle.removal import taking_away
from devmodel.pci.fields import Bar, Identity
from vfsfuse.kernfs.groups import Below
from vfsfuse.kernfs.kobject import Entry
from vfsfuse.kernfs.members import PAGE_SIZE, attribute, link, store_only, waiting_store
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.msi import irq_of
from vfsfuse.sysfs.pci import PciAttributes
from vfsfuse.sysfs.pcicore import CoreAttributes, ErrorAttributes, LinkAttributes
from vfsfuse.sysfs.power import RuntimePower
from vfsfuse.sysfs.uevent import DeviceDir


def modalias_of(identity: Identity) -> str:
    """As pci_uevent() writes it: pci:v…d…sv…sd…bc…sc…i…."""
    code = identity.class_code
    return (
        f"pci:v{identity.vendor:08X}d{identity.device:08X}sv{identity.subsystem_vendor:08X}"
        f"sd{identity.subsystem_device:08X}bc{code >> 16:02X}sc{code >> 8 & 0xFF:02X}i{code & 0xFF:02X}"
    )


def _uses_messages(function: PciFunction) -> bool:
    device = function.made
    return device is not None and device.irq.messages_used


def _is_physical(self: PciFunctionDir) -> bool:
    return not isinstance(self.assignable, VirtualFunction)


class PciFunctionDir(DeviceDir, CoreAttributes, LinkAttributes, ErrorAttributes, PciAttributes):
    """<function>: a PCI function that drivers can be bound to."""

    __slots__ = ("assignable", "view")
    uevent_subsystem = "pci"
    stat_ns = 0  # msi_irqs/ comes and goes unasked
    msi_irqs = Below(
        "msi_irqs", lambda self: self.view.msi_dir(self) if _uses_messages(self.assignable) else None
    )
    net = Below("net", lambda self: self.view.net_dir(self.assignable))

    assignable: PciFunction

    def __init__(self, view: View, function: PciFunction) -> None:
        super().__init__(function.name)
        self.view, self.assignable = view, function

    @property
    def runtime_power(self) -> RuntimePower:
        return self.assignable

    @property
    def identity(self) -> Identity:
        return self.assignable.identity

    @property
    def config_size(self) -> int:
        return self.assignable.traits.config_size

    def bar(self, index: int) -> Bar | None:
        return self.assignable.traits.bars.get(index)

    @property
    def options(self) -> Mapping[str, int]:
        """The options of its model."""
        return self.assignable.traits.options

    def uevent_variables(self) -> dict[str, str]:
        identity, driver = self.identity, self.assignable.driver
        return {
            **({"DRIVER": driver} if driver else {}),
            "PCI_CLASS": f"{identity.class_code:04X}",
            "PCI_ID": f"{identity.vendor:04X}:{identity.device:04X}",
            "PCI_SUBSYS_ID": f"{identity.subsystem_vendor:04X}:{identity.subsystem_device:04X}",
            "PCI_SLOT_NAME": self.name,
            "MODALIAS": modalias_of(identity),
        }

    @attribute()
    def irq(self) -> int:
        """The first interrupt of MSI while that is set up (`msi_irqs` has all), else that of INTx: 0, because
        it is no interrupt of the host, or for a captured function the one that it was."""
        device = self.assignable.made
        messages = None if device is None else device.messages
        if messages is None or messages.msix:
            return self.assignable.model.interrupt_line
        return irq_of(self.assignable, 0)

    @attribute()
    def modalias(self) -> str:
        """The text by which the kernel finds modules: `pci:v...d...sv...sd...bc...sc...i...`."""
        return modalias_of(self.identity)

    @attribute(0o644)
    def driver_override(self) -> str:
        """The only driver that may take the function, `(null)` for no such limit."""
        return self.assignable.driver_override or "(null)"

    @driver_override.store
    def _store_driver_override(self, text: str) -> None:
        """Sets it, an empty line clears it. It binds and unbinds nothing. EINVAL: a text as long as a
        page."""
        if len(text) >= PAGE_SIZE - 1:
            raise ValueError("as long as a page")
        self.assignable.driver_override = text.split("\n", 1)[0] or None

    @waiting_store(mode=0o220, when=_is_physical)
    async def remove(self, text: str) -> None:
        """1 removes the function, and all others below a bridge: drivers leave, and vGPUs and virtual
        functions go with them. EINVAL: no number; EBUSY: a client holds one of them, or with
        `remove = "wait"` the write waits for the client. A virtual function has no such file."""
        if parse_number(text):
            hotplug, function = self.view.lab.hotplug, self.assignable
            await taking_away(self.view.lab, lambda: hotplug.held(function), lambda: hotplug.remove(function))

    @store_only(when=_is_physical)
    def rescan(self, text: str) -> None:
        """1 finds the functions that were removed from its bus and from the buses below. EINVAL: no number. A
        virtual function has no such file."""
        if parse_number(text):
            self.view.lab.hotplug.rescan(self.assignable.address.bus_name)

    @link(of_driver=True)
    def driver(self) -> Entry | None:
        """To the driver that the function is bound to, while it is bound."""
        return self.view.subsystems.pci_drivers.get(self.assignable.driver or "")

    @link()
    def subsystem(self) -> Entry | None:
        """To `sys/bus/pci`."""
        return self.view.subsystems.pci_bus

    @link()
    def iommu(self) -> Entry | None:
        """To the IOMMU unit that the function is behind."""
        return self.view.iommu_dir(self.assignable)

    @link(of_driver=True)
    def iommu_group(self) -> Entry | None:
        """To the IOMMU group of the function, while there is one."""
        return self.view.group_dir(self.assignable.group)
