# SPDX-License-Identifier: Apache-2.0
"""What a reader has found of a machine, whatever it has read.

State: none, all are values. Source: Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vfsfuse.asking import Refusal

HEADER_SIZE, EXPRESS_SIZE = 64, 4096
"""Bytes of configuration space: those that anybody may read, and the most there are."""
BARS, ROM_ROW, IOV_ROW = 6, 6, 7
"""Rows of sysfs ``resource``: how many BARs, the ROM, the first BAR of virtual functions."""
ADDRESS = re.compile(
    r"(?:(?P<domain>[0-9a-f]{4,8}):)?(?P<bus>[0-9a-f]{2}):(?P<dev>[01][0-9a-f])\.(?P<fn>[0-7])"
)


class CaptureError(Refusal):
    """A machine cannot be captured. The text is one line that says where, why, and what to do."""


@dataclass(frozen=True, slots=True)
class FoundBar:
    """A BAR with its ``size`` in bytes. ``kind`` is as in a lab file, ``address`` is where the host sees it
    (0: nowhere)."""

    index: int
    size: int
    kind: str
    address: int = 0


@dataclass(frozen=True, slots=True)
class FoundNet:
    """A network interface. ``mac`` is None without one of 6 bytes."""

    name: str
    mac: bytes | None


@dataclass(frozen=True, slots=True)
class FoundVfs:
    """The virtual functions that a function can have, ``enabled`` of them now. ``bars`` are those of each.
    ``offset``, ``stride`` and ``device`` are None where they are not known."""

    total: int
    enabled: int = 0
    offset: int | None = None
    stride: int | None = None
    device: int | None = None
    bars: tuple[FoundBar, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundFunction:
    """A PCI function at ``address``, domain included.

    ``config`` has what was read of configuration space, ``config_size`` how much there is. ``above`` is the
    bridge that it is below, ``physical`` the physical function of a virtual one. ``groups_known`` is whether
    the reader could tell its group; then None is none. ``words`` are capabilities that are known although the
    configuration space is not. ``slot`` is the slot that it is in, ``empty_slot`` the one that a port has
    without a card. ``line`` is where a text describes it, 0 elsewhere.
    """

    address: str
    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    interrupt_pin: int = 0
    description: str = ""
    config: bytes = b""
    config_size: int = 0
    bars: tuple[FoundBar, ...] = ()
    rom_size: int = 0
    rom: bytes = b""
    vpd: bytes = b""
    driver: str | None = None
    group: int | None = None
    groups_known: bool = True
    numa_node: int | None = None
    slot: str | None = None
    empty_slot: str | None = None
    secondary: int | None = None
    subordinate: int | None = None
    above: str | None = None
    physical: str | None = None
    vfs: FoundVfs | None = None
    net: tuple[FoundNet, ...] = ()
    unit: str | None = None
    words: tuple[str, ...] = ()
    serial: int | None = None
    line: int = 0

    @property
    def bus(self) -> str:
        """The bus that it is on, such as "0000:65"."""
        return self.address.rsplit(":", 1)[0]

    @property
    def domain(self) -> str:
        """The domain, such as "0000"."""
        return self.address.split(":", 1)[0]

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge to other buses."""
        return self.secondary is not None

    @property
    def place(self) -> tuple[int, int, int]:
        """What functions are sorted by: domain, bus, device and function."""
        return place_of(self.address)


@dataclass(frozen=True, slots=True)
class FoundNode:
    """A NUMA node: its CPUs as sysfs lists them, its memory in kilobytes, and its distances to all nodes.
    ``threads`` are those of each core, if the first CPUs are the first threads of the cores and so on, else
    0."""

    number: int
    cpus: str
    memory_kb: int
    distances: tuple[int, ...]
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """The functions by address, sorted, and what is around them. ``notes`` are lines for a person: what could
    not be read, and what a lab cannot have."""

    source: str
    functions: Mapping[str, FoundFunction]
    nodes: tuple[FoundNode, ...] = ()
    notes: tuple[str, ...] = ()
    roots: Mapping[str, int | None] = field(default_factory=dict)
    """By the name of a root bus, the NUMA node that it is near to (None: not known)."""


def place_of(address: str) -> tuple[int, int, int]:
    """Domain, bus, and device and function in one number."""
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{address!r} is no PCI address")
    devfn = int(found["dev"], 16) << 3 | int(found["fn"])
    return int(found["domain"] or "0", 16), int(found["bus"], 16), devfn


def roots_of(functions: Sequence[FoundFunction]) -> Iterator[str]:
    """The names of the buses that no bridge is above, in order."""
    below = {(f.domain, f.secondary) for f in functions if f.is_bridge}
    ranges = [
        (f.domain, f.secondary, f.subordinate)
        for f in functions
        if f.secondary is not None and f.subordinate is not None
    ]
    for bus in sorted({f.bus for f in functions if f.physical is None}):
        domain, _, digits = bus.partition(":")
        number = int(digits, 16)
        inside = any(domain == at and first <= number <= last for at, first, last in ranges)
        if (domain, number) not in below and not inside:
            yield bus


def node_of_root(bus: str, functions: Sequence[FoundFunction]) -> int | None:
    """The NUMA node of a root bus: that of all functions on it, None if they differ."""
    nodes = {each.numa_node for each in functions if each.bus == bus}
    return next(iter(nodes)) if len(nodes) == 1 else None


def some(names: Sequence[str]) -> str:
    """Names for a message: the first, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def bridge_above(bus: str, functions: Sequence[FoundFunction]) -> str | None:
    """The bridge above a bus: the one that has it as its secondary bus, or else the nearest one whose range
    it is in. None for a root bus."""
    domain, _, digits = bus.partition(":")
    number = int(digits, 16)
    best: FoundFunction | None = None
    for each in functions:
        first, last = each.secondary, each.subordinate
        if each.domain != domain or first is None or last is None or not first <= number <= last:
            continue
        if each.bus != bus and (best is None or first > (best.secondary or 0)):
            best = each
    return None if best is None else best.address
