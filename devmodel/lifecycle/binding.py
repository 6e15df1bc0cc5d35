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

from devmodel.ida import Ida
from devmodel.lifecycle.function import VFIO_PCI, PciFunction, PhysicalFunction, PhysicalParent
from devmodel.lifecycle.mdev import Mdev, Parent
from devmodel.pci.address import PciAddress
from devmodel.pci.ids import PciId
from devmodel.vfio.module import VfioModule
from devmodel.vfio.vfio_pci import VfioPciFunction
from devmodel.vfio.vftoken import VfToken


class BindingObserver(Protocol):
    """Told of every change, on the lifecycle thread under ``Lab.lock``, once the state is complete."""

    def bound(self, function: PciFunction) -> None:
        """The function has a driver now. An exception undoes the binding."""

    def unbound(self, function: PciFunction) -> None:
        """The function has no driver any more."""


def function_of(parent: Parent) -> PhysicalFunction:
    """The PCI function of a physical GPU; ``OSError(ENODEV)`` for a virtual parent."""
    if not isinstance(parent, PhysicalParent):
        raise OSError(errno.ENODEV, f"{parent.name} is no PCI function")
    return parent.function


class MdevObserver(Protocol):
    """Told of every change, on the lifecycle thread under ``Lab.lock``, once the state is complete."""

    def mdev_bound(self, mdev: Mdev) -> None:
        """The vGPU has its driver again. An exception undoes the binding."""

    def mdev_unbound(self, mdev: Mdev) -> None:
        """The vGPU has no driver any more; it keeps its numbers."""


class DriverCore:
    """The PCI bus type: the functions of a lab, by the name of their address, and what drivers they have."""

    def __init__(
        self, lock: threading.RLock, observer: BindingObserver, vfio_minors: Ida, vfio: VfioModule
    ) -> None:
        self.vfio = vfio
        self._lock = lock
        self._observer = observer
        self._vfio_minors = vfio_minors
        self._ids: dict[str, list[PciId]] = {}
        self._buses: dict[str, list[VfioPciFunction]] = {}
        self.functions: dict[str, PciFunction] = {}
        self.autoprobe = True
        """Whether a function that appears is probed (the bus' drivers_autoprobe)."""
        self.disable_vfs: Callable[[PhysicalFunction], None] | None = None
        """Disables the virtual functions of a physical one before vfio-pci gives it up, or raises
        ``OSError``; devmodel.lifecycle.sriov sets it."""

    def bus(self, address: PciAddress) -> list[VfioPciFunction]:
        """The functions on the bus of ``address``. A function enters itself, and leaves with its removal."""
        return self._buses.setdefault(address.bus_name, [])

    def find(self, name: str) -> PciFunction:
        """The function at address ``name``; ``OSError(ENODEV)``."""
        function = self.functions.get(name)
        if function is None:
            raise OSError(errno.ENODEV, f"no PCI function {name!r}")
        return function

    def matches(self, function: PciFunction, driver: str) -> bool:
        """Whether ``driver`` would take the function: the override's only, without one its host driver, or
        one that was given its id."""
        if function.driver_override is not None:
            return driver == function.driver_override
        identity = function.device.identity
        return driver == function.host_driver or any(
            each.matches(identity) for each in self._ids.get(driver, ())
        )

    def bind(self, function: PciFunction, driver: str) -> None:
        """Bind the function. ``OSError``: ENODEV when the driver does not match it, EBUSY when it has one or
        vfio-pci meets virtual functions of another driver's, EINVAL for vfio-pci and a function without
        IOMMU, unless noiommu mode is enabled."""
        with self._lock:
            if not self.matches(function, driver):
                raise OSError(errno.ENODEV, f"{driver} does not match {function.name}")
            if function.driver is not None:
                raise OSError(errno.EBUSY, f"{function.name} is bound to {function.driver}")
            if driver not in (VFIO_PCI, function.host_driver) or not function.probed:
                raise OSError(errno.ENODEV, f"{driver} does not take {function.name}")
            with ExitStack() as undo:
                if driver == VFIO_PCI:
                    self._give_to_vfio(function, undo)
                function.driver = driver
                undo.callback(setattr, function, "driver", None)
                self._observer.bound(function)
                undo.pop_all()

    def unbind(self, function: PciFunction, driver: str) -> None:
        """Take the driver away. ``OSError``: ENODEV when it is not ``driver``, EBUSY while a client holds it,
        its host driver has vGPUs or virtual functions on it, or a client holds one of vfio-pci's."""
        with self._lock:
            if function.driver != driver:
                raise OSError(errno.ENODEV, f"{function.name} is not bound to {driver}")
            with ExitStack() as undo:
                if driver == VFIO_PCI:
                    function.retire()
                    undo.callback(function.join)
                if isinstance(function, PhysicalFunction):
                    self._free(function, driver)
                undo.pop_all()
            self._taken_away(function)

    def probe(self, function: PciFunction) -> None:
        """Bind the function to the driver that takes it, if it has none; no such driver is no error."""
        with self._lock:
            for driver in (function.host_driver, *self._ids, function.driver_override):
                if driver is not None and function.driver is None:
                    self._try(function, driver, errno.ENODEV)

    def add_id(self, driver: str, identity: PciId) -> None:
        """Have ``driver`` take functions with this id, and offer it those that have no driver.

        Raises ``OSError(EEXIST)`` for an id that it takes already.
        """
        with self._lock:
            known = self._ids.setdefault(driver, [])
            if any(each.covers(identity) for each in known):
                raise OSError(errno.EEXIST, f"{driver} takes {identity} already")
            known.append(identity)
            for function in list(self.functions.values()):
                if function.driver is None and self.matches(function, driver):
                    self._try(function, driver)

    def remove_id(self, driver: str, identity: PciId) -> None:
        """The opposite of :meth:`add_id`, which unbinds nothing. ``OSError(ENODEV)`` for an id it has not."""
        with self._lock:
            known = self._ids.get(driver, [])
            found = next((each for each in known if identity.covers(each)), None)
            if found is None:
                raise OSError(errno.ENODEV, f"{driver} was not given {identity}")
            known.remove(found)

    def appeared(self, function: PciFunction) -> None:
        """A function that the bus found has become visible: probe it, if the bus does so by itself. That no
        driver can take it is no error."""
        if self.autoprobe:
            with suppress(OSError):
                self.probe(function)

    def vanishes(self, function: PciFunction) -> None:
        """A function that nobody holds goes, whatever its driver."""
        if function.driver is not None:
            self._taken_away(function)

    def _free(self, function: PhysicalFunction, driver: str) -> None:
        """Make sure that nothing is left that lives on the function's driver."""
        if driver != VFIO_PCI and (function.parent.mdevs or function.vfs):
            raise OSError(errno.EBUSY, f"{function.name} has vGPUs or virtual functions")
        if function.vfs and self.disable_vfs is not None:
            self.disable_vfs(function)
        function.vf_token = None

    def _taken_away(self, function: PciFunction) -> None:
        function.driver = None
        self._observer.unbound(function)
        self._free_minor(function)

    def _give_to_vfio(self, function: PciFunction, undo: ExitStack) -> None:
        if function.group.noiommu and not self.vfio.noiommu:
            raise OSError(errno.EINVAL, f"{function.name} has no IOMMU, and noiommu mode is not enabled")
        if isinstance(function, PhysicalFunction) and function.layout is not None:
            function.vf_token = VfToken()
            undo.callback(setattr, function, "vf_token", None)
        function.vfio_minor = self._vfio_minors.take()
        undo.callback(self._free_minor, function)
        function.join()
        undo.callback(function.withdraw)

    def _free_minor(self, function: PciFunction) -> None:
        if function.vfio_minor is not None:
            self._vfio_minors.give(function.vfio_minor)
            function.vfio_minor = None

    def _try(self, function: PciFunction, driver: str, harmless: int | None = None) -> None:
        """Bind; failing to is no error, or (``harmless``) when it is this one."""
        try:
            self.bind(function, driver)
        except OSError as error:
            if harmless not in (None, error.errno):
                raise


class MdevDriver:
    """Binds and unbinds vGPUs. A new one is bound unless ``autoprobe`` (drivers_autoprobe) is off."""

    def __init__(self, lock: threading.RLock, observer: MdevObserver) -> None:
        self._lock, self._observer = lock, observer
        self.autoprobe = True

    def bind(self, mdev: Mdev) -> None:
        """Give the vGPU to VFIO. ``OSError(EBUSY)`` when it is already."""
        with self._lock:
            if mdev.bound:
                raise OSError(errno.EBUSY, f"{mdev.name} is bound")
            mdev.bind()
            try:
                self._observer.mdev_bound(mdev)
            except BaseException:
                mdev.unbind()
                raise

    def unbind(self, mdev: Mdev) -> None:
        """Take the vGPU away from VFIO; its model and what is in its memory stay as they are.

        Raises ``OSError``: ENODEV when it is not bound, EBUSY while a client holds it, which is asked to let
        go.
        """
        with self._lock:
            if not mdev.bound:
                raise OSError(errno.ENODEV, f"{mdev.name} is not bound")
            mdev.retire()
            mdev.unbind()
            self._observer.mdev_unbound(mdev)

    def probe(self, mdev: Mdev) -> None:
        """Bind the vGPU if it is not."""
        with self._lock:
            if not mdev.bound:
                self.bind(mdev)
