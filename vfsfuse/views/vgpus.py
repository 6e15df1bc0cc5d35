# SPDX-License-Identifier: Apache-2.0
"""vGPUs in the tree, what their driver adds to them, and the types that their parents offer.  Trio thread."""

from __future__ import annotations

from contextlib import ExitStack

from devmodel.lifecycle.mdev import Mdev, MdevType, Parent
from vfsfuse.kernfs.bundle import Bundle, Part, Plan, symlink_part
from vfsfuse.kernfs.kobject import Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.mdev import MdevDir, TypeDir
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.parent import ParentDir, VirtualParentDir
from vfsfuse.views.additions import Additions
from vfsfuse.views.nodes import VFIO_DEV, VfioNodes


class VgpuViews:
    """The directories of vGPUs, types and virtual parents.  `vendor` is the name of a directory in the class
    vgpu."""

    def __init__(self, view: View, tree: Tree, nodes: VfioNodes, vendor: str) -> None:
        self._view, self._tree, self._nodes = view, tree, nodes
        self._parents: dict[Parent, Kobject] = {}
        self._types: dict[MdevType, TypeDir] = {}
        self._shown: dict[Mdev, Bundle] = {}
        self._bound: dict[Mdev, Bundle] = {}
        self._own = Part(lambda mdev: self._parents[mdev.parent], _name, self._make_own, directory=True)
        vendor_dir = self._vendor_dir(vendor)
        vfio_mdev = view.subsystems.vfio_mdev
        if vfio_mdev is not None:  # without the driver there is no vGPU to show
            self._plan = self._make_plan(vendor_dir)
            driver_link = symlink_part(vfio_mdev, _name, self.directory)
            self._bound_plan = Plan(*nodes.of_fake_group, driver_link, *nodes.of_vfio_group, *nodes.of_vfio)

    def directory(self, mdev: Mdev) -> Kobject:
        """The directory of a vGPU that is shown.  Any thread.  Raises LookupError when it is not."""
        return self._shown[mdev].kobject_of(self._own)

    def type_dir(self, type_: MdevType) -> TypeDir | None:
        """The type's directory, while its parent has its host driver."""
        return self._types.get(type_)

    def add_virtual(self, parent: Parent) -> None:
        """Add a parent that is no PCI function, for as long as the lab lives."""
        driver = parent.spec.driver
        directory = VirtualParentDir(self._view, parent)
        self._tree.add(self._tree.make(f"sys/devices/virtual/{driver}"), directory)
        self._tree.add(self._view.subsystems.classes[driver], Symlink(parent.name, directory))
        self.add_parent(parent, directory)
        self.show_types(parent, directory, Additions(self._tree, ExitStack()))

    def add_parent(self, parent: Parent, directory: ParentDir) -> None:
        """Show the vGPUs of `parent` in `directory` from now on."""
        self._parents[parent] = directory

    def remove_parent(self, parent: Parent) -> None:
        """The opposite of `add_parent`."""
        del self._parents[parent]

    def show_types(self, parent: Parent, directory: Kobject, added: Additions) -> None:
        """Show the types that the host driver of `parent` offers."""
        added.add(self._tree.make("sys/class/mdev_bus"), Symlink(parent.name, directory))
        types = added.add(directory, Kobject("mdev_supported_types"))
        for type_ in parent.types.values():
            own = self._types[type_] = added.add(types, TypeDir(self._view.lab, type_))
            added.undo.callback(self._types.pop, type_)
            own.devices = added.add(own, Kobject("devices"))

    def added(self, mdev: Mdev) -> None:
        """The lab's observer."""
        with ExitStack() as undo:
            self._nodes.open_port(mdev)
            undo.callback(self._nodes.close_port, mdev)
            bundle = self._shown[mdev] = Bundle(mdev, self._plan)
            undo.callback(self._shown.pop, mdev)
            self._tree.show(bundle)
            undo.callback(self._tree.withdraw, bundle)
            if mdev.bound:
                self._show_bound(mdev)
            undo.pop_all()

    def removed(self, mdev: Mdev) -> None:
        """The lab's observer."""
        if mdev in self._bound:
            self._hide_bound(mdev)
        self._tree.withdraw(self._shown[mdev])
        del self._shown[mdev]
        self._nodes.close_port(mdev)

    def renewed(self, mdev: Mdev) -> None:
        """The vGPU has another model."""
        self._tree.renew(self.directory(mdev))

    def mdev_bound(self, mdev: Mdev) -> None:
        """The lab's observer."""
        self._show_bound(mdev)

    def mdev_unbound(self, mdev: Mdev) -> None:
        """The lab's observer."""
        self._hide_bound(mdev)
        self._tree.driver_left(self.directory(mdev))

    def _show_bound(self, mdev: Mdev) -> None:
        bundle = Bundle(mdev, self._bound_plan)
        self._tree.show(bundle)
        self._bound[mdev] = bundle

    def _hide_bound(self, mdev: Mdev) -> None:
        self._tree.withdraw(self._bound[mdev])
        del self._bound[mdev]

    def _vendor_dir(self, vendor: str) -> Kobject:
        """What sys/class/vgpu/<vendor> points at.

        libudev takes each directory in a class for a device, and each link unless it leads to a directory
        without `uevent` in sys/devices.
        """
        directory = self._tree.make(f"sys/devices/virtual/vgpu/{vendor}")
        self._tree.add(self._tree.make("sys/class/vgpu"), Symlink(vendor, directory))
        return directory

    def _make_plan(self, vendor_class: Kobject) -> Plan:
        """All entries of a vGPU, except those that its driver adds."""
        tree, own = self._tree, self._own
        return Plan(
            own,
            symlink_part(lambda mdev: self._types[mdev.type].devices, _name, own),
            symlink_part(tree.make("sys/bus/mdev/devices"), _name, own),
            symlink_part(vendor_class, lambda mdev: f"vgpu{mdev.minor}", own),
        )

    def _make_own(self, bundle: Bundle) -> MdevDir:
        mdev: Mdev = bundle.device
        own = directory_class(MdevDir, mdev.model)(self._view, mdev)
        bound = self._bound.get(mdev)
        if bound is not None:
            own.children, own.subdirs = {VFIO_DEV: bound}, 1
        return own


def _name(mdev: Mdev) -> str:
    return mdev.name
