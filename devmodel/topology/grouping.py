# SPDX-License-Identifier: Apache-2.0
"""IOMMU groups as Linux forms them from the topology: which functions an IOMMU cannot keep apart.

Functions are placed in the order in which Linux finds them, each bridge before what is below it. A function
joins a group that exists already, or begins one. A lab file may name the group of a function instead.

State: a :class:`Grouping` belongs to its user; nothing else has state. Source: Documentation/driver-api/
vfio.rst (groups), PCI Express Base 4.0 chapter 6.12 (ACS), the behaviour of pci_device_group() in the kernel.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from devmodel.pci.address import PciAddress

G = TypeVar("G", bound=Hashable)
DeviceAddress = tuple[int, int, int]
"""Segment, bus and device number: what the functions of a device have in common."""


class Kind(Enum):
    """What a function is to the PCI Express hierarchy."""

    ENDPOINT = "endpoint"
    VIRTUAL = "virtual function"
    """Of SR-IOV. Linux does not take it for a function of a multi-function device."""
    ROOT_PORT = "root port"
    UPSTREAM = "upstream port of a switch"
    DOWNSTREAM = "downstream port of a switch"
    PCI_BRIDGE = "bridge to conventional PCI"

    @property
    def is_downstream_port(self) -> bool:
        """Whether it is a port at the upper end of a link."""
        return self in (Kind.ROOT_PORT, Kind.DOWNSTREAM)


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
        if self.kind.is_downstream_port:
            return self.acs
        return self.acs or not self.multifunction or self.kind is Kind.VIRTUAL

    @property
    def path_isolated(self) -> bool:
        """Whether that is so for it and for all bridges above."""
        return self.isolated and all(bridge.isolated for bridge in bridges_above(self))

    @property
    def device(self) -> DeviceAddress:
        """The device that it is a function of."""
        return device_of(self.address)


def device_of(address: PciAddress) -> DeviceAddress:
    """The device that a function is of."""
    return address.segment, address.bus, address.devfn >> 3


def bridges_above(node: Node) -> Iterator[Node]:
    """The bridges above a function, the nearest first."""
    above = node.above
    while above is not None:
        yield above
        above = above.above


class Grouping(Generic[G]):
    """The groups of the functions that are there now. ``G`` is what stands for a group."""

    __slots__ = ("_bridges", "_named", "_names", "_open")

    def __init__(self) -> None:
        self._bridges: dict[PciAddress, G] = {}
        self._open: dict[DeviceAddress, dict[PciAddress, G]] = {}
        """Of each device, its functions that are not isolated from one another, if it has such."""
        self._names: dict[str | int, tuple[G, set[PciAddress]]] = {}
        """The groups that have names, with the functions that are in them by name."""
        self._named: dict[PciAddress, str | int] = {}

    def joins(self, node: Node) -> G | None:
        """The group that a function joins, None if it begins one."""
        if node.named is not None:
            return self._names[node.named][0] if node.named in self._names else None
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
        address = node.address
        if node.kind not in (Kind.ENDPOINT, Kind.VIRTUAL):
            self._bridges[address] = group
        if not node.isolated:
            self._open.setdefault(node.device, {})[address] = group
        if node.named is not None:
            self._names.setdefault(node.named, (group, set()))[1].add(address)
            self._named[address] = node.named

    def leave(self, address: PciAddress) -> None:
        """The function at this address is gone, if it was there."""
        self._bridges.pop(address, None)
        device = device_of(address)
        functions = self._open.get(device)
        if functions is not None and functions.pop(address, None) is not None and not functions:
            del self._open[device]
        name = self._named.pop(address, None)
        if name is not None:
            members = self._names[name][1]
            members.discard(address)
            if not members:
                del self._names[name]

    def _beside(self, node: Node) -> G | None:
        """The group of another function of the same device, if nothing keeps the two apart."""
        if not node.multifunction or node.isolated:
            return None
        return next(iter(self._open.get(node.device, {}).values()), None)


def partition(nodes: Sequence[Node]) -> Mapping[PciAddress, PciAddress]:
    """The groups of a machine: for each function behind an IOMMU the first one of its group in the order of
    :func:`found_order`."""
    grouping = Grouping[PciAddress]()
    first: dict[PciAddress, PciAddress] = {}
    for node in found_order(nodes):
        joined = grouping.joins(node)
        first[node.address] = found = node.address if joined is None else joined
        grouping.enter(node, found)
    return first


def iommu_groups(nodes: Sequence[Node]) -> list[tuple[int, list[Node]]]:
    """The groups of a machine by their numbers. They are numbered in the order of ``nodes``, which has all
    functions behind an IOMMU: a group whose name is a number has that number, the others the lowest free
    one."""
    first, free = partition(nodes), free_numbers(node.named for node in nodes)
    named = {first[node.address]: node.named for node in nodes if isinstance(node.named, int)}
    numbers: dict[PciAddress, int] = {}
    members: dict[int, list[Node]] = {}
    for node in nodes:
        group = first[node.address]
        if group not in numbers:
            numbers[group] = named[group] if group in named else next(free)
        members.setdefault(numbers[group], []).append(node)
    return sorted(members.items())


def free_numbers(named: Iterable[str | int | None]) -> Iterator[int]:
    """The numbers of groups that are given in order: all but those that ``named`` has."""
    taken = {name for name in named if isinstance(name, int)}
    return (number for number in count() if number not in taken)


def found_order(nodes: Iterable[Node]) -> list[Node]:
    """The order in which Linux finds functions: those on a root bus, then below each of its bridges, one
    after the other. Virtual functions, which come later, are last. What is below a bridge that is not among
    ``nodes`` counts as on a root bus."""
    there = sorted(nodes, key=lambda each: each.address)
    addresses = {node.address for node in there}
    below: dict[PciAddress, list[Node]] = {}
    roots: dict[tuple[int, int], list[Node]] = {}
    late = []
    for node in there:
        if node.kind is Kind.VIRTUAL:
            late.append(node)
        elif node.above is not None and node.above.address in addresses:
            below.setdefault(node.above.address, []).append(node)
        else:
            roots.setdefault(node.address[:2], []).append(node)
    found: list[Node] = []
    for functions in roots.values():
        pending = [functions]
        while pending:
            bus = pending.pop()
            found += bus
            pending += [below[each.address] for each in reversed(bus) if each.address in below]
    return found + late
