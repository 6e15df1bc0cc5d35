# SPDX-License-Identifier: Apache-2.0
"""The machine that a lab file describes: its NUMA nodes and CPUs in the tree.  Trio thread; nothing in it
changes while the lab lives.

Without nodes in the lab file, sys/devices/system is an empty directory, on which `vfsfuse run` mounts the
machine's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.spec import NodeSpec
from vfsfuse.kernfs.kobject import Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.nodes import NodeDir, NodesDir
from vfsfuse.sysfs.numa import Numa
from vfsfuse.sysfs.processors import CpuDir, CpusDir, cpus_of
from vfsfuse.sysfs.systembus import SystemBusDir

SYSTEM = "sys/devices/system"
OF_THE_MACHINE = ("clockevents", "clocksource", "cpu/vulnerabilities")
"""Directories of the machine that stay its own: they are empty, and `vfsfuse run` mounts those of the machine
on them."""


def show_machine(tree: Tree, lab: Lab, specs: Sequence[NodeSpec], numa: Numa) -> None:
    """Show the nodes `specs`, which are at least one, and their CPUs."""
    buses = {name: tree.add(tree.make("sys/bus"), SystemBusDir(name, lab)) for name in ("cpu", "node")}
    listed = {name: tree.make(f"{bus.path}/devices") for name, bus in buses.items()}
    for bus in buses.values():
        tree.make(f"{bus.path}/drivers")
    cpus = tree.add(tree.make(SYSTEM), CpusDir(specs, numa))
    above = tree.add(tree.make(SYSTEM), NodesDir(specs))
    for name in OF_THE_MACHINE:
        tree.make(f"{SYSTEM}/{name}")
    nodes: dict[int, Kobject] = {}
    for spec in specs:
        shown = nodes[spec.number] = tree.add(above, NodeDir(spec, specs, numa, buses["node"]))
        tree.add(listed["node"], Symlink(shown.name, shown))
    for cpu in cpus_of(specs):
        made, node = tree.add(cpus, CpuDir(cpu, numa, buses["cpu"])), nodes[cpu.node]
        tree.add(listed["cpu"], Symlink(made.name, made))
        tree.add(made, Symlink(node.name, node))
        tree.add(node, Symlink(made.name, made))
