# SPDX-License-Identifier: Apache-2.0
"""Virtual functions that their host driver keeps for vGPUs (devmodel.lifecycle.vendor): what VFIO adds to
them, and what their types add.  Trio thread; the device lane makes entries too (vfsfuse.kernfs.bundle)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from devmodel.lifecycle.spec import TypeSpec
from devmodel.lifecycle.vendor import VendorVgpu
from vfsfuse.kernfs.bundle import Bundle, Part, Plan
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.model import directory_class
from vfsfuse.sysfs.nvidia import VGPU_DIR, VendorVgpuDir
from vfsfuse.views.additions import Additions
from vfsfuse.views.nodes import VfioNodes


class _Typed(NamedTuple):
    """A vGPU with the type that it has."""

    name: str
    vgpu: VendorVgpu
    type: TypeSpec


class VendorViews:
    """The vGPUs of a lab whose GPUs have this framework.

    The file of a vGPU in dev/vfio/devices is a bundle of its own.  Each change of the type gives it another
    inode, because the kernel lets no two opens of one have different memory.
    """

    def __init__(self, view: View, tree: Tree, nodes: VfioNodes) -> None:
        self._tree, self._nodes = tree, nodes
        self._device_plan, self._cdev_plan = Plan(*nodes.of_device), Plan(*nodes.of_cdev)
        own = Part(lambda typed: view.directory(typed.vgpu), lambda typed: VGPU_DIR, _make, directory=True)
        self._type_plan = Plan(own)
        self._files: dict[VendorVgpu, Bundle] = {}
        self._typed: dict[VendorVgpu, Bundle] = {}

    def show(self, vgpu: VendorVgpu, added: Additions) -> None:
        """The host driver keeps a virtual function from now on.  Its group is shown already."""
        self._nodes.open_port(vgpu)
        added.undo.callback(self._nodes.close_port, vgpu)
        added.show(Bundle(vgpu, self._device_plan))
        file = self._files[vgpu] = Bundle(vgpu, self._cdev_plan)
        added.undo.callback(self._files.pop, vgpu)
        added.show(file)
        added.undo.callback(self._hide_type, vgpu)

    def retyped(self, vgpu: VendorVgpu) -> None:
        """The vGPU has another model: who opens it from now on gets that."""
        self._hide_type(vgpu)
        self._nodes.renew_port(vgpu, partial(self._tree.renumber, self._files[vgpu]))
        if vgpu.type is not None:
            bundle = Bundle(_Typed(vgpu.name, vgpu, vgpu.type), self._type_plan)
            self._tree.show(bundle)
            self._typed[vgpu] = bundle

    def _hide_type(self, vgpu: VendorVgpu) -> None:
        bundle = self._typed.pop(vgpu, None)
        if bundle is not None:
            self._tree.withdraw(bundle)


def _make(bundle: Bundle) -> VendorVgpuDir:
    typed: _Typed = bundle.device
    return directory_class(VendorVgpuDir, typed.vgpu.model or typed.type.model)(typed.vgpu)
