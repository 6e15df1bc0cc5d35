# SPDX-License-Identifier: Apache-2.0
"""The PCI functions that a lab has, with their IOMMU groups: how each one enters the lab's tables and leaves
them, whether a scan or SR-IOV has found it.

State: the lifecycle thread's, under ``Lab.lock``. Source: Documentation/driver-api/vfio.rst (groups).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol, TypeVar

from devmodel.ida import Ida
from devmodel.lifecycle.departed import Departed
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.iommugroup import IommuGroup, Place
from devmodel.lifecycle.iommuunit import IommuUnit
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.pci.address import PciAddress
from devmodel.topology.grouping import Grouping, Node, partition
from devmodel.vfio.group import Group

G = TypeVar("G", bound=Group)


class FunctionObserver(Protocol):
    """Is told of each change when the lab's state is complete. Lifecycle thread, under ``Lab.lock``."""

    def function_added(self, function: PciFunction) -> None:
        """The function exists now, without a driver. An exception undoes it, and all virtual functions that
        are being enabled with it."""

    def function_removed(self, function: PciFunction) -> None:
        """The function is gone. Nobody else gets its numbers while this runs."""

    def vfs_enabled(self, function: PhysicalFunction) -> None:
        """The function has its virtual functions, all of them."""


def _nothing(function: PciFunction) -> None:
    return None


class FunctionTable:
    """The functions of a lab by name, and the groups by number, which are the lab's.

    A group is made for its first function, and goes with the last one.
    """

    def __init__(
        self,
        observer: FunctionObserver,
        functions: dict[str, PciFunction],
        group_numbers: Ida,
        groups: dict[int, Group],
        departed: Departed,
    ) -> None:
        self.observer, self.functions, self._departed = observer, functions, departed
        self.unit_of: Callable[[PciFunction], IommuUnit | None] = _nothing
        """Gives the IOMMU unit of a function. The lab sets it when it has units."""
        self.bridges: dict[str, Node] = {}
        """The bridges of the lab, whether they are there now or not, by the name of the bus right below
        each."""
        self.released: Callable[[PciFunction], object] = _nothing
        """Is told when the last client of a function that has vanished has let go. The lab sets it."""
        self._group_numbers, self._groups = group_numbers, groups
        self._fixed: Collection[int] = frozenset()
        self._fixed_taken: set[int] = set()
        self._grouping = Grouping[IommuGroup]()

    def boot(self, places: Sequence[Place], fixed: Collection[int] = ()) -> dict[PciAddress, Group]:
        """The groups of the functions that are there from the start. They are numbered in the order of
        ``places``. ``fixed`` has the numbers that the lab file gives to groups, also of functions that come
        later."""
        self._fixed = frozenset(fixed)
        self._group_numbers.keep(self._fixed)
        first = partition([place.node for place in places if place.iommu])
        fixed_at = {
            first[node.address]: node.named for node, iommu in places if iommu and node.named in self._fixed
        }
        leaders: dict[PciAddress, IommuGroup] = {}
        found: dict[PciAddress, Group] = {}
        for node, iommu in places:
            if not iommu:
                found[node.address] = self._new(Group(self._group_numbers.take(), noiommu=True))
                continue
            leader = first[node.address]
            if leader not in leaders:
                leaders[leader] = self._new(IommuGroup(self.take_number(fixed_at.get(leader))))
            group = found[node.address] = leaders[leader]
            self._grouping.enter(node, group)
        return found

    @contextmanager
    def making(self, place: Place, joins: Group | None = None) -> Iterator[Group]:
        """The group of a function that is made and entered within: one that has functions already, or a new
        one. ``joins`` is the group that it is to be in, None for the one that follows from its place. Nothing
        is left if that fails."""
        node = place.node
        group: Group
        if not place.iommu:
            group = self._new(Group(self._group_numbers.take(), noiommu=True))
        else:
            found = joins if isinstance(joins, IommuGroup) else self._grouping.joins(node)
            group = found or self._new(IommuGroup(self.take_number(node.named)))
            self._grouping.enter(node, group)
        try:
            yield group
        except BaseException:  # whatever its model does
            self._grouping.leave(node.address)
            if self._end_if_empty(group):
                self.give_number(group)
            raise

    def enter(self, function: PciFunction) -> None:
        """The function is complete, and in its group."""
        self.functions[function.name] = function
        group = function.group
        if isinstance(group, IommuGroup):
            group.members += (function,)

    def show(self, function: PciFunction, leave: Callable[[PciFunction], None]) -> None:
        """Tell the observer of a new function. If the observer raises, the function is removed."""
        function.unit = self.unit_of(function)
        with ExitStack() as undo:
            undo.callback(self._forget, function, leave)
            self.observer.function_added(function)
            undo.pop_all()

    def remove(self, function: PciFunction, leave: Callable[[PciFunction], None]) -> None:
        """Remove a function. ``leave`` takes it out of the caller's tables. Its numbers are free when the
        observer has hidden it, or if it has vanished, when the last client has let go."""
        with self._forgotten(function, leave):
            self.observer.function_removed(function)

    def _forget(self, function: PciFunction, leave: Callable[[PciFunction], None]) -> None:
        with self._forgotten(function, leave):
            pass

    @contextmanager
    def _forgotten(self, function: PciFunction, leave: Callable[[PciFunction], None]) -> Iterator[None]:
        """The function is gone in the block, and nobody gets its numbers."""
        vanished = function.vanished
        if not vanished:
            function.close()
        function.bus.remove(function)
        del self.functions[function.name]
        group = function.group
        self._grouping.leave(function.address)
        if isinstance(group, IommuGroup):
            group.members = tuple(each for each in group.members if each is not function)
        ended = self._end_if_empty(group)
        leave(function)
        try:
            yield
        finally:
            if vanished:
                self._departed.add(function, partial(self._end, function))
            if ended and vanished:
                self._departed.add_group(group, partial(self.give_number, group))
            elif ended:
                self.give_number(group)

    def _end(self, function: PciFunction) -> None:
        function.close()
        self.released(function)

    def _new(self, group: G) -> G:
        self._groups[group.number] = group
        return group

    def _end_if_empty(self, group: Group) -> bool:
        """The group is no more if it has no member."""
        ended = not (isinstance(group, IommuGroup) and group.members)
        if ended:
            del self._groups[group.number]
        return ended

    def take_number(self, named: str | int | None) -> int:
        """The number of a new group: the one that the lab file gives to it, unless clients still hold devices
        of the group that had it before."""
        if not isinstance(named, int) or named in self._fixed_taken:
            return self._group_numbers.take()
        self._fixed_taken.add(named)
        return named

    def give_number(self, group: Group) -> None:
        """The number of a group that is no more."""
        if group.number in self._fixed:
            self._fixed_taken.discard(group.number)
        else:
            self._group_numbers.give(group.number)
