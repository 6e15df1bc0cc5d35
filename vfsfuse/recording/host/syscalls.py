# SPDX-License-Identifier: Apache-2.0
"""The system calls of the recorder of a real machine that Python 3.11 lacks: ptrace, kcmp, a seccomp filter.

A row of MACHINES has the numbers of an architecture.  Every failure is an OSError.  ptrace belongs to the
thread that has seized the program; everything else may be called by any thread.  No state.
Source: ptrace(2), seccomp(2), kcmp(2), <linux/ptrace.h>, <linux/audit.h>, <linux/filter.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_PTRACE_CONT = 7
_PTRACE_SYSCALL = 24
_PTRACE_GETEVENTMSG = 0x4201
_PTRACE_SEIZE = 0x4206
_PTRACE_LISTEN = 0x4208
_PTRACE_GET_SYSCALL_INFO = 0x420E  # Linux 5.3

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC = 1, 2, 3, 4
EVENT_SECCOMP, EVENT_STOP = 7, 128
NEW_TASK = (EVENT_FORK, EVENT_VFORK, EVENT_CLONE)
_SYSGOOD, _EXITKILL = 1, 1 << 20
_EVENTS = (EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_SECCOMP)
_OPTIONS = _SYSGOOD | _EXITKILL | sum(1 << event for event in _EVENTS)

_INFO = struct.Struct("=B3xI2Q7Q4x4x")
_EXIT = struct.Struct("=B3xI2QqB")
_ENTERED, _LEFT, _BY_SECCOMP = 1, 2, 3

_KCMP_FILE = 0
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_RET_TRACE, _RET_ALLOW = 0x7FF00000, 0x7FFF0000
_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NR, _ARCH, _SECOND_ARGUMENT = 0, 4, 24
_IOCTL_TYPE = ord(";") << 8
WALL = 0x40000000
"""__WALL: waitpid(2) for children of every kind."""


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture: its number in <linux/audit.h>, and its system calls by name."""

    audit: int
    numbers: Mapping[str, int]

    def named(self) -> dict[int, str]:
        """The names of the calls that a recording is made from, by number."""
        return {number: name for name, number in self.numbers.items() if name not in ("kcmp", "seccomp")}


MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine(
        0xC000003E,
        {
            **{"read": 0, "write": 1, "open": 2, "close": 3, "mmap": 9, "ioctl": 16, "pread64": 17},
            **{"pwrite64": 18, "readv": 19, "writev": 20, "dup": 32, "dup2": 33, "sendmsg": 46, "fcntl": 72},
            **{"creat": 85, "ptrace": 101, "openat": 257, "dup3": 292, "preadv": 295, "pwritev": 296},
            **{"kcmp": 312, "seccomp": 317, "preadv2": 327, "pwritev2": 328, "close_range": 436},
            **{"openat2": 437},
        },
    ),
    "aarch64": Machine(
        0xC00000B7,
        {
            **{"dup": 23, "dup3": 24, "fcntl": 25, "ioctl": 29, "openat": 56, "close": 57, "read": 63},
            **{"write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "preadv": 69},
            **{"pwritev": 70, "ptrace": 117, "sendmsg": 211, "mmap": 222, "kcmp": 272, "seccomp": 277},
            **{"preadv2": 286, "pwritev2": 287, "close_range": 436, "openat2": 437},
        },
    ),
}
"""By the name that uname(2) has for the machine."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.syscall.restype = ctypes.c_long


class Entered(NamedTuple):
    """A thread is about to make the system call `nr`; its arguments are unsigned."""

    nr: int
    args: tuple[int, ...]


class Left(NamedTuple):
    """The system call that a thread has made returned `result`, a negative errno for a failure."""

    result: int


def _ptrace(request: int, tid: int, address: int, data: int | ctypes.Array[ctypes.c_char] | None) -> int:
    ctypes.set_errno(0)
    result = int(_libc.ptrace(request, tid, address, data))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace of thread {tid}: {os.strerror(ctypes.get_errno())}")
    return result


def seize(tid: int) -> None:
    """Trace a thread and all that it starts.  They are killed when this process ends."""
    _ptrace(_PTRACE_SEIZE, tid, 0, _OPTIONS)


def go_on(tid: int, to_call: bool, number: int = 0) -> None:
    """Let a stopped thread run, with signal `number`.  With `to_call` it stops when it enters or leaves a
    system call."""
    _ptrace(_PTRACE_SYSCALL if to_call else _PTRACE_CONT, tid, 0, number)


def listen(tid: int) -> None:
    """Leave a thread stopped, as job control wants it."""
    _ptrace(_PTRACE_LISTEN, tid, 0, 0)


def message(tid: int) -> int:
    """What the event that stopped the thread says: the number of the new thread, or the old one."""
    room = ctypes.create_string_buffer(8)
    _ptrace(_PTRACE_GETEVENTMSG, tid, 0, room)
    return int.from_bytes(room.raw, "little")


def call_of(tid: int, machine: Machine) -> Entered | Left | None:
    """The system call that a stopped thread enters or leaves.  None for one of another architecture, such as
    that of a 32-bit program."""
    room = ctypes.create_string_buffer(_INFO.size)
    _ptrace(_PTRACE_GET_SYSCALL_INFO, tid, _INFO.size, room)
    op, audit, _, _, nr, *args = _INFO.unpack(room.raw)
    if op == _LEFT:
        return Left(_EXIT.unpack_from(room.raw)[4])
    if op in (_ENTERED, _BY_SECCOMP) and audit == machine.audit:
        return Entered(nr, tuple(args))
    return None


def is_same_file(machine: Machine, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two descriptors, each a thread and a number there, are the same open file.  False when the
    kernel does not tell (it may be without kcmp(2))."""
    arguments = (one[0], other[0], _KCMP_FILE, one[1], other[1])
    return int(_libc.syscall(machine.numbers["kcmp"], *map(ctypes.c_long, arguments))) == 0


def _statement(code: int, value: int, equal: int = 0, other: int = 0) -> bytes:
    return struct.pack("=HBBI", code, equal, other, value)


def program(machine: Machine) -> bytes:
    """The statements of a filter that stops on the calls that a recording is made from, and of the ioctls on
    those of VFIO and iommufd alone."""
    numbers = [number for number, name in machine.named().items() if name != "ioctl"]
    stop = len(numbers) + 3  # statements between the first comparison of a number and RET_TRACE
    code = [
        *(_statement(_LOAD, _ARCH), _statement(_IF_EQUAL, machine.audit, 1), _statement(_RETURN, _RET_ALLOW)),
        _statement(_LOAD, _NR),
        *(_statement(_IF_EQUAL, number, stop - at) for at, number in enumerate(numbers)),
        _statement(_IF_EQUAL, machine.numbers["ioctl"], 0, 4),
        _statement(_LOAD, _SECOND_ARGUMENT),
        _statement(_AND, 0xFFFFFF00),
        _statement(_IF_EQUAL, _IOCTL_TYPE, 0, 1),
        _statement(_RETURN, _RET_TRACE),
        _statement(_RETURN, _RET_ALLOW),
    ]
    return b"".join(code)


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _sock_fprog(code: bytes) -> _Program:
    return _Program(len(code) // 8, code)


def install(machine: Machine) -> None:
    """Filter the calling thread and all that it starts: its tracer sees the calls that a recording is made
    from.  Cannot be undone.  Sets NO_NEW_PRIVS when the caller lacks CAP_SYS_ADMIN, as the kernel demands."""
    code = _sock_fprog(program(machine))
    arguments = (ctypes.c_int(_PR_SET_SECCOMP), ctypes.c_ulong(_MODE_FILTER), ctypes.byref(code))
    if _libc.prctl(*arguments) and ctypes.get_errno() == errno.EACCES:
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
        ctypes.set_errno(0)
        _libc.prctl(*arguments)
    if ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def can_filter(machine: Machine) -> bool:
    """Whether a filter can choose the calls at which a program stops.  A seccomp filter whose calls another
    process answers has precedence over it.  The kernel allows one of those, so a child tries to add
    another."""
    child = os.fork()
    if not child:
        works = False
        try:
            install(machine)
            code = _sock_fprog(_statement(_RETURN, _RET_ALLOW))
            arguments = machine.numbers["seccomp"], _SET_MODE_FILTER, _NEW_LISTENER
            ctypes.set_errno(0)
            _libc.syscall(*map(ctypes.c_long, arguments), ctypes.byref(code))
            works = ctypes.get_errno() != errno.EBUSY
        finally:
            os._exit(works)
    return bool(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
