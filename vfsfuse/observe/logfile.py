# SPDX-License-Identifier: Apache-2.0
"""The file `log` at the root of a mount: what the server logs at WARNING and above while somebody reads it.

Each read(2) gives one record.  Its first line says what happened, in one line (vfsfuse.failures).  Further
lines, such as a traceback, begin with a space, as the continuation lines of /dev/kmsg do.

A record is made on whichever thread logs it, also under the locks of a device.  The thread waits for nobody.
What a reader has not read is bounded: later records are lost then, because the first ones say most, and the
reader is told how many.  State: under one lock for all readers.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable

from vfsfuse.failures import headline
from vfsfuse.kernfs.kobject import DeviceNode
from vfsfuse.kernfs.streams import stream_node
from vfsfuse.printable import printable

MODE = 0o400
"""It tells of the doings of all users, so it is for the lab's user alone."""
MOST_OPEN = 64
MOST_RECORDS = 256
"""Records that are kept for a reader."""
MOST_BYTES = 1 << 20
"""Bytes of records that are kept for a reader."""
MOST_LINES = 500
"""Lines of a record that are kept: the first ones."""
_FORMATTER = logging.Formatter()


class LogMessages:
    """The records of one reader from now on.  `wake` is called for each, on the thread that logs it."""

    __slots__ = ("_hub", "_kept", "_lost", "_records", "wake")

    def __init__(self, hub: LogHub, wake: Callable[[], None]) -> None:
        """For LogHub.listen."""
        self._hub, self.wake = hub, wake
        self._records: deque[bytes] = deque()
        self._kept = self._lost = 0

    @property
    def ready(self) -> bool:
        return bool(self._records) or self._lost > 0

    def take(self, room: int) -> bytes | None:
        """What of the oldest record fits into `room` bytes; the next read gets the rest.  Then the number of
        those that were lost."""
        with self._hub.messages_lock:
            if not self._records and self._lost:
                self._keep(f"{self._lost} records are lost: they came faster than they were read\n".encode())
                self._lost = 0
            if not self._records:
                return None
            record = self._records.popleft()
            self._kept -= len(record)
            if record[room:]:
                self._restore(record[room:])
            return record[:room]

    def put_back(self, message: bytes) -> None:
        with self._hub.messages_lock:
            self._restore(message)

    def put(self, record: bytes) -> None:
        """A new record.  Under the lock of the hub."""
        if self._lost or len(self._records) >= MOST_RECORDS or self._kept + len(record) > MOST_BYTES:
            self._lost += 1
        else:
            self._keep(record)

    def close(self) -> None:
        self._hub.forget(self)

    def _keep(self, record: bytes) -> None:
        self._records.append(record)
        self._kept += len(record)

    def _restore(self, record: bytes) -> None:
        self._records.appendleft(record)
        self._kept += len(record)


class LogHub(logging.Handler):
    """Gives the records of this process's log to readers.  It is a handler of the root logger while there are
    any."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages_lock = threading.Lock()
        self._readers: tuple[LogMessages, ...] = ()

    def listen(self, wake: Callable[[], None]) -> LogMessages:
        """A new reader.  Raises OSError(EMFILE) when there are too many.  Any thread."""
        reader = LogMessages(self, wake)
        with self.messages_lock:
            if len(self._readers) >= MOST_OPEN:
                raise OSError(errno.EMFILE, f"{MOST_OPEN} readers of the log")
            self._readers += (reader,)
            logging.getLogger().addHandler(self)
        return reader

    def forget(self, reader: LogMessages) -> None:
        """A reader has gone.  Any thread."""
        with self.messages_lock:
            self._readers = tuple(each for each in self._readers if each is not reader)
            if not self._readers:
                logging.getLogger().removeHandler(self)

    def handle(self, record: logging.LogRecord) -> bool:
        """Give a record to the readers.  Without the lock of a handler: a reader is woken under no lock."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = _lines(record)
        except Exception:
            self.handleError(record)
            return
        with self.messages_lock:
            readers = self._readers
            for reader in readers:
                reader.put(text)
        for reader in readers:
            reader.wake()


def _lines(record: logging.LogRecord) -> bytes:
    """A record as readers get it."""
    head = headline(record)
    whole = _FORMATTER.format(record).splitlines()  # the traceback is formatted once for all handlers
    rest = [f" {printable(line)}" for line in whole if line.strip() and line != head][:MOST_LINES]
    return "".join(f"{line}\n" for line in (head, *rest)).encode(errors="backslashreplace")


def log_node() -> DeviceNode:
    """The file of one lab."""
    return stream_node("log", MODE, LogHub().listen)
