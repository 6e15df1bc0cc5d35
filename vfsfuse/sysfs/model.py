# SPDX-License-Identifier: Apache-2.0
"""The attributes that a device model declares (devmodel.device.attribute), as members of its directories.

Trio thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from devmodel.device.attribute import DeviceAttribute
from devmodel.device.own import is_own
from devmodel.device.pci import PciDevice
from devmodel.memo import memoized
from vfsfuse.kernfs.groups import AttributeGroup, Group
from vfsfuse.kernfs.kobject import LINGER_NS, Kobject, Member
from vfsfuse.kernfs.members import Attribute

D = TypeVar("D", bound=Kobject)


def directory_class(base: type[D], model: type[PciDevice]) -> type[D]:
    """The subclass of `base`, a class of device directories, that has the attributes of `model` as well.

    Raises ValueError, with a remedy, when `base` has a member of the same name already.
    """
    made: type[D] = _made(base, model) if model.ATTRIBUTES or is_own(model) else base
    return made


@memoized()
def _made(base: type[Any], model: type[PciDevice]) -> type[Any]:
    # those of an own model may change with its code (devmodel.lifecycle.renewal)
    member_ns = LINGER_NS if is_own(model) else base.member_ns
    members = _members(model.ATTRIBUTES, member_ns)
    taken = [member.name for member in members if member.name in base.by_name]
    if taken:
        raise ValueError(
            f"the model {model.__name__} declares the attribute {taken[0]!r}, but that is a name of every "
            "device's directory (rename it)"
        )
    return _class(base, base.__name__, members, member_ns)


def _class(base: type[Any], name: str, members: Iterable[Member], member_ns: int | None) -> type[Any]:
    # no name of these is one that `base` uses for something else
    declared = {f"attribute {member.name}": member for member in members}
    made: type[Any] = type(name, (base,), {"__slots__": (), "member_ns": member_ns, **declared})
    return made


def _members(attributes: Sequence[DeviceAttribute], member_ns: int | None, depth: int = 0) -> list[Member]:
    """The attributes, whose directories down to `depth` are the same, as members of that directory."""
    below: dict[str, list[DeviceAttribute]] = {}
    for each in attributes:
        below.setdefault(each.path[depth], []).append(each)
    return [
        _member(inside[0])
        if len(inside[0].path) == depth + 1
        else _directory(name, inside, member_ns, depth + 1)
        for name, inside in below.items()
    ]


def _directory(name: str, attributes: Sequence[DeviceAttribute], member_ns: int | None, depth: int) -> Group:
    """The directory of some attributes. It is present while one of them is."""

    def present(above: Kobject) -> bool:
        options = _options_of(above)
        return any(each.when is None or each.when(options) for each in attributes)

    always = any(each.when is None for each in attributes)
    kind = _class(AttributeGroup, name, _members(attributes, member_ns, depth), member_ns)
    return Group(name, kind, None if always else present)


def _options_of(directory: Kobject) -> Mapping[str, int]:
    """The options of the device whose directory this is, or is above."""
    holder: Any = directory.holder
    options: Mapping[str, int] = holder.options
    return options


def _device_of(directory: Kobject) -> PciDevice:
    """The device whose directory this is, or is above."""
    holder: Any = directory.holder
    device: PciDevice = holder.assignable.device
    return device


class _ModelAttribute(Attribute):
    """An attribute that a model declares."""

    __slots__ = ()
    renewable = True


def _member(declared: DeviceAttribute) -> Attribute:
    def show(directory: Kobject) -> object:
        return declared.show(_device_of(directory))

    def store(directory: Kobject, text: str) -> None:
        if declared.store is not None:
            declared.store(_device_of(directory), text)

    def present(directory: Kobject) -> bool:
        return declared.when is None or declared.when(_options_of(directory))

    return _ModelAttribute(
        declared.path[-1],
        0o644 if declared.store else 0o444,
        show,
        store if declared.store else None,
        present,
        prompt=False,  # a model's show() runs on the trio thread, and may take its time
        doc=declared.doc,
        store_doc=declared.store_doc,
    )
