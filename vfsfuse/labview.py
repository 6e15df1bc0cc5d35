# SPDX-License-Identifier: Apache-2.0
"""The lab as a tree: builds the directories of its devices and keeps every link to them while they live.

Owner is the trio thread (it is the lab's Observer); `open` and `offer` are called from the device lane.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from devmodel.backing import REGION_SHIFT
from devmodel.binding import VFIO_PCI, function_of
from devmodel.device import PciRegion
from devmodel.eventfd import Watcher
from devmodel.lab import Lab, LabSpec, Mdev, MdevType, Parent
from devmodel.vfio import Assignable, Group
from devmodel.vfio import DeviceFile as Hold
from ioctl_shim.lane import Lane, LaneFile, Opened, OpenRequest
from vfsfuse.kobject import BinaryMember, DeviceNode, Entry, Kobject, Symlink
from vfsfuse.sysfs.drivers import PciDriver
from vfsfuse.sysfs.mdev import IommuGroupDir, MdevDir, TypeDir, VfioDevDir
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.parent import HOST_MEMBERS, ParentDir, PciFunctionDir, VirtualParentDir
from vfsfuse.sysfs.skeleton import SKELETON, Skeleton
from vfsfuse.tree import Tree
from vfsfuse.vfio.container import ContainerFile
from vfsfuse.vfio.device import open_device
from vfsfuse.vfio.group import GroupFile
from vfsfuse.vfio.handover import CONTROL, Handover
from vfsfuse.vfio.opened import Services
from vfsfuse.vfio.port import Port

K = TypeVar("K", bound=Entry)
Opener = Callable[[OpenRequest], Opened]
DEVICE_SIZE = PciRegion.COUNT << REGION_SHIFT
"""st_size of a device file.  A character device has none, but this is a regular file, and Python's mmap
refuses to map a regular one beyond its end."""


class VfioNodesDir(Kobject):
    """dev/vfio, with the unlisted files of vfsfuse.vfio.handover."""

    __slots__ = ("unlisted",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.unlisted: dict[str, int] = {}

    def hidden(self, name: str) -> int:
        try:
            return self.unlisted[name]
        except KeyError:
            raise OSError(errno.ENOENT, name) from None


@dataclass(slots=True)
class Places:
    """Directories that others point at."""

    mdev_bus: Kobject
    vfio_mdev: Kobject
    pci_bus: Kobject
    pci_drivers: dict[str, Kobject] = field(default_factory=dict)
    classes: dict[str, Kobject] = field(default_factory=dict)


@dataclass(slots=True)
class Putter:
    """Adds entries to the tree, and to `undo` what takes them away again, last first."""

    tree: Tree
    undo: ExitStack

    def __call__(self, parent: Kobject, child: K) -> K:
        self.tree.add(parent, child)
        self.undo.callback(self.tree.remove, child)
        return child


class LabView:
    """The tree of one lab.  `lane` and `device` (st_dev) are set by `mounted`."""

    def __init__(self, spec: LabSpec, tree: Tree) -> None:
        self.spec, self.tree = spec, tree
        self.lab = Lab(spec, self)
        self._lane: Lane | None = None
        self._st_dev = -1
        self.services = Services(self.find_file, Watcher())
        self._group_files: dict[int, Group] = {}
        self._groups: dict[int, IommuGroupDir] = {}
        self._types: dict[MdevType, TypeDir] = {}
        self._parents: dict[Parent, ParentDir] = {}
        self._ports: dict[Assignable, Port] = {}
        self._views: dict[Mdev, ExitStack] = {}
        self._drivers: dict[Parent, ExitStack] = {}
        self._grow(tree.root, SKELETON)
        self.places = Places(
            mdev_bus=tree.make("sys/bus/mdev"),
            vfio_mdev=tree.make("sys/bus/mdev/drivers/vfio_mdev"),
            pci_bus=tree.make("sys/bus/pci"),
        )
        for path in ("devices", "drivers", "slots"):
            tree.make(f"sys/bus/pci/{path}")
        tree.make(f"sys/class/vgpu/{spec.vendor}")
        self._vfio, self._cdevs = VfioNodesDir("vfio"), Kobject("devices")
        self._grow_dev()
        for parent in self.lab.parents.values():
            self._add_parent(parent)
        tree.take_changes()

    def mounted(self, lane: Lane, st_dev: int) -> None:
        """The mount is up, and its files have this st_dev."""
        self._lane, self._st_dev = lane, st_dev

    def owned_by(self, uid: int) -> bool:
        """Whether `uid` mounted the lab, or is root."""
        return uid in (0, os.geteuid())

    def group_dir(self, group: Group) -> Entry | None:
        return self._groups.get(group.number)

    def type_dir(self, type_: MdevType) -> Entry | None:
        return self._types.get(type_)

    def close(self) -> None:
        """The end of the mount."""
        self.lab.close()
        self.services.watcher.close()

    # ---- device lane ----

    def open(self, request: OpenRequest) -> Opened:
        """Open a device inode.  Raises OSError as open(2) does.  Device lane."""
        entry, member = self.tree.locate(request.nodeid)
        if isinstance(member, BinaryMember):
            return member.open(entry, request)
        if isinstance(entry, DeviceNode):
            return entry.opener(request)
        raise OSError(errno.EIO, "not a device file")

    def find_file(self, fd: int) -> LaneFile | None:
        """The open file of ours behind our descriptor `fd`, None for a stranger's.  Device lane's worker."""
        if self._lane is None or os.fstat(fd).st_dev != self._st_dev:
            return None
        return self._lane.file_of(fd)

    def _show_once(self, name: str, take: Callable[[], Hold], released: Callable[[], None]) -> None:
        """Make an unlisted file in dev/vfio that opens what `take` gives, once.  Device lane."""

        def opener(request: OpenRequest) -> Opened:
            if self._vfio.unlisted.pop(name, None) is None:
                raise OSError(errno.ENXIO, "opened already")
            hold = take()
            try:
                return open_device(hold, self._ports[hold.assignable], self.services, forget)
            except BaseException:
                forget()
                raise

        def forget() -> None:
            released()
            self.tree.forget(node)

        node = self._device_node(name, opener)
        self.tree.adopt(node)
        self._vfio.unlisted[name] = node.inode

    # ---- the lab's Observer: trio thread ----

    def added(self, mdev: Mdev) -> None:
        with ExitStack() as undo:
            self._show(mdev, undo)
            self._views[mdev] = undo.pop_all()

    def removed(self, mdev: Mdev) -> None:
        self._views.pop(mdev).close()

    def changed(self, mdev: Mdev) -> None:
        """Attributes are not cached: nothing to drop."""

    def _show(self, mdev: Mdev, undo: ExitStack) -> None:
        """Everything by which a vGPU is seen; `undo` takes it away again, last first."""

        put, tree, name = Putter(self.tree, undo), self.tree, mdev.name
        directory = directory_class(MdevDir, mdev.type.spec.model)
        own = put(self._parents[mdev.parent], directory(self, mdev))
        undo.callback(own.port.close)
        self._ports[mdev] = own.port
        undo.callback(self._ports.pop, mdev)
        self._show_group(mdev, own, put)
        put(self._types[mdev.type].devices, Symlink(name, own))
        for path, link in (
            ("sys/bus/mdev/devices", name),
            ("sys/bus/mdev/drivers/vfio_mdev", name),
            (f"sys/class/vgpu/{self.spec.vendor}", f"vgpu{mdev.minor}"),
        ):
            put(tree.make(path), Symlink(link, own))
        self._show_vfio(mdev, mdev.vfio_minor, own, own.port, put)

    def _show_group(self, device: Assignable, own: Kobject, put: Putter) -> None:
        """The IOMMU group of a device, which is alone in it."""
        group = device.group
        directory = put(self.tree.make("sys/kernel/iommu_groups"), IommuGroupDir(group))
        self._groups[group.number] = directory
        put.undo.callback(self._groups.pop, group.number)
        put(put(directory, Kobject("devices")), Symlink(device.name, own))

    def _show_vfio(self, device: Assignable, minor: int, own: Kobject, port: Port, put: Putter) -> None:
        """What makes a device one of VFIO's: its group's file, and its own."""
        tree, group = self.tree, device.group
        vfio_dev = put(put(own, Kobject("vfio-dev")), VfioDevDir(minor))
        put(tree.make("sys/class/vfio-dev"), Symlink(vfio_dev.name, vfio_dev))
        name = f"{'noiommu-' if group.noiommu else ''}{group.number}"
        node = put(self._vfio, self._node(name, GroupFile.opener(group, self.find_file)))
        self._group_files[node.inode] = group
        put.undo.callback(self._group_files.pop, node.inode)
        put(
            self._cdevs,
            self._device_node(vfio_dev.name, lambda request: open_device(Hold(device), port, self.services)),
        )

    # ---- building ----

    def _grow(self, directory: Kobject, skeleton: Skeleton) -> None:
        for name, what in skeleton.items():
            child = what(name, self.lab) if callable(what) else Kobject(name)
            self.tree.add(directory, child)
            if isinstance(what, Mapping):
                self._grow(child, what)

    def _grow_dev(self) -> None:
        dev = self.tree.make("dev")
        self.tree.add(dev, self._vfio)
        self.tree.add(self._vfio, self._cdevs)
        container = ContainerFile.opener(lambda: self.lab.vfio.noiommu, lambda: self._st_dev)
        self.tree.add(self._vfio, self._node("vfio", container, 0o666))
        control = self._node(CONTROL, Handover(self._group_files.get, self._show_once).open)
        self.tree.adopt(control)
        self._vfio.unlisted[CONTROL] = control.inode

    def _device_node(self, name: str, opener: Opener) -> DeviceNode:
        node = self._node(name, opener)
        node.size = DEVICE_SIZE
        return node

    def _node(self, name: str, opener: Opener, mode: int | None = None) -> DeviceNode:
        node = DeviceNode(name, self.spec.device_mode if mode is None else mode, opener)
        node.uid, node.gid = self.spec.device_uid, self.spec.device_gid
        return node

    def _add_parent(self, parent: Parent) -> None:
        spec = parent.spec
        self.places.classes[spec.driver] = self.tree.make(f"sys/class/{spec.driver}")
        self.tree.make(f"sys/module/{spec.driver}")
        self._parents[parent] = self._physical(parent) if parent.function else self._virtual(parent)
        self.bound(parent)

    def _virtual(self, parent: Parent) -> ParentDir:
        above = self.tree.make(f"sys/devices/virtual/{parent.spec.driver}")
        directory = self.tree.add(above, VirtualParentDir(self, parent))
        self.tree.add(self.places.classes[parent.spec.driver], Symlink(parent.name, directory))
        return directory

    def _physical(self, parent: Parent) -> ParentDir:
        tree, function = self.tree, function_of(parent)
        root = tree.make(f"sys/devices/pci{parent.name.rsplit(':', 1)[0]}")
        directory = tree.add(root, PciFunctionDir(self, parent, function.device))
        self._ports[function] = directory.port
        tree.add(tree.make("sys/bus/pci/devices"), Symlink(parent.name, directory))
        if not function.group.noiommu:
            self._show_group(function, directory, Putter(tree, ExitStack()))  # for as long as the lab lives
        for driver in {parent.spec.driver, VFIO_PCI} - self.places.pci_drivers.keys():
            made = tree.add(tree.make("sys/bus/pci/drivers"), PciDriver(driver, self.lab))
            self.places.pci_drivers[driver] = made
        return directory

    # ---- what a parent's driver shows: the lab's Observer, trio thread ----

    def bound(self, parent: Parent) -> None:
        with ExitStack() as undo:
            put = Putter(self.tree, undo)
            directory = self._parents[parent]
            driver = parent.function.driver if parent.function else parent.spec.driver
            if driver == VFIO_PCI:
                self._show_vfio_pci(parent, directory, put)
            else:
                self._show_types(parent, directory, put)
            if isinstance(directory, PciFunctionDir):
                put(self.places.pci_drivers[driver or ""], Symlink(parent.name, directory))
                self._present_again(directory)
            self._drivers[parent] = undo.pop_all()

    def unbound(self, parent: Parent) -> None:
        self._drivers.pop(parent).close()
        self._present_again(self._parents[parent])

    def _present_again(self, directory: ParentDir) -> None:
        """Members that come and go with the driver: let the kernel ask again."""
        for name in (*HOST_MEMBERS, "driver", "iommu_group"):
            self.tree.hide(directory, name)

    def _show_types(self, parent: Parent, directory: ParentDir, put: Putter) -> None:
        put(self.tree.make("sys/class/mdev_bus"), Symlink(parent.name, directory))
        types = put(directory, Kobject("mdev_supported_types"))
        for type_ in parent.types.values():
            own = self._types[type_] = put(types, TypeDir(self.lab, type_))
            put.undo.callback(self._types.pop, type_)
            own.devices = put(own, Kobject("devices"))

    def _show_vfio_pci(self, parent: Parent, directory: ParentDir, put: Putter) -> None:
        function = function_of(parent)
        if function.group.noiommu:  # vfio itself makes the group, when it takes the function
            self._show_group(function, directory, put)
        self._show_vfio(function, function.vfio_minor or 0, directory, self._ports[function], put)
