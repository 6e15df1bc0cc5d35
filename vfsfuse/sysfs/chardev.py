# SPDX-License-Identifier: Apache-2.0
"""Character devices: dev, where their nodes are, and sys/dev/char, a link for each by major and minor number.

The links of a device that comes and goes are made from what its class has, so that they take no memory of
their own.  Trio thread; the device lane looks names up too.  Source: Documentation/ABI/stable/sysfs-devices,
Documentation/admin-guide/devices.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfsfuse.kernfs.kobject import Child, Entry, Kobject, Member


class DevDir(Kobject):
    """dev."""

    __slots__ = ()
    of_dev = True


class CharDir(Kobject):
    """sys/dev/char.  `majors` has the links to devices that come and go, by their major number."""

    __slots__ = ("majors",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.majors: dict[str, Major] = {}

    def add(self, number: int, devices: Kobject, *prefixes: str) -> Major:
        """The links of a major number to come (see `Major`)."""
        major = self.majors[str(number)] = Major(self, devices, prefixes)
        return major

    def child(self, name: str) -> Entry | None:
        number, _, minor = name.partition(":")
        major = self.majors.get(number)
        return super().child(name) if major is None else major.of_minor(minor)

    def entries(self) -> Iterator[Child | Member]:
        yield from super().entries()
        for major in self.majors.values():
            yield from major.links()


class Major(Kobject):
    """The links of one major number, a part of the plan of each device that has such a number.

    It stands for `directory`, and is in no directory itself.  `devices` is the directory of the class, where
    a device is called by one of `prefixes` and its minor number.
    """

    __slots__ = ("devices", "prefixes")

    def __init__(self, directory: Kobject, devices: Kobject, prefixes: tuple[str, ...]) -> None:
        super().__init__(directory.name)
        self.parent = directory.parent
        self.devices, self.prefixes = devices, prefixes

    def of_minor(self, minor: str) -> Entry | None:
        """The link of the device with this minor number."""
        there = self.devices.children or {}
        found = next((there[name] for name in self._names(minor) if name in there), None)
        return None if found is None else found.seen_in(self)

    def links(self) -> Iterator[Child]:
        """The links of all devices."""
        return (_Elsewhere(self, child) for child in (self.devices.children or {}).values())

    def _names(self, minor: str) -> Iterator[str]:
        return (prefix + minor for prefix in self.prefixes if minor.isdecimal())


class _Elsewhere(NamedTuple):
    """A child of another directory, seen in `major`."""

    major: Major
    child: Child

    @property
    def block(self) -> int:
        return self.child.block

    def seen_in(self, directory: Kobject) -> Entry:
        return self.child.seen_in(self.major)
