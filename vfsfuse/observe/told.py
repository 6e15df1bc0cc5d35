# SPDX-License-Identifier: Apache-2.0
"""A call as the trace keeps it until somebody reads it, and the making of a record from that.

`tell` runs on whichever thread makes the call, so it cuts data and formats errors, and does nothing else.
`record_of` runs on the thread of the trace.  Both are functions of their arguments.
"""

from __future__ import annotations

import errno as errnos
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from devmodel.calls.call import Call, CallKind
from devmodel.region.names import RegisterNames
from vfsfuse.failures import MOST_TEXT, place, text_of
from vfsfuse.observe.clients import Client
from vfsfuse.trace.record import DEVICE, Record

MOST_DATA = 64
"""Bytes of an access that are kept."""
MOST_STRUCT = 1024
"""Bytes of an ioctl's struct, or of a store, that are kept."""
MOST_RECORDED, MOST_RECORDED_STRUCT = 4 << 20, 1 << 14
"""The same for a reader that records, of an access and of a struct."""
_OVERHEAD = 600
"""Bytes of memory that a call takes besides its data: its tuple, its arguments, its place in a queue."""
_PAGE = 4096
"""Bytes of a page as devices pin them."""
_ACCESSES = (CallKind.REGION, CallKind.DMA)
_CUT = tuple(kind.value for kind in _ACCESSES)
_REGISTER = 200
"""Bytes of memory that the name of a register takes in a description."""
_RESULTS, _PLAIN, _SERIES = (int, str), (int, str, bytes), (list, tuple)
"""Types.  A union of them takes isinstance() longer, and this is done at each call."""


class Told(NamedTuple):
    """One call.  `begun` and `ended` are times of time.monotonic(), `ended` is None while it is under way.

    `data` has the first bytes of an access or a store, `size` is the memory that the call takes.  `names` are
    those of the registers of the region; `fault` and `delayed` are as in a record."""

    number: int
    kind: str
    subject: str
    name: str
    client: Client
    begun: float
    ended: float | None
    arguments: Mapping[str, Any]
    before: bytes
    after: bytes
    data: bytes | None
    result: int | str | None
    errno: int
    error: str
    names: RegisterNames | None
    size: int
    fault: str = ""
    delayed: bool = False


class _Regions(Protocol):
    @property
    def regions(self) -> Sequence[Any]: ...


def tell(number: int, call: Call, client: Client, ended: float | None, recorded: bool = False) -> Told:
    """What is kept of a call that is over, or that is under way (`ended` is None).  `recorded` is whether a
    reader records."""
    arguments, result, kind = call.arguments, call.result, call.kind
    before = after = b""
    data: bytes | None = None
    names = None
    if kind in _ACCESSES:
        moved = result if isinstance(result, bytes) else arguments.get("data")
        if moved is not None:
            data = bytes(moved[: MOST_RECORDED if recorded else MOST_DATA])
        result = len(result) if isinstance(result, bytes) and kind is CallKind.REGION else result
        names = _names(call) if kind is CallKind.REGION else None
    elif kind is CallKind.IOCTL:
        most = MOST_RECORDED_STRUCT if recorded else MOST_STRUCT
        before, after = arguments.get("before", b"")[:most], call.after[:most]
    elif kind is CallKind.STORE:
        data = bytes(arguments.get("data", b"")[:MOST_STRUCT])
    errno, error = (0, "") if call.error is None else _failure(call.error)
    if "data" in arguments or "before" in arguments:
        arguments = {key: value for key, value in arguments.items() if key not in ("before", "data")}
    size = _OVERHEAD + len(before) + len(after) + (len(data) if data else 0) + len(error)
    if kind is CallKind.DEVICE:
        size += _REGISTER * len(arguments["registers"]) + len(arguments["config"])
    told = result if isinstance(result, _RESULTS) and call.error is None else None
    what = (number, kind._value_, call.subject, call.name, client, call.begun, ended)
    rules = call.fault, call.delayed
    return Told(*what, arguments, before, after, data, told, errno, error, names, size, *rules)


def cut(told: Told) -> Told:
    """The same for a reader that does not record."""
    data, before, after = told.data, told.before, told.after
    if len(before) > MOST_STRUCT or len(after) > MOST_STRUCT:
        before, after = before[:MOST_STRUCT], after[:MOST_STRUCT]
    elif data is not None and len(data) > MOST_DATA and told.kind in _CUT:
        data = data[:MOST_DATA]
    else:
        return told
    return told._replace(data=data, before=before, after=after, size=_OVERHEAD + 2 * MOST_STRUCT)


def tell_mapping(number: int, device: str, client: Client, region: int, size: int) -> Told:
    """What is kept of a mapping of `size` bytes of a region, which was noticed now."""
    now, arguments = time.monotonic(), {"region": region, "size": size}
    what = (number, "mmap", device, "mmap", client, now, now)
    return Told(*what, arguments, b"", b"", None, None, 0, "", None, _OVERHEAD)


def record_of(told: Told, epoch: float) -> Record:
    """The record of a call.  `epoch` is the time since the epoch at which time.monotonic() was 0."""
    plain = told.kind == DEVICE  # its lists are numbers and names
    arguments: dict[str, Any] = {
        key: value if plain else _plain(value) for key, value in told.arguments.items()
    }
    if told.name == "pin" and "count" in arguments:
        arguments["size"] = arguments.pop("count") * _PAGE
    if told.before:
        arguments["before"] = told.before
    if told.after:
        arguments["after"] = told.after
    if told.data is not None:
        arguments["data"] = told.data
    if told.names is not None:
        register = told.names.describe(arguments["offset"], arguments["size"])
        if register:
            arguments["register"] = register
    client = told.client
    return Record(
        *(told.number, told.begun + epoch, told.kind, told.subject, told.name, arguments),
        None if told.ended is None else max(0.0, told.ended - told.begun),
        *(client.pid, client.tid, client.comm, told.result, told.errno, told.error),
        *(told.fault, told.delayed),
    )


def _plain(value: object) -> object:
    """A value that JSON has."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, _SERIES):
        return [str(each)[:MOST_TEXT] for each in value]
    return str(value)[:MOST_TEXT]


def _names(call: Call) -> RegisterNames | None:
    """The names of the registers of an access: a region's class or its shape has them, not the device, so
    that a record keeps no device in memory."""
    device: _Regions | None = call.device
    index = call.arguments["region"]
    if device is None or not 0 <= index < len(device.regions):
        return None
    region = device.regions[index]
    names: RegisterNames | None = None if region is None else region.names
    return names


def _failure(error: BaseException) -> tuple[int, str]:
    """The errno of a failure, and what there is to say besides.  An exception that is no OSError is a
    model's mistake; its client gets EIO."""
    if not isinstance(error, OSError):
        return errnos.EIO, text_of(error) + place(error.__traceback__)
    number = error.errno or errnos.EIO
    fault = getattr(error, "fault", None)
    said = error.strerror if fault is None else fault.reason
    return number, "" if not said or said == os.strerror(number) else str(said)[:MOST_TEXT]
