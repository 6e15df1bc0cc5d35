# SPDX-License-Identifier: Apache-2.0
"""Parents, of which mediated devices and virtual functions are made.

State: parents and the tables of devices belong to the lifecycle thread, under ``Lab.lock``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from devmodel.device.pci import PciDevice
from devmodel.device.tasks import TaskHost
from devmodel.lifecycle.function import PhysicalFunction
from devmodel.lifecycle.mdev import Mdev, MdevType
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import ParentSpec
from devmodel.vfio.group import Group

UNLIMITED = 2**31 - 1
"""What ``available_instances`` counts to when nothing bounds a type."""


class Parent:
    """A device that mediated devices are made of; ``function`` is the PCI function of a physical GPU."""

    __slots__ = ("function", "host", "mdevs", "memory_free", "name", "slots_free", "spec", "types")

    def __init__(
        self, spec: ParentSpec, function: PhysicalFunction | None, host: TaskHost | None = None
    ) -> None:
        """``host`` runs the tasks of its devices."""
        self.spec = spec
        self.host = host
        self.name = spec.name
        self.function = function
        if function is not None:
            function.owner = self
        self.memory_free = spec.memory
        self.slots_free = spec.slots
        self.types: Mapping[str, MdevType] = MappingProxyType(
            {type_.name: MdevType(type_, self) for type_ in spec.types}
        )
        self.mdevs: dict[str, Mdev] = {}

    @property
    def device(self) -> PciDevice | None:
        """The PCI device of a physical GPU, None for a virtual parent."""
        return self.function.device if self.function else None

    @property
    def group(self) -> Group | None:
        """The IOMMU group of a physical GPU, None for a virtual parent."""
        return self.function.group if self.function else None

    @property
    def has_host_driver(self) -> bool:
        """Whether the driver that shares it among vGPUs is bound; a virtual parent's always is."""
        return self.function is None or self.function.driver == self.spec.driver

    def room_for(self, share: Share) -> int:
        """How many such shares are left, exactly."""
        limits = [UNLIMITED]
        if share.memory:
            limits.append(self.memory_free // share.memory)
        if self.slots_free is not None and share.slots:
            limits.append(self.slots_free // share.slots)
        return min(limits)

    def charge(self, share: Share) -> None:
        """Take a device's share; the caller made sure that it is there."""
        self.memory_free -= share.memory
        if self.slots_free is not None:
            self.slots_free -= share.slots

    def refund(self, share: Share) -> None:
        """The opposite of :meth:`charge`."""
        self.memory_free += share.memory
        if self.slots_free is not None:
            self.slots_free += share.slots
