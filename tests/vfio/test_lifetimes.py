# SPDX-License-Identifier: Apache-2.0
"""How long groups, containers and devices live: over dup, fork, SCM_RIGHTS, close in every order, and
SIGKILL.

Descriptors are real, and so are the processes that share them; the lab is on a real mount.
"""

from __future__ import annotations

import array
import errno
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.commands import ROOT
from tests.descriptors import open_files
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import PAGE, TYPE1V2, Container, File, Group, Memory, fails
from tests.vfio.devices import MSIX, REQ, TRIGGER, Device, eventfd, group_device, opened
from tests.waiting import settled, wait_for


@pytest.fixture
def vgpu(machine: MountedLab) -> Iterator[Vgpu]:
    with machine.create("sparse", "pool") as made:
        yield made


def in_use(machine: MountedLab, vgpu: Vgpu) -> bool:
    """Whether the group cannot be opened; closing a file of FUSE is told to the server after close(2)
    returns."""
    for _ in range(200):
        try:
            Group(machine.path, vgpu.group).close()
        except OSError as error:
            assert error.errno == errno.EBUSY
            time.sleep(0.002)
        else:
            return False
    return True


def busy(machine: MountedLab, vgpu: Vgpu) -> bool:
    """Whether the group cannot be opened now."""
    try:
        Group(machine.path, vgpu.group).close()
    except OSError as error:
        assert error.errno == errno.EBUSY
        return True
    return False


def child(run: Callable[[], object]) -> int:
    """Run in a forked process; the pid. It ends when `run` returns, or when it is killed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
    finally:
        os._exit(0)


def reap(pid: int, number: int = 0) -> None:
    if number:
        os.kill(pid, number)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("order", [*itertools.permutations(["container", "group", "device", "second"])])
def test_closing_in_every_order(machine: MountedLab, vgpu: Vgpu, order: tuple[str, ...]) -> None:
    """The group is in use until its own file and those of its devices are all closed, and not a moment
    longer."""
    with ExitStack() as stack:
        container = stack.enter_context(Container(machine.path))
        group = stack.enter_context(Group(machine.path, vgpu.group))
        group.set_container(container)
        container.set_iommu()
        pages = Memory(PAGE)
        container.map(0, pages.address, PAGE)
        files: dict[str, File] = {"container": container, "group": group}
        for name in ("device", "second"):
            files[name] = stack.enter_context(Device(group_device(machine.path, group, vgpu.name)))
        left = set(order)
        for name in order:
            assert busy(machine, vgpu) is bool(left & {"group", "device", "second"})
            files[name].close()
            left.remove(name)
        assert not in_use(machine, vgpu)
        pages.close()


def test_a_duplicate_keeps_everything(machine: MountedLab, vgpu: Vgpu) -> None:
    with opened(machine, vgpu.group, vgpu.name) as found:
        copies = [File(os.dup(file.fd)) for file in (found.container, found.group, found.device)]
    device = Device(os.dup(copies[2].fd))
    copies[1].close()
    assert device.config(0) == 0x1234 and busy(machine, vgpu)
    for file in (*copies, device):
        file.close()
    assert not in_use(machine, vgpu)


def test_a_forked_child_keeps_everything(machine: MountedLab, vgpu: Vgpu) -> None:
    with opened(machine, vgpu.group, vgpu.name):
        pid = child(lambda: time.sleep(60))
    assert busy(machine, vgpu)
    fails(errno.EBUSY, (vgpu.path / "remove").write_bytes, b"1")
    reap(pid, signal.SIGKILL)
    assert not busy(machine, vgpu)


def test_descriptors_that_are_sent(machine: MountedLab, vgpu: Vgpu) -> None:
    """A process that opened nothing itself has it all by SCM_RIGHTS, and what is under way in a socket
    counts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with opened(machine, vgpu.group, vgpu.name) as found:
            socket.send_fds(ours, [b"x"], [found.container.fd, found.group.fd, found.device.fd])
        assert busy(machine, vgpu)
        _, fds, _, _ = socket.recv_fds(theirs, 1, 3)
        container, group, device = (File(fd) for fd in fds)
        with eventfd() as event:
            by_hand = Device(os.dup(device.fd))
            by_hand.eventfds(REQ, TRIGGER, 0, event)
            by_hand.close()
        device.close()
        assert busy(machine, vgpu)
        group.close()
        container.close()
        assert not in_use(machine, vgpu)


def test_descriptors_lost_in_a_socket(machine: MountedLab, vgpu: Vgpu) -> None:
    ours, theirs = socket.socketpair()
    with opened(machine, vgpu.group, vgpu.name) as found:
        fds = array.array("i", [found.group.fd, found.device.fd])
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    assert busy(machine, vgpu)
    ours.close()
    theirs.close()
    assert not in_use(machine, vgpu)


def test_a_container_outlives_its_file_for_its_groups(machine: MountedLab, vgpu: Vgpu) -> None:
    with machine.create("sparse", "pool") as other, ExitStack() as stack:
        container = stack.enter_context(Container(machine.path))
        groups = [stack.enter_context(Group(machine.path, each.group)) for each in (vgpu, other)]
        for group in groups:
            group.set_container(container)
        container.set_iommu()
        pages = Memory(PAGE)
        container.map(0, pages.address, PAGE)
        available = container.dma_avail
        groups[0].unset_container()
        assert container.dma_avail == available, "the second group keeps the mappings"
        fails(errno.EINVAL, group_device, machine.path, groups[0], vgpu.name)
        groups[1].unset_container()
        fails(errno.EINVAL, container.info)
        groups[0].set_container(container)
        container.set_iommu()
        assert container.dma_avail == available + 1, "a new IOMMU has none of the old mappings"
        pages.close()


VICTIM = """\
import os, sys, time
from pathlib import Path
from tests.labs import MountedLab
from tests.vfio.client import Container, Group, Memory, PAGE
from tests.vfio.devices import Device, MSIX, REQ, TRIGGER, group_device
root, number, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
pages, event = Memory(64 * PAGE), os.eventfd(0)
print("go", flush=True)
while True:
    with Container(root) as container:
        while True:
            try:
                group = Group(root, number)
                break
            except OSError:
                pass
        with group:
            group.set_container(container)
            container.set_iommu()
            for page in range(64):
                container.map(page * PAGE, pages.address + page * PAGE, PAGE)
            with Device(group_device(root, group, name)) as device:
                device.eventfds(MSIX, TRIGGER, 0, *[event] * 32)
                device.eventfds(REQ, TRIGGER, 0, event)
                os.pwrite(device.fd, b"x" * 4096, 0)
                container.unmap(0, 32 * PAGE)
"""


def test_sigkill_in_the_middle_of_anything(machine: MountedLab, vgpu: Vgpu) -> None:
    """Whatever a client was doing, the next one gets the group, with no mapping, pin or eventfd of the
    dead."""
    moments = random.Random(3)
    before = settled(lambda: open_files(machine.pid))
    for _ in range(15):
        command = [sys.executable, "-c", VICTIM, str(machine.path), vgpu.group, vgpu.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as victim:
            assert victim.stdout is not None and victim.stdout.readline() == b"go\n"
            time.sleep(moments.uniform(0, 0.03))
            victim.kill()
        assert not busy(machine, vgpu)
        with opened(machine, vgpu.group, vgpu.name) as found:
            assert found.container.dma_avail == 65535
            fails(errno.EINVAL, found.device.irqs, MSIX, 1 | TRIGGER, 0, 1)
            fails(errno.EINVAL, found.device.irqs, REQ, 1 | TRIGGER, 0, 1)
    assert not busy(machine, vgpu)
    wait_for(lambda: open_files(machine.pid) <= before + 4)


def test_one_process_of_two_dies(machine: MountedLab, vgpu: Vgpu) -> None:
    """A process that shares a group goes away; the other goes on with it."""
    with opened(machine, vgpu.group, vgpu.name) as found:
        pid = child(lambda: [found.device.config(0) for _ in itertools.count()])
        time.sleep(0.05)
        reap(pid, signal.SIGKILL)
        assert found.device.config(0) == 0x1234
        assert found.container.dma_avail == 65535


def test_two_processes_race_for_a_group(machine: MountedLab, vgpu: Vgpu) -> None:
    """However they come and go, one at a time has it."""
    reader, writer = os.pipe()

    def contender() -> None:
        os.close(reader)
        for _ in range(200):
            try:
                with opened(machine, vgpu.group, vgpu.name, TYPE1V2):
                    os.write(writer, b"(")
                    os.write(writer, b")")
            except OSError as error:
                if error.errno != errno.EBUSY:
                    os.write(writer, b"!")

    pids = [child(contender) for _ in range(2)]
    os.close(writer)
    for pid in pids:
        reap(pid)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    assert told and told == b"()" * (len(told) // 2)
