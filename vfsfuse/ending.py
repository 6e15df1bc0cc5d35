# SPDX-License-Identifier: Apache-2.0
"""Ends a server together with the process that it belongs to, however that process ends.

`vfsfuse mount --end-fd` gives a descriptor that can be read from then on: the pidfd of that process, or a
pipe.  A signal at the parent's death (PR_SET_PDEATHSIG) would come when the thread ends that has started the
server.

A process that is killed has not ended while a thread of it waits for a server of FUSE.  That server may be
this one, whose model does not return.  So once a second the owner is looked at, whether it is being killed.

State: none.  The thread that waits is a daemon and touches nothing of the server.  Source: pidfd_open(2),
proc_pid_fdinfo(5), proc_pid_status(5).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

from vfsfuse.run import syscalls

log = logging.getLogger(__name__)

LOOK_MS = 1000
SIGKILL_PENDING = 1 << signal.SIGKILL - 1
SECONDS = 5
"""Seconds that the server has to end.  A model that does not return can keep it from that."""


def end_with(fd: int, mountpoint: str) -> None:
    """Start a thread that ends this process once `fd` can be read.  What is mounted at `mountpoint` goes
    away in any case."""
    threading.Thread(target=_end, args=(fd, mountpoint), name="end-fd", daemon=True).start()


def _end(fd: int, mountpoint: str) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    pid = _process_of(fd)
    while not poll.poll(LOOK_MS if pid else None) and not _is_being_killed(pid):
        pass
    log.info("the owner of this lab has ended")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS)
    log.error("the server has not ended in %d seconds: it is killed", SECONDS)
    _unmount(mountpoint)
    os.kill(os.getpid(), signal.SIGKILL)


def _process_of(fd: int) -> int:
    """The process that a pidfd is of, 0 for any other descriptor and for a process that has ended."""
    found = re.search(r"^Pid:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _is_being_killed(pid: int) -> bool:
    """Whether a thread of a process has been told to end and cannot."""
    tids: list[str] = []
    with contextlib.suppress(OSError):  # it has just ended
        tids = os.listdir(f"/proc/{pid}/task")
    for tid in tids:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/task/{tid}/status").read_text(errors="replace")
            pending = re.search(r"^SigPnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
            if pending and int(pending[1], 16) & SIGKILL_PENDING:
                return True
    return False


def _unmount(mountpoint: str) -> None:
    """Take the mount out of sight, as far as this user may."""
    try:
        syscalls.umount2(mountpoint, syscalls.MNT_DETACH)
    except PermissionError:
        with contextlib.suppress(OSError):
            subprocess.run(["fusermount3", "-u", "-z", "--", mountpoint], check=False)
    except OSError:
        log.exception("%s stays mounted", mountpoint)
