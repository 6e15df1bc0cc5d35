# SPDX-License-Identifier: Apache-2.0
"""ioctl_shim.client and the eventfds of clients against real processes: whose descriptors, whose
capabilities, and signals that wait for nobody."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ioctl_shim._native import lib
from ioctl_shim.client import CAP_SYS_RAWIO, Caller
from tests.commands import ROOT


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def test_a_descriptor_is_borrowed_where_pidfds_are_of_processes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.9 there is no PIDFD_THREAD."""
    real = os.pidfd_open

    def old(pid: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(pid)

    monkeypatch.setattr(os, "pidfd_open", old)
    with open(os.devnull, "rb") as file:
        copy = Caller(os.getpid()).borrow(file.fileno())
        assert copy != file.fileno() and same_file(copy, file.fileno())
        os.close(copy)


def test_only_an_eventfd_is_borrowed_as_one() -> None:
    caller, eventfd = Caller(os.getpid()), os.eventfd(0, os.EFD_CLOEXEC)
    copy = caller.borrow_eventfd(eventfd)
    os.eventfd_write(copy, 3)
    assert os.eventfd_read(eventfd) == 3
    names = [
        os.open(f"/proc/self/fd/{eventfd}", os.O_PATH | os.O_CLOEXEC),
        os.open("/", os.O_PATH | os.O_CLOEXEC),
    ]
    with open("/dev/null", "rb") as file, socket.socket() as other:
        for number, error in (
            (names[0], errno.EBADF),
            (names[1], errno.EBADF),
            (file.fileno(), errno.EINVAL),
            (other.fileno(), errno.EINVAL),
            (-1, errno.EBADF),
            (2**31 - 1, errno.EBADF),
        ):
            with pytest.raises(OSError) as caught:
                caller.borrow_eventfd(number)
            assert caught.value.errno == error
    for number in (copy, eventfd, *names):
        os.close(number)


def test_only_a_file_of_the_mount_is_borrowed_as_one(tmp_path: Path) -> None:
    caller = Caller(os.getpid())
    with open(tmp_path / "file", "wb") as file, open("/proc/self/stat", "rb") as other:
        st_dev = os.fstat(file.fileno()).st_dev
        with caller.borrowed_of(file.fileno(), st_dev) as copy:
            assert copy is not None and same_file(copy, file.fileno())
        with caller.borrowed_of(other.fileno(), st_dev) as copy:
            assert copy is None
    with pytest.raises(OSError) as caught, caller.borrowed_of(-1, st_dev):
        pass
    assert caught.value.errno == errno.EBADF


def test_what_cannot_be_borrowed() -> None:
    with pytest.raises(OSError) as caught:
        Caller(os.getpid()).borrow(-1)
    assert caught.value.errno == errno.EBADF
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(OSError) as caught:
        Caller(ended.pid).borrow(0)
    assert caught.value.errno == errno.ESRCH


def test_capabilities_count_in_the_initial_user_namespace() -> None:
    script = "grep CapEff: /proc/self/status; read wait"
    pipe = subprocess.PIPE
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as inside:
        assert inside.stdin is not None and inside.stdout is not None
        shown = inside.stdout.readline().split()
        if not shown:
            pytest.skip("user namespaces are not allowed here")
        assert int(shown[1], 16) >> CAP_SYS_RAWIO & 1
        assert not Caller(inside.pid).capable(CAP_SYS_RAWIO)
        inside.stdin.write("\n")


NO_AIO = """
import ctypes, errno, struct
libc = ctypes.CDLL(None)
LOAD, EQUAL, RETURN, IO_SETUP = 0x20, 0x15, 0x06, 206
fail, go_on = (RETURN, 0, 0, 0x50000 | errno.ENOSYS), (RETURN, 0, 0, 0x7FFF0000)
code = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, IO_SETUP), fail, go_on]
rules = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(rules)))
assert not libc.prctl(38, 1, 0, 0, 0) and not libc.prctl(22, 2, program)  # NO_NEW_PRIVS, SECCOMP
"""
"""io_setup(2) fails, as in a container that forbids it."""
SIGNAL = """
import os, time
from ioctl_shim._native import lib
event = os.eventfd(0)
assert lib.shim_signal(event) == 0
before = time.monotonic()
for _ in range(5):
    lib.shim_signal(event)  # without room
print("returned within", "10 s" if time.monotonic() - before < 10 else "more", hex(os.eventfd_read(event)))
assert lib.shim_signal(event) == 0
print(hex(os.eventfd_read(event)))
"""


@pytest.mark.parametrize(("way", "full"), [("", 6), (NO_AIO, 2**64 - 2)])
def test_a_signal_does_not_wait_for_a_counter_that_fills_meanwhile(
    compile_client: Callable[..., Path], way: str, full: int
) -> None:
    """The counter fills between poll(2) and write(2).  Asynchronous reads need neither."""
    environment = {**os.environ, "LD_PRELOAD": str(compile_client("filling_poll", "-shared", "-fPIC"))}
    command = [sys.executable, "-c", way + SIGNAL]
    printed = subprocess.check_output(command, cwd=ROOT, env=environment, text=True, timeout=60)
    after = 2**64 - 2 if way else 1
    assert printed == f"returned within 10 s {full:#x}\n{after:#x}\n"


def test_many_threads_signal_and_no_signal_is_lost() -> None:
    script = """
import os, threading
from ioctl_shim._native import lib
event, other = os.eventfd(0), os.eventfd(0)
def signal():
    for _ in range(20_000):
        assert lib.shim_signal(event) == 0
threads = [threading.Thread(target=signal) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
assert os.eventfd_read(event) == 160_000
if os.fork() == 0:  # the context for signals is of one process
    os._exit(lib.shim_signal(event) or os.eventfd_read(event) - 1)
assert os.wait()[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_a_signal_to_what_is_no_eventfd() -> None:
    with open(os.devnull, "rb") as file:
        assert lib.shim_signal(file.fileno()) == -errno.EINVAL
    assert lib.shim_signal(-1) == -errno.EBADF
