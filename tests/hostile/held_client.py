# SPDX-License-Identifier: Apache-2.0
"""A client that makes one call many times at once, by bare system calls: `python -m tests.hostile.held_client
CALL THREADS PATH`.

It prints "ready", waits for a line, and makes the call of CALLS on each of its threads, the first one
included.  SIGUSR1 is for the first thread, and does nothing but interrupt its call.  At the end it prints one
line of JSON: the outcome of each call, an errno's name or what the call returned.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.iommufd.bound import open_bound
from tests.vfio.client import DEVICE_GET_INFO, DeviceInfo

libc = ctypes.CDLL(None, use_errno=True)
libc.pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
libc.pwrite.argtypes = libc.pread.argtypes
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
libc.open.argtypes = (ctypes.c_char_p, ctypes.c_int)
BAR0, INTERRUPT_LINE, STACK = 0, 0x3C, 256 << 10
Call = Callable[[], int]


def opened(path: Path) -> tuple[int, object]:
    return open_bound(path), ctypes.create_string_buffer(bytes(4), 4)


def read(path: Path) -> Call:
    fd, buffer = opened(path)
    return lambda: int(libc.pread(fd, buffer, 4, BAR0))


def write(path: Path) -> Call:
    fd, buffer = opened(path)
    return lambda: int(libc.pwrite(fd, buffer, 4, BAR0))


def info(path: Path) -> Call:
    fd, made = open_bound(path), DeviceInfo()
    return lambda: int(libc.ioctl(fd, DEVICE_GET_INFO, ctypes.byref(made)))


def bind(path: Path) -> Call:
    """An ioctl that is never answered on the pump."""
    fd, iommu = os.open(path, os.O_RDWR), os.open(path.parents[2] / "iommu", os.O_RDWR)
    request = ord(";") << 8 | 118
    struct = ctypes.create_string_buffer(
        b"".join(n.to_bytes(4, "little") for n in (24, 0, iommu, 0, 0, 0)), 24
    )
    return lambda: int(libc.ioctl(fd, request, struct))


def open_file(path: Path) -> Call:
    return lambda: min(0, int(libc.open(os.fsencode(path), os.O_RDWR)))


def store(path: Path) -> Call:
    """Each thread has the attribute open for itself.  Threads that look its name up at the same time would
    share an inode, and wait for each other in the kernel."""
    text, turn = b"on", threading.Lock()

    def call() -> int:
        with turn:
            fd = os.open(path, os.O_WRONLY)
        return int(libc.pwrite(fd, text, len(text), 0))

    return call


def config(path: Path) -> Call:
    fd, buffer = os.open(path, os.O_RDWR), ctypes.create_string_buffer(bytes(4), 4)
    return lambda: int(libc.pwrite(fd, buffer, 1, INTERRUPT_LINE))


CALLS: dict[str, Callable[[Path], Call]] = {
    "read": read,
    "write": write,
    "ioctl": info,
    "blocking ioctl": bind,
    "open": open_file,
    "store": store,
    "config": config,
}


def outcome(call: Call) -> str:
    result = call()
    return errno.errorcode[ctypes.get_errno()] if result < 0 else str(result)


def main() -> None:
    name, count, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    signal.signal(signal.SIGUSR1, lambda *_: None)
    call, outcomes = CALLS[name](path), list[str]()
    threading.stack_size(STACK)
    threads = [
        threading.Thread(target=lambda: outcomes.append(outcome(call)), daemon=True) for _ in range(count - 1)
    ]
    print("ready", flush=True)
    sys.stdin.readline()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    for thread in threads:
        thread.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    outcomes.append(outcome(call))
    for thread in threads:
        thread.join()
    print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main()
