# SPDX-License-Identifier: Apache-2.0
"""Which calls a rule is about, and an index of rules by that.

Nothing here has an effect, so any thread may ask, the pump too, under any lock: it reads the call, names of
the lab's devices, and for rules with a process /proc, which nobody can hold up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any

from devmodel.calls.call import Call, CallKind
from devmodel.region.names import Named, RegisterNames
from vfsfuse.faults import plausible
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.rule import Rule, is_pattern
from vfsfuse.observe.clients import Clients

Test = Callable[[Call], bool]
Place = tuple[CallKind, str]
"""A kind of call, and its name, or "" for all names."""

PAGE = 4096
VFIO_MDEV = "vfio_mdev"
APPEAR: Place = (CallKind.LIFECYCLE, "appear")
"""A virtual function is about to appear."""
_KINDS = {kind.value: kind for kind in CallKind}
_DMAS = {"any": ("read", "write", "pin")}
_MOVING = ("value", "flip", "drop", "duplicate")


def places(rule: Rule) -> Sequence[Place]:
    """Where the calls of a rule pass the call point."""
    call, value = rule.call, rule.get(rule.call)
    if call == "ioctl":
        return ((CallKind.IOCTL, "" if is_pattern(value) else value),)
    if call in ("register", "region"):
        return tuple((CallKind.REGION, name) for name in _accesses(rule))
    if call == "dma":
        return tuple((CallKind.DMA, name) for name in _dmas(rule))
    if call == "interrupt":
        return ((CallKind.INTERRUPT, "" if value == "any" else value),)
    if call == "store":
        last = value.rpartition("/")[2]
        return ((CallKind.STORE, "" if is_pattern(last) else last),)
    if call == "create":
        return (CallKind.LIFECYCLE, "create"), (CallKind.LIFECYCLE, "set_type")
    if call == "bind":
        return ((CallKind.STORE, "bind"),)
    if call == "probe":
        return ((CallKind.LIFECYCLE, "probe"),)
    if call == "open":
        return ((CallKind.OPEN, "open"),)
    if call == "call":
        kinds = plausible.KINDS if value is None else value
        return tuple((_KINDS[kind], "") for kind in kinds)
    return () if rule.is_timed else (APPEAR,)


def _accesses(rule: Rule) -> Sequence[str]:
    access = rule.get("access", "write" if rule.get("duplicate") else None)
    return ("read", "write") if access is None else (access,)


def _dmas(rule: Rule) -> Sequence[str]:
    if rule.get("dma") != "any":
        return (rule.get("dma"),)
    if rule.get("duplicate"):
        return ("write",)
    return ("read", "write") if any(rule.get(key) for key in _MOVING) else ("read", "write", "pin")


class Matcher:
    """The calls that one rule is about, among those at its :func:`places`."""

    __slots__ = ("_tests", "registers")

    def __init__(self, rule: Rule, devices: LabDevices, clients: Clients) -> None:
        self.registers = named_by(rule.get("register", "*"))
        own = getattr(self, f"_{rule.call}", None)
        tests: list[Test] = [] if own is None else list(own(rule, devices))
        if "device" in rule.keys and not rule.aims:
            tests.append(_device(rule, devices))
        if "process" in rule.keys:
            tests.append(_process(rule.keys["process"], clients))
        self._tests = tuple(tests)

    def matches(self, call: Call) -> bool:
        """Whether the rule is about a call."""
        return all(test(call) for test in self._tests)

    def register_of(self, call: Call) -> Named | None:
        """The first register of the rule that an access of a region touches."""
        device, arguments = call.device, call.arguments
        index = arguments["region"]
        if device is None or not 0 <= index < len(device.regions) or device.regions[index] is None:
            return None
        names: RegisterNames | None = device.regions[index].names
        if names is None:
            return None
        touched = names.touched(arguments["offset"], arguments["size"])
        return next((register for register in touched if self.registers(register.name)), None)

    # ---- by the key that says which kind of call it is ----

    def _ioctl(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        named = named_by(rule.keys["ioctl"])
        yield lambda call: named(call.name)

    def _register(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        index = rule.get("region")
        if index is not None:
            yield lambda call: call.arguments["region"] == index
        yield lambda call: self.register_of(call) is not None

    def _region(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        index, span = rule.keys["region"], rule.get("range")
        yield lambda call: call.arguments["region"] == index
        if span is not None:
            yield lambda call: span.meets(call.arguments["offset"], call.arguments["size"])

    def _dma(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        span = rule.get("iova")
        if span is not None:
            yield lambda call: span.meets(call.arguments["iova"], _bytes(call.arguments))

    def _interrupt(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        vector = rule.get("vector")
        if vector is not None:
            yield lambda call: call.arguments["vector"] == vector

    def _store(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        pattern = rule.keys["store"]
        named = named_by(pattern.lstrip("/"))
        if "/" in pattern:
            yield lambda call: named(f"{call.subject}/{call.name}")
        else:
            yield lambda call: named(call.name)

    def _create(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        named = named_by(rule.keys["create"])

        def is_created(call: Call) -> bool:
            if call.name == "create":
                return named(call.subject)
            given = call.arguments.get("arguments") or ("0",)
            number = int(given[0]) if str(given[0]).isdecimal() else 0
            return number != 0 and (named(str(number)) or named(devices.type_name(number)))

        yield is_created

    def _bind(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        named = named_by(rule.keys["bind"])
        yield lambda call: named(call.subject.rpartition("/")[2])

    def _probe(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        named = named_by(rule.keys["probe"])
        yield lambda call: named(str((call.arguments.get("arguments") or (VFIO_MDEV,))[0]))

    def _open(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        named = named_by(rule.keys["open"].removeprefix("/").removeprefix("dev/"))
        yield lambda call: named(str(call.arguments.get("path", "")).removeprefix("dev/"))

    def _call(self, rule: Rule, devices: LabDevices) -> Iterable[Test]:
        yield lambda call: bool(plausible.failures(call))


def _bytes(arguments: Mapping[str, Any]) -> int:
    size: int = arguments["size"] if "size" in arguments else arguments["count"] * PAGE
    return size


def named_by(pattern: str) -> Callable[[str], bool]:
    """Whether a name is one of a pattern."""
    if not is_pattern(pattern):
        return pattern.__eq__
    match = re.compile(translate(pattern)).match
    return lambda name: match(name) is not None


def _device(rule: Rule, devices: LabDevices) -> Test:
    wanted = rule.keys["device"].lower()
    named = named_by(wanted)

    def is_on(call: Call) -> bool:
        if call.device is not None and call.device.name == wanted:
            return True
        return any(named(name) for name in devices.names(call))

    return is_on


def _process(wanted: int | str, clients: Clients) -> Test:
    if isinstance(wanted, int):
        return lambda call: bool(call.tid) and clients.look(call.tid).pid == wanted
    named = named_by(wanted)

    def makes(call: Call) -> bool:
        return bool(call.tid) and named(clients.look(call.tid).comm)

    return makes


# ---- data ----


def change_of(rule: Rule, register: tuple[int, int] | None) -> Callable[[bytes], bytes] | None:
    """What becomes of the data of a call. ``register`` is where the register that a rule names begins in the
    data, which may be before them, and its bytes; None: all the data are meant."""
    value, flip = rule.get("value"), rule.get("flip", 0)
    if value is None and not flip:
        return None

    def change(data: bytes) -> bytes:
        start, width = (0, len(data)) if register is None else register
        whole = (1 << 8 * width) - 1
        old = int.from_bytes(data, "little")
        place = old << -8 * start if start < 0 else old >> 8 * start
        new = ((place if value is None else value) ^ flip) & whole
        return _put(data, start, new.to_bytes(width, "little"))

    return change


def _put(data: bytes, start: int, part: bytes) -> bytes:
    """``data`` with ``part`` at ``start``, as far as it lies in it."""
    if start < 0:
        start, part = 0, part[-start:]
    part = part[: len(data) - start]
    return data[:start] + part + data[start + len(part) :]


# ---- an index ----


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
