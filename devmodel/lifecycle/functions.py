# SPDX-License-Identifier: Apache-2.0
"""The PCI functions that a lab has, with their IOMMU groups: how each one enters the lab's tables and leaves
them, whether a scan or SR-IOV has found it.

State: the lifecycle thread's, under ``Lab.lock``. Source: Documentation/driver-api/vfio.rst (groups).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from devmodel.ida import Ida
from devmodel.lifecycle.function import PciFunction, PhysicalFunction
from devmodel.lifecycle.iommuunit import IommuUnit
from devmodel.vfio.group import Group


class FunctionObserver(Protocol):
    """Is told of each change when the lab's state is complete. Lifecycle thread, under ``Lab.lock``."""

    def function_added(self, function: PciFunction) -> None:
        """The function exists now, without a driver. An exception undoes it, and all virtual functions that
        are being enabled with it."""

    def function_removed(self, function: PciFunction) -> None:
        """The function is gone. Nobody else gets its numbers while this runs."""

    def vfs_enabled(self, function: PhysicalFunction) -> None:
        """The function has its virtual functions, all of them."""


def _no_unit(function: PciFunction) -> None:
    return None


class FunctionTable:
    """The functions of a lab by name, and the groups by number, which are the lab's."""

    def __init__(
        self,
        observer: FunctionObserver,
        functions: dict[str, PciFunction],
        group_numbers: Ida,
        groups: dict[int, Group],
    ) -> None:
        self.observer, self.functions = observer, functions
        self.unit_of: Callable[[PciFunction], IommuUnit | None] = _no_unit
        """Gives the IOMMU unit of a function. The lab sets it when it has units."""
        self._group_numbers, self._groups = group_numbers, groups

    def new_group(self, noiommu: bool) -> Group:
        """A group for a function that is about to be made."""
        group = Group(self._group_numbers.take(), noiommu=noiommu)
        self._groups[group.number] = group
        return group

    @contextmanager
    def making(self, noiommu: bool) -> Iterator[Group]:
        """A new group for a function that is made within. There is no such group if that fails."""
        group = self.new_group(noiommu)
        try:
            yield group
        except BaseException:  # whatever its model does
            del self._groups[group.number]
            self._group_numbers.give(group.number)
            raise

    def show(self, function: PciFunction, leave: Callable[[PciFunction], None]) -> None:
        """Tell the observer of a new function. If the observer raises, the function is removed."""
        function.unit = self.unit_of(function)
        with ExitStack() as undo:
            undo.callback(self._group_numbers.give, function.group.number)
            undo.callback(self._forget, function, leave)
            self.observer.function_added(function)
            undo.pop_all()

    def remove(self, function: PciFunction, leave: Callable[[PciFunction], None]) -> None:
        """Remove a function. ``leave`` takes it out of the caller's tables. Its numbers are free when the
        observer has hidden it."""
        self._forget(function, leave)
        with ExitStack() as after:
            after.callback(self._group_numbers.give, function.group.number)
            self.observer.function_removed(function)

    def _forget(self, function: PciFunction, leave: Callable[[PciFunction], None]) -> None:
        function.device.close()
        function.bus.remove(function)
        del self.functions[function.name]
        del self._groups[function.group.number]
        leave(function)
