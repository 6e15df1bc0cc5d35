# SPDX-License-Identifier: Apache-2.0
"""Attributes of resources: what a type gives, what a vGPU has and uses, and what a parent has left.

Sizes are in bytes and rates in Hz, in decimal digits.  show() is called on the trio thread and on the device
lane; it makes no model and allocates nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from devmodel.device.base import Device
from devmodel.lifecycle.mdev import MdevType, Parent
from devmodel.lifecycle.resources import Resolution, Share
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import attribute


class ShareAttributes(Kobject):
    """What a vGPU has, or what a vGPU of a type gets.  An attribute is present where the type limits it."""

    __slots__ = ()

    @property
    @abstractmethod
    def share(self) -> Share:
        """The share that the attributes show."""

    @attribute(optional=True)
    def vram_size(self) -> int:
        """Bytes of video memory; present where the type has memory."""
        return self.share.memory

    @attribute(optional=True)
    def frame_rate(self) -> int | None:
        """The refresh rate of the monitor in Hz; present where the model has one."""
        return self.share.options.get("frame_rate")

    @attribute(optional=True)
    def max_resolution(self) -> Resolution | None:
        """The largest picture, `<width>x<height>`; present where the type limits it."""
        return self.share.max_resolution


class TypeResources(ShareAttributes):
    """What each vGPU of a type gets, and how many there may be.

    A vGPU has no `weight` here: its own one is an attribute of its model.
    """

    __slots__ = ()
    type: MdevType

    @attribute(optional=True)
    def weight(self) -> int | None:
        """The share of the engine that each vGPU gets; present where the model has an engine."""
        return self.share.options.get("weight")

    @attribute(optional=True)
    def max_instances(self) -> int | None:
        """The largest number of vGPUs of the type; present where the lab file limits it."""
        return self.type.spec.instances


class SharedDevice(Protocol):
    """A vGPU: what it has, and its model, None if nothing has used it yet."""

    @property
    def share(self) -> Share: ...
    @property
    def made(self) -> Device | None: ...


class VgpuResources(ShareAttributes):
    """What a vGPU has, and how much of it the vGPU uses."""

    __slots__ = ()

    @property
    @abstractmethod
    def vgpu(self) -> SharedDevice:
        """The vGPU."""

    @attribute(when=lambda self: self.vgpu.share.memory > 0)
    def vram_used(self) -> int:
        """Bytes of video memory that were touched; present where the type has memory."""
        made = self.vgpu.made
        return 0 if made is None else made.backing.allocated

    @attribute()
    def pinned_pages(self) -> int:
        """The number of pages of the client that the vGPU holds pinned."""
        made = self.vgpu.made
        return 0 if made is None else made.dma.pinned_pages

    @attribute()
    def dma_faults(self) -> int:
        """The number of DMA accesses that failed."""
        made = self.vgpu.made
        return 0 if made is None else made.dma.fault_count


def _has_memory(self: ParentResources) -> bool:
    return self.parent_device.spec.memory > 0


class ParentResources(Kobject):
    """What a parent shares out among its vGPUs, and what is left of it."""

    __slots__ = ()
    parent_device: Parent

    @attribute(when=_has_memory)
    def vram_total(self) -> int:
        """Bytes of video memory that vGPUs share; present where the parent has memory."""
        return self.parent_device.spec.memory

    @attribute(when=_has_memory)
    def vram_free(self) -> int:
        """Bytes of video memory that are left; present where the parent has memory."""
        return self.parent_device.memory_free

    @attribute()
    def vgpus(self) -> int:
        """The number of vGPUs."""
        return self.parent_device.vgpus
