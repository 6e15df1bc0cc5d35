# SPDX-License-Identifier: Apache-2.0
"""sys/devices/system/node: the NUMA nodes of a lab that describes its machine.

No state: the lab file says all of it, and no process runs in the memory of these nodes. Source:
Documentation/ABI/stable/sysfs-devices-node, the formats of drivers/base/node.c.
"""

from __future__ import annotations

from collections.abc import Sequence

from devmodel.lifecycle.spec import LOCAL_DISTANCE, REMOTE_DISTANCE, NodeSpec
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import PAGE_SIZE, attribute, link
from vfsfuse.sysfs.cpus import list_line
from vfsfuse.sysfs.numa import Numa
from vfsfuse.sysfs.uevent import BareDeviceDir, DeviceDir

_NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
_MEMINFO = (
    "SwapCached Active Inactive Active(anon) Inactive(anon) Active(file) Inactive(file) Unevictable "
    "Mlocked Dirty Writeback FilePages Mapped AnonPages Shmem KernelStack PageTables SecPageTables "
    "NFS_Unstable Bounce WritebackTmp KReclaimable Slab SReclaimable SUnreclaim AnonHugePages "
    "ShmemHugePages ShmemPmdMapped FileHugePages FilePmdMapped"
)
"""What meminfo counts in KiB behind MemTotal, MemFree and MemUsed."""
_HUGE_PAGES = ("HugePages_Total", "HugePages_Free", "HugePages_Surp")
_VMSTAT = (
    "nr_zone_inactive_anon nr_zone_active_anon nr_zone_inactive_file nr_zone_active_file "
    "nr_zone_unevictable nr_zone_write_pending nr_mlock nr_bounce nr_zspages nr_free_cma numa_hit "
    "numa_miss numa_foreign numa_interleave numa_local numa_other nr_inactive_anon nr_active_anon "
    "nr_inactive_file nr_active_file nr_unevictable nr_slab_reclaimable nr_slab_unreclaimable "
    "nr_isolated_anon nr_isolated_file workingset_nodes workingset_refault_anon workingset_refault_file "
    "workingset_activate_anon workingset_activate_file workingset_restore_anon workingset_restore_file "
    "workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages nr_dirty nr_writeback nr_writeback_temp "
    "nr_shmem nr_shmem_hugepages nr_shmem_pmdmapped nr_file_hugepages nr_file_pmdmapped "
    "nr_anon_transparent_hugepages nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied nr_written "
    "nr_throttled_written nr_kernel_misc_reclaimable nr_foll_pin_acquired nr_foll_pin_released "
    "nr_kernel_stack nr_page_table_pages nr_sec_page_table_pages nr_swapcached"
)
"""What vmstat counts behind nr_free_pages, in pages or events."""


class NodesDir(BareDeviceDir):
    """sys/devices/system/node: the NUMA nodes of the lab's machine, if the lab file describes them."""

    __slots__ = ("specs",)

    def __init__(self, specs: Sequence[NodeSpec]) -> None:
        super().__init__("node")
        self.specs = specs

    @attribute()
    def possible(self) -> str:
        """The nodes that there may be, as a list: those that there are."""
        return list_line([spec.number for spec in self.specs])

    @attribute()
    def online(self) -> str:
        """The nodes that there are, as a list such as `0-1`."""
        return list_line([spec.number for spec in self.specs])

    @attribute()
    def has_cpu(self) -> str:
        """The nodes that have CPUs, as a list."""
        return list_line([spec.number for spec in self.specs if spec.cpus])

    @attribute()
    def has_memory(self) -> str:
        """The nodes that have memory, as a list."""
        return self._with_memory()

    @attribute()
    def has_normal_memory(self) -> str:
        """The nodes that have memory which the kernel can use for itself: all that have memory."""
        return self._with_memory()

    def _with_memory(self) -> str:
        return list_line([spec.number for spec in self.specs if spec.memory])


class NodeDir(DeviceDir):
    """sys/devices/system/node/node<N>: a NUMA node, with a link to each of its CPUs. Its memory is unused:
    no process runs there."""

    __slots__ = ("bus", "numa", "spec", "specs")
    uevent_subsystem = "node"

    def __init__(self, spec: NodeSpec, specs: Sequence[NodeSpec], numa: Numa, bus: Kobject) -> None:
        """`specs` are all nodes."""
        super().__init__(f"node{spec.number}")
        self.spec, self.specs, self.numa, self.bus = spec, specs, numa, bus

    @attribute()
    def cpumap(self) -> str:
        """The CPUs of the node, as a mask in hexadecimal."""
        return self.numa.mask(self.spec.cpus)

    @attribute()
    def cpulist(self) -> str:
        """The same as a list, such as `0-3,8`."""
        return list_line(self.spec.cpus)

    @attribute()
    def distance(self) -> str:
        """The distance to each node in the order of their numbers: the lab file's `distances`, else 10 for
        the node itself and 20 for another."""
        own = self.spec.number
        row = self.spec.distances or [
            LOCAL_DISTANCE if each.number == own else REMOTE_DISTANCE for each in self.specs
        ]
        return " ".join(map(str, row))

    @attribute()
    def meminfo(self) -> str:
        """The memory of the node in KiB, a line each; all of it is free."""
        total = self.spec.memory >> 10
        sizes = {"MemTotal": total, "MemFree": total, "MemUsed": 0, **dict.fromkeys(_MEMINFO.split(), 0)}
        lines = [f"{name + ':':<16}{size:>8} kB" for name, size in sizes.items()]
        lines += [f"{name + ':':<16} {0:>5}" for name in _HUGE_PAGES]
        return "\n".join(f"Node {self.spec.number} {line}" for line in lines)

    @attribute()
    def numastat(self) -> str:
        """How many pages were taken from here and from other nodes, a line each: none."""
        return "\n".join(f"{name} 0" for name in _NUMASTAT)

    @attribute()
    def vmstat(self) -> str:
        """The pages of the node and what was done with them, a line each: all are free."""
        free = f"nr_free_pages {self.spec.memory // PAGE_SIZE}"
        return "\n".join([free, *(f"{name} 0" for name in _VMSTAT.split())])

    @link()
    def subsystem(self) -> Entry | None:
        """To `sys/bus/node`."""
        return self.bus
