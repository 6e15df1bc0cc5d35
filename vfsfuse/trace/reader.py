# SPDX-License-Identifier: Apache-2.0
"""Reads the trace of a lab: TraceReader.

The server of the lab may be stopped, and it may be another user's.  So another process waits for it
(vfsfuse.trace.courier), what it sends is bounded, and each line is checked.  A reader belongs to one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from vfsfuse.asking import SECONDS
from vfsfuse.trace import courier
from vfsfuse.trace.filters import EVERYTHING, KEEP, Filter
from vfsfuse.trace.record import Record, TraceError, from_line

MOST_LINE = 1 << 20
"""Bytes of the longest line that is taken for one."""
MOST_RECORDED_LINE = 10 << 20
"""The same of a reader that records: 4 MiB of data are twice as many digits."""
_SILENT = "the lab's server does not answer"
_HINTS = {
    errno.EINVAL: "the lab does not take this filter (it may be too long)",
    errno.ENOENT: "no lab with a trace is mounted there",
    errno.EACCES: "only the user who mounted the lab can read its trace",
    errno.EMFILE: "the trace has too many readers, or this process too many files",
}


class TraceReader:
    """A reader of the trace of a lab.  It sees what ends from the moment on at which it is made.

    `source` is a mountpoint, the path of a file `trace`, or a descriptor of one that was opened O_RDWR, which
    the reader takes over.  The server keeps the last `keep` records for it; a record of kind "lost" stands
    for those that were dropped.  `wishes` are further options of the file, such as {"record": True}.  Raises
    TraceError, in `patience` seconds at the latest.

    Iteration waits for the next record that the filter lets through, and ends with the lab.  fileno() can be
    polled: it is readable when `drain` may find something, or when the lab has ended.
    """

    def __init__(
        self,
        source: int | str | os.PathLike[str],
        filter: Filter | None = None,
        keep: int = KEEP,
        patience: float = SECONDS,
        wishes: Mapping[str, bool] | None = None,
    ) -> None:
        self._filter = filter or EVERYTHING
        self._keep, self._patience = keep, patience
        self._most_line = MOST_RECORDED_LINE if wishes else MOST_LINE
        self._unread, self._lines = bytearray(), bytearray()
        self._asked = self._closed = False
        self._owner = os.getpid()
        self._drains = 1  # the answer to the options
        self._seen = 0
        """Records that have come, wanted or not: there is no end to those of a server that makes them up."""
        self._name = "the trace" if isinstance(source, int) else os.fspath(source)
        self.ended = False
        """Whether the lab has ended.  What came before is still to be read."""
        self._channel, theirs = socket.socketpair()
        self._courier: subprocess.Popen[bytes] | None = None
        try:
            with theirs:
                self._courier = _start(source, theirs)
            if isinstance(source, int):
                os.close(source)
            options = self._filter.server_side(keep, wishes or {}).encode()
            self._channel.sendall(courier.FRAME.pack(courier.LINES, len(options)) + options)
            self._frame(time.monotonic() + patience)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Record]:
        while True:
            record = self.next()
            if record is None:
                return
            yield record

    def next(self, timeout: float | None = None) -> Record | None:
        """The next record.  None when none has come within `timeout` seconds (None waits for as long as it
        takes), or when the lab has ended.  Raises TraceError."""
        self._check_owner()
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            for record in self._records():
                return record
            if self.ended:
                return None
            self._ask()
            try:
                self._frame(end)
            except _Late:
                return None

    def drain(self) -> list[Record]:
        """All records that there are now, `keep` at most and one that counts lost ones.  It waits for nothing
        but the server's answer, for the patience of the reader.  Raises TraceError."""
        self._check_owner()
        before = self._seen
        found = list(self._records())
        if not self.ended:
            self._command(courier.DRAIN)
        while self._drains and not self.ended and self._seen - before <= self._keep:
            self._frame(time.monotonic() + self._patience)
            found.extend(self._records())
        return found

    def fileno(self) -> int:
        """A descriptor to poll."""
        if not self.ended:
            self._ask()
        return self._channel.fileno()

    @property
    def is_ours(self) -> bool:
        """Whether this process has made the reader.  Another one that read would take its records."""
        return self._owner == os.getpid()

    def close(self) -> None:
        """Read no more.  The server forgets the reader when its process has ended.

        In a process that was forked meanwhile this only closes a descriptor: the first process reads on."""
        if self._closed:
            return
        self._closed = self.ended = True
        self._channel.close()
        if self._courier is not None and self.is_ours:
            self._courier.kill()  # one that waits for a server goes on waiting
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._courier.wait(self._patience)

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_owner(self) -> None:
        if not self.is_ours:
            raise TraceError(f"{self._name}: process {self._owner} reads it, and this one was forked from it")

    # ---- the courier ----

    def _ask(self) -> None:
        """Have the courier send what there is as soon as there is something."""
        if not self._asked:
            self._asked = True
            self._command(courier.WAIT)

    def _command(self, command: bytes) -> None:
        self._drains += command == courier.DRAIN
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # what it has sent before says why
            self._channel.sendall(command)

    def _frame(self, end: float | None) -> int:
        """Take the next frame of the courier and return its kind.  Raises _Late at the time `end`, TraceError
        for a failure."""
        kind, size = courier.FRAME.unpack_from(self._fetch(courier.FRAME.size, end))
        content = self._fetch(courier.FRAME.size + size, end)[courier.FRAME.size :]
        self._unread.clear()
        if kind == courier.LINES:
            self._asked = False
            self._lines += content
        elif kind == courier.DRAINED:
            self._drains -= 1
        else:
            self.ended = True
        if kind == courier.FAILED:
            number = int(content)
            raise TraceError(f"{self._name}: {_HINTS.get(number) or os.strerror(number)}")
        return int(kind)

    def _fetch(self, size: int, end: float | None) -> bytes:
        """The first bytes of a frame, which stay unread."""
        while len(self._unread) < size:
            wait = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._channel], [], [], wait)[0]:
                raise _Late(f"{self._name}: {_SILENT}")
            part = self._channel.recv(size - len(self._unread))
            if not part:
                self.ended = True
                raise TraceError(f"{self._name}: the process that reads it has ended")
            self._unread += part
        return bytes(self._unread)

    def _records(self) -> Iterator[Record]:
        """The records in what has come, as far as they are to be seen."""
        while (end := self._lines.find(b"\n")) >= 0:
            line = bytes(self._lines[:end])
            del self._lines[: end + 1]
            record = from_line(line)
            self._seen += 1
            if self._filter.matches(record):
                yield record
        if len(self._lines) > self._most_line:
            raise TraceError(f"{self._name}: a line is longer than {self._most_line} bytes")


class _Late(TraceError):
    """The answer has not come in time."""


def _start(source: int | str | os.PathLike[str], channel: socket.socket) -> subprocess.Popen[bytes]:
    """The courier, which is not interrupted by the terminal's Ctrl-C."""
    descriptors = [channel.fileno()]
    if isinstance(source, int):
        what = ("fd", str(source))
        descriptors.append(source)
    else:
        what = ("path", os.path.abspath(source))
    command = [sys.executable, "-I", "-S", courier.__file__, str(channel.fileno()), *what]
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command,
            stdin=null,
            stdout=null,
            stderr=null,
            cwd="/",
            pass_fds=descriptors,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise TraceError(f"{source!r}: {error}") from None
