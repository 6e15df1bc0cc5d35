# SPDX-License-Identifier: Apache-2.0
"""What the PCI core of the host shows of every function, endpoint or bridge, whatever driver it has.

State is the function's (devmodel.lifecycle.pcicore).  show() is called on the trio thread and on the device
lane, store() on the trio thread.  Names, modes, formats and errors: Documentation/ABI/testing/sysfs-bus-pci,
Documentation/PCI/sysfs-pci.rst, and the behaviour of the kernel's PCI core.
"""

from __future__ import annotations

import errno

from devmodel.device.pci import PciDevice
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.pcicore import NO_NODE
from devmodel.pci import regs
from devmodel.pci.errors import Severity
from devmodel.pci.regs import CapId
from vfsfuse.kernfs.groups import AttributeGroup, Group
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import attribute
from vfsfuse.sysfs.cpus import list_line
from vfsfuse.sysfs.kstrtox import parse_int, parse_number
from vfsfuse.sysfs.lab import View

UNKNOWN = "Unknown"
SPEEDS = (UNKNOWN, *(f"{speed} GT/s PCIe" for speed in ("2.5", "5.0", "8.0", "16.0", "32.0", "64.0")))
"""The speeds of links, by their numbers in link capability and link status."""
UNKNOWN_WIDTH = 0xFF


class AspmGroup(AttributeGroup):
    """<function>/link: the power management of its link (ASPM). Empty: no link of a lab has it."""

    __slots__ = ()


class CoreAttributes(Kobject):
    """The attributes that every PCI function has."""

    __slots__ = ()
    link = Group("link", AspmGroup)
    view: View
    assignable: PciFunction

    @attribute(0o644)
    def enable(self) -> int:
        """How many users have the function enabled: its host driver, a client of vfio-pci, and writers of
        this file."""
        return self.assignable.enable_count

    @enable.store
    def _store_enable(self, text: str) -> None:
        """1 enables the function (the first time, its BARs are decoded), 0 takes that back (the last time, it
        is no bus master any more). EBUSY while a driver is bound, EIO for 0 when it is not enabled."""
        self.assignable.set_enabled(parse_number(text) != 0)

    @attribute()
    def power_state(self) -> str:
        """`D0` to `D3hot`, as the power management capability says; `unknown` for a function whose driver
        was unbound, until it is bound or enabled again."""
        return self.assignable.core.power_state

    @attribute(0o644)
    def broken_parity_status(self) -> int:
        """1 if parity errors of the function are to be ignored, else 0."""
        return int(self.assignable.core.broken_parity)

    @broken_parity_status.store
    def _store_broken_parity(self, text: str) -> None:
        """Sets it; nothing in a lab has parity errors."""
        self.assignable.core.broken_parity = parse_number(text) != 0

    @attribute(0o644)
    def d3cold_allowed(self) -> int:
        """1 if the function may be put into D3cold, else 0. At first, 1 with power management."""
        return int(self.assignable.core.d3cold_allowed)

    @d3cold_allowed.store
    def _store_d3cold(self, text: str) -> None:
        """Sets it; no function of a lab is put into D3cold."""
        self.assignable.core.d3cold_allowed = parse_number(text) != 0

    @attribute(0o644)
    def msi_bus(self) -> int:
        """1 if drivers may set up MSI and MSI-X, else 0."""
        return int(self.assignable.device.irq.messages_allowed)

    @msi_bus.store
    def _store_msi_bus(self, text: str) -> None:
        """Sets it. With 0, VFIO_DEVICE_SET_IRQS for MSI and MSI-X is EINVAL; what is set up stays."""
        self.assignable.device.irq.messages_allowed = parse_number(text) != 0

    # ---- where it is, and what it reaches ----

    @attribute(0o644)
    def numa_node(self) -> int:
        """The NUMA node that the function is near to, -1 for none (the lab file's `numa_node`)."""
        return self.assignable.core.numa_node

    @numa_node.store
    def _store_numa_node(self, text: str) -> None:
        """Sets it, for `local_cpus` and for programs. EINVAL for a node that neither the machine nor the lab
        file has."""
        node = parse_int(text)
        known = self.view.numa.nodes.keys() | {
            NO_NODE,
            *(spec.numa_node for spec in self.view.lab.spec.all_functions),
        }
        if node not in known:
            raise OSError(errno.EINVAL, f"no NUMA node {node}")
        self.assignable.core.numa_node = node

    @attribute()
    def local_cpus(self) -> str:
        """The CPUs of its NUMA node, as a mask in hexadecimal; without a node that there is, those that
        are online."""
        return self.view.numa.mask(self._near())

    @attribute()
    def local_cpulist(self) -> str:
        """The same as a list, such as `0-3,8`."""
        return list_line(self._near())

    def _near(self) -> frozenset[int]:
        return self.view.numa.near(self.assignable.core.numa_node)

    @attribute()
    def dma_mask_bits(self) -> int:
        """Bits of the addresses that its driver gives it for DMA: 32 before a host driver was bound."""
        return self.assignable.core.dma_bits

    @attribute()
    def consistent_dma_mask_bits(self) -> int:
        """The same for memory that driver and function share."""
        return self.assignable.core.dma_bits

    @attribute()
    def ari_enabled(self) -> int:
        """1 if the port above takes function numbers of 8 bits (ARI), else 0."""
        return int(self.assignable.ari_enabled)


class ErrorAttributes(Kobject):
    """The counters of a function's errors."""

    __slots__ = ()
    assignable: PciFunction

    def reports_errors(self) -> bool:
        """Whether it has Advanced Error Reporting."""
        return self.assignable.traits.aer

    @attribute(when=reports_errors)
    def aer_dev_correctable(self) -> str:
        """How many errors of each kind that it has reported were corrected, and how many in all; present with
        Advanced Error Reporting. Only fault rules make errors."""
        return self.assignable.core.errors.text(Severity.CORRECTED)

    @attribute(when=reports_errors)
    def aer_dev_fatal(self) -> str:
        """The same for errors that were fatal."""
        return self.assignable.core.errors.text(Severity.FATAL)

    @attribute(when=reports_errors)
    def aer_dev_nonfatal(self) -> str:
        """The same for errors that were neither corrected nor fatal."""
        return self.assignable.core.errors.text(Severity.NONFATAL)


class LinkAttributes(Kobject):
    """The attributes of a PCI Express function.  An integrated endpoint has no link: `Unknown`, 255 and 0."""

    __slots__ = ()
    assignable: PciFunction

    def is_express(self) -> bool:
        """Whether it is a PCI Express function."""
        return self.assignable.traits.is_express

    @attribute(when=is_express)
    def max_link_speed(self) -> str:
        """The fastest speed of its link, such as `16.0 GT/s PCIe`, `Unknown` without a link; present for PCI
        Express."""
        return max_link_speed(self.assignable.device)

    @attribute(when=is_express)
    def max_link_width(self) -> int:
        """The most lanes of its link, 255 without a link; present for PCI Express."""
        register = _express_register(self.assignable.device, regs.EXP_LNKCAP, 4)
        return (register & regs.EXP_LNKCAP_MLW) >> 4 if register else UNKNOWN_WIDTH

    @attribute(when=is_express)
    def current_link_speed(self) -> str:
        """The speed of its link, `Unknown` without one and for a virtual function; present for PCI
        Express."""
        return current_link_speed(self.assignable.device)

    @attribute(when=is_express)
    def current_link_width(self) -> int:
        """The lanes of its link, 0 without one and for a virtual function; present for PCI Express."""
        return (_express_register(self.assignable.device, regs.EXP_LNKSTA, 2) & regs.EXP_LNKSTA_NLW) >> 4


def max_link_speed(device: PciDevice) -> str:
    """The fastest speed of a function's link, `Unknown` without one."""
    vector = _express_register(device, regs.EXP_LNKCAP2, 4) & regs.EXP_LNKCAP2_SLS
    if vector:
        return _speed(vector.bit_length() - 1)
    return _speed(_express_register(device, regs.EXP_LNKCAP, 4) & regs.EXP_LNKCAP_SLS)


def current_link_speed(device: PciDevice) -> str:
    """The speed of a function's link, `Unknown` without one."""
    return _speed(_express_register(device, regs.EXP_LNKSTA, 2) & regs.EXP_LNKSTA_CLS)


def _express_register(device: PciDevice, register: int, width: int) -> int:
    """A register of the PCI Express capability; 0 for one that the function does not have."""
    place = device.config.find(CapId.EXP)
    return device.config.value(place + register, width) if place else 0


def _speed(code: int) -> str:
    return SPEEDS[code] if code < len(SPEEDS) else SPEEDS[0]
