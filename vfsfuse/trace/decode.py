# SPDX-License-Identifier: Apache-2.0
"""What an ioctl of a trace was given and what it returned, by the name of the ioctl.

State: none, constant.
"""

from __future__ import annotations

from collections.abc import Mapping

from vfsfuse.trace.decodeiommufd import IOMMUFD
from vfsfuse.trace.decodevfio import VFIO
from vfsfuse.trace.escaping import word
from vfsfuse.trace.explained import Explained, Explainer, Number
from vfsfuse.trace.forms import hexdump, pointer
from vfsfuse.trace.record import Record

EXPLAINERS: Mapping[str, Explainer] = {**VFIO, **IOMMUFD}
"""By name of the ioctl."""

_UNKNOWN = Number("arg", pointer)
_DIRECTIONS = ("_IOC_NONE", "_IOC_WRITE", "_IOC_READ", "_IOC_READ|_IOC_WRITE")


def number_of(record: Record, argument: str) -> int | None:
    """An argument of a record that should be a number; None if it is not there or something else."""
    value = record.arguments.get(argument)
    return value if isinstance(value, int) else None


def bytes_of(record: Record, argument: str) -> bytes:
    """An argument of a record that should be bytes; none if it is not there or something else."""
    value = record.arguments.get(argument)
    return value if isinstance(value, bytes) else b""


def text_of(record: Record, argument: str) -> str:
    """An argument of a record as text; empty if it is not there."""
    value = record.arguments.get(argument, "")
    return value if isinstance(value, str) else str(value)


def ioctl_name(name: str) -> str:
    """The name of an ioctl.  A number without a name is taken apart: _IOC(_IOC_NONE, 0x3b, 0x99, 0)."""
    try:
        cmd = int(name, 16)
    except ValueError:
        return word(name)
    direction, size = _DIRECTIONS[cmd >> 30 & 3], cmd >> 16 & 0x3FFF
    return f"_IOC({direction}, {cmd >> 8 & 0xFF:#x}, {cmd & 0xFF:#x}, {size:#x})"


def explain(record: Record) -> Explained:
    """What the ioctl of a record was given and returned.  Nothing in the record makes this raise."""
    arg, explainer = number_of(record, "arg") or 0, EXPLAINERS.get(record.name, _UNKNOWN)
    before, after = bytes_of(record, "before"), bytes_of(record, "after")
    if explainer is _UNKNOWN and before:
        return Explained(given=f"{arg:#x} /* {hexdump(before)} */", before={"arg": arg})
    if not before and isinstance(name := record.arguments.get("name"), str):
        before = name.encode("utf-8", "surrogatepass")  # GROUP_GET_DEVICE_FD as `vfsfuse run` passes it on
    over = record.duration is not None
    return explainer.explain(arg, before, after, succeeded=over and not record.errno)
