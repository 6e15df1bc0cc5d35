# SPDX-License-Identifier: Apache-2.0
"""Whether rules can hit something in a lab, as far as the lab's description says."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cached_property

from devmodel.lifecycle.binding import VFIO_MDEV
from devmodel.lifecycle.function import VFIO_PCI
from devmodel.lifecycle.spec import LabSpec
from vfsfuse.faults.keys import OF_VFS
from vfsfuse.faults.rule import Rule, RuleError

MOST_SHOWN = 20
"""Names that an error gives."""
_DOMAIN = "0000:"


class LabNames:
    """The names that a lab has, by its description.  They are found for the first rule that needs them: a lab
    may have thousands of functions, and of rules.  One thread."""

    def __init__(self, spec: LabSpec) -> None:
        self._spec = spec

    def check(self, rule: Rule) -> None:
        """Raises RuleError for a rule that names what the lab does not have."""
        if "create" in rule.keys:
            _check_there("create", rule.keys["create"], self._types)
        for key in ("bind", "probe"):
            if key in rule.keys:
                _check_there(key, rule.keys[key], self._drivers)
        device = rule.get("device", "")
        if rule.actions and not rule.is_on_one and device in self._types:
            why = f"{device} is a type of vGPU (give the device that {rule.actions[0]} is about)"
            raise RuleError("device", why)
        if any(key in rule.keys for key in OF_VFS) and not self._has_virtual(device.lower()):
            raise RuleError("device", f"{device} has no virtual functions (give one, or their function)")

    @cached_property
    def _types(self) -> set[str]:
        """The types of vGPU by their names, and by their ids in NVIDIA's framework."""
        types = [each for parent in self._spec.parents for each in parent.types]
        return {*(each.name for each in types), *(str(each.number) for each in types if each.number)}

    @cached_property
    def _drivers(self) -> set[str]:
        found = (driver for function in self._spec.all_functions for driver in function.drivers)
        return {VFIO_PCI, VFIO_MDEV, *found}

    @cached_property
    def _without_virtual(self) -> set[str]:
        """The functions that have no virtual ones."""
        return {each.name for each in self._spec.all_functions if each.vf is None}

    def _has_virtual(self, name: str) -> bool:
        """Whether a name can be that of a virtual function, or is that of a function which can have some."""
        return not {name, _DOMAIN + name} & self._without_virtual


def _check_there(key: str, name: str, known: set[str]) -> None:
    """Refuse a name that the lab does not have."""
    if any(fnmatchcase(each, name) for each in known):
        return
    shown = sorted(known)
    more = ", ..." if len(shown) > MOST_SHOWN else ""
    there = f"there are {', '.join(shown[:MOST_SHOWN])}{more}" if shown else "there are none"
    raise RuleError(key, f"the lab has no {name} ({there})")
