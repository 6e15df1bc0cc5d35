# SPDX-License-Identifier: Apache-2.0
"""What a reload of models is to change: the plan, which is made before anything changes.

Any thread makes a plan. That runs code of the models. It reads the specs of the functions and the addresses
of their BARs (``Hotplug``), which only a reload changes. State: none; a :class:`Plan` is a value. Source: as
of devmodel.lifecycle.renewal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from devmodel.device.own import is_own
from devmodel.device.pci import PciDevice
from devmodel.device.traits import traits_of
from devmodel.lifecycle.functionmodels import virtual_model
from devmodel.lifecycle.hotplug import Hotplug
from devmodel.lifecycle.physical import Shape, shape_of
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import FunctionSpec, LabSpec, SpecError, TypeSpec
from devmodel.lifecycle.vf import vf_type
from devmodel.pci.config import Decided
from devmodel.pci.fields import Bar

Model = type[PciDevice]


class Unfit(Exception):
    """A model cannot be that of the part of the lab file at ``place``. ``__cause__`` says why."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


@dataclass(frozen=True, slots=True)
class NewFunction:
    """A physical function whose model is new, or that of its virtual functions (None: as before).

    ``addresses`` has those of all its BARs, ``places`` those of its own. ``whole`` is whether the function
    itself has to be a new device."""

    model: Model | None
    vf_model: Model | None
    shape: Shape
    places: tuple[int, ...]
    addresses: tuple[int, ...]
    whole: bool


class NewType(NamedTuple):
    """A type whose model is new, and the share that it gives with it."""

    model: Model
    share: Share


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to change: types, by parent and type, and functions by name."""

    types: Mapping[tuple[str, str], NewType]
    functions: Mapping[str, NewFunction]


def plan_of(hotplug: Hotplug, before: LabSpec, after: LabSpec) -> Plan:
    """What changes when the models of ``after`` take the places of those of ``before``, the same lab.

    Raises :class:`Unfit` for what the code of a model raises, and :class:`SpecError` for BARs that have no
    room.
    """
    types: dict[tuple[str, str], NewType] = {}
    for parent, new in zip(before.parents, after.parents, strict=True):
        for type_, found in zip(parent.types, new.types, strict=True):
            if _differs(type_.model, found.model):
                share = _tried(f"parents.{parent.name}.types.{type_.name}", found)
                types[parent.name, type_.name] = NewType(found.model, share)
    functions: dict[str, NewFunction] = {}
    for new_function in after.all_functions:
        old = hotplug.specs[new_function.name]
        if new_function.bridge is None and any(_changes(old, new_function)):
            functions[old.name] = _new_function(hotplug, old, new_function, before.source)
    return Plan(types, functions)


def _new_function(hotplug: Hotplug, old: FunctionSpec, new: FunctionSpec, source: str) -> NewFunction:
    table = "functions" if old.parent is None else "parents"
    place = f'{table}."{old.name}"'
    offsets, buses = hotplug.offsets, hotplug.buses
    given = Decided(hotplug.assigned[old.name].given)
    try:
        before = shape_of(old, given, offsets, buses)
        of_vfs = {} if before.layout is None else before.layout.places
        own = dict(zip(before.traits.bars, before.traits.place(given), strict=True))
        where = f"{source}: {place}"
        vf_places = [_kept(of_vfs, index, bar, where) for index, bar in _bars_of_vfs(new)]
        shape = shape_of(new, Decided(vf_places), offsets, buses)
        bars = {index: (own[index], bar) for index, bar in before.traits.bars.items()}
        places = tuple(_kept(bars, index, bar, where) for index, bar in shape.traits.bars.items())
    except SpecError:
        raise
    except BaseException as error:
        raise Unfit(place) from error
    of_own, of_vf = _changes(old, new)
    return NewFunction(
        new.model if of_own else None,
        new.vf.model if of_vf and new.vf is not None else None,
        shape,
        places,
        (*vf_places, *places),
        of_own or shape.layout != before.layout,
    )


def _differs(old: Model | None, new: Model | None) -> bool:
    """Whether a model has other code. A class of this project that was only made again is the same."""
    if old is new or old is None or new is None:
        return False
    return is_own(old) or is_own(new) or old.identity != new.identity


def _changes(old: FunctionSpec, new: FunctionSpec) -> tuple[bool, bool]:
    """Whether the model of a function is another one, and that of its virtual functions."""
    of_vf = old.vf is not None and new.vf is not None and _differs(old.vf.model, new.vf.model)
    return _differs(old.model, new.model), of_vf


def _tried(place: str, spec: TypeSpec) -> Share:
    """Make a device of a type, and close it again. Returns its share. Raises :class:`Unfit`."""
    try:
        share = Share.of(spec)
        spec.model("sample", share.memory, share.options).close()
        return share
    except BaseException as error:
        raise Unfit(place) from error


def _bars_of_vfs(spec: FunctionSpec) -> Iterable[tuple[int, Bar]]:
    """The BARs of a function's virtual ones."""
    if spec.vf is None:
        return ()
    type_ = vf_type(spec, spec.vf)
    return traits_of(virtual_model(type_.model), type_.memory, type_.options, spec.vf.texts).bars.items()


def _kept(before: Mapping[int, tuple[int, Bar]], index: int, bar: Bar, where: str) -> int:
    """The address of the BAR in whose place ``bar`` is: it has to be as large, because other functions are
    next to it, and bridges forward no more."""
    address, old = before.get(index, (0, bar))
    kind = old.io == bar.io and (old.mem64 <= bar.mem64 or address + bar.size <= 1 << 32)
    if index not in before or not kind or bar.size > old.size:
        there = f"{old.size} bytes" if index in before else "no room"
        raise SpecError(
            f"{where}: BAR {index} needs {bar.size} bytes, and has {there} since the lab was mounted "
            "(mount the lab again)"
        )
    return address
