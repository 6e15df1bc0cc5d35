# SPDX-License-Identifier: Apache-2.0
"""Locks on files and folders that other users can lock, too.  Single-threaded callers; no state.

Whoever can open a folder for reading can lock it, and need not let go.  So such a lock is waited for in
time only, and the command then says who holds it.  Source: flock(2), proc(5) on /proc/locks.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from vfsfuse.asking import Patience, Refusal

OWN_SECONDS = 60.0
"""Seconds to wait for another command of the same user, which may take its time to start a lab."""

_POLL_SECONDS = 0.01
_LOOK_SECONDS = 0.5


def take(fd: int, path: str, patience: Patience) -> None:
    """Lock the file `fd`, which `path` names.  Closing it unlocks it.

    Waits as long as `patience`, or OWN_SECONDS for a process of the same user.  Raises Refusal that names the
    process that holds the lock.
    """
    began, told = time.monotonic(), False
    end = began + patience.left()
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_SECONDS)
        if (now := time.monotonic()) < end:
            continue
        holder = _holder(fd)
        if not _is_ours(holder) or now > began + OWN_SECONDS:
            mend = "end that, or choose another path"
            raise Refusal(f"{path}: {_described(holder)} holds a lock on it ({mend})")
        end = now + _LOOK_SECONDS  # until then the lock may go to another process
        if not told:
            told = True
            print(f"vfsfuse: {path}: waiting for {_described(holder)}", file=sys.stderr)


def _holder(fd: int) -> int:
    """The process that has locked the file `fd`, 0 when the kernel does not say."""
    found = os.fstat(fd)
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with open("/proc/locks", encoding="ascii") as table:
        for (
            line
        ) in table:  # 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF, or 1: -> FLOCK … for a waiter
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == file:
                return max(0, int(fields[4]))
    return 0


def _is_ours(pid: int) -> bool:
    """Whether `pid` is a process of this user that runs, so that it will let go."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as told:
            runs = told.read().rpartition(")")[2].split()[0] not in ("T", "t", "Z", "X")
        return bool(pid) and runs and os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False


def _described(pid: int) -> str:
    try:
        user = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as told:
            name = "".join(character for character in told.read() if character.isprintable())
        return f"process {pid} ({name}) of user {user}"
    except OSError:
        return f"process {pid}" if pid else "a process that /proc/locks does not show"
