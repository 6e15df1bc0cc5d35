# SPDX-License-Identifier: Apache-2.0
"""A lab as a tree: puts together the views of its devices (vfsfuse.views).

Owner is the trio thread, on which it is the lab's Observer.  The device lane calls `find_file`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from devmodel.calls.point import CallPoint
from devmodel.irq.eventfd import Watcher
from devmodel.lifecycle.bridge import PCIEPORT
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.initial import populate
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev, MdevType
from devmodel.lifecycle.physical import PhysicalFunction, PhysicalParent, VirtualFunction
from devmodel.lifecycle.spec import Framework, LabSpec
from devmodel.lifecycle.vendor import VendorVgpu
from devmodel.vfio.group import Assignable, Group
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.client import Caller
from ioctl_shim.lane import Lane, LaneFile
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.streams import stream_node
from vfsfuse.kernfs.tree import Tree
from vfsfuse.kernfs.waiting import StoreRunner
from vfsfuse.observe.counters import counters_node
from vfsfuse.observe.logfile import log_node
from vfsfuse.observe.mappings import Mappings
from vfsfuse.observe.tracefile import TraceReaders
from vfsfuse.observe.tracer import Tracer
from vfsfuse.sysfs.drivers import MdevBusDir, MdevDriverDir
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.lab import Subsystems
from vfsfuse.sysfs.numa import numa_of
from vfsfuse.sysfs.skeleton import SKELETON, Skeleton
from vfsfuse.vfio.fops import Services
from vfsfuse.vfio.port import Port
from vfsfuse.views.announcer import Announcer
from vfsfuse.views.functions import FunctionViews
from vfsfuse.views.machine import show_machine
from vfsfuse.views.mappedfiles import TreeFiles
from vfsfuse.views.models import check_models, lab_flags
from vfsfuse.views.modules import ModuleViews
from vfsfuse.views.nodes import VfioNodes
from vfsfuse.views.offers import OfferedFiles
from vfsfuse.views.openings import Openings
from vfsfuse.views.runfile import add_run_file
from vfsfuse.views.vgpus import VgpuViews


class LabView:
    """The tree of one lab; the directories in it know it as vfsfuse.sysfs.lab.View."""

    def __init__(self, spec: LabSpec, tree: Tree, calls: CallPoint) -> None:
        """Raises ValueError for models that cannot be made, or shown."""
        check_models(spec)
        self.spec, self.tree = spec, tree
        self.lab = Lab(spec, self, calls)
        self._lane: Lane | None = None
        self._st_dev = -1
        self.stores = StoreRunner(self.lab.tasks, tree.locate)
        self.openings = Openings(tree, self.stores, calls)
        offer = OfferedFiles(tree).offer
        self.services = Services(self.find_file, Watcher(), calls, CallThreads(), offer, spec.cdevs)
        self._announcer = Announcer(tree.root.uevents, spec)
        self.numa = numa_of(spec.nodes)
        self._grow(tree.root, SKELETON)
        if spec.nodes:
            show_machine(tree, self.lab, spec.nodes, self.numa)
        tree.add(tree.root, stream_node("uevents", 0o444, tree.root.uevents.listen))
        tree.add(tree.root, log_node())
        self.trace = TraceReaders(
            Tracer(calls, Mappings(TreeFiles(tree, self.lab.lock, lambda: self._st_dev)))
        )
        tree.add(tree.root, self.trace.node())
        tree.add(tree.root, counters_node(calls, self.services.threads))
        self.flags = lab_flags(spec)
        """What a run has to know of the lab: what it has or had, since devices may keep their code."""
        add_run_file(tree, lambda: self.flags)
        if "vfsfuse.replay" in sys.modules:  # few labs need it, and then their lab file has loaded it
            from vfsfuse.views.replays import add_replays

            add_replays(tree, spec, calls)
        self.modules = ModuleViews(tree, self.lab)
        self.subsystems = Subsystems(tree.make("sys/bus/pci"))
        if spec.mdev:
            self._add_mdev_bus()
        self.nodes = VfioNodes(spec, tree, self.services, self.directory)
        self.nodes.add_misc(self.lab.vfio, lambda: self._st_dev)
        self.vgpus = VgpuViews(self, tree, self.nodes, spec.vendor)
        self.functions = FunctionViews(self, tree, self.nodes, self.vgpus, self.modules)
        self.lab.vendor.retyped = self.functions.vendor.retyped
        self._load_drivers()
        for bridge in self.lab.ports.values():
            self._add_function(bridge)
        for function in self.lab.drivers.functions.values():
            if isinstance(function, PhysicalFunction):
                self._add_function(function)
        for parent in self.lab.parents.values():
            if not isinstance(parent, PhysicalParent):
                self.vgpus.add_virtual(parent)
        populate(self.lab)
        tree.take_changes()
        tree.root.uevents.take()  # of what is there from the start: nobody can have listened

    def mounted(self, lane: Lane, st_dev: int) -> None:
        """The mount is there: `lane` serves it, and its files have this st_dev."""
        self._lane, self._st_dev = lane, st_dev

    def close(self) -> None:
        """The end of the mount."""
        self.trace.close()
        self.lab.close()
        self.services.watcher.close()

    # ---- vfsfuse.sysfs.lab.View ----

    def owned_by(self, uid: int) -> bool:
        return uid in (0, os.geteuid())

    def directory(self, device: Assignable) -> Kobject:
        if isinstance(device, Mdev):
            return self.vgpus.directory(device)
        if isinstance(device, VendorVgpu):
            return self.functions.directory(device.function)
        if isinstance(device, PciFunction):
            return self.functions.directory(device)
        raise LookupError(device.name)

    def group_dir(self, group: Group) -> Entry | None:
        return self.nodes.group_dir(group)

    def iommu_dir(self, function: PciFunction) -> Entry | None:
        return self.functions.iommus.unit_dir(function)

    def net_dir(self, function: PciFunction) -> Kobject | None:
        return self.functions.net.directory(function)

    def msi_dir(self, directory: PciFunctionDir) -> Kobject:
        return self.functions.msi_dir(directory)

    def type_dir(self, type_: MdevType) -> Entry | None:
        return self.vgpus.type_dir(type_)

    def module_dir(self, name: str) -> Entry | None:
        return self.modules.find(name)

    def port(self, device: Assignable) -> Port:
        return self.nodes.port(device)

    # ---- device lane ----

    def find_file(self, caller: Caller, fd: int) -> LaneFile | None:
        """The open file of this mount behind a client's descriptor `fd`, None for any other file.  Any thread
        but a pump, which answers the question.  Raises OSError(EBADF)."""
        with caller.borrowed_of(fd, self._st_dev) as copy:
            return None if copy is None or self._lane is None else self._lane.file_of(copy)

    # ---- the lab's Observer: trio thread ----

    def added(self, mdev: Mdev) -> None:
        self.vgpus.added(mdev)
        own = self.vgpus.directory(mdev)
        self._announcer.added(own)
        if mdev.bound:
            self._announcer.bound(own, mdev, mdev.vfio_minor)

    def removed(self, mdev: Mdev) -> None:
        own = self.vgpus.directory(mdev)
        self.vgpus.removed(mdev)
        if mdev.bound:
            self._announcer.unbound(own, mdev, mdev.vfio_minor)
        self._announcer.removed(own)

    def changed(self, mdev: Mdev) -> None:
        """Nothing to drop: the kernel does not cache attributes."""
        self._announcer.changed(self.vgpus.directory(mdev), "online" if mdev.online else "offline")

    def renewed(self, device: Assignable, change: Callable[[], None]) -> None:
        if isinstance(device, VendorVgpu):
            change()
            self.functions.vendor.retyped(device)
            return

        def renew() -> None:
            change()
            if isinstance(device, Mdev):
                self.vgpus.renewed(device)
            elif isinstance(device, PciFunction):
                self.functions.renewed(device)

        self.nodes.renew_port(device, renew)

    def mdev_bound(self, mdev: Mdev) -> None:
        self.vgpus.mdev_bound(mdev)
        self._announcer.bound(self.vgpus.directory(mdev), mdev, mdev.vfio_minor)

    def mdev_unbound(self, mdev: Mdev) -> None:
        self.vgpus.mdev_unbound(mdev)
        self._announcer.unbound(self.vgpus.directory(mdev), mdev, mdev.vfio_minor)

    def function_added(self, function: PciFunction) -> None:
        self.functions.function_added(function)
        own = self.functions.directory(function)
        self._announcer.added(own)
        if isinstance(function, VirtualFunction):
            self._announcer.changed(own, "change")  # it has its link `physfn` now
        below = self.functions.bus_below(function)
        if below is not None:
            self._announcer.added(below)

    def function_removed(self, function: PciFunction) -> None:
        own, below = self.functions.directory(function), self.functions.bus_below(function)
        self.functions.function_removed(function)
        if below is not None:
            self._announcer.removed(below)
        self._announcer.removed(own)
        self.functions.drop_empty_buses()

    def recovering(self, function: PciFunction, event: str) -> None:
        self._announcer.recovering(self.functions.directory(function), event)

    def vfs_enabled(self, function: PhysicalFunction) -> None:
        self._announcer.changed(self.functions.directory(function), "change")

    def bound(self, function: PciFunction) -> None:
        self.functions.bound(function)
        own = self.functions.directory(function)
        if function.vfio_minor is None and _is_parent(function):
            self._announcer.offers_types(own)
        for interface in self.functions.net.of(function):
            self._announcer.added(interface)
        first = function.group.noiommu or self.nodes.groups.drivers(function.group) == 1
        self._announcer.bound(own, function, function.vfio_minor, first)
        if function.driver == PCIEPORT:
            self.lab.cards.port_bound(function)

    def unbound(self, function: PciFunction) -> None:
        own, interfaces = self.functions.directory(function), self.functions.net.of(function)
        self.functions.unbound(function)
        if function.vfio_minor is None and _is_parent(function):
            self._announcer.withdraws_types(own, function.host_driver or "")
        for interface in interfaces:
            self._announcer.removed(interface)
        last = not self.nodes.groups.drivers(function.group)
        self._announcer.unbound(own, function, function.vfio_minor, last)

    # ---- building ----

    def _grow(self, directory: Kobject, skeleton: Skeleton) -> None:
        for name, what in skeleton.items():
            child = what(name, self.lab) if callable(what) else Kobject(name)
            self.tree.add(directory, child)
            if isinstance(what, Mapping):
                self._grow(child, what)

    def _add_mdev_bus(self) -> None:
        """The bus of mediated devices, its only driver, and the class of its parents."""
        bus = self.tree.add(self.tree.make("sys/bus"), MdevBusDir("mdev", self.lab))
        driver = MdevDriverDir("vfio_mdev", self.lab, self.modules.of_driver("vfio_mdev"))
        self.subsystems.mdev_bus = bus
        self.subsystems.vfio_mdev = self.tree.add(self.tree.make("sys/bus/mdev/drivers"), driver)
        self.modules.registered("mdev", driver)
        self.tree.make("sys/bus/mdev/devices")
        self.tree.make("sys/class/mdev_bus")

    def _load_drivers(self) -> None:
        """The host drivers of all functions and parents, also of those that are not plugged in.  That of a
        parent of mediated devices has a class."""
        for driver in dict.fromkeys(driver for spec in self.spec.all_functions for driver in spec.drivers):
            self.modules.host_driver(driver)
            self.functions.make_drivers(driver)
        for parent in self.spec.parents:
            self.modules.host_driver(parent.driver)
            if parent.framework is Framework.MDEV:
                self.subsystems.classes[parent.driver] = self.tree.make(f"sys/class/{parent.driver}")

    def _add_function(self, function: PciFunction) -> None:
        """Show a function that is there from the start, with its driver."""
        self.functions.function_added(function)
        if function.driver is not None:
            self.functions.bound(function)


def _is_parent(function: PciFunction) -> bool:
    """Whether it is a parent of mediated devices."""
    parent = function.parent if isinstance(function, PhysicalFunction) else None
    return parent is not None and parent.spec.framework is Framework.MDEV
