# SPDX-License-Identifier: Apache-2.0
"""The system calls of a program that `vfsfuse run` catches, as a table, and how its supervisor answers them.

A row is an ioctl number and the class that answers it.  The filter tests the number alone, so a row's class
sees calls on any file: it raises LeftToKernel for what the kernel is to do.  The filter also stops on stats
of descriptors (vfsfuse.run.stats).  Any thread answers, several at once.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ioctl_shim.abi import LabFlag
from ioctl_shim.procfs import name_of
from ioctl_shim.seccomp import SeccompListener, TrappedCall
from vfsfuse.run.descriptors import GIVING, Descriptors
from vfsfuse.run.kvm import KVM_SET_DEVICE_ATTR, KvmFiles
from vfsfuse.run.labfiles import LabFiles, LeftToKernel, PtraceRefused
from vfsfuse.run.stats import NodeStats

Answer = Callable[[TrappedCall], int]
"""Answers one call with what it returns, 0 or more.  Raises LeftToKernel when the kernel is to carry the call
out, and OSError when the call fails.  The caller's memory and descriptors may hold it up."""


@dataclass(frozen=True, slots=True)
class Trap:
    """An ioctl `cmd` that the filter stops on, in labs that have `only`; `make` gives what answers it."""

    cmd: int
    make: Callable[[SeccompListener, LabFiles], Answer]
    only: LabFlag = LabFlag.NONE


# To add one: CONTRIBUTING.md, "Adding an ioctl that `run` answers".
TRAPS: tuple[Trap, ...] = (
    *(Trap(each.row.cmd, partial(Descriptors, each), each.only) for each in GIVING),
    Trap(KVM_SET_DEVICE_ATTR, KvmFiles),
)


def trapped(flags: LabFlag) -> list[int]:
    """The numbers of the ioctls that the filter stops on, for a lab with these flags."""
    return [trap.cmd for trap in TRAPS if trap.only in flags]


class Answers:
    """Answers the calls that `listener` catches by the rows of TRAPS, for the lab whose root directory is
    `lab_fd`, and stats of nodes by `stats`.  Any thread, several at once."""

    def __init__(
        self, listener: SeccompListener, lab_fd: int, stats: NodeStats, tell: Callable[[str], None]
    ) -> None:
        """`tell` gets a line about a call that we could not answer for a reason of ours.  Any thread."""
        self._listener, self._stats, self._tell = listener, stats, tell
        files = LabFiles(listener, lab_fd)
        self._by_cmd = {trap.cmd: trap.make(listener, files) for trap in TRAPS}

    def answer(self, call: TrappedCall) -> None:
        """Answer one call.  A caller that dies meanwhile is no error.  Never raises."""
        with contextlib.suppress(FileNotFoundError):
            try:
                if call.inode:
                    self._stats.answer(call)
                    return
                # All that we opened is closed by now: the caller may go on to calls that find a file in use.
                self._listener.succeed(call, self._by_cmd[call.cmd](call))
            except LeftToKernel as error:
                if isinstance(error, PtraceRefused):
                    self._tell(str(error))
                self._listener.proceed(call)
            except OSError as error:
                self._listener.fail(call, error.errno or errno.EIO)
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                self._tell(f"a call of {name_of(call.tid)} fails with EIO: {type(error).__name__}: {error}")
                self._listener.fail(call, errno.EIO)
