# SPDX-License-Identifier: Apache-2.0
"""Attributes that device models declare (devmodel.device.attribute), as members of their directories."""

from __future__ import annotations

from typing import Any, TypeVar

from devmodel.device.attribute import DeviceAttribute
from devmodel.device.pci import PciDevice
from vfsfuse.kernfs.kobject import Attribute, Kobject, attribute

D = TypeVar("D", bound=Kobject)


def directory_class(base: type[D], model: type[PciDevice]) -> type[D]:
    """`base`, a class of directories of devices, with the attributes that `model` declares.

    Raises TypeError for a name that `base` has already.
    """
    if not model.ATTRIBUTES:
        return base
    if (base, model) not in _classes:
        _classes[base, model] = _made(base, model)
    made: type[D] = _classes[base, model]
    return made


_classes: dict[tuple[type[Any], type[PciDevice]], type[Any]] = {}
"""Made once for each model; trio thread only."""


def _made(base: type[Any], model: type[PciDevice]) -> type[Any]:
    declared = tuple(_member(each) for each in model.ATTRIBUTES)
    taken = [member.name for member in declared if member.name in base.by_name]
    if taken:
        raise TypeError(f"{model.__name__} declares {taken[0]!r}, which every device has")
    return type(base.__name__, (base,), {"__slots__": (), "declared": declared})


def _member(declared: DeviceAttribute) -> Attribute:
    def show(self: Any) -> object:
        return declared.show(self.assignable.device)

    def store(self: Any, text: str) -> None:
        if declared.store is not None:
            declared.store(self.assignable.device, text)

    def present(self: Any) -> bool:
        return declared.when is None or declared.when(self.options)

    made = attribute(0o644 if declared.store else 0o444, declared.name, present)(show)
    made.prompt = False  # a model's show() runs on the trio thread, and may take its time
    return made.store(store) if declared.store else made
