# SPDX-License-Identifier: Apache-2.0
"""Attributes that tell of resources: what a type gives, what a vGPU has and uses, what a parent has left.

Everything here runs on the trio thread.  Sizes are bytes, rates Hz, all in plain decimal digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from devmodel.lifecycle.mdev import Mdev, MdevType, Parent
from devmodel.lifecycle.resources import Share
from vfsfuse.kernfs.kobject import Attribute, attribute


class OfType(Protocol):
    """A type's directory."""

    type: MdevType


class OfMdev(Protocol):
    """A vGPU's directory."""

    mdev: Mdev


class OfParent(Protocol):
    """The directory of a device that vGPUs are made of."""

    parent_device: Parent


def _shown(name: str, get: Callable[[Any], object]) -> Attribute:
    """An attribute that is there while it has a value, which is neither 0 nor None."""
    return attribute(name=name, when=lambda owner: bool(get(owner)))(get)


def _share(share: Callable[[Any], Share]) -> tuple[Attribute, ...]:
    return (
        _shown("vram_size", lambda owner: share(owner).memory),
        _shown("frame_rate", lambda owner: share(owner).options.get("frame_rate")),
        _shown("max_resolution", lambda owner: share(owner).max_resolution),
    )


def _of_type(owner: OfType) -> Share:
    return owner.type.share


def _of_mdev(owner: OfMdev) -> Share:
    return owner.mdev.share


def _instances(owner: OfType) -> int | None:
    return owner.type.spec.instances


def _vram_used(owner: OfMdev) -> int:
    made = owner.mdev.made
    return 0 if made is None else made.backing.allocated


def _pinned_pages(owner: OfMdev) -> int:
    made = owner.mdev.made
    return 0 if made is None else made.dma.pinned_pages


def _dma_faults(owner: OfMdev) -> int:
    made = owner.mdev.made
    return 0 if made is None else made.dma.fault_count


def _has_memory(owner: OfMdev) -> bool:
    return owner.mdev.share.memory > 0


def _total(owner: OfParent) -> int:
    return owner.parent_device.spec.memory


def _free(owner: OfParent) -> int:
    return owner.parent_device.memory_free


def _vgpus(owner: OfParent) -> int:
    return len(owner.parent_device.mdevs)


def _parent_has_memory(owner: OfParent) -> bool:
    return owner.parent_device.spec.memory > 0


TYPE_RESOURCES = (
    *_share(_of_type),
    _shown("weight", lambda owner: owner.type.share.options.get("weight")),
    _shown("max_instances", _instances),
)
"""What each vGPU of a type gets, and how many there may be: present where the type says.  A vGPU's own weight
is an attribute of its model."""
MDEV_RESOURCES = (
    *_share(_of_mdev),
    attribute(name="vram_used", when=_has_memory)(_vram_used),
    attribute(name="pinned_pages")(_pinned_pages),
    attribute(name="dma_faults")(_dma_faults),
)
"""What a vGPU has, and how much of it it uses; looking makes no model and allocates nothing."""
PARENT_RESOURCES = (
    attribute(name="vram_total", when=_parent_has_memory)(_total),
    attribute(name="vram_free", when=_parent_has_memory)(_free),
    attribute(name="vgpus")(_vgpus),
)
"""What a parent shares out and what is left of it."""
