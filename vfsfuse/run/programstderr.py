# SPDX-License-Identifier: Apache-2.0
"""Lines from a supervisor to the stderr of its program, while the program runs.

The supervisor keeps nothing of its caller open, so that nobody waits for the end of a pipe because of it.  It
remembers which file stderr is, and borrows that from the program for each line.

Nobody waits for a line: a thread writes them, and gives up a line that nobody takes.  A flood is counted: of
what comes within a while, MOST lines are said, and then how many more there were.  The while of a flood that
does not end grows to LONGEST seconds.

Any thread says a line; the state is under a lock.  Source: pidfd_getfd(2), pipe(7).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import threading
import time
from collections import deque

from ioctl_shim._native import lib
from ioctl_shim.seccomp import FileId, file_id
from vfsfuse.printable import printable

PATIENCE = 1.0
"""Seconds that a line may take.  A reader may be slow, and a file may be one whose server never answers."""
TRY_SECONDS = 0.02
MOST = 8
"""Lines that are said within a while."""
SHORTEST, LONGEST = 1.0, 60.0
"""Seconds of a while."""
MOST_BYTES = 2048
"""Bytes of a line: less than PIPE_BUF, so that a pipe takes it whole or not at all."""

_STDERR = 2


class ProgramStderr:
    """Speaks to the stderr that this process has now, while process `pid` has it as its own stderr.  `fd`, a
    descriptor, must stay open.  With `quiet` it says nothing."""

    def __init__(self, pid: int, quiet: bool = False) -> None:
        self.fd = os.pidfd_open(pid)
        self._stderr = _identity(_STDERR)
        self.log = -1
        """A descriptor that gets all lines, also those that are not said, if it is not negative."""
        self._has_explained = mmap.mmap(-1, 1)  # shared with child processes
        self._quiet = quiet
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._told: set[str] = set()
        self._flood = Flood()
        self._speaker: threading.Thread | None = None
        self._speaks = False

    def say(self, message: str, logged: bool = False) -> None:
        """Write one line, if the program still runs with that stderr.  Waits for nobody but the log, which
        gets the line unless it has that already (`logged`)."""
        if self.log >= 0 and not logged:
            self._note(message)
        if self._quiet:
            return
        with self._changed:
            if len(self._waiting) < MOST and self._flood.admits(time.monotonic()):
                self._waiting.append(message)
            else:
                self._flood.more += 1
            self._start()
            self._changed.notify_all()

    def _note(self, message: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} run: {printable(' '.join(message.split()))}\n"
        with contextlib.suppress(OSError):  # a full disk must not end the run
            os.write(self.log, line.encode(errors="backslashreplace"))

    def say_once(self, message: str) -> None:
        """As `say`, unless this has been said before."""
        with self._changed:
            told = message in self._told or len(self._told) >= 2 * MOST
            if not told:
                self._told.add(message)
        if not told:
            self.say(message)

    def say_last(self, message: str) -> None:
        """`say` why this process ends."""
        self._has_explained[0] = 1
        self.say(message)

    def say_for(self, message: str) -> None:
        """`say` in a child process that its parent has ended, unless the parent has said why."""
        if not self._has_explained[0]:
            self.say(message)

    def finish(self) -> None:
        """Give what has been said PATIENCE to be written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._speaks, PATIENCE)

    def _start(self) -> None:
        """Have a thread that speaks.  Under the lock."""
        if self._speaker is None:
            with contextlib.suppress(RuntimeError):  # no more threads: this line is said with the next one
                speaker = threading.Thread(target=self._run, name="program-stderr", daemon=True)
                speaker.start()
                self._speaker = speaker

    def _run(self) -> None:
        while True:
            with self._changed:
                self._speaks = False
                self._changed.notify_all()
                message = self._next()
                self._speaks = True
            self._say(message)

    def _next(self) -> str:
        """The next line, as soon as there is one.  Under the lock."""
        while not self._waiting:
            left = self._flood.seconds_left(time.monotonic())
            if left is not None and left <= 0:
                return f"and {self._flood.end_while(time.monotonic())} more"
            self._changed.wait(left)
        return self._waiting.popleft()

    def _say(self, message: str) -> None:
        text = f"vfsfuse: run: {printable(' '.join(message.split()))}"
        line = text.encode(errors="backslashreplace")[: MOST_BYTES - 1]
        deadline = time.monotonic() + PATIENCE
        while not self._write(line + b"\n") and time.monotonic() < deadline:
            time.sleep(TRY_SECONDS)

    def _write(self, line: bytes) -> bool:
        """Write a line.  False when the program has another stderr now: a shell has while it starts a
        command with a stderr of its own."""
        copy = int(lib.shim_pidfd_getfd(self.fd, _STDERR))
        if copy < 0:
            return True  # it has ended, or has none
        try:
            if self._stderr is None or _identity(copy) != self._stderr:
                return False
            if self._has_room(copy):
                with contextlib.suppress(OSError):
                    os.write(copy, line)
            return True
        finally:
            os.close(copy)

    def _has_room(self, fd: int) -> bool:
        """Whether a line can be written without waiting, soon, and while the program runs."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.register(self.fd, select.POLLIN)
        events = dict(poll.poll(PATIENCE * 1000))
        return fd in events and self.fd not in events


class Flood:
    """Counts the lines of a while.  Under the lock of its ProgramStderr."""

    __slots__ = ("_begun", "_count", "_seconds", "more")

    def __init__(self) -> None:
        self._begun, self._seconds, self._count = 0.0, SHORTEST, MOST
        self.more = 0
        """Lines that were not said."""

    def admits(self, now: float) -> bool:
        """Whether one more line may be said."""
        if not self.more and now >= self._begun + self._seconds:
            self._begun, self._seconds, self._count = now, SHORTEST, 0
        self._count += 1
        return self._count <= MOST

    def seconds_left(self, now: float) -> float | None:
        """How long to wait before the others are told.  None when there are none."""
        return self._begun + self._seconds - now if self.more else None

    def end_while(self, now: float) -> int:
        """Begin another while, twice as long.  Returns how many lines were not said in this one."""
        more, self.more = self.more, 0
        self._begun, self._seconds, self._count = now, min(2 * self._seconds, LONGEST), 0
        return more


def _identity(fd: int) -> FileId | None:
    try:
        return file_id(fd)
    except OSError:
        return None
