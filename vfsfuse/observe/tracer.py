# SPDX-License-Identifier: Apache-2.0
"""What observes the call point for the readers of the trace: it puts each call into their queues.

`began` and `ended` run on whichever thread makes the call, and under its locks.  They take the lock of the
tracer for a few statements, and no other one.  Everything else is done by the thread of the trace
(vfsfuse.observe.tracefile), which converts, filters no more, and answers reads.
"""

from __future__ import annotations

import threading
import time

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from devmodel.iommu.dmaspace import StalePiece
from vfsfuse.observe.clients import NOBODY, Client, Clients
from vfsfuse.observe.feed import Feed, Options
from vfsfuse.observe.mappings import REGION_INFO, Mappings
from vfsfuse.observe.told import Told, cut, tell

LONG_SECONDS = 0.5
"""A call that is still under way after so long is told before its end."""

_RARE = (CallKind.OPEN, CallKind.STORE)
"""Calls before which the name of a client's process is asked for, because it may have called exec."""


class Tracer:
    """The observer of one lab.  It observes while it has readers.

    `news` is set when there is something to read, if somebody has said so by `expect`."""

    def __init__(self, calls: CallPoint, mappings: Mappings) -> None:
        self._calls, self._mappings = calls, mappings
        self._lock = threading.Lock()
        self._coming = threading.Lock()
        """Held while readers come and go, outside of the other lock."""
        self._feeds: tuple[Feed, ...] = ()
        self._under_way: dict[Call, tuple[int, Client]] = {}
        self._long: set[int] = set()
        self._number = 0
        self._expected = False
        self.epoch = 0.0
        """The time since the epoch at which time.monotonic() was 0: all readers see the same times."""
        self.news = threading.Event()
        self.clients = Clients()

    # ---- any thread that makes a call (devmodel.calls.attending.Observer) ----

    def began(self, call: Call) -> None:
        client = self.clients.look(call.tid) if call.kind in _RARE else self.clients.of(call.tid)
        with self._lock:
            self._number += 1
            self._under_way[call] = self._number, client

    def ended(self, call: Call) -> None:
        now = time.monotonic()
        with self._lock:
            number, client = self._under_way.pop(call, (0, NOBODY))
            if not number:  # it began before there were readers
                self._number = number = self._number + 1
            elif self._long:
                self._long.discard(number)
        if isinstance(call.error, StalePiece):  # no access was made, and the device makes it again
            return
        if client is NOBODY and call.tid:
            client = self.clients.of(call.tid)
        if call.kind is CallKind.OPEN or call.name == REGION_INFO:
            self._mappings.suspect(call, client)
        self.put(tell(number, call, client, now, self._calls.recorded))

    # ---- the thread of the trace ----

    def put(self, told: Told) -> None:
        """Give a call to all readers.  Any thread."""
        with self._lock:
            wanted = [feed for feed in self._feeds if feed.put(told if feed.options.record else cut(told))]
            wake = self._expected and bool(wanted)
            if wake:
                self._expected = False
        if wake:
            self.news.set()

    def look(self) -> float:
        """Tell what takes long, and what has been mapped.  Returns the seconds until the next look."""
        self._tell_long_calls()
        return self._mappings.look(self.put, self._next_number)

    def forget(self) -> None:
        """There are no readers any more."""
        self._mappings.forget()

    def _next_number(self) -> int:
        """A number for what is told and is no call."""
        with self._lock:
            self._number += 1
            return self._number

    def _tell_long_calls(self) -> None:
        """Tell the calls that have been under way for long, each once."""
        before = time.monotonic() - LONG_SECONDS
        with self._lock:
            found = [
                (number, call, client)
                for call, (number, client) in self._under_way.items()
                if call.begun <= before and number not in self._long
            ]
            self._long.update(number for number, _, _ in found)
        for number, call, client in found:
            told = tell(number, call, client, None)
            with self._lock:
                under_way = call in self._under_way
            if under_way:
                self.put(told)

    def take(self, feed: Feed) -> Told | int | None:
        """As `Feed.take`."""
        with self._lock:
            return feed.take()

    def expect(self, feed: Feed) -> bool:
        """Whether there is something to read.  If not, `news` is set when there is.  Any thread."""
        with self._lock:
            if not feed.ready:
                self._expected = True
            return feed.ready

    # ---- the pump ----

    def add(self) -> Feed:
        """A new reader, which gets every call that ends from now on."""
        feed = Feed()
        with self._coming:
            with self._lock:
                self._feeds += (feed,)
            if len(self._feeds) == 1:
                self.epoch = time.time() - time.monotonic()
                self._calls.observe(self)
        return feed

    def remove(self, feed: Feed) -> None:
        """The reader is gone."""
        with self._coming:
            with self._lock:
                self._feeds = tuple(each for each in self._feeds if each is not feed)
                self._tell_wishes()
            if not self._feeds:
                self._calls.unobserve(self)
                with self._lock:
                    self._under_way.clear()
                    self._long.clear()

    def begin(self, feed: Feed, options: Options) -> None:
        """Begin anew with these options."""
        with self._lock:
            feed.begin(options)
            self._tell_wishes()

    def _tell_wishes(self) -> None:
        """What the readers want of those who make calls.  Under the lock."""
        asked = [feed.options for feed in self._feeds]
        self._calls.recorded = any(options.record for options in asked)
        self._calls.hides_mmap = any(options.hide_mmap for options in asked)
