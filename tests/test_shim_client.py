# SPDX-License-Identifier: Apache-2.0
"""ioctl_shim.client against real processes: whose descriptors, and whose capabilities."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from ioctl_shim.client import CAP_SYS_RAWIO, Caller


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
    with open("/dev/null", "rb") as file, socket.socket() as other:
        for number, error in (
            (file.fileno(), errno.EINVAL),
            (other.fileno(), errno.EINVAL),
            (-1, errno.EBADF),
            (2**31 - 1, errno.EBADF),
        ):
            with pytest.raises(OSError) as caught:
                caller.borrow_eventfd(number)
            assert caught.value.errno == error
    os.close(copy)
    os.close(eventfd)


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
