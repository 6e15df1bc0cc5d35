# SPDX-License-Identifier: Apache-2.0
"""What C has for the threads of a supervisor that take the caught calls of its program (vfsfuse.run.calls).

A stat call is answered in C, without the GIL: native/takers.c, native/stats.c.  Python answers the others,
and says what an inode stands for.  Any thread, several at once.  Source: seccomp_unotify(2), statx(2).
"""

from __future__ import annotations

import os
from typing import Any

from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import NodeKind
from ioctl_shim.seccomp import SeccompListener, TrappedCall, file_id


def _checked(made: Any) -> Any:
    if made == ffi.NULL:
        raise MemoryError
    return made


class StatAnswers:
    """Answers to the stat calls that `listener` catches: what a descriptor is that leads to a file of the lab
    whose root directory is `lab_fd`.  With `by_path`, what a path is, too."""

    def __init__(self, listener: SeccompListener, lab_fd: int, by_path: bool = False) -> None:
        device = file_id(lab_fd).device
        major, minor = os.major(device), os.minor(device)
        self.native: Any = _checked(lib.shim_stats_new(listener.fd, major, minor, by_path))

    def learn(self, inode: int, kind: NodeKind, major: int, minor: int) -> None:
        """What the lab's file `inode` stands for, for ever.  The numbers are those of a character device."""
        lib.shim_stats_learn(self.native, inode, kind, major, minor)

    def answer(self, call: TrappedCall) -> int:
        """Answer the stat `call`.  Its caller may hold this up.  Returns 0, or the inode of a file that is
        not known yet: then the call still waits."""
        made = ffi.new("struct shim_seccomp_call *", [call.id, call.args, call.tid, call.nr])
        return int(lib.shim_stats_answer(self.native, made))


class Takers:
    """The threads that take the calls which `listener` catches, as C knows them.  They get one call at a
    time, without those that `stats` answers by itself."""

    def __init__(self, listener: SeccompListener, stats: StatAnswers) -> None:
        self._native = _checked(lib.shim_takers_new(listener.fd, stats.native))
        self._stats = stats

    def take(self, has_turn: bool) -> TrappedCall | None:
        """Wait for the next call that Python is to answer.  None: the thread is to end.

        A thread that was started because of `watch` says so in its first call by `has_turn`.  Raises OSError
        when the listener fails."""
        row = ffi.new("struct shim_taken *")
        result = int(lib.shim_takers_take(self._native, has_turn, row))
        if result < 0:
            raise OSError(-result, f"receiving a call: {os.strerror(-result)}")
        call = row.call
        return TrappedCall(call.id, call.tid, call.nr, tuple(call.args), row.inode) if result else None

    def watch(self) -> bool:
        """Wait until another thread is needed, which then calls `take`.  False: no call will come any more.
        For one thread."""
        return bool(lib.shim_takers_watch(self._native))

    def give_back(self) -> None:
        """After `watch`: no thread could be started.  A thread that has answered its call will do."""
        lib.shim_takers_give_back(self._native)

    def end(self) -> None:
        """The last thread under the filter has ended."""
        lib.shim_takers_end(self._native)

    def outlive(self, supervisor: int) -> bool:
        """Wait until the process of the pidfd `supervisor` is dead, and have the kernel carry out the calls
        that it had at hand.  False if the last thread under the filter has ended before.  For a child process
        that the supervisor has forked."""
        return bool(lib.shim_takers_outlive(self._native, supervisor))

    def keep(self) -> None:
        """After `outlive`: let the kernel carry out all calls.  Returns when the last thread under the filter
        has ended."""
        lib.shim_takers_keep(self._native)
