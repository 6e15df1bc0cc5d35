# SPDX-License-Identifier: Apache-2.0
"""SR-IOV: the driver of a physical function enables its virtual functions, and disables them all.

State: the lifecycle thread's, under ``Lab.lock``; whether a client holds a function is under its group's
lock. Source: Documentation/ABI/testing/sysfs-bus-pci (sriov_numvfs and the other sriov_ attributes),
Documentation/PCI/pci-iov-howto.rst, the behaviour of vfio-pci.
"""

import errno
import threading
from contextlib import ExitStack

from devmodel.callpoint import CallPoint, lifecycle_change
from devmodel.lifecycle.binding import DriverCore, virtual_functions_held
from devmodel.lifecycle.function import VFIO_PCI, PciFunction, PhysicalFunction, VirtualFunction
from devmodel.lifecycle.functions import FunctionTable
from devmodel.lifecycle.grouped import Place
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.vf import VfLayout
from devmodel.pci import regs
from devmodel.pci.regs import ExtCapId
from devmodel.topology.grouping import Kind, Node
from devmodel.vfio.group import retire_all


class SriovCore:
    """Enables and disables the virtual functions of a lab."""

    def __init__(
        self,
        lock: threading.RLock,
        drivers: DriverCore,
        table: FunctionTable,
    ) -> None:
        self._lock, self._drivers, self._table = lock, drivers, table
        drivers.releases.append(self._disable)

    @property
    def calls(self) -> CallPoint:
        return self._drivers.calls

    @lifecycle_change
    def set_count(self, function: PhysicalFunction, count: int) -> None:
        """Enable ``count`` virtual functions, or with 0 disable them all, as a write to sriov_numvfs does.

        Raises ``OSError``: ERANGE for more than the function can have; ENOENT when it has no driver, one that
        is about to leave, or vfio-pci while that module's enable_sriov is off; EBUSY when another number of
        them is enabled; :class:`InUse` as :meth:`disable`; ENOSPC when the function has not enough left for
        all of them.
        """
        with self._lock:
            layout = layout_of(function)
            if count > layout.total:
                raise OSError(errno.ERANGE, f"{function.name} has {layout.total} virtual functions at most")
            if count == len(function.vfs):
                return
            if not self._configures(function) or (count and function.leaving):
                raise OSError(errno.ENOENT, f"{function.name} has no driver that configures SR-IOV")
            if not count:
                self.disable(function)
            elif function.vfs:
                raise OSError(errno.EBUSY, f"{len(function.vfs)} are enabled: disable them first")
            else:
                self._enable(function, layout, count)

    def disable(self, function: PhysicalFunction) -> None:
        """Disable all virtual functions. Raises :class:`InUse` while clients hold some: then each of those
        clients is asked to let go, and all functions stay."""
        with self._lock:
            retire_all(virtual_functions_held(function))
            self._disable(function)

    def _configures(self, function: PhysicalFunction) -> bool:
        """Whether the function has a driver that enables virtual functions."""
        if function.driver == VFIO_PCI:
            return self._drivers.vfio.enable_sriov
        return function.driver is not None

    def _disable(self, function: PhysicalFunction) -> None:
        """Disable all virtual functions, of which no client holds one."""
        if not function.vfs:
            return
        self._show_count(function, 0)
        for vf in reversed(function.vfs.copy()):
            self._drivers.vanishes(vf)
            self._table.remove(vf, self._leave)

    def _enable(self, function: PhysicalFunction, layout: VfLayout, count: int) -> None:
        share = Share.of(layout.type)
        if function.parent is not None and function.parent.room_for(share) < count:
            raise OSError(errno.ENOSPC, f"{function.name} has no room for {count} virtual functions")
        with ExitStack() as undo:
            for index in range(count):
                undo.callback(self._table.remove, self._add(function, layout, index), self._leave)
            self._show_count(function, count)
            undo.pop_all()
        for vf in function.vfs:
            if function.driver == VFIO_PCI:
                vf.driver_override = VFIO_PCI  # vfio-pci keeps other drivers away from them
            self._drivers.appeared(vf)
        self._table.observer.vfs_enabled(function)

    def _add(self, function: PhysicalFunction, layout: VfLayout, index: int) -> VirtualFunction:
        address = layout.address(index)
        node = Node(address, Kind.VIRTUAL, self._table.bridges.get(function.address.bus_name))
        shared = function.spec.vf is not None and function.spec.vf.shares_group
        place = Place(node, not function.group.noiommu)
        with self._table.making(place, function.group if shared else None) as group:
            bus = self._drivers.bus(address)
            vf = VirtualFunction(function, layout, index, group, bus)
            if vf.parent is not None:
                vf.parent.charge(Share.of(layout.type))
            function.vfs.append(vf)
            self._table.enter(vf)
        self._table.show(vf, self._leave)
        return vf

    def _leave(self, vf: PciFunction) -> None:
        assert isinstance(vf, VirtualFunction)
        if vf.parent is not None:
            vf.parent.refund(Share.of(layout_of(vf.physical).type))
        vf.physical.vfs.remove(vf)

    def _show_count(self, function: PhysicalFunction, count: int) -> None:
        """Have the SR-IOV capability say how many are enabled, also after a reset of the function."""
        device = function.device
        with device.lock:
            place = device.config.extended(ExtCapId.SRIOV)
            enabled = regs.SRIOV_CTRL_VFE | regs.SRIOV_CTRL_MSE if count else 0
            device.config.preset(place + regs.SRIOV_CTRL, 2, regs.SRIOV_CTRL_ARI | enabled)
            device.config.preset(place + regs.SRIOV_NUM_VF, 2, count)


def layout_of(function: PhysicalFunction) -> VfLayout:
    """The layout of the function's virtual functions. Raises ``OSError(ENODEV)`` without SR-IOV."""
    if function.layout is None:
        raise OSError(errno.ENODEV, f"{function.name} has no SR-IOV")
    return function.layout
