# SPDX-License-Identifier: Apache-2.0
"""One record of a trace: a call on a lab, as the file `trace` of a mount tells it in one line of JSON.

A record is a value without state.  `to_line` is for the server, `from_line` for readers, whose server may be
another user's: every line that is not a record is a TraceError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = ("ioctl", "region", "dma", "interrupt", "store", "lifecycle", "open", "reset", "mmap", "lost")
"""What a record can be about. docs/trace.md lists the names and arguments of each."""

DEVICE = "device"
"""The kind of a record that describes a device, which only readers that record get."""

BYTES = ("before", "after", "data")
"""Arguments that are bytes. In a line they are hexadecimal digits, as a result of bytes is."""

_RESULT_BYTES = "bytes"


class TraceError(Exception):
    """A trace cannot be read.  str() is one line for the user."""


@dataclass(frozen=True, slots=True)
class Record:
    """One call that is over, or that is still under way after a while.

    `number` counts the calls of a mount as they begin.  `time` is the seconds since the epoch at which it
    began, `duration` the seconds that it took, None while it is under way.  `pid` and `tid` are the client's
    process and thread, `comm` the process' name; 0 and empty where no client waits for the call.  `subject`
    is the device, group, container or directory.  `errno` is 0 for success, and `error` says more about a
    failure.  `fault` has the names of the fault rules that the call has met, separated by commas; `delayed`
    says that they did nothing but delay or hold it."""

    number: int
    time: float
    kind: str
    subject: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    duration: float | None = None
    pid: int = 0
    tid: int = 0
    comm: str = ""
    result: int | str | bytes | None = None
    errno: int = 0
    error: str = ""
    fault: str = ""
    delayed: bool = False

    @property
    def rules(self) -> list[str]:
        """The names of the fault rules that the call has met."""
        return [name for name in self.fault.split(",") if name]

    def to_line(self) -> str:
        """The record as a line of JSON, without a line break.  Fields that have their default are left
        out."""
        said: dict[str, Any] = {
            **{"number": self.number, "time": self.time, "kind": self.kind, "subject": self.subject},
            **{"name": self.name, "arguments": self.arguments},
        }
        for name, default in _DEFAULTS:
            value = getattr(self, name)
            if value != default:
                said[name] = value
        if isinstance(self.result, bytes):
            said["result"] = {_RESULT_BYTES: self.result}
        return _encode(said)


_DEFAULTS = (
    *(("duration", None), ("pid", 0), ("tid", 0), ("comm", "")),
    *(("result", None), ("errno", 0), ("error", ""), ("fault", ""), ("delayed", False)),
)
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=bytes.hex).encode
_TYPES: Mapping[str, tuple[type, ...]] = {
    **{"number": (int,), "time": (int, float), "kind": (str,), "subject": (str,), "name": (str,)},
    **{"arguments": (dict,), "duration": (int, float, type(None)), "pid": (int,), "tid": (int,)},
    **{"comm": (str,), "result": (int, str, dict, type(None)), "errno": (int,), "error": (str,)},
    **{"fault": (str,), "delayed": (bool,)},
}


def from_line(line: str | bytes) -> Record:
    """The record in a line of JSON.  Raises TraceError for any other line."""
    try:
        said = json.loads(line)
        for name, value in said.items():
            if not isinstance(value, _TYPES[name]):
                raise ValueError(name)
        arguments = {
            key: bytes.fromhex(value) if key in BYTES else value for key, value in said["arguments"].items()
        }
        result = said.get("result")
        if isinstance(result, dict):
            result = bytes.fromhex(result[_RESULT_BYTES])
        return Record(**{**said, "arguments": arguments, "result": result})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise TraceError(f"this line is no record of a trace: {line[:80]!r}") from None
