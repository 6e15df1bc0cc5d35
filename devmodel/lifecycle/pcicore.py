# SPDX-License-Identifier: Apache-2.0
"""What the PCI core of the host keeps of a function, whatever driver it has: struct pci_dev.

State: the lifecycle thread's; any thread may read it. Source: Documentation/ABI/testing/sysfs-bus-pci,
Documentation/PCI/pci.rst, Documentation/power/pci.rst, and the behaviour of the kernel's PCI core.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Protocol

from devmodel.device.pci import PciDevice
from devmodel.pci.errors import NO_ERRORS, ErrorCounts
from devmodel.pci.regs import Command

NO_NODE = -1
"""The ``numa_node`` of a function that is near to no node."""
DMA_BITS, DRIVER_DMA_BITS = 32, 64
"""Bits of a bus address that a function may be given: before a driver says more, and as host drivers say."""
POWER_STATES = ("D0", "D1", "D2", "D3hot")
_making_counters = threading.Lock()


class CoreOwner(Protocol):
    """A function, as its core sees it."""

    name: str

    def tell(self, change: Callable[[PciDevice], None]) -> None:
        """Have ``change`` change the device, if it is made; it is not made meanwhile."""

    @property
    def made(self) -> PciDevice | None:
        """The device, None if nothing has used it yet."""


class PciCore:
    """The state of one function.

    ``enables`` counts calls of pci_enable_device() through sysfs, ``dma_bits`` are those of its DMA mask.
    ``rom_enabled`` is whether sysfs ``rom`` may be read, ``runtime_auto`` whether runtime power management
    may suspend the function. ``device_made`` brings a device that is made later into the state that the core
    has left it in.
    """

    __slots__ = (
        "_function",
        "_master",
        "_state_known",
        "broken_parity",
        "d3cold_allowed",
        "dma_bits",
        "enables",
        "errors",
        "numa_node",
        "rom_enabled",
        "runtime_auto",
    )

    def __init__(self, function: CoreOwner, power_management: bool, numa_node: int = NO_NODE) -> None:
        self._function, self.numa_node = function, numa_node
        self.enables, self.dma_bits = 0, DMA_BITS
        self.broken_parity = self.rom_enabled = self.runtime_auto = False
        self.d3cold_allowed = power_management
        self._state_known = True
        self.errors = NO_ERRORS
        """What the kernel has counted of the errors that it has reported."""
        self._master: Callable[[PciDevice], None] | None = None
        """What has made the device a bus master last, or no bus master any more."""

    def device_made(self, device: PciDevice) -> None:
        """The device was just made."""
        if self._master is not None:
            self._master(device)
        if self.enables:
            _enable(device)

    def no_master(self) -> None:
        """The device is no bus master at first."""
        self._master = _clear_master

    def count_errors(self) -> ErrorCounts:
        """The counters of its errors, made for the first one. Any thread."""
        with _making_counters:
            if self.errors is NO_ERRORS:
                self.errors = ErrorCounts()
            return self.errors

    @property
    def power_state(self) -> str:
        """The power state, as the kernel calls it. It is unknown from when a driver leaves the function until
        it is bound or enabled again."""
        if not self._state_known and not self.enables:
            return "unknown"
        device = self._function.made
        return POWER_STATES[0 if device is None else device.power_state]

    def enable(self) -> None:
        """pci_enable_device() without a driver. The first call has the function decode its BARs."""
        self.enables += 1
        if self.enables == 1:
            self._function.tell(_enable)

    def disable(self) -> None:
        """pci_disable_device(). The last call takes bus mastering away. Raises ``OSError(EIO)`` for a
        function that is not enabled."""
        if not self.enables:
            raise OSError(errno.EIO, f"{self._function.name} is not enabled")
        self.enables -= 1
        if not self.enables:
            self._set_master(_clear_master)

    def host_driver_came(self, dma_bits: int) -> None:
        """A host driver is bound. It enables the function as a bus master and sets its DMA mask."""
        self._state_known, self.dma_bits = True, dma_bits
        self._set_master(_enable_master)

    def vfio_came(self) -> None:
        """vfio-pci is bound. It allows runtime power management."""
        self._state_known = self.runtime_auto = True

    def driver_left(self, vfio: bool) -> None:
        """The driver is gone, vfio-pci or a host driver. A host driver disables its function, which is no
        bus master any more; vfio-pci takes back that runtime power management is allowed."""
        self._state_known = False
        if vfio:
            self.runtime_auto = False
        else:
            self._set_master(_clear_master)
        self._function.tell(_forget_messages)

    def _set_master(self, change: Callable[[PciDevice], None]) -> None:
        self._master = change
        self._function.tell(change)


def _enable(device: PciDevice) -> None:
    device.enable_for_host()


def _enable_master(device: PciDevice) -> None:
    device.enable_for_host(Command.MASTER)


def _clear_master(device: PciDevice) -> None:
    device.clear_master()


def _forget_messages(device: PciDevice) -> None:
    device.irq.forget_messages()
