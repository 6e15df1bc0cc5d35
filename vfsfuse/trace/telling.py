# SPDX-License-Identifier: Apache-2.0
"""What a record says, in the parts of which a line of text is made: what was done, on what, with what result.

One function for each kind of record, in `TELLERS`.  Everything in a record may come from a client or from
another user's server: each text is escaped, and a value of the wrong type is left out.  State: none.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vfsfuse.trace.decode import bytes_of, explain, ioctl_name, number_of, text_of
from vfsfuse.trace.escaping import printable, quoted, quoted_bytes, word
from vfsfuse.trace.forms import hexdump
from vfsfuse.trace.record import Record

_REGIONS = (*(f"BAR{bar}" for bar in range(6)), "ROM", "config", "VGA")
_NUMBERS = (1, 2, 4, 8)
"""Sizes of data that are shown as a number."""
INVISIBLE = "loads and stores through this mapping are not shown"


class Parts(NamedTuple):
    """The parts of a line.  `result` is empty if there is none, or if a failure is told instead."""

    what: str
    details: str = ""
    result: str = ""


def region_name(index: int | None) -> str:
    """BAR0 to BAR5, ROM, config, VGA; region9 and so on for those of the device alone."""
    if index is None:
        return "region"
    return _REGIONS[index] if 0 <= index < len(_REGIONS) else f"region{index}"


def value_of(record: Record) -> int | None:
    """The data of an access as a number, if it is one of 1, 2, 4 or 8 bytes."""
    data, size = _data(record), number_of(record, "size")
    return int.from_bytes(data, "little") if len(data) in _NUMBERS and len(data) == size else None


def _data(record: Record) -> bytes:
    if isinstance(record.result, bytes) and "data" not in record.arguments:
        return record.result
    return bytes_of(record, "data")


def _shown_data(record: Record) -> str:
    value = value_of(record)
    return hexdump(_data(record), number_of(record, "size")) if value is None else f"{value:#x}"


def _size(record: Record) -> str:
    size = number_of(record, "size")
    if size is None:
        return "? bytes"
    return f"{size} byte{'s' if size != 1 else ''}"


def _hex(record: Record, argument: str) -> str:
    number = number_of(record, argument)
    return "?" if number is None else f"{number:#x}"


def _result(record: Record) -> str:
    """A result that is a number or a text."""
    result = record.result
    return printable(result) if isinstance(result, str) else str(result) if isinstance(result, int) else ""


def _ioctl(record: Record) -> Parts:
    said = explain(record)
    arrow = f"{said.given} => {said.returned}" if said.returned else said.given
    return Parts(ioctl_name(record.name), arrow, _result(record))


def access_name(record: Record) -> str:
    """What an access does: "BAR0 read", "DMA write"."""
    where = "DMA" if record.kind == "dma" else region_name(number_of(record, "region"))
    return f"{where} {word(record.name)}"


def _region(record: Record) -> Parts:
    offset, register = _hex(record, "offset"), text_of(record, "register")
    place = (
        f"{printable(register)} ({offset}, {_size(record)})" if register else f"{offset} ({_size(record)})"
    )
    return _moved(record, place)


def _dma(record: Record) -> Parts:
    response = text_of(record, "response")  # to a page request
    said = f": {word(response)}" if response else ""
    return _moved(record, f"{_size(record)} at {_hex(record, 'iova')}{said}")


def _moved(record: Record, place: str) -> Parts:
    """An access that moves data: a read has them as its result, a write always."""
    what = access_name(record)
    data = _shown_data(record) if _data(record) else ""
    if record.name == "write":
        return Parts(what, f"{place} = {data}" if data else place)
    return Parts(what, place, data)


def _interrupt(record: Record) -> Parts:
    vector = number_of(record, "vector")
    return Parts("interrupt", word(record.name) + ("" if vector is None else f" vector {vector}"))


def _store(record: Record) -> Parts:
    data = record.arguments.get("data", b"")
    text = quoted_bytes(data) if isinstance(data, bytes) else quoted(str(data))
    return Parts("store", f"{word(record.name)} {text}", _result(record))


def _lifecycle(record: Record) -> Parts:
    said: list[str] = []
    for name, value in record.arguments.items():
        if isinstance(value, list | tuple):
            said += [word(str(each)) for each in value]
        else:
            said.append(f"{word(name)}={word(str(value))}")
    return Parts(word(record.name), " ".join(said), _result(record))


def _open(record: Record) -> Parts:
    path = text_of(record, "path")
    return Parts(word(record.name), quoted(path) if path else "")


def _reset(record: Record) -> Parts:
    return Parts("reset")


def _mmap(record: Record) -> Parts:
    size = f"({_hex(record, 'size')} bytes)"
    return Parts("mmap", f"{region_name(number_of(record, 'region'))} {size}: {INVISIBLE}")


def _lost(record: Record) -> Parts:
    count = number_of(record, "count") or 0
    are = "record is" if count == 1 else "records are"
    return Parts("...", f"{count:,} {are} lost here: the reader was slow")


TELLERS: Mapping[str, Callable[[Record], Parts]] = {
    "ioctl": _ioctl,
    "region": _region,
    "dma": _dma,
    "interrupt": _interrupt,
    "store": _store,
    "lifecycle": _lifecycle,
    "open": _open,
    "reset": _reset,
    "mmap": _mmap,
    "lost": _lost,
}
"""By kind of record."""


def parts_of(record: Record) -> Parts:
    """What a record says.  A kind that is not known, as a newer server may have, is told by its name."""
    teller = TELLERS.get(record.kind)
    return teller(record) if teller else Parts(word(record.kind), word(record.name), _result(record))


def seconds(value: float | None) -> float:
    """A time of a record as a float: infinity for a whole number that is none, 0 for no time."""
    try:
        return float(value or 0.0)
    except OverflowError:
        return math.inf


def injected(record: Record) -> str:
    """What fault rules have done to the call: "(INJECTED slow)", or "(DELAYED slow)" for a delay alone; empty
    if nothing."""
    names = ",".join(word(name) for name in record.rules)
    return f"({'DELAYED' if record.delayed else 'INJECTED'} {names})" if names else ""


def failure(record: Record) -> str:
    """How the call failed: "-1 ENOSPC (No space left on device)"; empty if it did not."""
    if not record.errno:
        return f"failed: {printable(record.error)}" if record.error else ""
    name = errno.errorcode.get(record.errno)
    said = f"{name} ({os.strerror(record.errno)})" if name else f"errno {record.errno}"
    why = record.error.removeprefix(f"{record.name}: ")  # an error of ours begins with the ioctl's name
    return f"-1 {said}" + (f": {printable(why)}" if why else "")
