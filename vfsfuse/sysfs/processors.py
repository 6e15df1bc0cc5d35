# SPDX-License-Identifier: Apache-2.0
"""sys/devices/system/cpu: the CPUs of a lab that describes its machine. Each node with CPUs is a package.

No state: the lab file says all of it. No CPU can be taken offline, as in a kernel without HOTPLUG_CPU.
Source: Documentation/ABI/testing/sysfs-devices-system-cpu, Documentation/admin-guide/cputopology.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devmodel.lifecycle.spec import MAX_CPUS, NodeSpec
from vfsfuse.kernfs.groups import AttributeGroup, Group
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import Attribute, attribute, link
from vfsfuse.sysfs.cpus import list_line
from vfsfuse.sysfs.numa import Numa
from vfsfuse.sysfs.uevent import BareDeviceDir, DeviceDir

NO_CLUSTER = 0xFFFF
"""The number of the cluster of a CPU that is in none."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """One CPU: its number, its node, its package and its core in the package. `threads` are the CPUs of the
    core, `siblings` those of the package."""

    number: int
    node: int
    package: int
    core: int
    threads: tuple[int, ...]
    siblings: tuple[int, ...]


def cpus_of(specs: Sequence[NodeSpec]) -> Iterator[Cpu]:
    """The CPUs of all nodes. The first CPUs of a node are the first threads of its cores, as firmware numbers
    them on x86."""
    for package, spec in enumerate(each for each in specs if each.cpus):
        siblings = tuple(sorted(spec.cpus))
        cores = len(siblings) // spec.threads
        for place, number in enumerate(siblings):
            core = place % cores
            yield Cpu(number, spec.number, package, core, siblings[core::cores], siblings)


class SmtGroup(AttributeGroup):
    """sys/devices/system/cpu/smt: cores with several threads."""

    __slots__ = ()
    if TYPE_CHECKING:
        owner: CpusDir

    @attribute()
    def active(self) -> int:
        """1 if a core has several threads, else 0."""
        return int(any(spec.threads > 1 for spec in self.owner.specs))

    @attribute(0o644)
    def control(self) -> str:
        """`notimplemented`: threads cannot be turned off."""
        return "notimplemented"

    @control.store
    def _store_control(self, text: str) -> None:
        """ENODEV."""
        raise OSError(errno.ENODEV, "threads cannot be turned off")


class CpusDir(BareDeviceDir):
    """sys/devices/system/cpu: the CPUs of the lab's machine, if the lab file describes its NUMA nodes."""

    __slots__ = ("numa", "specs")
    smt = Group("smt", SmtGroup)

    def __init__(self, specs: Sequence[NodeSpec], numa: Numa) -> None:
        super().__init__("cpu")
        self.specs, self.numa = specs, numa

    @attribute()
    def possible(self) -> str:
        """The CPUs that there may be, as a list: those that there are."""
        return list_line(self.numa.online)

    @attribute()
    def present(self) -> str:
        """The CPUs that there are, as a list such as `0-31`."""
        return list_line(self.numa.online)

    @attribute()
    def online(self) -> str:
        """The CPUs that run, as a list: all."""
        return list_line(self.numa.online)

    @attribute()
    def offline(self) -> str:
        """The CPUs that do not run, as a list: none."""
        return list_line(())

    @attribute()
    def isolated(self) -> str:
        """The CPUs that the scheduler leaves alone, as a list: none."""
        return list_line(())

    @attribute()
    def kernel_max(self) -> int:
        """The highest number that a CPU can have."""
        return MAX_CPUS - 1


def _threads(cpu: Cpu) -> tuple[int, ...]:
    return cpu.threads


def _siblings(cpu: Cpu) -> tuple[int, ...]:
    return cpu.siblings


def _cpus(name: str, of: Callable[[Cpu], tuple[int, ...]], whose: str) -> tuple[Attribute, Attribute]:
    """The attributes `name` and `name`_list of :class:`TopologyGroup`: CPUs as a mask, and as a list."""

    def mask(group: TopologyGroup) -> str:
        return group.owner.numa.mask(of(group.owner.cpu))

    def listed(group: TopologyGroup) -> str:
        return list_line(of(group.owner.cpu))

    return (
        Attribute(name, 0o444, mask, doc=f"The CPUs {whose}, as a mask in hexadecimal."),
        Attribute(f"{name}_list", 0o444, listed, doc=f"The CPUs {whose}, as a list."),
    )


class TopologyGroup(AttributeGroup):
    """sys/devices/system/cpu/cpu<N>/topology: the core and the package of a CPU."""

    __slots__ = ()
    if TYPE_CHECKING:
        owner: CpuDir

    @attribute()
    def physical_package_id(self) -> int:
        """The number of the package: each node with CPUs is one."""
        return self.owner.cpu.package

    @attribute()
    def die_id(self) -> int:
        """The number of the die in the package: 0, a package has one."""
        return 0

    @attribute()
    def core_id(self) -> int:
        """The number of the core in the package."""
        return self.owner.cpu.core

    thread_siblings, thread_siblings_list = _cpus("thread_siblings", _threads, "of the core")
    core_cpus, core_cpus_list = _cpus("core_cpus", _threads, "of the core")
    core_siblings, core_siblings_list = _cpus("core_siblings", _siblings, "of the package")
    package_cpus, package_cpus_list = _cpus("package_cpus", _siblings, "of the package")
    die_cpus, die_cpus_list = _cpus("die_cpus", _siblings, "of the die, which are those of the package")

    @attribute()
    def cluster_id(self) -> int:
        """The number of the cluster of cores in the package: 65535, none, because there are no clusters."""
        return NO_CLUSTER

    cluster_cpus, cluster_cpus_list = _cpus("cluster_cpus", _threads, "of the core, which is in no cluster")


class CpuDir(DeviceDir):
    """sys/devices/system/cpu/cpu<N>: a CPU, with a link to its node."""

    __slots__ = ("bus", "cpu", "numa")
    uevent_subsystem = "cpu"
    topology = Group("topology", TopologyGroup)

    def __init__(self, cpu: Cpu, numa: Numa, bus: Kobject) -> None:
        super().__init__(f"cpu{cpu.number}")
        self.cpu, self.numa, self.bus = cpu, numa, bus

    @link()
    def subsystem(self) -> Entry | None:
        """To `sys/bus/cpu`."""
        return self.bus
