# SPDX-License-Identifier: Apache-2.0
"""How long a device is bound, against a real mount: every order of closing, fork, SCM_RIGHTS, SIGKILL at any
moment, removal, and DMA that is under way."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import one_write
from tests.descriptors import descriptors, open_files
from tests.hostile.clients import Leaks
from tests.iommufd.client import Cdev, Iommufd, IommufdContainer
from tests.iommufd.devices import LAB, Copier, cdev_of
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import PAGE, File, Memory, fails
from tests.vfio.copiers import DONE, FAULT, GPU
from tests.vfio.devices import MSIX, REQ, TRIGGER, bound, eventfd, function_dir, signals, silent
from tests.vfio.gpu_client import StoppedMemory
from tests.vfio.test_lifetimes import busy, child, reap
from tests.waiting import settled, wait_for

IOVA = 0x10_0000
DRAIN_SECONDS = 2
"""For so long a DETACH waits for DMA under way."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("lifetimes"), LAB) as mounted:
        yield mounted


# ---- who keeps it ----


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("order", [*itertools.permutations(["iommufd", "cdev", "copy"])])
def test_closing_in_every_order(
    machine: MountedLab, vgpu: Vgpu, order: tuple[str, ...], attached: bool
) -> None:
    iommufd, cdev, memory = Iommufd(machine.path), Copier(vgpu.cdev), Memory(2 * PAGE)
    cdev.ready(iommufd)
    ioas = iommufd.ioas()
    iommufd.map(ioas, memory.address, memory.size, IOVA)
    if attached:
        cdev.attach(ioas)
    files: dict[str, File] = {"iommufd": iommufd, "cdev": cdev, "copy": Copier(os.dup(cdev.fd))}
    left = set(order)
    for name in order:
        assert busy(machine, vgpu) is bool(left & {"cdev", "copy"})
        files[name].close()
        left.remove(name)
        for each in left & {"cdev", "copy"}:
            device = files[each]
            assert isinstance(device, Copier)
            assert device.reaches(IOVA, memory) is attached
    assert not busy(machine, vgpu)
    memory.close()


def test_a_forked_child_keeps_it(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    with Cdev(vgpu.cdev) as cdev:
        cdev.bind(iommufd)
        pid = child(lambda: time.sleep(60))
    assert busy(machine, vgpu)
    fails(errno.EBUSY, iommufd.destroy, 1)
    reap(pid, signal.SIGKILL)
    assert not busy(machine, vgpu)
    fails(errno.ENOENT, iommufd.destroy, 1)


def test_descriptors_that_are_sent(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    """A process that opened nothing binds and attaches by descriptors that it was sent. The binding is the
    file's, so the sender has it, too."""
    ours, theirs = socket.socketpair()
    ioas = iommufd.ioas()
    memory = Memory(2 * PAGE)
    iommufd.map(ioas, memory.address, memory.size, IOVA)

    def receive() -> None:
        _, (device, context), _, _ = socket.recv_fds(theirs, 1, 2)
        with Copier(device) as cdev, Iommufd(context) as copy:
            number = cdev.ready(copy)
            cdev.attach(ioas)
            theirs.sendall(bytes([number]))
            theirs.recv(1)

    with ours, theirs, Copier(vgpu.cdev) as cdev:
        pid = child(receive)
        socket.send_fds(ours, [b"x"], [cdev.fd, iommufd.fd])
        assert ours.recv(1) == bytes([2])
        fails(errno.EINVAL, cdev.bind, iommufd)
        assert cdev.reaches(IOVA, memory)
        ours.sendall(b"x")
        reap(pid)
        assert cdev.reaches(IOVA, memory)
        cdev.detach()
        assert cdev.copy(IOVA, IOVA, 8) == FAULT
        socket.send_fds(ours, [b"x"], [cdev.fd])  # what is under way in a socket counts
        cdev.close()
        assert busy(machine, vgpu)
    assert not busy(machine, vgpu)


def test_mappings_belong_to_who_made_them(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    """The memory of a process that has ended is a fault; other mappings of the IOAS go on."""
    ioas, memory = iommufd.ioas(), Memory(2 * PAGE)
    iommufd.map(ioas, memory.address, memory.size, IOVA)

    def map_own() -> None:
        own = Memory(2 * PAGE, private=True)
        iommufd.map(ioas, own.address, own.size, 2 * IOVA)

    reap(child(map_own))
    with Copier(vgpu.cdev) as cdev:
        cdev.ready(iommufd)
        cdev.attach(ioas)
        assert cdev.copy(2 * IOVA, IOVA, 8) == FAULT
        assert cdev.reaches(IOVA, memory)


@pytest.mark.parametrize("api", ["iommufd", "vfio"])
def test_an_unmap_that_fails_keeps_nothing_of_the_client(machine: MountedLab, api: str) -> None:
    """The server has files of a process in /proc open only as long as that may map memory."""

    def split_a_mapping() -> None:
        iommufd, memory = Iommufd(machine.path), Memory(2 * PAGE)
        ioas = iommufd.ioas()
        iommufd.map(ioas, memory.address, 2 * PAGE, IOVA)
        if api == "iommufd":
            fails(errno.ENOENT, iommufd.unmap, ioas, IOVA, PAGE)
        else:
            iommufd.set_vfio_ioas(ioas)
            fails(errno.ENOENT, IommufdContainer(iommufd.fd).unmap, IOVA, PAGE)

    leaks = Leaks(machine.pid)
    reap(child(split_a_mapping))
    leaks.check()


def test_a_dma_that_fails_keeps_nothing_of_the_client(machine: MountedLab, vgpu: Vgpu) -> None:
    def lose_the_memory() -> None:
        iommufd, cdev, memory = Iommufd(machine.path), Copier(vgpu.cdev), Memory(2 * PAGE)
        cdev.ready(iommufd)
        cdev.attach(ioas := iommufd.ioas())
        iommufd.map(ioas, memory.address, 2 * PAGE, IOVA)
        memory.close()
        assert cdev.copy(IOVA, IOVA + PAGE, 8) == FAULT

    Cdev(vgpu.cdev).close()  # the device is made when it is first opened
    leaks = Leaks(machine.pid)
    reap(child(lose_the_memory))
    leaks.check()


# ---- SIGKILL ----


def work(machine: MountedLab, paths: list[Path], ready: int) -> None:
    """What a victim does until it is killed: whatever a client does with its devices."""
    memory, event = Memory(64 * PAGE), os.eventfd(0)
    os.write(ready, b"go")
    while True:
        with Iommufd(machine.path) as iommufd:
            ioas, other = iommufd.ioas(), iommufd.ioas()
            for page in range(64):
                iommufd.map(ioas, memory.address + page * PAGE, PAGE, page * PAGE)
            devices = [Copier(path) for path in paths]
            for device in devices:
                device.ready(iommufd)
                device.eventfds(MSIX, TRIGGER, 0, event)
                device.eventfds(REQ, TRIGGER, 0, event)
                device.attach(ioas)
                device.begin(0, PAGE, 4096)
            for device in devices:
                device.attach(other)
                device.detach()
                device.attach(ioas)
                device.begin(0, PAGE, 4096)
                device.close()


def test_sigkill_in_the_middle_of_anything(machine: MountedLab, vgpu: Vgpu) -> None:
    """Whatever a client was doing, the next one gets its devices at once, and no object, mapping or eventfd
    of the dead is left."""
    moments = random.Random(14)
    with bound(machine, GPU):
        paths = [vgpu.cdev, cdev_of(machine, GPU)]
        ready, go = os.pipe()
        before = settled(lambda: open_files(machine.pid))
        for _ in range(30):
            pid = child(lambda: work(machine, paths, go))
            assert os.read(ready, 2) == b"go"
            time.sleep(moments.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            with Iommufd(machine.path) as iommufd:
                for path in paths:
                    with Copier(path) as device:
                        assert device.ready(iommufd) == 1
                        fails(errno.EINVAL, device.irqs, REQ, 1 | TRIGGER, 0, 1)
                        assert device.copy(0, PAGE, 8) == FAULT
        with contextlib.suppress(AssertionError):
            wait_for(lambda: open_files(machine.pid) <= before + 4)
        left = Counter(descriptors(machine.pid))
        # The traceback of an error may keep one process until Python's next collection: its mem, its maps
        # and a pidfd.  A process that is never given up would be there for each of the thirty.
        processes = sum(name.endswith("/mem") for name in left.elements())
        assert processes <= 1, left
        assert left.total() - left["/dev/fuse"] - 3 * processes <= before + 4, left
        os.close(ready)
        os.close(go)
    assert not busy(machine, vgpu)


def test_a_killed_client_does_not_hinder_a_removal(machine: MountedLab) -> None:
    for bind in (True, False):
        gone = machine.create("copier-1", "copiers")

        def hold(vgpu: Vgpu = gone, bind: bool = bind) -> None:
            with Cdev(vgpu.cdev) as cdev, Iommufd(machine.path) as iommufd:
                if bind:
                    cdev.bind(iommufd)
                os.kill(os.getpid(), signal.SIGSTOP)

        pid = child(hold)
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        fails(errno.EBUSY, gone.remove)
        reap(pid, signal.SIGKILL)
        gone.remove()
        assert not gone.path.exists()


# ---- removal ----


def test_an_open_file_keeps_the_device(machine: MountedLab, iommufd: Iommufd) -> None:
    """Bound or not; one that is bound is asked to let go."""
    vgpu = machine.create("copier-1", "copiers")

    def remove() -> None:
        one_write(vgpu.path / "remove", "1")

    with Cdev(vgpu.cdev) as cdev, Cdev(vgpu.cdev) as beside, eventfd() as event:
        fails(errno.EBUSY, remove)
        cdev.bind(iommufd)
        cdev.eventfds(REQ, TRIGGER, 0, event)
        assert silent(event)
        fails(errno.EBUSY, remove)
        assert signals(event) == 1
        cdev.close()
        fails(errno.EBUSY, remove)
        assert silent(event)
        beside.close()
        vgpu.remove()
    assert not vgpu.cdev.exists()


def test_a_driver_leaves_when_the_function_is_free(machine: MountedLab, iommufd: Iommufd) -> None:
    with bound(machine, GPU), eventfd() as event:
        unbind = function_dir(machine, GPU) / "driver/unbind"
        with Copier(cdev_of(machine, GPU)) as gpu:
            fails(errno.EBUSY, one_write, unbind, GPU)
            gpu.ready(iommufd)
            gpu.attach(iommufd.ioas())
            gpu.eventfds(REQ, TRIGGER, 0, event)
            fails(errno.EBUSY, one_write, unbind, GPU)
            assert signals(event) == 1
            iommufd.close()
            fails(errno.EBUSY, one_write, unbind, GPU)
        unbind.write_text(GPU)


def test_a_device_that_vanishes(machine: MountedLab, iommufd: Iommufd) -> None:
    """Its files answer ENODEV, and its objects go with them."""
    vgpu = machine.create("copier-1", "copiers")
    with Copier(vgpu.cdev) as cdev, Cdev(vgpu.cdev) as beside:
        cdev.ready(iommufd)
        ioas = iommufd.ioas()
        cdev.attach(ioas)
        one_write(vgpu.path / "surprise_remove", "1")
        fails(errno.ENODEV, cdev.attach, ioas)
        fails(errno.ENODEV, beside.bind, iommufd)
        fails(errno.EBUSY, iommufd.destroy, ioas)
        cdev.close()
        iommufd.destroy(ioas)
        fails(errno.ENOENT, iommufd.destroy, 1)


# ---- DMA that is under way ----


@needs.userfaultfd
def test_a_detach_waits_for_dma(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    first, second = iommufd.ioas(), iommufd.ioas()
    with StoppedMemory(PAGE) as stopped, Copier(vgpu.cdev) as cdev:
        iommufd.map(first, stopped.address, PAGE, IOVA)
        cdev.ready(iommufd)
        cdev.attach(first)
        cdev.begin(IOVA, IOVA, 8)
        wait_for(lambda: stopped.touched)
        for attempt in (cdev.detach, lambda: cdev.attach(second)):
            begun = time.monotonic()
            fails(errno.EBUSY, attempt)
            assert time.monotonic() - begun >= DRAIN_SECONDS
            iommufd.destroy(iommufd.ioas())  # nobody else waits meanwhile
        fails(errno.EBUSY, iommufd.destroy, first)
        timer = threading.Timer(0.3, stopped.let_go)
        timer.start()
        cdev.attach(second)
        wait_for(lambda: cdev.status)
        assert cdev.status in (DONE, FAULT)
        iommufd.destroy(first)
        timer.join()


@needs.userfaultfd
def test_a_close_does_not_wait_for_dma(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:

    def lasts() -> float:
        ioas = iommufd.ioas()
        with StoppedMemory(PAGE) as stopped:
            iommufd.map(ioas, stopped.address, PAGE, IOVA)
            with Copier(vgpu.cdev) as cdev:
                cdev.ready(iommufd)
                cdev.attach(ioas)
                cdev.begin(IOVA, IOVA, 8)
                wait_for(lambda: stopped.touched)
                begun = time.monotonic()
            assert not busy(machine, vgpu)
            with Copier(vgpu.cdev) as again:
                again.ready(iommufd)
            return time.monotonic() - begun

    wait_for(lambda: lasts() < DRAIN_SECONDS)  # one that waited would always last longer


@needs.userfaultfd
@pytest.mark.parametrize("kind", ["vgpu", "function"])
def test_dma_of_a_former_client_holds_up_nobody(machine: MountedLab, vgpu: Vgpu, kind: str) -> None:
    """Its memory may never answer. The next client attaches and detaches the device as if it were new."""

    def lasts(path: Path) -> float:
        with StoppedMemory(PAGE, PAGE) as stopped, Iommufd(machine.path) as theirs:
            with Copier(path) as cdev:
                theirs.map(theirs.ioas(), stopped.address, PAGE, IOVA)
                cdev.ready(theirs)
                cdev.attach(1)
                stopped.forget()
                cdev.begin(IOVA, IOVA, 8)
                wait_for(lambda: stopped.touched)
            begun, memory = time.monotonic(), Memory(2 * PAGE)
            with Copier(path) as again, Iommufd(machine.path) as ours:
                again.ready(ours)
                for _ in range(2):
                    ours.map(ioas := ours.ioas(), memory.address, 2 * PAGE, IOVA)
                    again.attach(ioas)
                    assert again.reaches(IOVA, memory)
                again.detach()
            assert stopped.touched
            memory.close()
            return time.monotonic() - begun

    with bound(machine, GPU):
        path = vgpu.cdev if kind == "vgpu" else cdev_of(machine, GPU)
        wait_for(lambda: lasts(path) < DRAIN_SECONDS)  # one that waited would always last longer
