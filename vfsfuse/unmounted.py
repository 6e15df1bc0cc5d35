# SPDX-License-Identifier: Apache-2.0
"""Ends a server whose lab has been unmounted, and is left over only in runs of other labs.

A `vfsfuse run` of an ordinary user is in a user namespace.  The mounts that it found are locked there: it
cannot remove them, and they keep the labs of others alive.  So a server looks by itself.  Once its lab is not
mounted in its own mount namespace any more, it looks who sees the lab.  When only runs of other labs have it,
and no process uses it, the server ends.  In all other cases the kernel ends it, as soon as the last mount has
gone and the last file is closed.

One daemon thread, and others for mappings, which touch nothing of the server.  They ask no file system but
/proc, because their own would wait for itself.  Source: proc_pid_mountinfo(5) on poll(2),
user_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from ioctl_shim.seccomp import file_id
from vfsfuse import viewers

log = logging.getLogger(__name__)

FIRST_LOOK, LAST_LOOK = 0.1, 2.0
"""Seconds between two looks at who sees a lab that is unmounted.  The pause doubles from the first to the
last one."""
HELD_UP = 0.5
"""Seconds after which a process whose mappings cannot be read counts as held up."""
INITIAL_PIDS = "pid:[4026531836]"
"""The pid namespace in which /proc shows all processes: PROC_PID_INIT_INO of <linux/proc_ns.h>."""


def end_when_unmounted(device: int, source: str, gone: Callable[[], None]) -> None:
    """Start the thread for the lab whose files have this st_dev, and whose mount has this `source`.
    Called when it is mounted.  The thread calls `gone` when the lab is unmounted, though clients may use it
    still.

    In a container nobody can tell who sees the lab from outside, nor where /proc hides the processes of other
    users (hidepid).  So there is no such thread then."""
    with contextlib.suppress(OSError):
        if os.readlink("/proc/self/ns/pid") == INITIAL_PIDS and os.access("/proc/1/mountinfo", os.R_OK):
            threading.Thread(
                target=_watch, args=(device, source, gone), name="unmounted", daemon=True
            ).start()


def _watch(device: int, source: str, gone: Callable[[], None]) -> None:
    minor = os.minor(device)
    with open("/proc/self/mountinfo", "rb") as table:
        changed = select.poll()
        changed.register(table, select.POLLPRI)
        while True:
            while _is_mounted(minor):
                changed.poll()
            _watch_unmounted(device, source, gone)


def _watch_unmounted(device: int, source: str, gone: Callable[[], None]) -> None:
    """End this process when only runs of other labs have the lab.  Returns when it is mounted again."""
    pause, told = FIRST_LOOK, ""
    while not _is_mounted(os.minor(device)):
        time.sleep(pause)
        if not _is_mounted(os.minor(device)):  # still: one look at a table that changes may be wrong
            gone()
        pause = min(2 * pause, LAST_LOOK)
        sight = viewers.look(os.minor(device), source, os.getpid())
        if not sight.others:
            continue  # the kernel ends it when the last file is closed
        use = str(sight.viewers[0]) if sight.viewers else _user(device)
        if not use:
            log.info("unmounted, and left over in runs of other labs only: ending")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if use != told:
            log.info("unmounted, and still used by %s", use)
            told = use


def _is_mounted(minor: int) -> bool:
    """Whether the lab is mounted in our namespace.  The table may be long, and change often."""
    with open("/proc/self/mountinfo", "rb") as table:
        return f" 0:{minor} ".encode() in table.read()


def _user(device: int) -> str:
    """A process that has a file of the lab open or mapped, or is in a directory of it; empty without one."""
    others = [name for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
    first = next((pid for pid in others if _uses(f"/proc/{pid}", device)), "") or _mapped_by(others, device)
    return f"pid {first}" if first else ""


def _uses(process: str, device: int) -> bool:
    try:
        return any(_is_on(path, device) for path in _held(process))
    except PermissionError:
        return _may_use(process)
    except OSError:
        return False  # it has ended


def _may_use(process: str) -> bool:
    """Whether a process that may not be looked at may use the lab.  One that root has mounted is for all."""
    try:
        with open(f"{process}/status", encoding="utf-8", errors="replace") as told:
            status = told.read()
    except OSError:
        return False  # it has ended
    if re.search(r"^State:\s*Z", status, re.MULTILINE):
        return False  # as good as ended: only its parent has not noticed
    user = re.search(r"^Uid:\s*(\d+)", status, re.MULTILINE)
    return not os.geteuid() or user is None or int(user[1]) == os.getuid()


def _held(process: str) -> Iterator[str]:
    """The links to what a process has open.  Raises OSError."""
    for fd in os.listdir(f"{process}/fd"):
        yield f"{process}/fd/{fd}"
    yield from (f"{process}/cwd", f"{process}/root")


def _is_on(link: str, device: int) -> bool:
    try:
        return file_id(link).device == device
    except OSError:  # closed meanwhile; a file system of another user's own
        return False


def _mapped_by(pids: list[str], device: int) -> str:
    """The first of some processes that has a file of the lab mapped, empty if none.

    To read its mappings may wait for a process that is held up.  Such a process is passed over: the thread
    that reads is left to it, and another one goes on."""
    while pids:
        reader = _MapsReader(pids, device)
        reader.start()
        seen = -1
        while reader.is_alive() and reader.done != seen:
            seen = reader.done
            reader.join(HELD_UP)
        if not reader.is_alive():
            return reader.found
        pids = pids[reader.done + 1 :]
    return ""


class _MapsReader(threading.Thread):
    """Looks for mappings of `device` in processes: `found` is the first one, `done` says how many are."""

    def __init__(self, pids: list[str], device: int) -> None:
        super().__init__(name="unmounted-maps", daemon=True)
        self.done, self.found = 0, ""
        self._pids = pids
        self._mark = f" {os.major(device):02x}:{os.minor(device):02x} ".encode()

    def run(self) -> None:
        for pid in self._pids:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as table:
                if any(self._mark in line for line in table):
                    self.found = pid
                    return
            self.done += 1
