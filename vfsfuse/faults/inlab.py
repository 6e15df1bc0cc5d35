# SPDX-License-Identifier: Apache-2.0
"""Whether a rule can hit something in a lab, as far as the lab's description says.  State: none."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from devmodel.lifecycle.binding import VFIO_MDEV
from devmodel.lifecycle.function import VFIO_PCI
from devmodel.lifecycle.spec import LabSpec
from vfsfuse.faults.keys import ACTIONS, OF_VFS
from vfsfuse.faults.rule import Rule, RuleError

MOST_SHOWN = 20
"""Names that an error gives."""
_DOMAIN = "0000:"


def check(rule: Rule, spec: LabSpec) -> None:
    """Raises RuleError for a rule that names what the lab does not have."""
    types = set(_types(spec))
    _check_there("create", rule, types)
    drivers = {VFIO_PCI, VFIO_MDEV, *(each for one in spec.all_functions for each in one.drivers)}
    for key in ("bind", "probe"):
        _check_there(key, rule, drivers)
    device = rule.get("device", "")
    for what in ACTIONS:
        if what in rule.keys and not rule.is_on_one and device in types:
            raise RuleError("device", f"{device} is a type of vGPU (give the device that {what} is about)")
    if any(key in rule.keys for key in OF_VFS) and not _has_virtual(device.lower(), spec):
        raise RuleError("device", f"{device} has no virtual functions (give one, or their function)")


def _types(spec: LabSpec) -> Iterable[str]:
    """The types of vGPU by their names, and by their ids in NVIDIA's framework."""
    for parent in spec.parents:
        for each in parent.types:
            yield each.name
            if each.number:
                yield str(each.number)


def _has_virtual(name: str, spec: LabSpec) -> bool:
    """Whether a name can be that of a virtual function, or is that of a function which can have some."""
    found = [each for each in spec.all_functions if each.name in (name, _DOMAIN + name)]
    return not found or found[0].vf is not None


def _check_there(key: str, rule: Rule, known: set[str]) -> None:
    """Refuse a name that the lab does not have."""
    name = rule.get(key)
    if name is None or any(fnmatchcase(each, name) for each in known):
        return
    shown = sorted(known)
    more = ", ..." if len(shown) > MOST_SHOWN else ""
    there = f"there are {', '.join(shown[:MOST_SHOWN])}{more}" if shown else "there are none"
    raise RuleError(key, f"the lab has no {name} ({there})")
