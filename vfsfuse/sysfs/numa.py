# SPDX-License-Identifier: Apache-2.0
"""The machine's NUMA nodes and the CPUs in them.

State: what the machine said when a lab was built.  It is not asked again: the server must not read a sys/
that a lab may be mounted on.  Source: Documentation/ABI/stable/sysfs-devices-node.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from vfsfuse.sysfs import cpus

NODES = Path("/sys/devices/system/node")


@cache
def nodes() -> Mapping[int, frozenset[int]]:
    """The CPUs of each node; without NUMA there is no node.  First called before the lab is mounted."""
    cpus.online()
    try:
        numbers = list(cpus.parse_list((NODES / "online").read_text()))
        lists = {number: (NODES / f"node{number}/cpulist").read_text() for number in numbers}
        return {number: frozenset(cpus.parse_list(text)) for number, text in lists.items()}
    except (OSError, ValueError):
        return {}


def near(node: int) -> frozenset[int]:
    """The CPUs of a node; those that are online if the machine has no such node."""
    return nodes().get(node, cpus.online())
