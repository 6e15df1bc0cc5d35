# SPDX-License-Identifier: Apache-2.0
"""What the thread of the trace does for readers that go."""

from __future__ import annotations

import os
import threading
import weakref

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from ioctl_shim.lane import OpenRequest
from tests.waiting import wait_for
from vfsfuse.observe.mappings import Mappings
from vfsfuse.observe.tracefile import TraceReaders
from vfsfuse.observe.tracer import Tracer


class NoFiles:
    """A mount of which nobody maps anything."""

    def st_dev(self) -> int:
        raise AssertionError("nobody is suspected")

    def region_of(self, inode: int) -> None:
        raise AssertionError("nobody is suspected")


class Value:
    """An argument of a call."""


def test_what_is_left_unread_is_freed_by_the_thread_of_the_trace() -> None:
    """Thousands of calls take so long to be freed that the pump must not do it."""
    calls, freed = CallPoint(), list[str]()
    readers = TraceReaders(Tracer(calls, Mappings(NoFiles())))
    file = readers.open(OpenRequest(1, os.O_RDONLY, 0, 0, 0, leads=True, on_pump=False)).file
    for _ in range(100):
        value = Value()
        weakref.finalize(value, lambda: freed.append(threading.current_thread().name))
        calls.tell(Call(CallKind.LIFECYCLE, "it", "create", {"value": value}), lambda: None)
    del value
    assert not freed
    file.release()
    del file
    wait_for(lambda: len(freed) == 100)
    assert set(freed) == {"trace"}
    wait_for(lambda: not any(each.name == "trace" for each in threading.enumerate()))
