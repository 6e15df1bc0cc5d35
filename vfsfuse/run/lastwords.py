# SPDX-License-Identifier: Apache-2.0
"""One line from a supervisor to the stderr of its program, long after the program was started.

The supervisor keeps nothing of its caller open, so that nobody waits for the end of a pipe because of it.  It
remembers which file stderr is, and borrows that from the program when it has something to say.

Owned by the supervisor's main thread.  Source: pidfd_getfd(2).
"""

from __future__ import annotations

import contextlib
import os
import threading

from ioctl_shim._native import lib
from ioctl_shim.seccomp import FileId, file_id

PATIENCE = 1.0
"""Seconds that a line may take.  A reader may be slow, and a file may be one whose server never answers."""

_STDERR = 2


class LastWords:
    """Speaks to the stderr that this process has now, while process `pid` has it as its own stderr.  `fd`, a
    descriptor, must stay open."""

    def __init__(self, pid: int) -> None:
        self.fd = os.pidfd_open(pid)
        self._stderr = _identity(_STDERR)

    def say(self, message: str) -> None:
        """Write one line, if the program still runs with that stderr."""
        speaker = threading.Thread(target=self._say, args=(message,), daemon=True)
        speaker.start()
        speaker.join(PATIENCE)

    def _say(self, message: str) -> None:
        copy = int(lib.shim_pidfd_getfd(self.fd, _STDERR))
        if copy < 0:
            return
        with contextlib.suppress(OSError):
            if self._stderr is not None and _identity(copy) == self._stderr:
                os.write(copy, f"vfsfuse: run: {message}\n".encode())
        os.close(copy)


def _identity(fd: int) -> FileId | None:
    try:
        return file_id(fd)
    except OSError:
        return None
