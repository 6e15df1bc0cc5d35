# SPDX-License-Identifier: Apache-2.0
"""The process that keeps a program of `vfsfuse run` going when the supervisor is killed.

Without a listener the kernel fails every caught call with ENOSYS, and no program could start, since each asks
what its libraries are by fstat(2).  The keeper is a child of the supervisor with the same listener.  Once the
supervisor is dead, in any way, it lets the kernel carry out all calls, also those that the supervisor had at
hand (native/takers.c), and says so.  It ends with the last thread under the filter.

It is forked before the supervisor has threads that Python knows of.
"""

from __future__ import annotations

import contextlib
import os
import signal

from ioctl_shim.seccomp import SeccompListener
from ioctl_shim.takers import Takers
from vfsfuse.run.programstderr import ProgramStderr

NAME = "vfsfuse-keeper"
"""Of the process, in /proc/PID/comm."""


class Keeper:
    """The keeper of the calls that `takers` take from `listener`, for this process.  Once this process is
    dead, it says `end` on the program's stderr, unless this process has said why it ends."""

    def __init__(self, listener: SeccompListener, takers: Takers, stderr: ProgramStderr, end: str) -> None:
        """Start it.  Raises OSError."""
        supervisor = os.pidfd_open(os.getpid())
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _be_alone({listener.fd, supervisor, stderr.fd})
                if takers.outlive(supervisor):
                    stderr.say_for(end)
                    takers.keep()
                    stderr.finish()
            finally:
                os._exit(0)
        os.close(supervisor)

    def end(self) -> None:
        """The last thread under the filter has ended: end the keeper, which may be stopped, and wait for
        that."""
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _be_alone(keep: set[int]) -> None:
    """Hold nothing but `keep` and stderr, which is the log of the run, also no directory of the caller's, and
    die of signals as any process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(NAME)
    os.chdir("/")
    nothing = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *keep}:
        with contextlib.suppress(OSError):  # the descriptor that listed them
            os.close(fd)
