# SPDX-License-Identifier: Apache-2.0
"""Which records a reader of a trace wants to see.

A filter is a value without state.  The server applies its devices, kinds, processes and fault rules
(`server_side`), so that a reader with a short memory keeps what it wants.  The reader applies all of it
(`matches`).
"""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from vfsfuse.trace.record import DEVICE, KINDS, Record, TraceError

KEEP = 100_000
"""Records that the server keeps for a reader, unless the reader says otherwise."""
MOST_KEPT = 1_000_000
ANY = "any"
"""Among errnos: any failure.  Among injected: any fault rule."""
_DOMAIN = "0000:"
_UUID_LENGTH = 36
_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Filter:
    """What a record has to be.  An empty collection lets everything through.

    `devices` are names as those of `Record.subject`; see `is_about`.  `registers` are patterns of fnmatch,
    and only accesses of registers match them.  `errnos` are names ("EINVAL") or "any", and only calls that
    failed match them.  `pids` are numbers of processes; 0 stands for calls that no client waits for, such as
    DMA.  `injected` are patterns of the names of fault rules or "any", and only calls that a rule has hit
    match them.
    Raises TraceError for a kind or an errno that there is not."""

    devices: Collection[str] = ()
    kinds: Collection[str] = ()
    registers: Collection[str] = ()
    errnos: Collection[str] = ()
    pids: Collection[int] = ()
    injected: Collection[str] = ()
    _numbers: frozenset[int] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise TraceError(f"{kind}: there is no such kind of call (there are {', '.join(KINDS)})")
        object.__setattr__(self, "_numbers", frozenset(_numbers(self.errnos)))

    def matches(self, record: Record) -> bool:
        """Whether the record is to be seen.  One that tells of lost records always is."""
        if record.kind == "lost":
            return True
        if record.kind == DEVICE:
            return not self.devices or self._has_device(record)
        return (
            (not self.kinds or record.kind in self.kinds)
            and (not self.pids or record.pid in self.pids)
            and (not self.devices or self._has_device(record))
            and (not self.registers or self._has_register(record))
            and (not self.errnos or self._has_errno(record))
            and (not self.injected or is_injected(record.fault, self.injected))
        )

    def server_side(self, keep: int = KEEP, wishes: Mapping[str, bool] | None = None) -> str:
        """The line of JSON that is written to the file `trace` before it is read, with further options in
        `wishes`.  Raises TraceError for a number of records that the server does not keep."""
        if not 0 < keep <= MOST_KEPT:
            raise TraceError(f"{keep} records cannot be kept: 1 to {MOST_KEPT} can")
        said: dict[str, object] = {"keep": keep, **(wishes or {})}
        for name in ("devices", "kinds", "pids", "injected"):
            value = getattr(self, name)
            if value:
                said[name] = list(value)
        return json.dumps(said) + "\n"

    def _has_device(self, record: Record) -> bool:
        data, arguments = record.arguments.get("data"), record.arguments.get("arguments")
        subjects = (record.subject, *named(record.kind, data, arguments))
        return any(is_about(subject, name) for subject in subjects for name in self.devices)

    def _has_register(self, record: Record) -> bool:
        register = record.arguments.get("register")
        if not isinstance(register, str):
            return False
        names = {register, *(part.partition("+")[0] for part in register.split(".."))}
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.registers)

    def _has_errno(self, record: Record) -> bool:
        return record.errno != 0 and (ANY in self.errnos or record.errno in self._numbers)


def is_about(subject: str, name: str) -> bool:
    """Whether a record's subject is the device, group, container or directory called `name`.

    The name is that of the device's directory (a UUID, a PCI address), "group <N>", "container" or "iommufd".
    A UUID also names the vGPU whose directory has an instance's number behind it; a PCI address may be
    without its domain 0000. A store is about each device in the path of its directory."""
    wanted = name.lower()
    parts = subject.lower().split("/")
    if wanted in parts or _DOMAIN + wanted in parts:
        return True
    return len(wanted) == _UUID_LENGTH and any(part.startswith(wanted + "-") for part in parts)


def is_injected(fault: str, patterns: Collection[str]) -> bool:
    """Whether the fault rules of a call (`Record.fault`) have a name that matches one of these patterns of
    fnmatch; "any" matches each."""
    return any(
        pattern == ANY or fnmatchcase(name, pattern)
        for name in filter(None, fault.split(","))
        for pattern in patterns
    )


def named(kind: str, data: object, arguments: object) -> Iterator[str]:
    """The devices that a record names besides its subject: the one that is created, by its type, and the one
    that is written to `create`, `vgpu_create` or `bind`."""
    if kind == "lifecycle" and isinstance(arguments, list | tuple):
        yield from (str(argument) for argument in arguments)
    elif kind == "store" and isinstance(data, bytes):
        written = data[:_LONGEST_NAME].decode("ascii", "replace").strip()
        yield from (written, written[:_UUID_LENGTH])  # a line of vgpu_create begins with a UUID


def _numbers(names: Collection[str]) -> Iterator[int]:
    for name in names:
        if name == ANY:
            continue
        number = getattr(errno, name, None) if name.startswith("E") else None
        if not isinstance(number, int):
            raise TraceError(f"{name}: there is no such errno")
        yield number


EVERYTHING = Filter()
