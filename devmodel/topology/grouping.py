# SPDX-License-Identifier: Apache-2.0
"""IOMMU groups as Linux forms them from the topology: which functions an IOMMU cannot keep apart.

Functions are placed in the order in which Linux finds them, each bridge before what is below it. A function
joins a group that exists already, or begins one. A lab file may name the group of a function instead.

State: a :class:`Grouping` belongs to its user; nothing else has state. Source: Documentation/driver-api/
vfio.rst (groups), PCI Express Base 4.0 chapter 6.12 (ACS), the behaviour of pci_device_group() in the kernel.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from devmodel.pci.address import PciAddress

G = TypeVar("G", bound=Hashable)
Slot = tuple[int, int, int]
"""Segment, bus and device number."""


class Kind(Enum):
    """What a function is to the PCI Express hierarchy."""

    ENDPOINT = "endpoint"
    VIRTUAL = "virtual function"
    """Of SR-IOV. Linux does not take it for a function of a multi-function device."""
    ROOT_PORT = "root port"
    UPSTREAM = "upstream port of a switch"
    DOWNSTREAM = "downstream port of a switch"
    PCI_BRIDGE = "bridge to conventional PCI"


class Node(NamedTuple):
    """A function to place. ``above`` is the bridge above its bus, None on a root bus; a virtual function on a
    bus of its own has that of its physical one.

    ``acs`` is whether it has Access Control Services that keep peers apart. ``express`` is False for
    conventional PCI. ``named`` is the name of the group that it is to be in, or the number: None for the one
    that follows from the topology.
    """

    address: PciAddress
    kind: Kind = Kind.ENDPOINT
    above: Node | None = None
    acs: bool = False
    multifunction: bool = False
    express: bool = True
    named: str | int | None = None

    @property
    def isolated(self) -> bool:
        """Whether no peer of the function reaches it, nor it a peer, without passing the IOMMU."""
        if not self.express or self.kind is Kind.PCI_BRIDGE:
            return False
        if self.kind in (Kind.ROOT_PORT, Kind.DOWNSTREAM):
            return self.acs
        return self.acs or not self.multifunction or self.kind is Kind.VIRTUAL

    @property
    def path_isolated(self) -> bool:
        """Whether that is so for it and for all bridges above."""
        return self.isolated and all(bridge.isolated for bridge in bridges_above(self))

    @property
    def slot(self) -> Slot:
        """The device that it is a function of."""
        return self.address.segment, self.address.bus, self.address.devfn >> 3


def bridges_above(node: Node) -> Iterator[Node]:
    """The bridges above a function, the nearest first."""
    above = node.above
    while above is not None:
        yield above
        above = above.above


class Grouping(Generic[G]):
    """The groups of the functions that are there now. ``G`` is what stands for a group."""

    __slots__ = ("_bridges", "_members", "_names", "_open")

    def __init__(self) -> None:
        self._bridges: dict[PciAddress, G] = {}
        self._open: dict[Slot, dict[PciAddress, G]] = {}
        """Of each device, its functions that are not isolated from one another, if it has such."""
        self._names: dict[str | int, G] = {}
        self._members: dict[str | int, int] = {}
        """How many functions are in each group that has a name."""

    def joins(self, node: Node) -> G | None:
        """The group that a function joins, None if it begins one."""
        if node.named is not None:
            return self._names.get(node.named)
        requester = node
        for bridge in bridges_above(node):  # those that put their own requester id on what passes them
            if bridge.kind is Kind.PCI_BRIDGE or not bridge.express:
                found = self._bridges.get(bridge.address)
                if found is not None:
                    return found
                requester = bridge
        top = requester
        for bridge in bridges_above(requester):
            if bridge.path_isolated:
                break
            found = self._bridges.get(bridge.address)
            if found is not None:
                return found
            top = bridge
        return self._beside(top)

    def enter(self, node: Node, group: G) -> None:
        """The function is in this group from now on."""
        if node.kind not in (Kind.ENDPOINT, Kind.VIRTUAL):
            self._bridges[node.address] = group
        if not node.isolated:
            self._open.setdefault(node.slot, {})[node.address] = group
        if node.named is not None:
            self._names[node.named] = group
            self._members[node.named] = self._members.get(node.named, 0) + 1

    def leave(self, node: Node) -> None:
        """The opposite of :meth:`enter`."""
        self._bridges.pop(node.address, None)
        functions = self._open.get(node.slot)
        if functions is not None and functions.pop(node.address, None) is not None and not functions:
            del self._open[node.slot]
        if node.named is not None:
            self._members[node.named] -= 1
            if not self._members[node.named]:
                del self._members[node.named], self._names[node.named]

    def _beside(self, node: Node) -> G | None:
        """The group of another function of the same device, if nothing keeps the two apart."""
        if not node.multifunction or node.isolated:
            return None
        return next(iter(self._open.get(node.slot, {}).values()), None)


def iommu_groups(nodes: Sequence[Node]) -> list[tuple[int, list[Node]]]:
    """The groups of a machine, by their numbers: ``nodes`` has its functions behind an IOMMU in the order of
    :func:`found_order`. A group whose name is a number has that number, the others the lowest free one."""
    grouping = Grouping[int]()
    numbers = free_numbers(node.named for node in nodes)
    members: dict[int, list[Node]] = {}
    for node in nodes:
        group = grouping.joins(node)
        if group is None:
            group = node.named if isinstance(node.named, int) else next(numbers)
        grouping.enter(node, group)
        members.setdefault(group, []).append(node)
    return sorted(members.items())


def free_numbers(named: Iterable[str | int | None]) -> Iterator[int]:
    """The numbers of groups that are given in order: all but those that ``named`` has."""
    taken = {name for name in named if isinstance(name, int)}
    return (number for number in count() if number not in taken)


def found_order(nodes: Iterable[Node]) -> list[Node]:
    """The order in which Linux finds functions: those on a root bus, then below each of its bridges, one
    after the other. Virtual functions, which come later, are last."""
    below: dict[PciAddress | None, list[Node]] = {}
    late = []
    for node in sorted(nodes, key=lambda each: each.address):
        if node.kind is Kind.VIRTUAL:
            late.append(node)
        else:
            below.setdefault(node.above.address if node.above is not None else None, []).append(node)
    found: list[Node] = []
    roots: dict[tuple[int, int], list[Node]] = {}
    for node in below.get(None, ()):
        roots.setdefault((node.address.segment, node.address.bus), []).append(node)
    for functions in roots.values():
        pending = [functions]
        while pending:
            bus = pending.pop()
            found += bus
            pending += [below[each.address] for each in reversed(bus) if each.address in below]
    return found + late
