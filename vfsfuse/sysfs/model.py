# SPDX-License-Identifier: Apache-2.0
"""The attributes that a device model declares (devmodel.device.attribute), as members of its directories.

Trio thread.
"""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from devmodel.device.attribute import DeviceAttribute
from devmodel.device.pci import PciDevice
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import Attribute

D = TypeVar("D", bound=Kobject)


def directory_class(base: type[D], model: type[PciDevice]) -> type[D]:
    """The subclass of `base`, a class of device directories, that has the attributes of `model` as well.

    Raises TypeError when `base` has a member of the same name already.
    """
    if not model.ATTRIBUTES:
        return base
    classes = _classes.setdefault(model, {})
    if base not in classes:
        classes[base] = _made(base, model)
    made: type[D] = classes[base]
    return made


_classes: WeakKeyDictionary[type[PciDevice], dict[type[Any], type[Any]]] = WeakKeyDictionary()
"""Each is made once. The model of a function with virtual ones is a class of its own, which goes with the
function."""


def _made(base: type[Any], model: type[PciDevice]) -> type[Any]:
    members = [_member(each) for each in model.ATTRIBUTES]
    taken = [member.name for member in members if member.name in base.by_name]
    if taken:
        raise TypeError(f"{model.__name__} declares {taken[0]!r}, which every device has")
    # no name of these is one that `base` uses for something else
    declared = {f"attribute {member.name}": member for member in members}
    return type(base.__name__, (base,), {"__slots__": (), **declared})


def _member(declared: DeviceAttribute) -> Attribute:
    def show(self: Any) -> object:
        return declared.show(self.assignable.device)

    def store(self: Any, text: str) -> None:
        if declared.store is not None:
            declared.store(self.assignable.device, text)

    def present(self: Any) -> bool:
        return declared.when is None or declared.when(self.options)

    return Attribute(
        declared.name,
        0o644 if declared.store else 0o444,
        show,
        store if declared.store else None,
        present,
        prompt=False,  # a model's show() runs on the trio thread, and may take its time
        doc=declared.doc,
        store_doc=declared.store_doc,
    )
