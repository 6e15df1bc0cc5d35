# SPDX-License-Identifier: Apache-2.0
"""Which calls a rule is about, among those at its places (vfsfuse.faults.places).

Nothing here has an effect, so any thread may ask, the pump too, under any lock: it reads the call, names of
the lab's devices, and for rules with a process /proc, which nobody can hold up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from typing import Any

from devmodel.calls.call import Call
from devmodel.lifecycle.binding import VFIO_MDEV
from devmodel.region.names import Named, RegisterNames
from vfsfuse.faults import plausible
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.rule import Rule, is_pattern
from vfsfuse.observe.clients import Clients

Test = Callable[[Call], bool]
PAGE = 4096
MOST_COMM = 15
"""Bytes of a process's name that Linux keeps."""


class Matcher:
    """The calls that one rule is about, among those at its :func:`vfsfuse.faults.places.places`."""

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


def _comm(name: str) -> str:
    """As much of a name of a process as Linux keeps (proc_pid_comm(5))."""
    return name.encode()[:MOST_COMM].decode(errors="replace")


def _process(wanted: int | str, clients: Clients) -> Test:
    if isinstance(wanted, int):
        return lambda call: bool(call.tid) and clients.look(call.tid).pid == wanted
    named = named_by(wanted if is_pattern(wanted) else _comm(wanted))

    def makes(call: Call) -> bool:
        return bool(call.tid) and named(clients.look(call.tid).comm)

    return makes
