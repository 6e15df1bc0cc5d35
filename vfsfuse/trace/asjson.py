# SPDX-License-Identifier: Apache-2.0
"""A record as an object of JSON with the decoded members of its structs, for programs.

docs/trace.md lists the keys, which stay as they are.  State: none.
"""

from __future__ import annotations

import errno
import math
from typing import Any

from vfsfuse.trace.decode import explain, number_of
from vfsfuse.trace.record import Record
from vfsfuse.trace.telling import region_name, value_of


def _plain(value: Any) -> Any:
    """Bytes as hexadecimal digits; anything else as it is.  NaN and infinity, which JSON lacks, are null."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def as_json(record: Record) -> dict[str, Any]:
    """The record as an object for `json.dumps`. Every key of docs/trace.md is there."""
    said: dict[str, Any] = {
        "number": record.number,
        "time": record.time,
        "duration": record.duration,
        "kind": record.kind,
        "subject": record.subject,
        "name": record.name,
        "pid": record.pid,
        "tid": record.tid,
        "comm": record.comm,
        "result": record.result,
        "errno": record.errno,
        "errno_name": errno.errorcode.get(record.errno),
        "error": record.error,
        "fault": record.fault,
        "delayed": record.delayed,
        "arguments": dict(record.arguments),
    }
    if record.kind == "ioctl":
        explained = explain(record)
        said |= {"before": explained.before, "after": explained.after}
    if record.kind in ("region", "mmap"):
        said["region"] = region_name(number_of(record, "region"))
    if record.kind in ("region", "dma"):
        said["value"] = value_of(record)
    plain: dict[str, Any] = _plain(said)
    return plain
