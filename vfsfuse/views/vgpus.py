# SPDX-License-Identifier: Apache-2.0
"""vGPUs in the tree, the types that their parents offer, and what their driver adds to them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from devmodel.lab import Mdev, MdevType, Parent
from vfsfuse.kobject import Kobject, Symlink
from vfsfuse.sysfs.mdev import MdevDir, TypeDir
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.parent import ParentDir, VirtualParentDir
from vfsfuse.views.nodes import VfioNodes
from vfsfuse.views.places import Putter

if TYPE_CHECKING:
    from vfsfuse.labview import LabView

OF_DRIVER = ("driver", "iommu_group")
"""Members of a vGPU's directory that come and go with its driver."""


class VgpuViews:
    """The directories of vGPUs, types and virtual parents."""

    def __init__(self, view: LabView, nodes: VfioNodes) -> None:
        self._view, self._tree, self._nodes = view, view.tree, nodes
        self._parents: dict[Parent, Kobject] = {}
        self._types: dict[MdevType, TypeDir] = {}
        self._directories: dict[Mdev, MdevDir] = {}
        self._shown: dict[Mdev, ExitStack] = {}
        self._bound: dict[Mdev, ExitStack] = {}
        view.tree.make(f"sys/class/vgpu/{view.spec.vendor}")

    def directory(self, mdev: Mdev) -> MdevDir:
        """The directory of a vGPU that is shown."""
        return self._directories[mdev]

    def type_dir(self, type_: MdevType) -> TypeDir | None:
        """The type's directory, while its parent has its host driver."""
        return self._types.get(type_)

    def add_virtual(self, parent: Parent) -> None:
        """A parent that is no PCI function, for as long as the lab lives."""
        driver = parent.spec.driver
        directory = VirtualParentDir(self._view, parent)
        self._tree.add(self._tree.make(f"sys/devices/virtual/{driver}"), directory)
        self._tree.add(self._view.places.classes[driver], Symlink(parent.name, directory))
        self.add_parent(parent, directory)
        self.show_types(parent, directory, Putter(self._tree, ExitStack()))

    def add_parent(self, parent: Parent, directory: ParentDir) -> None:
        """The vGPUs of `parent` are in `directory`."""
        self._parents[parent] = directory

    def show_types(self, parent: Parent, directory: Kobject, put: Putter) -> None:
        """What the host driver of `parent` offers."""
        put(self._tree.make("sys/class/mdev_bus"), Symlink(parent.name, directory))
        types = put(directory, Kobject("mdev_supported_types"))
        for type_ in parent.types.values():
            own = self._types[type_] = put(types, TypeDir(self._view.lab, type_))
            put.undo.callback(self._types.pop, type_)
            own.devices = put(own, Kobject("devices"))

    def added(self, mdev: Mdev) -> None:
        """The lab's observer."""
        with ExitStack() as undo:
            self._show(mdev, Putter(self._tree, undo))
            if mdev.bound:
                self.mdev_bound(mdev)
            self._shown[mdev] = undo.pop_all()

    def removed(self, mdev: Mdev) -> None:
        """The lab's observer."""
        if mdev in self._bound:
            self._bound.pop(mdev).close()
        self._shown.pop(mdev).close()

    def mdev_bound(self, mdev: Mdev) -> None:
        """The lab's observer."""
        own, tree = self._directories[mdev], self._tree
        with ExitStack() as undo:
            put = Putter(tree, undo)
            self._nodes.show_group(mdev, own, put)
            put(self._view.places.vfio_mdev, Symlink(mdev.name, own))
            self._nodes.show_vfio(mdev, mdev.vfio_minor, own, put)
            self._present_again(own)
            self._bound[mdev] = undo.pop_all()

    def mdev_unbound(self, mdev: Mdev) -> None:
        """The lab's observer."""
        self._bound.pop(mdev).close()
        self._present_again(self._directories[mdev])

    def _show(self, mdev: Mdev, put: Putter) -> None:
        """Everything by which a vGPU is seen, but for its driver."""
        tree, name = self._tree, mdev.name
        directory = directory_class(MdevDir, mdev.type.spec.model)
        own = put(self._parents[mdev.parent], directory(self._view, mdev))
        self._directories[mdev] = own
        put.undo.callback(self._directories.pop, mdev)
        self._nodes.show_port(mdev, own.port, put)
        put(self._types[mdev.type].devices, Symlink(name, own))
        put(tree.make("sys/bus/mdev/devices"), Symlink(name, own))
        put(tree.make(f"sys/class/vgpu/{self._view.spec.vendor}"), Symlink(f"vgpu{mdev.minor}", own))

    def _present_again(self, directory: MdevDir) -> None:
        for name in OF_DRIVER:
            self._tree.hide(directory, name)
