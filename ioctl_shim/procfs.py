# SPDX-License-Identifier: Apache-2.0
"""Facts about a client, read from /proc.

State: none; any thread. Source: proc_pid_status(5), proc_pid_stat(5), proc_pid_limits(5), capabilities(7),
user_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import resource
import signal

UNLIMITED = 2**64 - 1
_INITIAL_USER_NAMESPACE = "user:[4026531837]"


class LiveTask:
    """A thread of process `tgid` that has not ended.

    A process goes on after its first thread has ended, but /proc then shows no memory and no descriptors
    under the number of the process.  Any thread; two threads that search find the same one."""

    __slots__ = ("_tgid", "tid")

    def __init__(self, tgid: int) -> None:
        self._tgid = self.tid = tgid

    def check(self) -> None:
        """Look for another one if the thread has ended."""
        if not runs(self.tid):
            self.find()

    def find(self) -> bool:
        """Take the first thread that lives.  False when there is none, because the process has ended."""
        try:
            threads = os.listdir(f"/proc/{self._tgid}/task")
        except FileNotFoundError:
            return False
        found = next((int(name) for name in threads if runs(int(name))), None)
        self.tid = found or self.tid
        return found is not None


def runs(tid: int) -> bool:
    """Whether thread `tid` has not ended.  A first thread that has ended is a zombie."""
    try:
        return _status(tid, b"\nState:") not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return False


def tgid_of(tid: int) -> int:
    """The process of thread `tid`.  Raises OSError(ESRCH) when it has ended."""
    try:
        return int(_status(tid, b"\nTgid:"))
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        raise OSError(errno.ESRCH, f"thread {tid} has ended") from None


def comm_of(tid: int) -> str:
    """The name of thread `tid`, such as "qemu"; "a program" when it has ended or /proc hides it.  A program
    may choose any text.  Asks only the kernel."""
    try:
        with open(f"/proc/{tid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return file.read().rstrip()
    except OSError:
        return "a program"


def name_of(tid: int) -> str:
    """Thread `tid` for a person: "qemu (thread 12)"."""
    return f"{comm_of(tid)} (thread {tid})"


def user_of(tid: int) -> int:
    """The real user id of thread `tid`.  Raises OSError(ESRCH) when it has ended."""
    try:
        return int(_status(tid, b"\nUid:"))
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        raise OSError(errno.ESRCH, f"thread {tid} has ended") from None


def capable(tid: int, capability: int) -> bool:
    """Whether thread `tid` has `capability` in the initial user namespace.  False for a thread that has
    ended."""
    try:
        effective = int(_status(tid, b"\nCapEff:"), 16)
        return bool(effective >> capability & 1) and _in_initial_namespace(tid)
    except (OSError, StopIteration):
        return False


def is_killed(tid: int) -> bool:
    """Whether SIGKILL is on its way to thread `tid`, or the thread has ended."""
    try:
        return bool(int(_status(tid, b"\nSigPnd:"), 16) >> signal.SIGKILL - 1 & 1)
    except (OSError, StopIteration):
        return True


def start_time(tgid: int) -> int:
    """The start of the process in clock ticks since boot.  Number and start together identify a process."""
    with open(f"/proc/{tgid}/stat", "rb") as table:
        return int(table.read().rpartition(b")")[2].split()[19])


def memlock_limit(tgid: int) -> int:
    """The process' RLIMIT_MEMLOCK in bytes, or UNLIMITED.  Raises OSError(ESRCH)."""
    try:
        limit = resource.prlimit(tgid, resource.RLIMIT_MEMLOCK)[0]
    except PermissionError:
        limit = _limit_shown(tgid)
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit


def locked(tid: int) -> int:
    """Bytes of its memory that the process of `tid` has locked (VmLck); 0 when it has ended."""
    try:
        return int(_status(tid, b"\nVmLck:")) * 1024
    except (OSError, StopIteration):
        return 0


def _status(tid: int, key: bytes) -> bytes:
    """The first word of the line `key` of a status.  Raises FileNotFoundError, ProcessLookupError,
    StopIteration."""
    fd = os.open(f"/proc/{tid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while part := os.read(fd, 4096):
            text += part
            _, found, value = text.partition(key)
            if found and b"\n" in value:
                return value.split(maxsplit=1)[0]
    finally:
        os.close(fd)
    raise StopIteration


def _in_initial_namespace(tid: int) -> bool:
    return os.readlink(f"/proc/{tid}/ns/user") == _INITIAL_USER_NAMESPACE


def _limit_shown(tgid: int) -> int:
    with open(f"/proc/{tgid}/limits", encoding="ascii") as table:
        shown = next(line for line in table if line.startswith("Max locked memory")).split()[3]
    return resource.RLIM_INFINITY if shown == "unlimited" else int(shown)
