# SPDX-License-Identifier: Apache-2.0
"""Inodes that come and go together: a device is seen in many directories, and each of those is an entry.

A Plan declares them, a Part each; a Bundle is the plan for one device, and all that is kept of them.  An
entry is made when somebody looks at it, each time with the same number and times, so that nobody can tell,
and a device that nobody looks at costs next to nothing.  Hence such entries have no state of their own.

Bundles are shown and withdrawn on the trio thread (kernfs.tree); entries are made on the device lane too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vfsfuse.kernfs.kobject import PART_BITS, Entry, Kobject, Symlink

PART_MASK = (1 << PART_BITS) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One entry of a device, called `name(device)`; `directory` says whether it is one.

    `where` is its directory: one for all devices, another part of the same plan, or what it gives for a
    device.
    """

    where: Where
    name: Callable[[Any], str]
    make: Callable[[Bundle], Entry]
    directory: bool = False


Where = Kobject | Part | Callable[[Any], Kobject]


def symlink_part(where: Where, name: Callable[[Any], str], target: Part | Callable[[Any], Entry]) -> Part:
    """A symlink at another part of the same plan, or at what `target` gives for a device."""

    def make(bundle: Bundle) -> Symlink:
        found = bundle.entry_of(target) if isinstance(target, Part) else target(bundle.device)
        return Symlink(name(bundle.device), found)

    return Part(where, name, make)


class Plan:
    """The parts of one kind of device, in the order in which they appear; they vanish in the opposite one.

    No directory has two of them.  `inside` is by index of a part the one that is in it.
    """

    __slots__ = ("fixed", "inside", "parts", "varying")

    def __init__(self, *parts: Part) -> None:
        places = [part.where for part in parts]
        if len(parts) > 1 << PART_BITS or len(set(places)) < len(places):
            raise TypeError("too many parts, or two in one directory")
        self.parts = parts
        self.inside = tuple(next((each for each in parts if each.where is part), None) for part in parts)
        self.fixed = {part.where: part for part in parts if isinstance(part.where, Kobject)}
        self.varying = tuple(part for part in parts if callable(part.where))


class Bundle:
    """The entries of one device.  `block` is the number that theirs begin with, once they are shown."""

    __slots__ = ("block", "ctime_ns", "device", "plan")

    def __init__(self, device: Any, plan: Plan) -> None:
        self.device, self.plan = device, plan
        self.block = -1
        self.ctime_ns = time.time_ns()

    def entry(self, index: int) -> Entry:
        """Its part with this index, made anew.  Any thread.  Raises LookupError for one that it has not."""
        return self._make(index, self.directory_of(self.plan.parts[index]))

    def entry_of(self, part: Part) -> Entry:
        """As :meth:`entry`."""
        return self._make(self.plan.parts.index(part), self.directory_of(part))

    def kobject_of(self, part: Part) -> Kobject:
        """As :meth:`entry`, for one that is a directory."""
        made = self.entry_of(part)
        if not isinstance(made, Kobject):
            raise TypeError(f"{made.name} is no directory")
        return made

    def directory_of(self, part: Part) -> Kobject:
        """Where a part is."""
        where = part.where
        if isinstance(where, Part):
            return self.kobject_of(where)
        return where(self.device) if callable(where) else where

    def seen_in(self, directory: Kobject) -> Entry:
        """Its entry in this directory, made anew.  Raises LookupError when it has none there."""
        part = self.plan.fixed.get(directory) or self._part_in(directory)
        return self._make(self.plan.parts.index(part), directory)

    def places(self) -> Iterator[tuple[Part, Kobject, str]]:
        """Its parts with where they are and how they are called there."""
        for part in self.plan.parts:
            yield part, self.directory_of(part), part.name(self.device)

    def _part_in(self, directory: Kobject) -> Part:
        number = directory.number
        for part in self.plan.varying:
            if self.directory_of(part).number == number:
                return part
        inside = self.plan.inside[number & PART_MASK] if directory.block == self.block else None
        if inside is None:
            raise LookupError(f"nothing of {self.device.name} is in {directory.path}")
        return inside

    def _make(self, index: int, directory: Kobject) -> Entry:
        made = self.plan.parts[index].make(self)
        made.number = self.block << PART_BITS | index
        made.ctime_ns = self.ctime_ns
        made.parent = directory
        inside = self.plan.inside[index]
        if inside is not None and isinstance(made, Kobject):
            made.children = {inside.name(self.device): self}
            made.subdirs = int(inside.directory)
        return made
