# SPDX-License-Identifier: Apache-2.0
"""Where the calls of a rule pass the call point, and an index of rules by that.

State: none that changes.  Any thread, under any lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from devmodel.calls.call import Call, CallKind
from vfsfuse.faults import plausible
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.rule import Rule, is_pattern

Place = tuple[CallKind, str]
"""A kind of call, and its name, or "" for all names."""

APPEAR: Place = (CallKind.LIFECYCLE, "appear")
"""A virtual function is about to appear."""
_KINDS = {kind.value: kind for kind in CallKind}
_MOVING = ("value", "flip", "drop", "duplicate")


def places(rule: Rule) -> Sequence[Place]:
    """Where the calls of a rule pass the call point."""
    return _PLACES[rule.call](rule)


def _named(kind: CallKind, pattern: str) -> Place:
    return kind, "" if is_pattern(pattern) else pattern


def _regions(rule: Rule) -> Sequence[Place]:
    access = rule.get("access", "write" if rule.get("duplicate") else None)
    return [(CallKind.REGION, name) for name in (("read", "write") if access is None else (access,))]


def _dmas(rule: Rule) -> Sequence[Place]:
    names: Sequence[str] = ("read", "write", "pin")
    if rule.keys["dma"] != "any":
        names = (rule.keys["dma"],)
    elif rule.get("duplicate"):
        names = ("write",)
    elif any(rule.get(key) for key in _MOVING):
        names = ("read", "write")
    return [(CallKind.DMA, name) for name in names]


def _interrupts(rule: Rule) -> Sequence[Place]:
    index = rule.keys["interrupt"]
    return ((CallKind.INTERRUPT, "" if index == "any" else index),)


def _failing(rule: Rule) -> Sequence[Place]:
    return [(_KINDS[kind], "") for kind in rule.get("call", plausible.KINDS)]


_PLACES: Mapping[str, Callable[[Rule], Sequence[Place]]] = {
    "ioctl": lambda rule: (_named(CallKind.IOCTL, rule.keys["ioctl"]),),
    "register": _regions,
    "region": _regions,
    "dma": _dmas,
    "interrupt": _interrupts,
    "store": lambda rule: (_named(CallKind.STORE, rule.keys["store"].rpartition("/")[2]),),
    "create": lambda rule: ((CallKind.LIFECYCLE, "create"), (CallKind.LIFECYCLE, "set_type")),
    "bind": lambda rule: ((CallKind.STORE, "bind"),),
    "probe": lambda rule: ((CallKind.LIFECYCLE, "probe"),),
    "open": lambda rule: ((CallKind.OPEN, "open"),),
    "call": _failing,
    "": lambda rule: () if rule.is_timed else (APPEAR,),
}
"""By :attr:`Rule.call`."""


class _Entry:
    """Things in an order: those of one device, by its name, and those of any."""

    __slots__ = ("_named", "_others")

    def __init__(self, things: Iterable[tuple[int, Any, Rule]]) -> None:
        self._named: dict[str, list[tuple[int, Any]]] = {}
        others: list[tuple[int, Any]] = []
        for number, thing, rule in things:
            name = "*" if rule.aims else rule.get("device", "*").lower()
            (others if is_pattern(name) else self._named.setdefault(name, [])).append((number, thing))
        self._others = tuple(others)

    def of(self, call: Call, devices: LabDevices) -> Sequence[tuple[int, Any]]:
        """Those that may be about a call."""
        if not self._named:
            return self._others
        found = [each for name in devices.names(call) for each in self._named.get(name, ())]
        return sorted((*self._others, *found), key=_number) if found else self._others


def _number(each: tuple[Any, ...]) -> int:
    """Where a thing is in the order."""
    number: int = each[0]
    return number


class Index:
    """Rules by the calls that they are about, in the order in which they were given."""

    __slots__ = ("_devices", "_named", "_whole")

    def __init__(self, rules: Iterable[tuple[Any, Rule]], devices: LabDevices) -> None:
        """``rules`` are things with the rules that they are found by."""
        self._devices = devices
        every: dict[Place, list[tuple[int, Any, Rule]]] = {}
        for number, (thing, rule) in enumerate(rules):
            for place in places(rule):
                every.setdefault(place, []).append((number, thing, rule))
        self._whole = {kind: _Entry(found) for (kind, name), found in every.items() if not name}
        self._named = {
            (kind, name): _Entry(sorted((*found, *every.get((kind, ""), ())), key=_number))
            for (kind, name), found in every.items()
            if name
        }

    def of(self, call: Call) -> Iterable[Any]:
        """What may be about a call."""
        entry = self._named.get((call.kind, call.name)) or self._whole.get(call.kind)
        return () if entry is None else (thing for _, thing in entry.of(call, self._devices))
