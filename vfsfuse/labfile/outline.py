# SPDX-License-Identifier: Apache-2.0
"""The outline of a lab, without a mount: what a lab file makes, as lines of a tree.

State: none; the lab lives as long as :func:`outline` runs, on the calling thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from devmodel.lifecycle.bridge import Bridge
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.initial import populate
from devmodel.lifecycle.iommuunit import IommuUnit
from devmodel.lifecycle.lab import Lab, Observer
from devmodel.lifecycle.mdev import Parent
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import FunctionSpec, LabSpec, NodeSpec
from devmodel.lifecycle.vendor import vgpu_of
from devmodel.pci import regs
from devmodel.pci.barkind import BarKind
from devmodel.pci.fields import Bar
from vfsfuse.sysfs.cpus import as_list


@dataclass(slots=True)
class Branch:
    """A line of the tree, and what is below it."""

    text: str
    below: list[Branch] = field(default_factory=list)


class _Nobody:
    """An observer that does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def outline(spec: LabSpec) -> Iterator[str]:
    """The lines about a lab. Raises SpecError and ValueError for one that cannot be made."""
    lab = Lab(spec, cast(Observer, _Nobody()))
    try:
        populate(lab)
        for branch in _branches(lab):
            yield branch.text
            yield from _lines(branch.below, "")
    finally:
        lab.close()


def size_of(number: int) -> str:
    """Bytes with the largest unit that leaves no rest: 64K."""
    units = "KMGT"
    place = 0
    while place < len(units) and number and not number % 1024:
        number //= 1024
        place += 1
    return f"{number}{units[place - 1] if place else ''}"


def _lines(branches: list[Branch], indent: str) -> Iterator[str]:
    for number, branch in enumerate(branches, 1):
        last = number == len(branches)
        yield f"{indent}{'└── ' if last else '├── '}{branch.text}"
        yield from _lines(branch.below, indent + ("    " if last else "│   "))


def _branches(lab: Lab) -> Iterator[Branch]:
    yield from _buses(lab)
    others = [parent for parent in lab.parents.values() if parent.spec.bdf is None]
    if others:
        yield Branch("parents without hardware", [_parent(parent) for parent in others])
    if lab.mdevs:
        yield Branch("vGPUs", [Branch(_vgpu_text(mdev)) for mdev in lab.mdevs.values()])
    members = defaultdict(list)
    for function in lab.drivers.functions.values():
        members[function.group].append(function.name)
    for mdev in lab.mdevs.values():
        members[mdev.group].append(mdev.name)
    groups = sorted(members, key=lambda group: group.number)
    if groups:
        lines = [
            Branch(f"{_group_text(group.number, group.noiommu)}: {', '.join(members[group])}")
            for group in groups
        ]
        yield Branch("IOMMU groups", lines)
    if lab.iommu_units:
        yield Branch("IOMMU units", [Branch(_unit_text(lab, unit)) for unit in lab.iommu_units])
    unplugged = [spec for spec in lab.spec.all_functions if not spec.plugged]
    if unplugged:
        yield Branch("not plugged in", [Branch(_unplugged_text(spec)) for spec in unplugged])
    if lab.spec.nodes:
        yield Branch("NUMA nodes", [Branch(_node_text(node)) for node in lab.spec.nodes])
    if lab.spec.faults:
        yield Branch("fault rules", [Branch(line) for line in lab.spec.faults])


# ---- functions ----


def _buses(lab: Lab) -> Iterator[Branch]:
    """The root buses, with all that is below them."""
    functions = sorted(lab.drivers.functions.values(), key=lambda function: function.address)
    branches = {function: Branch(_function_text(function)) for function in functions}
    nodes = {root.bus: root.numa_node for root in lab.spec.roots}
    roots = {bus: Branch(_root_text(bus, nodes.get(bus, -1))) for bus in lab.hotplug.buses.roots}
    for function, branch in branches.items():
        if isinstance(function, PhysicalFunction) and function.parent is not None:
            branch.below += _types(function.parent)
        above = function.upstream
        if above is not None:
            branches[above].below.append(branch)
        else:
            roots.setdefault(function.address.bus_name, Branch(function.address.bus_name)).below.append(
                branch
            )
    yield from roots.values()


def _root_text(bus: str, node: int) -> str:
    return f"{bus} root bus" + (f", NUMA node {node}" if node >= 0 else "")


def _function_text(function: PciFunction) -> str:
    """The line about a function."""
    identity = function.identity
    known = f"{function.name} [{identity.class_code >> 8:04x}] {identity.vendor:04x}:{identity.device:04x}"
    parts = [known, *_facts(function)]
    if isinstance(function, Bridge) and function.spec.bridge is not None:
        parts.insert(1, f"{function.spec.bridge.kind.value} to bus {_below(function)}")
    bars = [_bar_text(index, bar) for index, bar in sorted(function.traits.bars.items())]
    if bars:
        parts.append(f"BARs {' '.join(bars)}")
    if isinstance(function, PhysicalFunction) and function.layout is not None:
        layout = function.layout
        parts.append(f"up to {layout.total} VFs {identity.vendor:04x}:{layout.device_id:04x}")
    return ", ".join(parts)


def _facts(function: PciFunction) -> Iterator[str]:
    """What drivers, the IOMMU and the machine say of a function."""
    yield f"driver {function.driver}" if function.driver else "no driver"
    yield f"group {_group_text(function.group.number, function.group.noiommu)}"
    if function.core.numa_node >= 0:
        yield f"node {function.core.numa_node}"
    vgpu = vgpu_of(function)
    if vgpu is not None and vgpu.type is not None:
        yield f"vGPU {vgpu.type.name}"
    spec = getattr(function, "spec", None)
    if spec is not None and spec.slot is not None:
        yield f"slot {spec.slot}"
    if spec is not None and spec.net and function.driver == spec.driver:
        yield f"net {' '.join(spec.net)}"


def _group_text(number: int, noiommu: bool) -> str:
    """The number of a group, and whether sysfs shows it only once vfio-pci has a member."""
    return f"{number}" + (" (no IOMMU)" if noiommu else "")


def _below(bridge: Bridge) -> str:
    first, last = bridge.secondary, bridge.subordinate
    return f"{first:02x}" if first == last else f"{first:02x}-{last:02x}"


def _bar_text(index: int, bar: Bar) -> str:
    if index == regs.ROM_BAR:
        return f"ROM={size_of(bar.size)}"
    kind = BarKind.made_of(bar.io, bar.mem64, bar.prefetch)
    return f"{index}={size_of(bar.size)}({kind.value})"


def _unit_text(lab: Lab, unit: IommuUnit) -> str:
    count = sum(1 for _ in lab.behind(unit))
    return f"{unit.name}: {count} function{'s' if count != 1 else ''}"


def _unplugged_text(spec: FunctionSpec) -> str:
    return spec.address + (f", slot {spec.slot}" if spec.slot is not None else "")


# ---- vGPUs ----


def _parent(parent: Parent) -> Branch:
    return Branch(f"{parent.name}, driver {parent.spec.driver}", list(_types(parent)))


def _types(parent: Parent) -> Iterator[Branch]:
    for type_ in parent.types.values():
        known = f"{type_.name} (id {type_.spec.number})" if type_.spec.number else type_.name
        yield Branch(f"{known}: {type_.description}, room for {type_.available_instances}")


def _vgpu_text(mdev: Any) -> str:
    return f"{mdev.name}, {mdev.type.name} of {mdev.parent.name}, group {mdev.group.number}"


def _node_text(node: NodeSpec) -> str:
    memory = f", memory {size_of(node.memory)}" if node.memory else ""
    return f"{node.number}: CPUs {as_list(node.cpus) or 'none'}{memory}"
