# SPDX-License-Identifier: Apache-2.0
"""What the PCI core of the host keeps of a function, whatever driver it has: struct pci_dev.

State: the lifecycle thread's; any thread may read it. Source: Documentation/ABI/testing/sysfs-bus-pci,
Documentation/PCI/pci.rst, Documentation/power/pci.rst, and the behaviour of the kernel's PCI core.
"""

from __future__ import annotations

import errno

from devmodel.device.pci import PciDevice
from devmodel.pci.regs import CapId, Command

NO_NODE = -1
"""The ``numa_node`` of a function that is near to no node."""
DMA_BITS, DRIVER_DMA_BITS = 32, 64
"""Bits of a bus address that a function may be given: before a driver says more, and as host drivers say."""
POWER_STATES = ("D0", "D1", "D2", "D3hot")


class PciCore:
    """The state of one function.

    ``enables`` counts calls of pci_enable_device() through sysfs, ``dma_bits`` are those of its DMA mask.
    ``rom_enabled`` is whether sysfs ``rom`` may be read, ``runtime_auto`` whether runtime power management
    may suspend the function.
    """

    __slots__ = (
        "_device",
        "_state_known",
        "broken_parity",
        "d3cold_allowed",
        "dma_bits",
        "enables",
        "numa_node",
        "rom_enabled",
        "runtime_auto",
    )

    def __init__(self, device: PciDevice, numa_node: int = NO_NODE) -> None:
        self._device, self.numa_node = device, numa_node
        self.enables, self.dma_bits = 0, DMA_BITS
        self.broken_parity = self.rom_enabled = self.runtime_auto = False
        self.d3cold_allowed = bool(device.config.find(CapId.PM))
        self._state_known = True

    @property
    def power_state(self) -> str:
        """The power state, as the kernel calls it. It is unknown from when a driver leaves the function until
        it is bound or enabled again."""
        if not self._state_known and not self.enables:
            return "unknown"
        return POWER_STATES[self._device.power_state]

    def enable(self) -> None:
        """pci_enable_device() without a driver. The first call has the function decode its BARs."""
        self.enables += 1
        if self.enables == 1:
            self._device.enable_for_host()

    def disable(self) -> None:
        """pci_disable_device(). The last call takes bus mastering away. Raises ``OSError(EIO)`` for a
        function that is not enabled."""
        if not self.enables:
            raise OSError(errno.EIO, f"{self._device.name} is not enabled")
        self.enables -= 1
        if not self.enables:
            self._device.clear_master()

    def host_driver_came(self, dma_bits: int) -> None:
        """A host driver is bound. It enables the function as a bus master and sets its DMA mask."""
        self._state_known, self.dma_bits = True, dma_bits
        self._device.enable_for_host(Command.MASTER)

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
            self._device.clear_master()
