# SPDX-License-Identifier: Apache-2.0
"""A record as one line of text, as strace(1) would show it: docs/trace.md says how to read a line.

    12:00:00.000125 qemu[1234] vgpu0 VFIO_DEVICE_RESET = 0 <0.000021>

`line` has no state.  An object of `Lines` belongs to the thread that reads the trace.
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict

from vfsfuse.trace.colours import BY_KIND, ERROR, coloured
from vfsfuse.trace.escaping import word
from vfsfuse.trace.record import Record
from vfsfuse.trace.telling import failure, injected, parts_of, seconds

_REMEMBERED = 10_000
"""Unfinished calls that `Lines` remembers.  The end of an older one looks like any other call."""


@functools.lru_cache(maxsize=1)
def _second(when: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def _clock(when: float) -> str:
    """A time of the day, local, with microseconds.  Question marks for a time that cannot be."""
    try:
        whole, part = divmod(round(when * 1_000_000), 1_000_000)
        return f"{_second(whole)}.{part:06d}"
    except (ValueError, OverflowError, OSError):
        return "??:??:??.??????"


def _process(record: Record) -> str:
    """comm[pid], or comm[pid/tid] for a thread that is not the first of its process; "-" for nobody."""
    if not record.pid and not record.tid:
        return "-"
    thread = f"/{record.tid}" if record.tid not in (0, record.pid) else ""
    return f"{word(record.comm) if record.comm else ''}[{record.pid}{thread}]"


def line(record: Record, colours: bool = False, resumed: bool = False) -> str:
    """The line of a record, without a line break.

    `colours` puts escape sequences around what was done and around a failure.  `resumed` says that a line
    of this call has told before that it is under way; then the time is that of its end.  Nothing in a
    record makes this raise, and nothing of a record reaches a terminal unescaped."""
    told, failed = parts_of(record), failure(record)
    begun = seconds(record.time) + (seconds(record.duration) if resumed else 0.0)
    what = coloured(told.what, BY_KIND.get(record.kind) if colours else None)
    if record.kind == "lost":
        return f"{_clock(begun)} {what} {told.details}"
    notice = record.kind == "mmap"  # no call, so it takes no time
    columns = [_clock(begun), _process(record), word(record.subject.replace(" ", "-"))]
    columns += ["<... resumed>"] if resumed else []
    columns += filter(None, (what, told.details))
    rules = coloured(injected(record), ERROR if colours else None)
    if record.duration is None and not notice:
        return " ".join([*columns, *filter(None, (rules,)), "<unfinished ...>"])
    if failed:
        columns.append(f"= {coloured(failed, ERROR if colours else None)}")
    elif told.result:
        columns.append(f"= {told.result}")
    columns += filter(None, (rules,))
    if record.duration is not None and not notice:
        columns.append(f"<{seconds(record.duration):.6f}>")
    return " ".join(columns)


class Lines:
    """The lines of a trace in their order.  The end of a call that was told as unfinished is told as
    "<... resumed>"."""

    def __init__(self, colours: bool = False) -> None:
        self.colours = colours
        self._unfinished: OrderedDict[int, None] = OrderedDict()

    def line(self, record: Record) -> str:
        """The line of the next record."""
        resumed = record.number in self._unfinished and record.duration is not None
        if resumed:
            del self._unfinished[record.number]
        elif record.duration is None and record.kind not in ("lost", "mmap"):
            self._unfinished[record.number] = None
            if len(self._unfinished) > _REMEMBERED:
                self._unfinished.popitem(last=False)
        return line(record, self.colours, resumed)
