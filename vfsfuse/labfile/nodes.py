# SPDX-License-Identifier: Apache-2.0
"""The tables ``[nodes.<number>]`` of a lab file: the NUMA nodes of its machine, with their CPUs and memory.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`. Source of the limits: the kernel's
numa_set_distance() and slit_valid(), Documentation/admin-guide/cputopology.rst.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from devmodel.lifecycle.pcicore import NO_NODE
from devmodel.lifecycle.spec import LOCAL_DISTANCE, MAX_NODES, NodeSpec
from vfsfuse.labfile.include import NOTHING_THERE, is_absent
from vfsfuse.labfile.reading import Reading, fields
from vfsfuse.labfile.schema import NODE, NODE_NUMBERS


def read_nodes(reading: Reading, tables: Mapping[str, object]) -> tuple[NodeSpec, ...]:
    """All nodes that can be read, in the order of their numbers."""
    found = [reading.attempt(_node, reading, name, table) for name, table in tables.items()]
    specs = sorted((spec for spec in found if spec is not None), key=lambda spec: spec.number)
    if len(specs) == len(tables):
        _check_together(reading, specs)
    return tuple(specs)


def check_near(
    reading: Reading, nodes: Sequence[NodeSpec], near: Iterable[tuple[tuple[str, ...], int | None]]
) -> None:
    """Whether all that is near to a node is near to one of ``nodes``, if the file gives nodes. ``near`` has
    the keys of each ``numa_node`` and its value."""
    known = {None, NO_NODE, *(spec.number for spec in nodes)}
    for keys, node in near:
        if nodes and node not in known:
            reading.note(keys, f"there is no node {node} (add [nodes.{node}])")


def _node(reading: Reading, name: str, content: object) -> NodeSpec:
    keys = ("nodes", name)
    if is_absent(content):
        reading.fail((*keys, "absent"), NOTHING_THERE)
    if re.fullmatch(NODE_NUMBERS, name, re.ASCII) is None or int(name) >= MAX_NODES:
        reading.fail(keys, f"is not the number of a node (give 0 to {MAX_NODES - 1})")
    spec = NodeSpec(int(name), **fields(reading.table(content, NODE, keys), NODE))
    if not spec.cpus and not spec.memory:
        reading.fail(keys, "has neither CPUs nor memory (give it cpus or memory)")
    if len(spec.cpus) % spec.threads:
        count = len(spec.cpus)
        reading.fail(
            (*keys, "threads"), f"{count} CPUs do not make cores of {spec.threads} (give a multiple)"
        )
    return spec


def _check_together(reading: Reading, specs: Sequence[NodeSpec]) -> None:
    owners: dict[int, NodeSpec] = {}
    for place, spec in enumerate(specs):
        keys = ("nodes", str(spec.number))
        taken = sorted(cpu for cpu in spec.cpus if owners.setdefault(cpu, spec) is not spec)
        if taken:
            other = owners[taken[0]].number
            reading.note((*keys, "cpus"), f"CPU {taken[0]} is in node {other}, too (give it to one node)")
        if spec.distances and len(spec.distances) != len(specs):
            count = len(spec.distances)
            reading.note((*keys, "distances"), f"has {count} for {len(specs)} nodes (give one for each node)")
        elif spec.distances and not _is_nearest(spec.distances, place):
            why = f"only the distance to the node itself, number {place + 1}, is {LOCAL_DISTANCE}"
            reading.note((*keys, "distances"), f"{why} (give the others more)")
    if specs and not owners:
        reading.note(("nodes",), "no node has a CPU (give one of them cpus)")
    if specs and not any(spec.memory for spec in specs):
        reading.note(("nodes",), "no node has memory (give one of them memory)")


def _is_nearest(distances: Sequence[int], place: int) -> bool:
    return [index for index, each in enumerate(distances) if each == LOCAL_DISTANCE] == [place]
