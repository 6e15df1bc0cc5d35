# SPDX-License-Identifier: Apache-2.0
"""A client that holds up calls of its own, by memory whose first touch waits, holds up nobody else's.

The memory is under userfaultfd(2).  tests/hostile does the same with a hostile file system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT
from tests.labs import MountedLab, Vgpu
from tests.vfio.bystander import bystander
from tests.vfio.client import (
    DEVICE_GET_INFO,
    GROUP_SET_CONTAINER,
    IOMMU_GET_INFO,
    PAGE,
    Container,
    Group,
    IommuInfo,
)
from tests.vfio.devices import opener
from tests.vfio.gpu_client import StoppedMemory
from tests.waiting import wait_for

pytestmark = needs.userfaultfd
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def result(fd: int, cmd: int, address: int) -> int:
    """The result of ioctl(2), or minus its errno.  Other Python threads run meanwhile."""
    got = int(_libc.ioctl(fd, cmd, address))
    return -ctypes.get_errno() if got < 0 else got


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
    with ThreadPoolExecutor(len(calls)) as pool:
        with stopped, bystander(machine, other) as work_on:
            results: list[Future[int]] = [pool.submit(result, *call) for call in calls]
            wait_for(lambda: stopped.touched)
            for _ in range(5):
                work_on()
            assert stopped.touched and not any(each.done() for each in results)
        return [each.result() for each in results]


def test_a_struct_that_cannot_be_fetched_yet(machine: MountedLab, two: tuple[Vgpu, Vgpu]) -> None:
    stopped, before = StoppedMemory(PAGE), threads(machine.pid)
    with ExitStack() as stack:
        use = stack.enter_context(opener(machine, two[0].group, two[0].name))
        files = [stack.enter_context(use()) for _ in range(100)]
        calls = [(file.fd, DEVICE_GET_INFO, stopped.address) for file in files]
        assert held(machine, two[1], stopped, calls) == [-errno.EINVAL] * 100  # an argsz of 0
    stopped.close()
    wait_for(lambda: threads(machine.pid) <= before)  # idle threads end after some seconds


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
        files = [lab.create().open() for _ in range(5)]
        with ThreadPoolExecutor(len(files)) as pool, stopped:
            results = [pool.submit(result, fd, DEVICE_GET_INFO, stopped.address) for fd in files]
            while not stopped.touched:
                time.sleep(0.01)
            time.sleep(0.2)
            assert lab.server is not None
            lab.server.terminate()
            assert lab.server.wait(60) == 0
            assert {each.result() for each in results} <= {-errno.ECONNABORTED, -errno.ENOTCONN}
        for fd in files:
            os.close(fd)
    stopped.close()


HOLDER = """
import os, signal, sys, threading, time
from tests.iommufd.bound import open_bound
from tests.vfio.client import DEVICE_GET_INFO, GROUP_SET_CONTAINER, PAGE
from tests.vfio.gpu_client import StoppedMemory
from tests.vfio.test_held_lane import result
group, device, first = sys.argv[1:]
stopped = StoppedMemory(PAGE)
calls = [(open_bound(device), DEVICE_GET_INFO), (os.open(group, os.O_RDWR), GROUP_SET_CONTAINER)]
signal.signal(signal.SIGUSR1, lambda *_: None)
for call in calls * 3:
    threading.Thread(target=result, args=(*call, stopped.address)).start()
while not stopped.touched:
    time.sleep(0.01)
time.sleep(0.2)
if first == "signalled":  # the kernel tells of the first signal only
    for thread in threading.enumerate():
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
    time.sleep(0.2)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("first", ["", "signalled"])
def test_a_client_that_is_killed_while_it_holds_its_own_calls(
    machine: MountedLab, two: tuple[Vgpu, Vgpu], first: str
) -> None:
    """It ends, although only its end lets go of the memory.  Nothing of it stays in use."""
    before = threads(machine.pid)
    group = machine.path / "dev/vfio" / two[1].group
    command = [sys.executable, "-c", HOLDER, str(group), str(two[0].cdev), first]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as client:
        assert client.stdout is not None and client.stdout.readline() == "held\n"
        client.kill()
        assert client.stdout.read() == ""  # its last thread has ended
    wait_for(lambda: threads(machine.pid) <= before)
    Group(machine.path, two[1].group).close()
    os.close(two[0].open())


def test_a_listing_into_memory_that_waits(machine: MountedLab, two: tuple[Vgpu, Vgpu]) -> None:
    """The kernel holds the directory's lock meanwhile.  Names come and go in it all the same."""
    stopped = StoppedMemory(PAGE)
    directory = os.open(machine.mdevs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with ThreadPoolExecutor(1) as pool, stopped:
        listing = pool.submit(getdents, directory, stopped.address, PAGE)
        while not stopped.touched:
            assert not listing.done()
        for _ in range(3):
            made = machine.create("own")
            assert made.path.exists() and (machine.mdevs / made.name).exists()
            made.remove()
            assert not made.path.exists() and not (machine.mdevs / made.name).exists()
        assert not listing.done()
        stopped.let_go()
        assert listing.result() > 0
    os.close(directory)
    stopped.close()


def getdents(fd: int, address: int, size: int) -> int:
    """The result of getdents64(2), or minus its errno.  Other Python threads run meanwhile."""
    number = 217 if os.uname().machine == "x86_64" else 61
    got = int(_libc.syscall(ctypes.c_long(number), fd, ctypes.c_void_p(address), ctypes.c_size_t(size)))
    return -ctypes.get_errno() if got < 0 else got
