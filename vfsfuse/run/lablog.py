# SPDX-License-Identifier: Apache-2.0
"""What the server of a run's lab logs, for the program's stderr and the log of the run.

The lab's file `log` (vfsfuse/observe/logfile.py) gives it, of a private lab and of a mounted one, if the
caller may read it.  A thread reads it, because the server may be stopped at any moment.  The thread waits in
poll(2), so no request of it is under way while nothing happens, and the supervisor can end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import threading
import time

from vfsfuse.run.programstderr import ProgramStderr

FILE = "log"
MOST_BYTES = 1 << 20
"""Bytes of a record, at most."""
_ENDED = (errno.ENOTCONN, errno.ENODEV, errno.ECONNABORTED)


class LabLog:
    """The log of the lab whose root directory is `root`, from now on.

    Each record is one line of `stderr`.  `where` says where the rest of a record is, which is said once."""

    def __init__(self, root: int, stderr: ProgramStderr, where: str) -> None:
        self._stderr, self._where = stderr, where
        self._fd = -1
        with contextlib.suppress(OSError):  # another user's lab, or one with readers enough
            self._fd = os.open(FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)

    def follow(self, whole: bool, ended: str) -> None:
        """Tell records on a thread from now on, with `whole` also in full on our stderr, which is the log of
        the run.  `ended` is said when the server has ended, unless it is empty."""
        if self._fd >= 0:
            threading.Thread(target=self._run, args=(whole, ended), name="lab-log", daemon=True).start()

    def _run(self, whole: bool, ended: str) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            poll.poll()
            try:
                self._tell(os.read(self._fd, MOST_BYTES).decode(errors="replace"), whole)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno in _ENDED and ended:
                    self._stderr.say(ended)
                os.close(self._fd)
                return

    def _tell(self, record: str, whole: bool) -> None:
        if whole:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), record, end="", file=sys.stderr, flush=True)
        first, _, rest = record.partition("\n")
        where, self._where = (self._where, "") if rest else ("", self._where)
        self._stderr.say(f"{first} ({where})" if where else first, logged=True)
