# SPDX-License-Identifier: Apache-2.0
"""The lab around the device on a bench: the smallest one that has such a device.

State: the lab's, see devmodel.lifecycle.lab. The bench makes it, on the thread that makes the bench, before
it has other threads; later changes are made on the trio thread. Source: Documentation/driver-api/vfio.rst.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

from devmodel.device.attribute import check_attributes
from devmodel.device.pci import PciDevice
from devmodel.lifecycle.function import VFIO_PCI, PciFunction
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import FunctionSpec, LabSpec, ParentSpec, TypeSpec, VfSpec
from devmodel.vfio.group import Assignable

Kind = Literal["vgpu", "function", "vf"]
KINDS: tuple[Kind, ...] = ("vgpu", "function", "vf")
OptionValue = int | str
NO_OPTIONS: Mapping[str, OptionValue] = MappingProxyType({})
ADDRESS = "0000:01:00.0"
DRIVER = "host"
"""The host driver of a physical function that has vGPUs or virtual functions."""
_UUID = UUID("6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01")


@dataclass(frozen=True)
class Physical:
    """A physical function that the device on a bench is a vGPU or a virtual function of: its model, its
    memory in bytes, and its options."""

    model: type[PciDevice]
    memory: int = 0
    options: Mapping[str, OptionValue] = field(default_factory=lambda: NO_OPTIONS)


class _Observer:
    """Nobody who is told of the lab's changes."""

    def _nothing(self, changed: object) -> None:
        """A change."""

    def renewed(self, device: Assignable, change: Callable[[], None]) -> None:
        change()

    added = removed = changed = bound = unbound = _nothing
    function_added = function_removed = vfs_enabled = mdev_bound = mdev_unbound = _nothing

    def recovering(self, function: PciFunction, event: str) -> None:
        """A recovery."""


@dataclass(frozen=True)
class Wanted:
    """What the bench is to have."""

    model: type[PciDevice]
    memory: Any
    numbers: Mapping[str, int]
    texts: Mapping[str, str]
    kind: Kind
    parent: Physical | None
    vf: VfSpec | None


def split_options(
    model: type[PciDevice], options: Mapping[Any, Any]
) -> tuple[dict[str, int], dict[str, str]]:
    """The options that are numbers, and those that are texts. Raises ValueError as a lab file is refused."""
    numbers: dict[str, int] = {}
    texts: dict[str, str] = {}
    for key, value in options.items():
        if not isinstance(key, str):
            raise ValueError(f"{key!r} is no name of an option")
        if isinstance(value, str):
            if key not in model.TEXTS:
                has = ", ".join(model.TEXTS) or "none"
                raise ValueError(f"{value!r} for option {key!r} is a text (options that are: {has})")
            texts[key] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            numbers[key] = value
        else:
            raise ValueError(f"option {key!r} is {value!r}, no whole number and no text")
    return numbers, texts


def check_model(model: object) -> None:
    """Raise ValueError unless a lab can have such a model."""
    if not isinstance(model, type) or not issubclass(model, PciDevice):
        raise ValueError(f"{model!r} is not a device model (derive it from devmodel.sdk.PciDevice)")
    if not hasattr(model, "identity"):
        raise ValueError(f"{model.__name__} has no identity (declare one)")
    check_attributes(tuple(model.ATTRIBUTES))


def make_lab(wanted: Wanted) -> Lab:
    """A lab that can have the device. Raises ValueError for what a lab file cannot ask for."""
    model = wanted.model
    if wanted.kind not in KINDS:
        raise ValueError(f"{wanted.kind!r} is no kind of device (there is {', '.join(KINDS)})")
    if wanted.kind == "vf" and wanted.parent is None:
        raise ValueError("a virtual function is one of a physical function (give parent=Physical(...))")
    if wanted.kind == "function" and wanted.parent is not None:
        raise ValueError("a physical function has no parent (leave it out)")
    if wanted.vf is not None and wanted.kind != "function":
        raise ValueError("only a physical function has virtual functions (kind='function')")
    if wanted.kind == "vgpu" and wanted.texts:
        raise ValueError("a type of vGPU has no options that are texts (kind='function' has)")
    if not isinstance(wanted.memory, int) or wanted.memory < 0:
        raise ValueError(f"memory is {wanted.memory!r}, no number of bytes")
    model.validate(wanted.memory, wanted.numbers)
    if wanted.texts:
        model.validate_texts(wanted.texts)
    return Lab(_spec(wanted), _Observer())


def make_device(lab: Lab, wanted: Wanted) -> Assignable:
    """What a client opens: a new vGPU, or a function that vfio-pci takes. Trio thread. Raises ``OSError``."""
    if wanted.kind == "vgpu":
        (parent,) = lab.parents.values()
        (type_,) = parent.types.values()
        made: Mdev = lab.create(type_, _UUID)
        return made
    function: PciFunction = lab.drivers.find(ADDRESS)
    if wanted.kind == "vf":
        assert isinstance(function, PhysicalFunction)
        lab.sriov.set_count(function, 1)
        function = function.vfs[0]
    function.driver_override = VFIO_PCI
    lab.drivers.attach(function)
    return function


def _spec(wanted: Wanted) -> LabSpec:
    if wanted.kind == "vgpu":
        type_ = TypeSpec("bench-1", "on a bench", wanted.model, memory=wanted.memory, options=wanted.numbers)
        return LabSpec((_parent(wanted.parent, type_),))
    if wanted.kind == "function":
        function = FunctionSpec(
            ADDRESS, wanted.model, None, wanted.memory, wanted.numbers, wanted.texts, vf=wanted.vf
        )
        return LabSpec((), functions=(function,), modules={"enable_sriov": wanted.vf is not None})
    assert wanted.parent is not None
    vf = VfSpec(1, wanted.model, wanted.memory, wanted.numbers, wanted.texts)
    return LabSpec((), functions=(_hardware(wanted.parent, vf),))


def _parent(parent: Physical | None, type_: TypeSpec) -> ParentSpec:
    if parent is None:
        return ParentSpec("bench", "virtual", "bench", (type_,), type_.memory)
    return ParentSpec(ADDRESS, "gpu", DRIVER, (type_,), parent.memory, hardware=_hardware(parent, None))


def _hardware(parent: Physical, vf: VfSpec | None) -> FunctionSpec:
    check_model(parent.model)
    numbers, texts = split_options(parent.model, parent.options)
    parent.model.validate(parent.memory, numbers)
    return FunctionSpec(ADDRESS, parent.model, DRIVER, parent.memory, numbers, texts, vf=vf)
