# SPDX-License-Identifier: Apache-2.0
"""Bundles: all the entries of one device, in many directories, which come and go together.

A Plan declares the entries of a kind of device, each by a Part.  A Bundle is the plan and one device, and all
that is kept of its entries.  An entry is made when a client looks it up, each time with the same number and
the same times, so that a client sees no difference, and a device that no client looks at costs next to
nothing.  For the same reason such an entry has no state of its own.

The trio thread shows and withdraws bundles (kernfs.tree).  Entries are made there and on the device lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vfsfuse.kernfs.kobject import FORGOTTEN_NS, LINGER_NS, PART_BITS, Entry, Kobject, Symlink

PART_MASK = (1 << PART_BITS) - 1
COLD_LOOKS = 8
"""Lookups of a device, in quick succession, after which the kernel caches its names for a moment."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One entry of a device, called `name(device)`; `directory` says whether the entry is a directory.

    `where` is the directory that the entry is in: the same for all devices, another part of the same plan, or
    the result of a function of the device.
    """

    where: Where
    name: Callable[[Any], str]
    make: Callable[[Bundle], Entry]
    directory: bool = False


Where = Kobject | Part | Callable[[Any], Kobject]


def symlink_part(where: Where, name: Callable[[Any], str], target: Part | Callable[[Any], Entry]) -> Part:
    """A symlink to another part of the same plan, or to the entry that `target` gives for a device."""

    def make(bundle: Bundle) -> Symlink:
        found = bundle.entry_of(target) if isinstance(target, Part) else target(bundle.device)
        return Symlink(name(bundle.device), found)

    return Part(where, name, make)


class Plan:
    """The parts of one kind of device, in the order in which they appear.  They vanish in the opposite order.

    No directory has two of them.  `inside` gives, by the index of a part, the part that is in it.  `rare` is
    for devices that hardly ever go: the kernel caches their names for a moment from the first lookup on.
    """

    __slots__ = ("fixed", "inside", "parts", "rare", "varying")

    def __init__(self, *parts: Part, rare: bool = False) -> None:
        places = [part.where for part in parts]
        if len(parts) > 1 << PART_BITS or len(set(places)) < len(places):
            raise TypeError("too many parts, or two in one directory")
        self.parts, self.rare = parts, rare
        self.inside = tuple(next((each for each in parts if each.where is part), None) for part in parts)
        self.fixed = {part.where: part for part in parts if isinstance(part.where, Kobject)}
        self.varying = tuple(part for part in parts if callable(part.where))


class Bundle:
    """The entries of one device.  Once they are shown, their numbers begin with `block`."""

    __slots__ = ("_cached_until", "_looks", "_since", "block", "ctime_ns", "device", "plan", "told")

    def __init__(self, device: Any, plan: Plan) -> None:
        self.device, self.plan = device, plan
        self.block = -1
        self.ctime_ns = time.time_ns()
        self.told = False
        """Whether the kernel was told names of files in its directories."""
        self._looks = self._since = self._cached_until = 0

    def looked_up(self) -> int:
        """Somebody looks up a name of the device: how many nanoseconds the kernel may cache it.

        Usually 0, so that the device can be removed at once.  A device that is looked up again and again, or
        that is `rare`, is not about to be removed, and would be slower without a cache.
        """
        now = time.monotonic_ns()
        if now - self._since > LINGER_NS:
            self._since, self._looks = now, 0
        self._looks += 1
        if self._looks <= COLD_LOOKS and not self.plan.rare:
            return 0
        self._cached_until = now + LINGER_NS
        return LINGER_NS

    @property
    def lingers(self) -> bool:
        """Whether the kernel may still cache a name."""
        return time.monotonic_ns() < self._cached_until + FORGOTTEN_NS - LINGER_NS

    def entry(self, index: int) -> Entry:
        """The entry of the part with this index, made anew.  Any thread.  Raises LookupError without one."""
        return self._make(index, self.directory_of(self.plan.parts[index]))

    def entry_of(self, part: Part) -> Entry:
        """The entry of `part`, as `entry` makes it."""
        return self._make(self.plan.parts.index(part), self.directory_of(part))

    def kobject_of(self, part: Part) -> Kobject:
        """The directory of `part`, as `entry` makes it."""
        made = self.entry_of(part)
        if not isinstance(made, Kobject):
            raise TypeError(f"{made.name} is no directory")
        return made

    def directory_of(self, part: Part) -> Kobject:
        """The directory that a part is in."""
        where = part.where
        if isinstance(where, Part):
            return self.kobject_of(where)
        return where(self.device) if callable(where) else where

    def seen_in(self, directory: Kobject) -> Entry:
        """The device's entry in `directory`, made anew.  Raises LookupError when it has none there."""
        part = self.plan.fixed.get(directory) or self._part_in(directory)
        return self._make(self.plan.parts.index(part), directory)

    def places(self) -> Iterator[tuple[Part, Kobject, str]]:
        """The parts, each with the directory that it is in and its name there."""
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
        made.name_ns = 0
        made.ctime_ns = self.ctime_ns
        made.parent = directory
        inside = self.plan.inside[index]
        if inside is not None and isinstance(made, Kobject):
            made.children = {inside.name(self.device): self}
            made.subdirs = int(inside.directory)
        return made
