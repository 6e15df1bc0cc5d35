# SPDX-License-Identifier: Apache-2.0
"""Looks at mountpoints and unmounts them, for all commands.  Single-threaded callers.

What is mounted where, and by which server, is in /proc/self/mountinfo, so that looking asks no server.  What
does ask one goes through vfsfuse.asking, because a server may be stopped.  Source: proc(5), umount2(2).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import select
from collections.abc import Iterator
from typing import NamedTuple

from vfsfuse import mounts, sticky
from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.kernfs.xattr import SOURCE, XATTR_PID, pid_namespace
from vfsfuse.mounts import Mount
from vfsfuse.run import syscalls

ABORT = "/sys/fs/fuse/connections/{}/abort"
STOPPED_STATES = ("T", "t")
ENDED_STATES = ("Z", "X")
"""Of a process that was killed. Other threads of it may still be there."""


class State(enum.Enum):
    """The state of a path as a mountpoint."""

    FREE = "nothing is mounted there"
    LIVE = "a lab is mounted there"
    STALE = "a lab whose server is gone"
    SILENT = "a lab whose server does not answer"
    FOREIGN = "another filesystem is mounted there"


class Mountpoint(NamedTuple):
    """A path, its state, and the pid of the server of a lab (0: we cannot find it out).  `connection` is the
    number of the FUSE connection, 0 without one.  `is_gone` says that the process of the server is known to
    have ended.  `source` is that of a lab's mount."""

    path: str
    state: State
    pid: int = 0
    connection: int = 0
    is_gone: bool = False
    source: str = ""

    @property
    def silence(self) -> str:
        """A line about a server that does not answer, and what to do about it."""
        pid = self.pid
        if self.is_stopped:
            return (
                f"the server (pid {pid}) is stopped (kill -CONT {pid} continues it, kill -KILL {pid} ends it)"
            )
        if pid:
            return f"the server (pid {pid}) does not answer (kill -KILL {pid} ends it{self._or_abort})"
        return f"the server does not answer (vfsfuse umount --lazy hides the lab{self._or_abort})"

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped the server, as SIGSTOP does."""
        return _state(self.pid) in STOPPED_STATES

    @property
    def _or_abort(self) -> str:
        abort = ABORT.format(self.connection)
        return f", echo 1 > {abort} ends all waiting for it" if os.path.exists(abort) else ""


def locate(path: str, patience: Patience) -> Mountpoint:
    """Look at `path`, made absolute, and ask no lab: a lab there counts as LIVE.

    Raises OSError, and Refusal if a file system on the way there does not answer.
    """
    try:
        path = patience.ask(lambda: sticky.resolve(path))
    except NoAnswer:
        raise Refusal(no_answer(path)) from None
    found = [mount for mount in mounts.table() if mount.path == path]
    if not found:
        return Mountpoint(path, State.FREE)
    if not found[-1].is_lab:
        return Mountpoint(path, State.FOREIGN)
    server = server_of(found[-1])
    return Mountpoint(path, State.LIVE, server or 0, found[-1].minor, server is None, found[-1].source)


def inspect(path: str, patience: Patience) -> Mountpoint:
    """Look at `path`, made absolute.  If a lab is mounted there, ask its server.  Raises as `locate`."""
    found = locate(path, patience)
    if found.state is not State.LIVE:
        return found
    try:
        patience.ask(lambda: _probe(found.path))
    except NoAnswer:
        return found._replace(state=State.SILENT)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return Mountpoint(found.path, State.STALE)
        if error.errno != errno.EACCES:  # another user's mount: even root may only unmount it
            raise
    return found


def mount_at(path: str) -> Mount | None:
    """The lab that is mounted at `path`, an absolute path without symlinks.  None without one.  This asks no
    server."""
    found = [mount for mount in mounts.table() if mount.path == path]
    return found[-1] if found and found[-1].is_lab else None


def server_of(mount: Mount) -> int | None:
    """The pid of a lab's server, None when that process is gone, 0 when it cannot be found out, as that of a
    server in another pid namespace."""
    name = re.fullmatch(SOURCE + r"(\d{1,10}):(\d{1,20})", mount.source, re.ASCII)
    if name is None or int(name[2]) != _namespace_of_proc():
        return 0
    pid = int(name[1])
    try:
        return pid if _is_served_by(mount, pid) else None
    except PermissionError:  # descriptors are private to another user, and to root once it was killed
        return None if _state(pid) in ENDED_STATES else pid
    except OSError:
        return None


def _is_served_by(mount: Mount, pid: int) -> bool:
    """Whether process `pid` has the connection.  A user may name any source, and a pid may be used again.

    Raises OSError."""
    if os.stat(f"/proc/{pid}").st_uid != mount.user:
        return False
    return any(mount.minor in (number, None) for number in _connections(pid))


def answers(lab: str, seconds: float) -> bool:
    """Whether the server of a lab answers in time, so that only what it was asked for takes its time."""
    return inspect(lab, Patience(seconds)).state is State.LIVE


def labs() -> list[str]:
    """The mountpoints of labs of this user and of root, in mount order, without the parts of a lab that
    `vfsfuse run` shows, and without labs whose server is gone.  This asks no server.

    Another user's mount may call itself a lab, and show what that user likes.
    """
    table, trusted = mounts.table(), (0, os.geteuid())
    return [
        mount.path
        for number, mount in enumerate(table)
        if mount.is_lab
        and mount.user in trusted
        and server_of(mount) is not None
        and not mount.is_covered(table[number + 1 :])
    ]


def no_answer(path: str) -> str:
    """The line about `path`, a path in a lab that does not answer."""
    path = os.path.abspath(path)
    for mount in reversed(mounts.table()):
        if mount.is_lab and f"{path}/".startswith(f"{mount.path}/"):
            found = Mountpoint(mount.path, State.SILENT, server_of(mount) or 0, mount.minor)
            return f"{found.path}: {found.silence}"
    return f"{path}: a file system on the way there does not answer (look for it in /proc/mounts)"


def unmount(path: str, patience: Patience, lazy: bool = False) -> None:
    """Unmount `path`, by fusermount3 if this process may not.

    Raises OSError(EBUSY, EPERM, …), and NoAnswer when that takes too long; it is then still under way.
    """
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    try:
        patience.ask(lambda: syscalls.umount2(path, flags))
    except PermissionError:
        _fusermount(path, patience, lazy)


def abort(found: Mountpoint, patience: Patience) -> None:
    """End the FUSE connection of a lab, and so every call that waits for its server.  Raises NoAnswer."""
    with contextlib.suppress(OSError), open(ABORT.format(found.connection), "w", encoding="ascii") as file:
        file.write("1")
        return
    with contextlib.suppress(OSError):  # where fusectl is not mounted; EBUSY, because it stays mounted
        patience.ask(lambda: syscalls.umount2(found.path, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_FORCE))


def wait_for_end(pid: int, seconds: float) -> bool:
    """Whether process `pid` has ended within `seconds`."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def _namespace_of_proc() -> int:
    """The inode number of the pid namespace whose processes /proc shows, -1 when that is not our own."""
    try:
        return pid_namespace() if os.readlink("/proc/self") == str(os.getpid()) else -1
    except OSError:
        return -1


def _state(pid: int) -> str:
    """The letter of the state of process `pid`, empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as told:
            return told.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _probe(path: str) -> None:
    """Have both threads of a server answer: the main thread, and the device lane.  Raises OSError."""
    os.getxattr(path, XATTR_PID)
    with contextlib.suppress(FileNotFoundError):
        os.stat(f"{path}/{SOURCE}{os.getpid()}")  # a name that the kernel has not asked for before


def _connections(pid: int) -> Iterator[int | None]:
    """The FUSE connections that process `pid` serves; None for one whose number is not told (before Linux
    6.16).  Raises OSError."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/fuse":
                with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as told:
                    number = re.search(r"fuse_connection:\s*(\d+)", told.read())
                yield int(number[1]) if number else None


def _fusermount(path: str, patience: Patience, lazy: bool) -> None:
    import shutil

    helper = shutil.which("fusermount3")
    if helper is None:
        raise OSError(errno.EPERM, "fusermount3 is not installed (apt-get install fuse3)")
    command = [helper, "-u", *(["-z"] if lazy else []), "--", path]
    said = patience.ask(lambda: _failure(command))
    if said is not None:
        raise OSError(errno.EBUSY if "busy" in said else errno.EPERM, said or "fusermount3 failed")


def _failure(command: list[str]) -> str | None:
    """Run `command`.  None when it succeeds, else its stderr."""
    import subprocess

    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stderr.strip() if done.returncode else None
