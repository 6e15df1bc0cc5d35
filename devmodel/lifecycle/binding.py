# SPDX-License-Identifier: Apache-2.0
"""Drivers and what they are bound to: a PCI function has its host driver, vfio-pci or none; a mediated device
has vfio_mdev, the only driver of its bus, or none.

State: the lifecycle thread's, under ``Lab.lock``; whether a client holds a device is under its group's lock.
Source: Documentation/ABI/testing/sysfs-bus-pci (driver_override, bind, unbind, new_id, remove_id,
drivers_probe).
"""

import errno
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Protocol

from devmodel.calls.point import CallPoint
from devmodel.ida import Ida
from devmodel.lifecycle.bridge import Bridge
from devmodel.lifecycle.change import lifecycle_change
from devmodel.lifecycle.function import VFIO_PCI, PciFunction
from devmodel.lifecycle.mdev import Mdev, Parent
from devmodel.lifecycle.physical import PhysicalFunction, PhysicalParent
from devmodel.pci.address import PciAddress
from devmodel.pci.ids import PciId, parse_module_ids
from devmodel.vfio.group import Assignable, DmaOwned, retire_all
from devmodel.vfio.module import VfioModule
from devmodel.vfio.vfio_pci import VfioPciFunction
from devmodel.vfio.vftoken import VfToken

VFIO_MDEV = "vfio_mdev"
"""The driver of mediated devices."""


class BindingObserver(Protocol):
    """Is told of each change when the lab's state is complete. Lifecycle thread, under ``Lab.lock``."""

    def bound(self, function: PciFunction) -> None:
        """The function has a driver now. An exception undoes the binding."""

    def unbound(self, function: PciFunction) -> None:
        """The function has no driver any more."""


def function_of(parent: Parent) -> PhysicalFunction:
    """The PCI function that a parent is. Raises ``OSError(ENODEV)`` for a virtual parent."""
    if not isinstance(parent, PhysicalParent):
        raise OSError(errno.ENODEV, f"{parent.name} is no PCI function")
    return parent.function


def held_by(function: PciFunction) -> list[Assignable]:
    """What clients may hold and what goes when the function loses its driver: what they can open of its
    virtual functions and of the function itself, and its vGPUs. Under ``Lab.lock``."""
    held: list[Assignable] = []
    if isinstance(function, PhysicalFunction):
        held += virtual_functions_held(function)
        if function.parent is not None:
            held += (mdev for mdev in function.parent.mdevs.values() if mdev.bound)
    if function.assigned is not None:
        held.append(function.assigned)
    return held


def depending_on(function: PciFunction) -> list[Assignable]:
    """The function itself, its virtual functions and its vGPUs, whatever drivers they have. Under
    ``Lab.lock``."""
    found: list[Assignable] = []
    if isinstance(function, PhysicalFunction):
        for vf in function.vfs:
            found += [vf] if vf.assigned in (None, vf) else [vf.assigned, vf]
        if function.parent is not None:
            found += function.parent.mdevs.values()
    return [*found, function]


def virtual_functions_held(function: PhysicalFunction) -> list[Assignable]:
    """What clients may hold of its virtual functions. Under ``Lab.lock``."""
    return [vf.assigned for vf in function.vfs if vf.assigned is not None]


class MdevObserver(Protocol):
    """Is told of each change when the lab's state is complete. Lifecycle thread, under ``Lab.lock``."""

    def mdev_bound(self, mdev: Mdev) -> None:
        """The vGPU has its driver again. An exception undoes the binding."""

    def mdev_unbound(self, mdev: Mdev) -> None:
        """The vGPU has no driver any more. It keeps its numbers."""


class DriverCore:
    """The PCI bus type: the functions of a lab, by the name of their address, and what drivers they have."""

    def __init__(
        self,
        lock: threading.RLock,
        observer: BindingObserver,
        vfio_minors: Ida,
        vfio: VfioModule,
        calls: CallPoint,
    ) -> None:
        self.vfio, self.calls = vfio, calls
        self._lock = lock
        self._observer = observer
        self._vfio_minors = vfio_minors
        self._ids: dict[str, list[PciId]] = {}
        self._first = VFIO_PCI if vfio.ids else None
        """The driver that was loaded before all others: vfio-pci if its module was given ids."""
        if vfio.ids:
            self._ids[VFIO_PCI] = list(parse_module_ids(vfio.ids))
        self._buses: dict[str, list[VfioPciFunction]] = {}
        self.functions: dict[str, PciFunction] = {}
        self.autoprobe = True
        """Whether a function that appears is probed (the bus' drivers_autoprobe)."""
        self.resource_alignment = ""
        """What was written to the bus' resource_alignment. It moves no BAR."""
        self.releases: list[Callable[[PhysicalFunction], None]] = []
        """What a driver does before it leaves a physical function, in this order: it disables the virtual
        functions (devmodel.lifecycle.sriov) and removes the vGPUs (devmodel.lifecycle.lab)."""
        self.host_probes: list[Callable[[PciFunction, str, ExitStack], None]] = []
        """What a host driver does as it takes a function: it gets the function, its own name, and what takes
        everything back. An ``OSError`` refuses the function."""
        self.host_removes: list[Callable[[PciFunction], None]] = []
        """What a driver does when it has left a function and the observer has been told."""

    def bus(self, address: PciAddress) -> list[VfioPciFunction]:
        """The functions on the bus of ``address``. A function enters itself, and leaves with its removal."""
        return self._buses.setdefault(address.bus_name, [])

    def find(self, name: str) -> PciFunction:
        """The function at the address ``name``. Raises ``OSError(ENODEV)`` when there is none."""
        function = self.functions.get(name)
        if function is None:
            raise OSError(errno.ENODEV, f"no PCI function {name!r}")
        return function

    def matches(self, function: PciFunction, driver: str) -> bool:
        """Whether ``driver`` takes the function. With a driver_override only that driver does, without one
        the host driver, and each driver that was given a matching id."""
        if function.driver_override is not None:
            return driver == function.driver_override
        identity = function.identity
        return driver == function.host_driver or any(
            each.matches(identity) for each in self._ids.get(driver, ())
        )

    @lifecycle_change
    def bind(self, function: PciFunction, driver: str) -> None:
        """Bind the function to ``driver``, as a write to the driver's ``bind`` does.

        Raises ``OSError``: ENODEV when the driver does not take it; EBUSY when it has a driver; as
        :meth:`probe`.
        """
        self._attach_to(function, driver)

    def _attach_to(self, function: PciFunction, driver: str) -> None:
        with self._lock:
            if not self.matches(function, driver):
                raise OSError(errno.ENODEV, f"{driver} does not match {function.name}")
            if function.driver is not None:
                raise OSError(errno.EBUSY, f"{function.name} is bound to {function.driver}")
            if driver not in (VFIO_PCI, function.host_driver) or not function.probed:
                raise OSError(errno.ENODEV, f"{driver} does not take {function.name}")
            self.probe(function, driver)

    @lifecycle_change
    def probe(self, function: PciFunction, driver: str) -> None:
        """``driver`` tries to take a function that it matches, however that has come about.

        Raises ``OSError``: EBUSY for a host driver that does DMA while a client has the IOMMU group
        (:class:`DmaOwned`); EINVAL for vfio-pci and a bridge, or a function without IOMMU while noiommu mode
        is off; EIO when the host driver fails.
        """
        with self._lock:
            if driver == function.host_driver and function.probe_fails:
                raise OSError(errno.EIO, f"probe of {function.name} by {driver} failed")
            with ExitStack() as undo:
                if driver == VFIO_PCI:
                    self._give_to_vfio(function, undo)
                for probe in self.host_probes if driver != VFIO_PCI else ():
                    probe(function, driver, undo)
                function.driver = driver
                undo.callback(setattr, function, "driver", None)
                self._observer.bound(function)
                undo.pop_all()

    @lifecycle_change
    def unbind(self, function: PciFunction, driver: str) -> None:
        """Take the driver away from the function, and with it the virtual functions and vGPUs of it.

        Raises ``OSError``: ENODEV when its driver is not ``driver``; :class:`InUse` while a client holds one
        of :func:`held_by`. Then nothing has changed.
        """
        with self._lock:
            if function.driver != driver:
                raise OSError(errno.ENODEV, f"{function.name} is not bound to {driver}")
            retire_all(held_by(function))
            self.release(function)

    def attach(self, function: PciFunction) -> None:
        """Bind a function that has no driver to the one that takes it, if there is one. It is no error if a
        driver refuses the function, as in Linux. Raises ``OSError(EINVAL)`` when a client has its group: no
        host driver may even try then."""
        with self._lock:
            for driver in (self._first, function.host_driver, *self._ids, function.driver_override):
                if driver is not None and function.driver is None:
                    try:
                        self._try(function, driver)
                    except DmaOwned as error:
                        raise OSError(errno.EINVAL, error.strerror) from error

    def boot(self, function: PciFunction) -> None:
        """Bind a function at the start of the lab, of which no observer is told: to vfio-pci if that was
        loaded first and takes it, else to its host driver."""
        if self._first is not None and self.matches(function, self._first):
            with suppress(OSError), ExitStack() as undo:
                self._give_to_vfio(function, undo)
                function.driver = VFIO_PCI
                undo.pop_all()
                return
        function.driver = function.host_driver

    def add_id(self, driver: str, identity: PciId) -> None:
        """Have ``driver`` take functions that match ``identity``, and bind it to those without a driver.

        Raises ``OSError(EEXIST)`` when it takes all of them already.
        """
        with self._lock:
            known = self._ids.setdefault(driver, [])
            if any(each.covers(identity) for each in known):
                raise OSError(errno.EEXIST, f"{driver} takes {identity} already")
            known.append(identity)
            for function in list(self.functions.values()):
                if function.driver is None and self.matches(function, driver):
                    with suppress(DmaOwned):
                        self._try(function, driver)

    def remove_id(self, driver: str, identity: PciId) -> None:
        """Have ``driver`` take them no more. ``OSError(ENODEV)`` for an id that it was not given."""
        with self._lock:
            known = self._ids.get(driver, [])
            found = next((each for each in known if identity.covers(each)), None)
            if found is None:
                raise OSError(errno.ENODEV, f"{driver} was not given {identity}")
            known.remove(found)

    def appeared(self, function: PciFunction) -> None:
        """A new function is complete: probe it if :attr:`autoprobe` is on. It is no error if that fails."""
        if self.autoprobe:
            with suppress(OSError):
                self.attach(function)

    def release(self, function: PciFunction) -> None:
        """Take its driver away, if it has one, with all that depends on the driver. What :func:`held_by`
        gives has retired. Under ``Lab.lock``."""
        if isinstance(function, PhysicalFunction):
            for release in self.releases:
                release(function)
            function.vf_token = None
        self.vanishes(function)

    def vanishes(self, function: PciFunction) -> None:
        """A function that no client holds is about to be removed: take its driver away, whichever that is."""
        if function.driver is not None:
            self._taken_away(function)

    def _taken_away(self, function: PciFunction) -> None:
        function.driver = None
        self._observer.unbound(function)
        for remove in self.host_removes:
            remove(function)
        if not function.vanished:
            self.free_minor(function)

    def _give_to_vfio(self, function: PciFunction, undo: ExitStack) -> None:
        if isinstance(function, Bridge):
            raise OSError(errno.EINVAL, f"{function.name} is a bridge")
        self.check_iommu(function)
        if isinstance(function, PhysicalFunction) and function.layout is not None:
            function.vf_token = VfToken()
            undo.callback(setattr, function, "vf_token", None)
        function.vfio_minor = self._vfio_minors.take()
        undo.callback(self.free_minor, function)
        function.join()
        undo.callback(function.withdraw)

    def check_iommu(self, function: PciFunction) -> None:
        """Raise ``OSError(EINVAL)`` for a function that VFIO cannot take, because it has no IOMMU."""
        if function.group.noiommu and not self.vfio.enable_unsafe_noiommu_mode:
            raise OSError(errno.EINVAL, f"{function.name} has no IOMMU, and noiommu mode is not enabled")

    def free_minor(self, function: PciFunction) -> None:
        """Give back its number in vfio<N>, if it has one."""
        if function.vfio_minor is not None:
            self._vfio_minors.give(function.vfio_minor)
            function.vfio_minor = None

    def _try(self, function: PciFunction, driver: str) -> None:
        """Bind the function. It is no error if the driver refuses it. Raises :class:`DmaOwned`."""
        try:
            self._attach_to(function, driver)
        except DmaOwned:
            raise
        except OSError:
            return


class MdevDriver:
    """vfio_mdev: a vGPU that is bound to it can be opened through VFIO.

    A new vGPU is bound unless ``autoprobe``, the bus' drivers_autoprobe, is off.
    """

    def __init__(self, lock: threading.RLock, observer: MdevObserver, calls: CallPoint) -> None:
        self._lock, self._observer, self.calls = lock, observer, calls
        self.autoprobe = True

    @lifecycle_change
    def bind(self, mdev: Mdev, driver: str = VFIO_MDEV) -> None:
        """Bind the vGPU to its driver. Raises ``OSError(EBUSY)`` when it is bound."""
        with self._lock:
            if mdev.bound:
                raise OSError(errno.EBUSY, f"{mdev.name} is bound")
            self._attach_to(mdev, driver)

    def _attach_to(self, mdev: Mdev, driver: str) -> None:
        self.probe(mdev, driver)
        try:
            self._observer.mdev_bound(mdev)
        except BaseException:
            mdev.unbind()
            raise

    @lifecycle_change
    def probe(self, mdev: Mdev, driver: str) -> None:
        """The driver takes a vGPU; one that is being created has it already."""
        if not mdev.bound:
            mdev.bind()

    def takes_new(self, mdev: Mdev) -> bool:
        """Whether the driver takes a vGPU that is being created. It is no error if it does not."""
        if self.autoprobe:
            with suppress(OSError):
                self.probe(mdev, VFIO_MDEV)
                return True
        return False

    @lifecycle_change
    def unbind(self, mdev: Mdev) -> None:
        """Unbind the vGPU. Its model and the contents of its memory stay.

        Raises ``OSError``: ENODEV when it is not bound, EBUSY while a client holds it, after asking the
        client to let go.
        """
        with self._lock:
            if not mdev.bound:
                raise OSError(errno.ENODEV, f"{mdev.name} is not bound")
            mdev.retire()
            mdev.unbind()
            self._observer.mdev_unbound(mdev)

    def attach(self, mdev: Mdev) -> None:
        """Bind the vGPU if it is not. It is no error if the driver refuses it."""
        with self._lock:
            if not mdev.bound:
                with suppress(OSError):
                    self._attach_to(mdev, VFIO_MDEV)
