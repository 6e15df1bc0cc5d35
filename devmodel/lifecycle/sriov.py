# SPDX-License-Identifier: Apache-2.0
"""SR-IOV: the driver of a physical function enables its virtual functions, disables them all, and shares out
MSI-X vectors among them. Those of a function with a delay come by themselves, later.

State: the lifecycle thread's, under ``Lab.lock``; whether a client holds a function is under its group's
lock. Source: Documentation/ABI/testing/sysfs-bus-pci (sriov_numvfs and the other sriov_ attributes),
Documentation/PCI/pci-iov-howto.rst, the behaviour of vfio-pci.
"""

import errno
import threading
from bisect import insort
from contextlib import ExitStack
from dataclasses import dataclass

from devmodel.calls.point import CallPoint
from devmodel.lifecycle.binding import DriverCore, virtual_functions_held
from devmodel.lifecycle.change import lifecycle_change
from devmodel.lifecycle.function import VFIO_PCI, PciFunction
from devmodel.lifecycle.functiontable import FunctionTable
from devmodel.lifecycle.iommugroup import Place
from devmodel.lifecycle.later import Later, Timer
from devmodel.lifecycle.physical import PhysicalFunction, VirtualFunction
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.vf import VfLayout
from devmodel.pci import regs
from devmodel.pci.regs import ExtCapId
from devmodel.topology.grouping import Kind, Node
from devmodel.vfio.group import retire_all


@dataclass(frozen=True, slots=True)
class _Coming:
    """Virtual functions that are enabled and have not appeared yet: how many, and what lets them appear."""

    count: int
    timer: Timer


@dataclass(slots=True, eq=False)
class Appearing:
    """A virtual function that is about to appear: its ``name``, the physical function and its index. Whoever
    listens to that may make it ``late`` by a number of seconds, or have it offered to no driver
    (``driverless``)."""

    name: str
    physical: PhysicalFunction
    index: int
    late: float = 0.0
    driverless: bool = False


class SriovCore:
    """Enables and disables the virtual functions of a lab. ``appearing`` is the one that is about to
    appear."""

    def __init__(
        self, lock: threading.RLock, drivers: DriverCore, table: FunctionTable, later: Later
    ) -> None:
        self._lock, self._drivers, self._table, self._later = lock, drivers, table, later
        self._coming: dict[PhysicalFunction, _Coming] = {}
        self._enabled: dict[PhysicalFunction, int] = {}
        self._late: dict[PhysicalFunction, dict[int, Timer]] = {}
        """Of those that are enabled, the ones that appear later than others, by index."""
        self.appearing: Appearing | None = None
        drivers.releases.append(self._disable)

    @property
    def calls(self) -> CallPoint:
        return self._drivers.calls

    def count_of(self, function: PhysicalFunction) -> int:
        """How many virtual functions are enabled, those too that are to come, or are gone by surprise. Under
        ``Lab.lock``."""
        coming = self._coming.get(function)
        return self._enabled.get(function, 0) if coming is None else coming.count

    @lifecycle_change
    def set_count(self, function: PhysicalFunction, count: int) -> None:
        """Enable ``count`` virtual functions, or with 0 disable them all, as a write to sriov_numvfs does.

        Those of a function with a delay are enabled at once, and appear later; to disable them before that is
        to have them not appear. Raises ``OSError``: ERANGE for more than the function can have; ENOENT when
        it has no driver, one that is about to leave, or vfio-pci while that module's enable_sriov is off;
        EBUSY when another number of them is enabled; :class:`InUse` as :meth:`disable`; ENOSPC when the
        function has not enough left for all of them; ENODEV for a delay in a lab that ends.
        """
        with self._lock:
            layout, enabled = layout_of(function), self.count_of(function)
            if count > layout.total:
                raise OSError(errno.ERANGE, f"{function.name} has {layout.total} virtual functions at most")
            if count == enabled:
                return
            if not self._configures(function) or (count and function.leaving):
                raise OSError(errno.ENOENT, f"{function.name} has no driver that configures SR-IOV")
            if not count:
                self.disable(function)
            elif enabled:
                raise OSError(errno.EBUSY, f"{enabled} are enabled: disable them first")
            elif layout.spec.delay:
                self._enable_later(function, layout, count)
            else:
                self._check_room(function, layout, count)
                self._enable(function, layout, count)

    @lifecycle_change
    def come(self, function: PhysicalFunction, count: int) -> None:
        """Let ``count`` virtual functions appear whose time has come. If one cannot be shown, none of them is
        there, and they are disabled."""
        with self._lock:
            self._enable(function, layout_of(function), count)

    @lifecycle_change
    def appear(self, appearing: Appearing, physical: str, index: int) -> VirtualFunction | None:
        """Let one virtual function appear, or if it is late, have it appear by itself: then the result is
        None. Its physical function and its index are there for those who listen."""
        function = appearing.physical
        if appearing.late > 0 and self._delay(appearing):
            return None
        return self._add(function, layout_of(function), index)

    @lifecycle_change
    def surprise_remove(self, vf: VirtualFunction) -> None:
        """Remove one virtual function at once, although clients may hold it. It stays enabled: it is back
        when all are disabled and enabled again. Nothing happens if it is gone already."""
        with self._lock:
            if self._table.functions.get(vf.name) is vf:
                for device in (vf,) if vf.assigned in (None, vf) else (vf.assigned, vf):
                    assert device is not None
                    device.vanish()
                self._drivers.vanishes(vf)
                self._table.remove(vf, self._leave)

    @lifecycle_change
    def set_vectors(self, vf: VirtualFunction, vectors: int) -> None:
        """Give a virtual function an MSI-X table of this size, or with 0 that which it was enabled with, as a
        write to sriov_vf_msix_count does.

        Raises ``OSError``: EINVAL for a negative number; EOPNOTSUPP when no driver of the physical function
        shares out vectors; EBUSY while the virtual function has a driver; EOVERFLOW for more than its table
        has room for; ENOSPC for more than the others leave.
        """
        if vectors < 0:
            raise OSError(errno.EINVAL, f"{vectors} vectors")
        with self._lock:
            physical, layout = vf.physical, layout_of(vf.physical)
            pool = self.pool_of(physical)
            if not pool:
                raise OSError(errno.EOPNOTSUPP, f"the driver of {physical.name} does not share out vectors")
            if vf.driver is not None:
                raise OSError(errno.EBUSY, f"{vf.name} is bound to {vf.driver}")
            wanted = vectors or self._default_vectors(layout, self.count_of(physical))
            if wanted > layout.vectors:
                raise OSError(errno.EOVERFLOW, f"{vf.name} has room for {layout.vectors} vectors")
            if sum(each.vectors for each in physical.vfs) - vf.vectors + wanted > pool:
                raise OSError(errno.ENOSPC, f"{physical.name} has {pool} vectors for all")
            vf.vectors = wanted
            vf.tell(lambda device: device.size_msix(wanted))

    def pool_of(self, function: PhysicalFunction) -> int:
        """How many MSI-X vectors its host driver shares out among its virtual functions; 0 without such a
        driver. Any thread."""
        bound = function.driver is not None and function.driver == function.host_driver
        return 0 if not bound or function.layout is None else function.layout.spec.vectors

    @lifecycle_change
    def start(self, function: PhysicalFunction, count: int) -> None:
        """Enable ``count`` virtual functions before the lab is used: at once, and without a driver too.
        Raises ``OSError(ENOSPC)`` when the function has not enough left for all of them."""
        with self._lock:
            layout = layout_of(function)
            self._check_room(function, layout, count)
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
        coming = self._take_coming(function)
        if coming is not None:
            coming.timer.cancel()
            self._show_count(function, 0)
        if function not in self._enabled:
            return
        self._take_back(function)
        for vf in function.vfs.copy():
            self._drivers.vanishes(vf)
            self._table.remove(vf, self._leave)

    def _check_room(self, function: PhysicalFunction, layout: VfLayout, count: int) -> None:
        share = Share.of(layout.type)
        if function.parent is not None and function.parent.room_for(share) < count:
            raise OSError(errno.ENOSPC, f"{function.name} has no room for {count} virtual functions")

    def _enable_later(self, function: PhysicalFunction, layout: VfLayout, count: int) -> None:
        """Enable them, so that the capability says so and their share is taken, and have them appear."""
        self._check_room(function, layout, count)
        timer = self._later.after(layout.spec.delay, lambda: self._come(function))
        self._coming[function] = _Coming(count, timer)
        if function.parent is not None:
            for _ in range(count):
                function.parent.charge(Share.of(layout.type))
        self._show_count(function, count)

    def _come(self, function: PhysicalFunction) -> None:
        """Have those appear that are to come. They are disabled if they do not, also if a listener refuses
        it."""
        with self._lock:
            coming = self._take_coming(function)
            if coming is not None:
                self._show_count(function, 0)
                self.come(function, coming.count)

    def _take_coming(self, function: PhysicalFunction) -> _Coming | None:
        """Those that are to come, which come no more; their share is given back."""
        coming = self._coming.pop(function, None)
        for _ in range(0 if coming is None else coming.count):
            self._refund(function)
        return coming

    def _default_vectors(self, layout: VfLayout, count: int) -> int:
        """The size of the MSI-X table of each of ``count`` virtual functions, until somebody says more."""
        return max(1, min(layout.vectors, layout.spec.vectors // count))

    def _enable(self, function: PhysicalFunction, layout: VfLayout, count: int) -> None:
        made: list[tuple[VirtualFunction, bool]] = []
        with ExitStack() as undo:
            undo.callback(self._take_back, function)
            self._enabled[function] = count
            for index in range(count):
                appearing = self.appearing = Appearing(str(layout.address(index)), function, index)
                vf = self.appear(appearing, function.name, index)
                if vf is not None:
                    undo.callback(self._table.remove, vf, self._leave)
                    made.append((vf, appearing.driverless))
            self._show_count(function, count)
            undo.pop_all()
        for vf, driverless in made:
            self._offer(vf, driverless)
        self._table.observer.vfs_enabled(function)

    def _offer(self, vf: VirtualFunction, driverless: bool) -> None:
        """Offer a virtual function that has appeared to the drivers, unless it is to have none."""
        if vf.physical.driver == VFIO_PCI:
            vf.driver_override = VFIO_PCI  # vfio-pci keeps other drivers away from them
        if not driverless:
            self._drivers.appeared(vf)

    def _take_back(self, function: PhysicalFunction) -> None:
        """None of them is enabled any more; those that are late do not come."""
        for timer in self._late.pop(function, {}).values():
            timer.cancel()
            self._refund(function)
        self._enabled.pop(function, None)
        self._show_count(function, 0)

    def _delay(self, appearing: Appearing) -> bool:
        """Have a virtual function appear later. Its share is taken from now on. False in a lab that ends, or
        is not served yet."""
        function = appearing.physical
        try:
            timer = self._later.after(appearing.late, lambda: self._come_late(appearing))
        except OSError:
            return False
        self._late.setdefault(function, {})[appearing.index] = timer
        if function.parent is not None:
            function.parent.charge(Share.of(layout_of(function).type))
        return True

    def _come_late(self, appearing: Appearing) -> None:
        """The time of one that is late has come."""
        function, index = appearing.physical, appearing.index
        with self._lock:
            if self._late.get(function, {}).pop(index, None) is not None:
                self._refund(function)
                self._offer(self._add(function, layout_of(function), index), appearing.driverless)

    def _refund(self, function: PhysicalFunction) -> None:
        if function.parent is not None:
            function.parent.refund(Share.of(layout_of(function).type))

    def _add(self, function: PhysicalFunction, layout: VfLayout, index: int) -> VirtualFunction:
        address = layout.address(index)
        named = dict(enumerate(layout.spec.groups)).get(index)
        node = Node(address, Kind.VIRTUAL, self._table.bridges.get(function.address.bus_name), named=named)
        shared = function.spec.vf is not None and function.spec.vf.shares_group
        place = Place(node, not function.group.noiommu)
        with self._table.making(place, function.group if shared else None) as group:
            bus = self._drivers.bus(address)
            vf = VirtualFunction(function, layout, index, group, bus)
            if self.pool_of(function):
                vf.vectors = self._default_vectors(layout, self._enabled[function])
            if vf.parent is not None:
                vf.parent.charge(Share.of(layout.type))
            insort(function.vfs, vf, key=lambda each: each.index)
            self._table.enter(vf)
        self._table.show(vf, self._leave)
        return vf

    def _leave(self, vf: PciFunction) -> None:
        assert isinstance(vf, VirtualFunction)
        self._refund(vf.physical)
        vf.physical.vfs.remove(vf)

    def show_again(self, function: PhysicalFunction) -> None:
        """The function has a new device: have that say how many are enabled. Under ``Lab.lock``."""
        count = self.count_of(function)
        if count:
            self._show_count(function, count)

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
