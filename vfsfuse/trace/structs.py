# SPDX-License-Identifier: Apache-2.0
"""The members of a struct in bytes that a client has chosen, by the cffi declarations of native/*.cdef.

Every byte is hostile: a struct may end anywhere, and counts and offsets in it may be any number.  Nothing
here raises for them, and no loop is longer than the bytes that are there.  State: none, constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, NamedTuple

from ioctl_shim._native import ffi
from vfsfuse.trace.forms import Form, Shown, array, fields, hexadecimal


class Way(Flag):
    """Who sets a member of an ioctl's struct."""

    GIVEN = auto()
    """The client, before the call."""
    RETURNED = auto()
    """The call."""


class Field(NamedTuple):
    """How a member is shown, and who sets it."""

    form: Form | Layout
    way: Way


def out(form: Form) -> Field:
    """A member that the call returns, whatever the client had in it."""
    return Field(form, Way.RETURNED)


def both(form: Form) -> Field:
    """A member that the client gives and the call returns."""
    return Field(form, Way.GIVEN | Way.RETURNED)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct."""

    name: str
    offset: int
    size: int
    signed: bool
    form: Form | Layout
    way: Way
    spare: bool
    """Whether it is reserved: shown only if it is not 0."""

    def value(self, data: bytes, at: int = 0) -> int | None:
        """Its number in the struct that begins at `at`; None if the data ends before it does."""
        start = at + self.offset
        found = data[start : start + self.size]
        return int.from_bytes(found, "little", signed=self.signed) if len(found) == self.size else None

    def show(self, data: bytes, at: int = 0) -> Shown | None:
        """What is shown of it; None for nothing."""
        value = self.value(data, at)
        if value is None or (self.spare and not value):
            return None
        return self.form.show(data, at + self.offset) if isinstance(self.form, Layout) else self.form(value)


class Layout:
    """A struct of native/*.cdef and the form of each of its members.

    Reserved members and the header of a capability need no form.  Raises ValueError if a form or a member is
    missing."""

    def __init__(self, struct: str, **forms: Form | Layout | Field) -> None:
        declared = dict(ffi.typeof(f"struct {struct}").fields)
        self.struct, self.size = struct, int(ffi.sizeof(f"struct {struct}"))
        self.members = tuple(_members(struct, declared, forms))
        if unknown := forms.keys() - declared.keys():
            raise ValueError(f"struct {struct} has no member {', '.join(unknown)}")

    def values(self, data: bytes, at: int = 0) -> dict[str, int]:
        """The numbers of the members that the data has whole."""
        found = ((each.name, each.value(data, at)) for each in self.members)
        return {name: value for name, value in found if value is not None}

    def shown(self, data: bytes, at: int = 0, way: Way = Way.GIVEN | Way.RETURNED) -> dict[str, Shown]:
        """What is shown of the members that the data has whole, and that are set in one of these ways."""
        found = ((each.name, each.show(data, at)) for each in self.members if each.way & way)
        return {name: shown for name, shown in found if shown is not None}

    def show(self, data: bytes, at: int = 0) -> Shown:
        """The struct that begins at `at`."""
        return fields(self.shown(data, at), complete=at + self.size <= len(data))

    def array(self, data: bytes, at: int, count: int) -> Shown:
        """An array of `count` such structs from `at` on, as far as the data has them."""
        there = max(0, len(data) - at) // self.size
        return array([self.show(data, at + self.size * i) for i in range(min(count, there))], count)


def _members(
    struct: str, declared: Mapping[str, Any], forms: Mapping[str, Form | Layout | Field]
) -> Iterator[Member]:
    for name, field in declared.items():
        if name == "header":
            continue
        spare = name.startswith(("reserved", "pad"))
        form = forms.get(name, hexadecimal if spare else None)
        if form is None:
            raise ValueError(f"struct {struct}: the member {name} has no form")
        shown = f"__{name}" if spare and struct.startswith("iommu_") else name
        declared_as = form if isinstance(form, Field) else Field(form, Way.GIVEN)
        size, signed = int(ffi.sizeof(field.type)), field.type.cname.startswith("int")
        yield Member(shown, field.offset, size, signed, *declared_as, spare)


def integers(data: bytes, at: int, count: int, size: int, form: Form) -> Shown:
    """An array of `count` signed numbers of `size` bytes from `at` on, as far as the data has them."""
    there = min(count, max(0, len(data) - at) // size)
    numbers = (data[at + size * i : at + size * (i + 1)] for i in range(there))
    return array([form(int.from_bytes(each, "little", signed=size > 1)) for each in numbers], count)


Tail = Callable[[bytes, Mapping[str, int]], Mapping[str, Shown]]
"""What follows a struct, or what its members say together, from the data and the members' numbers: further
members to show."""
