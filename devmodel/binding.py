# SPDX-License-Identifier: Apache-2.0
"""Which driver a physical function is bound to: its host driver, vfio-pci, or none.

State: on the lifecycle thread under ``Lab.lock``; whether the function is held open is under its
group's lock.
Source: Documentation/ABI/testing/sysfs-bus-pci (driver_override, bind, unbind, drivers_probe).
"""

import errno
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from devmodel.numbers import Numbers
from devmodel.parent import Parent, PhysicalFunction
from devmodel.vfio import VfioModule

VFIO_PCI = "vfio-pci"


class BindingObserver(Protocol):
    """Told of every change, on the lifecycle thread under ``Lab.lock``, once the state is complete."""

    def bound(self, parent: Parent) -> None:
        """The function of ``parent`` has a driver now."""

    def unbound(self, parent: Parent) -> None:
        """The function of ``parent`` has no driver any more."""


def function_of(parent: Parent) -> PhysicalFunction:
    """The PCI function of a physical GPU; ``OSError(ENODEV)`` for a virtual parent."""
    if parent.function is None:
        raise OSError(errno.ENODEV, f"{parent.name} is no PCI function")
    return parent.function


class DriverCore:
    """Binds and unbinds the physical functions of a lab."""

    def __init__(
        self, lock: threading.RLock, observer: BindingObserver, vfio_minors: Numbers, vfio: VfioModule
    ) -> None:
        self._vfio = vfio
        self._lock = lock
        self._observer = observer
        self._vfio_minors = vfio_minors

    def matches(self, parent: Parent, driver: str) -> bool:
        """Whether ``driver`` would take the function: the override's only, without one its host driver."""
        return driver == (function_of(parent).driver_override or parent.spec.driver)

    def bind(self, parent: Parent, driver: str) -> None:
        """Bind the function. ``OSError``: ENODEV when the driver does not match it, EBUSY when it has one,
        EINVAL for vfio-pci and a function without IOMMU, unless noiommu mode is enabled."""
        function = function_of(parent)
        with self._lock:
            if not self.matches(parent, driver) or driver not in (VFIO_PCI, parent.spec.driver):
                raise OSError(errno.ENODEV, f"{driver} does not take {parent.name}")
            if function.driver is not None:
                raise OSError(errno.EBUSY, f"{parent.name} is bound to {function.driver}")
            with ExitStack() as undo:
                if driver == VFIO_PCI:
                    self._give_to_vfio(function, undo)
                function.driver = driver
                undo.callback(setattr, function, "driver", None)
                self._observer.bound(parent)
                undo.pop_all()

    def unbind(self, parent: Parent, driver: str) -> None:
        """Take the driver away. ``OSError``: ENODEV when it is not ``driver``, EBUSY while it has vGPUs or
        a client holds it."""
        function = function_of(parent)
        with self._lock:
            if function.driver != driver:
                raise OSError(errno.ENODEV, f"{parent.name} is not bound to {driver}")
            if parent.mdevs:
                raise OSError(errno.EBUSY, f"{parent.name} has vGPUs")
            if driver == VFIO_PCI:
                function.retire()
            function.driver = None
            self._observer.unbound(parent)
            self._free_minor(function)

    def probe(self, parent: Parent) -> None:
        """Bind the function to the driver that takes it, if it has none; no such driver is no error."""
        with self._lock:
            if function_of(parent).driver is None:
                self._try(
                    lambda: self.bind(parent, function_of(parent).driver_override or parent.spec.driver)
                )

    def _give_to_vfio(self, function: PhysicalFunction, undo: ExitStack) -> None:
        if function.group.noiommu and not self._vfio.noiommu:
            raise OSError(errno.EINVAL, f"{function.name} has no IOMMU, and noiommu mode is not enabled")
        function.vfio_minor = self._vfio_minors.take()
        undo.callback(self._free_minor, function)
        function.join()
        undo.callback(function.withdraw)

    def _free_minor(self, function: PhysicalFunction) -> None:
        if function.vfio_minor is not None:
            self._vfio_minors.give(function.vfio_minor)
            function.vfio_minor = None

    @staticmethod
    def _try(call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
