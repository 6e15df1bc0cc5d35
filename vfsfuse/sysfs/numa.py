# SPDX-License-Identifier: Apache-2.0
"""The CPUs that devices are near to: those of the lab's NUMA nodes, or of the machine's if it has none.

State: none that changes. The machine is asked once, before its first lab is mounted: the server must not read
a sys/ that a lab may be mounted on. Source: Documentation/ABI/stable/sysfs-devices-node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from devmodel.lifecycle.spec import NodeSpec
from vfsfuse.sysfs.cpus import as_mask, parse_list

_SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True, slots=True)
class Numa:
    """The CPUs that are `online`, and those of each node. Without NUMA there is no node."""

    nodes: Mapping[int, frozenset[int]]
    online: frozenset[int]

    def near(self, node: int) -> frozenset[int]:
        """The CPUs of a node; those that are online if there is no such node."""
        return self.nodes.get(node, self.online)

    def mask(self, cpus: Collection[int]) -> str:
        """The CPUs as a mask in hexadecimal, as wide as the CPU with the highest number needs."""
        return as_mask(cpus, max(self.online) + 1)


def numa_of(specs: Sequence[NodeSpec]) -> Numa:
    """The nodes of a lab; those of this machine for a lab that has none."""
    if not specs:
        return _machine()
    nodes = {spec.number: frozenset(spec.cpus) for spec in specs}
    return Numa(nodes, frozenset().union(*nodes.values()))


@cache
def _machine() -> Numa:
    """This machine as it was at the first call. CPU 0 alone, if it does not say."""
    try:
        online = frozenset(parse_list((_SYSTEM / "cpu/online").read_text())) or frozenset({0})
    except (OSError, ValueError):
        online = frozenset({0})
    try:
        numbers = list(parse_list((_SYSTEM / "node/online").read_text()))
        lists = {number: (_SYSTEM / f"node/node{number}/cpulist").read_text() for number in numbers}
        nodes = {number: frozenset(parse_list(text)) for number, text in lists.items()}
    except (OSError, ValueError):
        nodes = {}
    return Numa(nodes, online.union(*nodes.values()))
