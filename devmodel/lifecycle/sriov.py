# SPDX-License-Identifier: Apache-2.0
"""SR-IOV: the driver of a physical function enables its virtual functions, and disables them all.

State: the lifecycle thread's, under ``Lab.lock``; whether a client holds a function is under its group's
lock. Source: Documentation/ABI/testing/sysfs-bus-pci (sriov_numvfs and the other sriov_ attributes),
Documentation/PCI/pci-iov-howto.rst, the behaviour of vfio-pci.
"""

import errno
import threading
from contextlib import ExitStack
from typing import Protocol

from devmodel.callpoint import CallPoint, lifecycle_change
from devmodel.ida import Ida
from devmodel.lifecycle.binding import DriverCore, virtual_functions_held
from devmodel.lifecycle.function import VFIO_PCI, PciFunction, PhysicalFunction, VirtualFunction
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.vf import VfLayout
from devmodel.pci import regs
from devmodel.pci.regs import ExtCapId
from devmodel.vfio.group import Group, retire_all


class FunctionObserver(Protocol):
    """Is told of each change when the lab's state is complete. Lifecycle thread, under ``Lab.lock``."""

    def function_added(self, function: PciFunction) -> None:
        """The function exists now, without a driver. An exception undoes it, and all virtual functions that
        are being enabled with it."""

    def function_removed(self, function: PciFunction) -> None:
        """The function is gone. Nobody else gets its numbers while this runs."""

    def vfs_enabled(self, function: PhysicalFunction) -> None:
        """The function has its virtual functions, all of them."""


class SriovCore:
    """Enables and disables the virtual functions of a lab."""

    def __init__(
        self,
        lock: threading.RLock,
        observer: FunctionObserver,
        drivers: DriverCore,
        group_numbers: Ida,
        groups: dict[int, Group],
    ) -> None:
        """``group_numbers`` and ``groups``, by number, are the lab's; virtual functions enter theirs."""
        self._lock, self._observer, self._drivers = lock, observer, drivers
        self._group_numbers, self._groups = group_numbers, groups
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
            self._remove(vf)

    def _enable(self, function: PhysicalFunction, layout: VfLayout, count: int) -> None:
        share = Share.of(layout.type)
        if function.parent.room_for(share) < count:
            raise OSError(errno.ENOSPC, f"{function.name} has no room for {count} virtual functions")
        with ExitStack() as undo:
            for index in range(count):
                undo.callback(self._remove, self._add(function, layout, index))
            self._show_count(function, count)
            undo.pop_all()
        for vf in function.vfs:
            if function.driver == VFIO_PCI:
                vf.driver_override = VFIO_PCI  # vfio-pci keeps other drivers away from them
            self._drivers.appeared(vf)
        self._observer.vfs_enabled(function)

    def _add(self, function: PhysicalFunction, layout: VfLayout, index: int) -> VirtualFunction:
        with ExitStack() as undo:
            number = self._group_numbers.take()
            undo.callback(self._group_numbers.give, number)
            group = Group(number, noiommu=function.group.noiommu)
            bus = self._drivers.bus(layout.address(index))
            vf = VirtualFunction(function, layout, index, group, bus)
            self._enter(vf)
            undo.callback(self._leave, vf)
            self._observer.function_added(vf)
            undo.pop_all()
        return vf

    def _remove(self, vf: VirtualFunction) -> None:
        self._leave(vf)
        with ExitStack() as after:
            after.callback(self._group_numbers.give, vf.group.number)
            self._observer.function_removed(vf)

    def _enter(self, vf: VirtualFunction) -> None:
        vf.parent.charge(Share.of(layout_of(vf.physical).type))
        vf.physical.vfs.append(vf)
        self._drivers.functions[vf.name] = vf
        self._groups[vf.group.number] = vf.group

    def _leave(self, vf: VirtualFunction) -> None:
        vf.device.close()
        vf.bus.remove(vf)
        vf.parent.refund(Share.of(layout_of(vf.physical).type))
        vf.physical.vfs.remove(vf)
        del self._drivers.functions[vf.name]
        del self._groups[vf.group.number]

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
