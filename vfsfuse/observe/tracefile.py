# SPDX-License-Identifier: Apache-2.0
"""The file `trace` at the root of a mount: what clients do with the lab, one line of JSON for each call.

Opens, options, polls and releases come on the device lane.  One thread, `trace`, answers all reads: it makes
the lines.  It exists while there are readers.  The state of an open file is under the file's lock, which is
never held while a line is made.  docs/trace.md describes the file.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque

from ioctl_shim.lane import READABLE, WRITABLE, DeferringFile, Opened, OpenRequest, PendingRequest, wake_poll
from vfsfuse.kernfs.kobject import DeviceNode
from vfsfuse.observe.feed import Feed, Options
from vfsfuse.observe.told import record_of
from vfsfuse.observe.tracer import Tracer
from vfsfuse.trace.record import Record

log = logging.getLogger(__name__)
MODE = 0o600
MOST_READERS = 64
TICK = 0.25
"""Seconds after which the thread looks for calls that take long, whether there is news or not."""
BATCH_SECONDS = 0.002
"""A reader that waits is woken so long after the first call, and gets those that came meanwhile as well."""
FORGET_SECONDS = 1.0


class TraceReaders:
    """The open files `trace` of one lab, and the thread that answers them."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self._lock = threading.Lock()
        self._files: tuple[TraceFile, ...] = ()
        self._closed: list[Feed] = []
        """What readers that are gone have not read."""
        self._asked = self._runs = False

    def node(self) -> DeviceNode:
        """The file."""
        return DeviceNode("trace", MODE, self.open)

    def open(self, request: OpenRequest) -> Opened:
        """An open of it.  Raises OSError: EACCES when it is opened for writing only, EMFILE when there are
        too many readers, ENOMEM when there can be no more threads."""
        access = request.flags & os.O_ACCMODE
        if access == os.O_WRONLY:
            raise OSError(errno.EACCES, "trace has nothing to write to")
        with self._lock:
            if len(self._files) >= MOST_READERS:
                raise OSError(errno.EMFILE, f"{MOST_READERS} readers of the trace")
            if not self._runs:
                self._start()
            file = TraceFile(self, access == os.O_RDWR)
            self._files += (file,)
        return Opened(file, stream=True)

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="trace", daemon=True).start()
        except RuntimeError:
            raise OSError(errno.ENOMEM, "no thread for the trace") from None
        self._runs = True

    def closed(self, file: TraceFile) -> None:
        """An open file is released.  Pump thread."""
        with self._lock:
            self._files = tuple(each for each in self._files if each is not file)
            self._closed.append(file.feed)
        self.tracer.news.set()

    def close(self) -> None:
        """The end of the mount: the thread ends."""
        with self._lock:
            self._files = ()
        self.tracer.news.set()

    def ask(self) -> None:
        """Have the thread look at the reads at once.  Any thread."""
        self._asked = True
        self.tracer.news.set()

    def _run(self) -> None:
        forget = time.monotonic() + FORGET_SECONDS
        news, wait = self.tracer.news, TICK
        while True:
            came = news.wait(wait)
            if came and not self._asked:
                time.sleep(BATCH_SECONDS)
            self._asked = False
            news.clear()
            with self._lock:
                files = self._files
                closed, self._closed = self._closed, []
                if not files and not closed:
                    self._runs = False
                    self.tracer.forget()
                    return
            for feed in closed:
                feed.drop()
            if not files:
                news.set()  # to look once more, and end
                continue
            if time.monotonic() > forget:
                self.tracer.clients.forget()
                forget = time.monotonic() + FORGET_SECONDS
            wait = min(TICK, self.tracer.look())
            for file in files:
                _serve(file)


def _serve(file: TraceFile) -> None:
    """Answer the reads of a file.  A record that cannot be made is left out, and nothing else."""
    while True:
        try:
            file.serve()
            return
        except Exception:
            log.exception("trace: a record cannot be made")


class TraceFile(DeferringFile):
    """One open of the file: a reader of its own, which gets what ends from then on."""

    __slots__ = (
        "_begun",
        "_left",
        "_lock",
        "_poll_handle",
        "_readers",
        "_reads",
        "_writable",
        "feed",
    )

    def __init__(self, readers: TraceReaders, writable: bool) -> None:
        self._readers, self._writable = readers, writable
        self._lock = threading.Lock()
        self._reads: deque[PendingRequest] = deque()
        self._poll_handle = 0
        self._left = b""
        """What did not fit into the last read.  The thread of the trace sets it."""
        self._begun = False
        self.feed = readers.tracer.add()

    # ---- the device lane ----

    def begin_write(self, pending: PendingRequest, data: bytes) -> int:
        """The options, in one write, before the first read."""
        if not self._writable:
            raise OSError(errno.EBADF, "opened for reading")
        options = Options.parse(data)
        with self._lock:
            if self._begun:
                raise OSError(errno.EBUSY, "the trace is being read")
            self._readers.tracer.begin(self.feed, options)
        return len(data)

    def begin_read(self, pending: PendingRequest) -> bytes | None:
        with self._lock:
            self._begun = True
            if pending.nonblocking and not self._reads and not self._left and not self.feed.ready:
                raise OSError(errno.EAGAIN, "no call")
            pending.when_interrupted(lambda: self._give_up(pending))
            self._reads.append(pending)
        self._readers.ask()
        return None

    def begin_poll(self, handle: int) -> int:
        events = WRITABLE if self._writable else 0
        with self._lock:
            if self._left or self._readers.tracer.expect(self.feed):
                return events | READABLE
            self._poll_handle = handle or self._poll_handle
            return events

    def release(self) -> None:
        self._readers.tracer.remove(self.feed)
        self._readers.closed(self)

    def _give_up(self, pending: PendingRequest) -> None:
        with self._lock:
            if pending in self._reads:
                self._reads.remove(pending)
                pending.fail(errno.EINTR)

    # ---- the thread of the trace ----

    def serve(self) -> None:
        """Answer the reads that can be answered, oldest first, and wake those who poll."""
        while True:
            with self._lock:
                pending = self._reads[0] if self._reads else None
            if pending is None or not self._answer(pending):
                break
        with self._lock:
            ready = bool(self._left) or self._readers.tracer.expect(self.feed)
            if ready and self._reads:
                self._readers.ask()
            handle = self._poll_handle if ready else 0
            if handle:
                self._poll_handle = 0
        if handle:
            wake_poll(handle)

    def _answer(self, pending: PendingRequest) -> bool:
        """Answer one read.  False when it has to wait for a call."""
        data = self._lines(pending.size)
        if not data and not pending.nonblocking:
            return False
        with self._lock:
            waits = pending in self._reads
            if waits:
                self._reads.remove(pending)
        if not data:
            if waits:
                pending.fail(errno.EAGAIN)
        elif not waits or not pending.read(data):  # the next read gets them
            self._left = data + self._left
        return True

    def _lines(self, room: int) -> bytes:
        """As many whole lines as there are and fit into `room` bytes.  The first part of a line that does not
        fit at all."""
        parts: list[bytes] = []
        while room:
            line = self._left or self._next()
            if len(line) > room and parts:
                self._left = line
                break
            parts.append(line[:room])
            self._left = line[room:]
            if not line or self._left:
                break
            room -= len(line)
        return b"".join(parts)

    def _next(self) -> bytes:
        """The next line, empty when there is none."""
        told = self._readers.tracer.take(self.feed)
        if told is None:
            return b""
        if isinstance(told, int):
            record = Record(0, time.time(), "lost", "", "", {"count": told})
        else:
            record = record_of(told, self._readers.tracer.epoch)
        return record.to_line().encode() + b"\n"
