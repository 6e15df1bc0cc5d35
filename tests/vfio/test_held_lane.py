# SPDX-License-Identifier: Apache-2.0
"""A client that holds up calls of its own, by memory whose first touch waits, holds up nobody else's.

The memory is under userfaultfd(2).  tests/test_hostile_fs.py does the same with a hostile file system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import MountedLab, Vgpu
from tests.vfio.client import (
    DEVICE_GET_INFO,
    GROUP_SET_CONTAINER,
    IOMMU_GET_INFO,
    PAGE,
    Container,
    DeviceInfo,
    Group,
    IommuInfo,
)
from tests.vfio.gpu_client import StoppedMemory

LONGEST = 0.5
"""Seconds that a call of another client may take on a busy machine."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def result(fd: int, cmd: int, address: int) -> int:
    """The result of ioctl(2), or minus its errno.  Other Python threads run meanwhile."""
    got = int(_libc.ioctl(fd, cmd, address))
    return -ctypes.get_errno() if got < 0 else got


class Bystander:
    """Another client, which does the same few calls all the time, and measures how long they take."""

    def __init__(self, machine: MountedLab, vgpu: Vgpu) -> None:
        self._machine, self._vgpu = machine, vgpu
        self._end = threading.Event()
        self.longest = 0.0
        self.rounds = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(self._work)
            try:
                yield
            finally:
                self._end.set()
                work.result()

    def _work(self) -> None:
        group = Group(self._machine.path, self._vgpu.group)
        with Container(self._machine.path) as container, group:
            calls: tuple[Callable[[], object], ...] = (
                (self._vgpu.path / "vgpu_uuid").read_text,
                self._open,
                lambda: group.set_container(container),
                group.unset_container,
            )
            while not self._end.wait(0.002):
                for call in calls:
                    began = time.monotonic()
                    call()
                    self.longest = max(self.longest, time.monotonic() - began)
                self.rounds += 1

    def _open(self) -> None:
        fd = os.open(self._vgpu.cdev, os.O_RDWR | os.O_CLOEXEC)
        try:
            info = DeviceInfo()
            assert result(fd, DEVICE_GET_INFO, ctypes.addressof(info)) == 0 and info.num_regions
            os.pread(fd, 4, 7 << 40)
        finally:
            os.close(fd)


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@pytest.fixture
def two(machine: MountedLab) -> Iterator[tuple[Vgpu, Vgpu]]:
    with machine.create("own") as one, machine.create("own") as other:
        yield one, other


def held(
    machine: MountedLab, other: Vgpu, stopped: StoppedMemory, calls: list[tuple[int, int, int]]
) -> list[int]:
    """The results of ioctls that all wait for `stopped`, after `other` was used for a while meanwhile."""
    bystander = Bystander(machine, other)
    with ThreadPoolExecutor(len(calls)) as pool:
        with bystander.at_work():
            results: list[Future[int]] = [pool.submit(result, *call) for call in calls]
            time.sleep(1)
            assert stopped.touched and not any(each.done() for each in results)
        assert bystander.rounds > 20 and bystander.longest < LONGEST
        stopped.let_go()
        return [each.result() for each in results]


def test_a_struct_that_cannot_be_fetched_yet(machine: MountedLab, two: tuple[Vgpu, Vgpu]) -> None:
    stopped, before = StoppedMemory(PAGE), threads(machine.pid)
    files = [os.open(two[0].cdev, os.O_RDWR | os.O_CLOEXEC) for _ in range(100)]
    calls = [(fd, DEVICE_GET_INFO, stopped.address) for fd in files]
    assert held(machine, two[1], stopped, calls) == [-errno.EINVAL] * 100  # an argsz of 0
    for fd in files:
        os.close(fd)
    stopped.close()
    deadline = time.monotonic() + 10
    while threads(machine.pid) > before and time.monotonic() < deadline:
        time.sleep(0.1)  # idle threads end after some seconds
    assert threads(machine.pid) <= before


def test_a_reply_that_cannot_be_stored_yet(machine: MountedLab, two: tuple[Vgpu, Vgpu]) -> None:
    """The struct lies before the memory that waits, its capabilities lie in it."""
    stopped = StoppedMemory(2 * PAGE, present=PAGE)
    size = ctypes.sizeof(IommuInfo)
    with Container(machine.path) as container, Group(machine.path, two[0].group) as group:
        group.set_container(container)
        container.set_iommu()
        stopped.write(bytes(IommuInfo(argsz=PAGE)), PAGE - size)
        calls = [(container.fd, IOMMU_GET_INFO, stopped.address + PAGE - size)] * 20
        assert held(machine, two[1], stopped, calls) == [0] * 20
    assert IommuInfo.from_buffer_copy(stopped.read(PAGE - size, size)).cap_offset == size
    stopped.close()


def test_a_call_that_may_wait(machine: MountedLab, two: tuple[Vgpu, Vgpu]) -> None:
    """SET_CONTAINER is left to a thread that may wait from the start."""
    stopped = StoppedMemory(PAGE)
    with Group(machine.path, two[0].group) as group:
        calls = [(group.fd, GROUP_SET_CONTAINER, stopped.address)] * 100
        got = set(held(machine, two[1], stopped, calls))
    assert got <= {-errno.EBADF, -errno.EBADFD}  # descriptor 0, which is no container
    stopped.close()


def test_a_server_that_ends_while_calls_are_held(tmp_path: Path) -> None:
    stopped = StoppedMemory(PAGE)
    with MountedLab(tmp_path, umount=False) as lab:
        vgpu = lab.create()
        files = [os.open(vgpu.cdev, os.O_RDWR | os.O_CLOEXEC) for _ in range(5)]
        with ThreadPoolExecutor(len(files)) as pool:
            results = [pool.submit(result, fd, DEVICE_GET_INFO, stopped.address) for fd in files]
            while not stopped.touched:
                time.sleep(0.01)
            time.sleep(0.2)
            assert lab.server is not None
            lab.server.terminate()
            assert lab.server.wait(5) == 0
            assert {each.result() for each in results} <= {-errno.ECONNABORTED, -errno.ENOTCONN}
        for fd in files:
            os.close(fd)
    stopped.close()
