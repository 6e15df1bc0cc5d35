# SPDX-License-Identifier: Apache-2.0
"""Devices that do DMA, on a real mount: examples/copier.py, and models/holder.py, which pins pages.

What is checked is the client's own memory, its eventfds and its dirty bitmaps, through the VFIO files alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT
from tests.iommufd.client import IommufdContainer
from tests.labs import MountedLab, described
from tests.vfio.client import (
    DEVICE_RESET,
    DIRTY_GET,
    DIRTY_START,
    IOMMU_DIRTY_PAGES,
    PAGE,
    READ,
    WRITE,
    Container,
    DirtyBitmap,
    DirtyBitmapGet,
    Group,
    Memory,
    fails,
)
from tests.vfio.copiers import (
    COMMAND_REGISTER,
    COPY,
    DECODE,
    DONE,
    FAULT,
    GPU,
    LAB,
    MASTER,
    PIN,
    STORE,
    UNPIN,
)
from tests.vfio.devices import (
    INTX,
    MSIX,
    NONE,
    TRIGGER,
    UNMASK,
    Device,
    Opened,
    bound,
    eventfd,
    group_device,
    opened,
    signals,
    silent,
)
from tests.waiting import wait_for

SYS_EXIT = 60 if os.uname().machine == "x86_64" else 93


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("dma"), LAB) as mounted:
        yield mounted


@pytest.fixture(params=[Container, IommufdContainer], ids=["container", "iommufd"])
def container(request: pytest.FixtureRequest) -> type[Container]:
    """What the group of the device joins."""
    found: type[Container] = request.param
    return found


of_type1 = pytest.mark.parametrize("container", [Container], indirect=True)
"""What only type1 has."""


@contextlib.contextmanager
def device(machine: MountedLab, kind: str, container: type[Container]) -> Iterator[Opened]:
    with (
        machine.create(f"{kind}-1", f"{kind}s") as vgpu,
        opened(machine, vgpu.group, vgpu.name, container=container) as found,
    ):
        found.device.set_config(COMMAND_REGISTER, DECODE | MASTER)
        yield found


@pytest.fixture
def copier(machine: MountedLab, container: type[Container]) -> Iterator[Opened]:
    with device(machine, "copier", container) as found:
        yield found


@pytest.fixture
def holder(machine: MountedLab, container: type[Container]) -> Iterator[Opened]:
    with device(machine, "holder", container) as found:
        yield found


def register(opened: Opened, offset: int) -> int:
    return int.from_bytes(os.pread(opened.device.fd, 4, offset), "little")


def command(copier: Opened, source: int, target: int, size: int) -> None:
    os.pwrite(copier.device.fd, struct.pack("<QQII", source, target, size, COPY), 0)


def status(copier: Opened) -> int:
    return register(copier, 0x18)


def acknowledge(copier: Opened) -> None:
    os.pwrite(copier.device.fd, (DONE | FAULT).to_bytes(4, "little"), 0x18)


def copy(copier: Opened, source: int, target: int, size: int) -> int:
    """Let the device copy, polling; its status, which is cleared."""
    command(copier, source, target, size)
    wait_for(lambda: status(copier))
    found = status(copier)
    acknowledge(copier)
    assert not status(copier)
    return found


@contextlib.contextmanager
def mapped(opened: Opened, iova: int, memory: Memory, flags: int = READ | WRITE) -> Iterator[Memory]:
    opened.container.map(iova, memory.address, memory.size, flags)
    yield memory
    opened.container.unmap(iova, memory.size)
    memory.close()


def memfd(size: int) -> int:
    fd = os.memfd_create("client")
    os.ftruncate(fd, size)
    return fd


@pytest.mark.parametrize("kind", ["private", "memfd", "anonymous"])
def test_bytes_move_in_the_clients_memory(copier: Opened, kind: str) -> None:
    size = 1 << 20
    fd = memfd(2 * size) if kind == "memfd" else -1
    memory = Memory(2 * size, fd, private=kind == "private")
    picture = os.urandom(size - 5)
    with mapped(copier, 1 << 32, memory):
        memory.write(picture, 3)
        assert copy(copier, (1 << 32) + 3, (1 << 32) + size + 1, len(picture)) == DONE
        assert memory.read(size + 1, len(picture)) == picture
        assert memory.read(2 * size - 4, 4) == bytes(4)
    if fd >= 0:
        assert os.pread(fd, len(picture), size + 1) == picture
        os.close(fd)


@pytest.mark.parametrize(
    ("source", "target", "size"),
    [
        (0x10000, 0, PAGE),  # not mapped
        (0, 0x10000, PAGE),
        (0, 0, 2 * PAGE + 1),  # its end
        (2**64 - 1, 0, 16),  # around the end of all addresses
        (0, 0, 2**32 - 1),
        (PAGE, 0, PAGE),  # write-only
    ],
)
def test_what_is_not_mapped_is_a_fault(copier: Opened, source: int, target: int, size: int) -> None:
    with (
        mapped(copier, 0, Memory(PAGE)) as memory,
        mapped(copier, PAGE, Memory(PAGE), WRITE),
    ):
        memory.write(b"mine")
        assert copy(copier, source, target, size) == FAULT
        assert memory.read(0, 4) == b"mine"
        assert copy(copier, 0, PAGE, 64) == DONE


def test_read_only_memory_is_not_written(copier: Opened) -> None:
    with mapped(copier, 0, Memory(PAGE), READ) as memory, mapped(copier, PAGE, Memory(PAGE)) as other:
        memory.write(b"rom")
        other.write(b"bad")
        assert copy(copier, PAGE, 0, 3) == FAULT
        assert copy(copier, 0, PAGE, 3) == DONE
        assert (memory.read(0, 3), other.read(0, 3)) == (b"rom", b"rom")


def test_a_device_that_is_no_bus_master_does_no_dma(copier: Opened) -> None:
    with mapped(copier, 0, Memory(2 * PAGE)) as memory:
        memory.write(b"from")
        copier.device.set_config(COMMAND_REGISTER, DECODE)
        assert copy(copier, 0, PAGE, 4) == FAULT
        copier.device.set_config(COMMAND_REGISTER, DECODE | MASTER)
        assert copy(copier, 0, PAGE, 4) == DONE
        assert memory.read(PAGE, 4) == b"from"


def test_completion_by_msix(copier: Opened) -> None:
    with mapped(copier, 0, Memory(2 * PAGE)), eventfd() as done, eventfd() as other:
        copier.device.eventfds(MSIX, TRIGGER, 0, done, other)
        for _ in range(3):
            command(copier, 0, PAGE, 64)
            assert signals(done) == 1 and status(copier) == DONE
            acknowledge(copier)
        assert silent(other)
        copier.device.tear_down(MSIX)


def test_completion_by_intx(copier: Opened) -> None:
    """The line stays asserted until the client clears the status: unmasking it before fires it again."""
    with mapped(copier, 0, Memory(2 * PAGE)), eventfd() as line:
        copier.device.eventfds(INTX, TRIGGER, 0, line)
        command(copier, 0, PAGE, 64)
        assert signals(line) == 1
        copier.device.irqs(INTX, NONE | UNMASK, 0, 1)
        assert signals(line) == 1
        assert copier.device.config(6) & 8  # the status register shows the line
        acknowledge(copier)
        assert not copier.device.config(6) & 8
        copier.device.irqs(INTX, NONE | UNMASK, 0, 1)
        assert silent(line)
        copier.device.tear_down(INTX)


def dirty(opened: Opened, iova: int, pages: int) -> int:
    bitmap = ctypes.create_string_buffer(-(-pages // 64) * 8)
    ask = DirtyBitmapGet(flags=DIRTY_GET, iova=iova, size=pages * PAGE, bitmap_pgsize=PAGE)
    ask.bitmap_size, ask.bitmap_data = len(bitmap), ctypes.addressof(bitmap)
    opened.container.ioctl(IOMMU_DIRTY_PAGES, ask)
    return int.from_bytes(bitmap.raw, "little")


@of_type1
def test_what_the_device_wrote_is_dirty(copier: Opened) -> None:
    with mapped(copier, 0x100000, Memory(64 * PAGE)):
        copier.container.ioctl(IOMMU_DIRTY_PAGES, DirtyBitmap(flags=DIRTY_START))
        assert copy(copier, 0x100000, 0x100000 + 5 * PAGE - 1, PAGE + 2) == DONE
        assert dirty(copier, 0x100000, 64) == 0b1110000
        assert dirty(copier, 0x100000, 64) == 0
        assert copy(copier, 0x100000, 0x200000, 1) == FAULT
        assert dirty(copier, 0x100000, 64) == 0


@of_type1
@needs.passthrough
def test_memory_of_the_lab_itself(machine: MountedLab, copier: Opened) -> None:
    """A client may let a device copy from another device's memory, mapped from this mount. To iommufd that is
    no memory."""
    with machine.create("copier-1", "copiers") as other, open(other.open(), "r+b", buffering=0) as file:
        area = (4 << 40) + PAGE  # BAR 4, behind the page of its MSI-X structures
        with mmap.mmap(file.fileno(), PAGE, offset=area) as video:
            video[:5] = b"video"
            address = ctypes.addressof(ctypes.c_char.from_buffer(video))
            copier.container.map(PAGE, address, PAGE)
            with mapped(copier, 0, Memory(PAGE)) as memory:
                assert copy(copier, PAGE, 0, 5) == DONE
                assert memory.read(0, 5) == b"video"
            copier.container.unmap(PAGE, PAGE)


def test_a_reset_ends_what_the_device_was_doing(copier: Opened) -> None:
    """On a busy machine the first copy may be done before the reset, but not each time."""
    ended = rounds = 0
    with mapped(copier, 0, Memory(64 << 20)), eventfd() as done:
        while rounds < 20 or not ended:
            rounds += 1
            copier.device.eventfds(MSIX, TRIGGER, 0, done)
            command(copier, 0, 32 << 20, 32 << 20)
            copier.device.ioctl(DEVICE_RESET)
            assert status(copier) == 0
            ended += signals(done, 0) == 0
            copier.device.set_config(COMMAND_REGISTER, DECODE | MASTER)
            assert copy(copier, 0, PAGE, 8) == DONE
            assert signals(done) == 1  # of the second copy alone
            assert silent(done)
            copier.device.tear_down(MSIX)


def test_nothing_of_a_client_is_reached_by_the_next(machine: MountedLab) -> None:
    with machine.create("copier-1", "copiers") as vgpu:
        with opened(machine, vgpu.group, vgpu.name) as first:
            first.device.set_config(COMMAND_REGISTER, DECODE | MASTER)
            memory = Memory(2 * PAGE)
            first.container.map(0, memory.address, memory.size)
            assert copy(first, 0, PAGE, 8) == DONE
        with opened(machine, vgpu.group, vgpu.name) as second:
            assert copy(second, 0, PAGE, 8) == FAULT
        memory.close()


def test_a_device_that_is_bound_and_not_attached_does_no_dma(machine: MountedLab) -> None:
    with machine.create("copier-1", "copiers") as vgpu, open(vgpu.open(), "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), struct.pack("<QQII", 0, 0, 4, COPY), 0)
        wait_for(lambda: os.pread(file.fileno(), 4, 0x18) == FAULT.to_bytes(4, "little"))


def test_dma_of_a_physical_function(machine: MountedLab) -> None:
    """vfio-pci gives a function out as no bus master, and its memory is pinned as it is mapped."""
    with bound(machine, GPU) as (group,), opened(machine, group, GPU) as function:
        assert function.device.config(COMMAND_REGISTER) & 7 == DECODE - 1  # it has memory BARs alone
        with mapped(function, 0, Memory(2 * PAGE)) as memory:
            memory.write(b"pinned")
            assert copy(function, 0, PAGE, 6) == FAULT
            function.device.set_config(COMMAND_REGISTER, DECODE - 1 | MASTER)
            assert copy(function, 0, PAGE, 6) == DONE
            assert memory.read(PAGE, 6) == b"pinned"
        fails(errno.EFAULT, function.container.map, 0, memory.address, PAGE)


def copies_without_its_first_thread(root: Path, group: str, name: str) -> None:
    """In a process of its own: what a client does whose first thread has ended."""
    threads = Path("/proc/self/task")

    def work() -> None:
        wait_for(lambda: b"State:\tZ" in (threads / str(os.getpid()) / "status").read_bytes())
        with Container(root) as container, Group(root, group) as file:
            file.set_container(container)
            container.set_iommu()
            with Device(group_device(root, file, name)) as device:
                device.set_config(COMMAND_REGISTER, DECODE | MASTER)
                found = Opened(container, file, device, name)
                for memory in (Memory(2 * PAGE, private=True), Memory(2 * PAGE, memfd(2 * PAGE))):
                    with mapped(found, 0, memory):
                        memory.write(b"alive")
                        assert copy(found, 0, PAGE, 5) == DONE
                        assert memory.read(PAGE, 5) == b"alive"
        os.write(1, b"copied\n")
        os._exit(0)

    threading.Thread(target=work).start()
    ctypes.CDLL(None).syscall(SYS_EXIT, 0)


def test_a_process_whose_first_thread_has_ended(machine: MountedLab) -> None:
    with machine.create("copier-1", "copiers") as vgpu:
        call = f"copies_without_its_first_thread(Path({str(machine.path)!r}), {vgpu.group!r}, {vgpu.name!r})"
        script = f"from {__name__} import *; {call}"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.stdout, done.returncode) == ("copied\n", 0), done.stderr


# ---- pages that a device holds ----


def tell(holder: Opened, what: int, iova: int = 0, pages: int = 1) -> int:
    """Give a command and wait for its end; the errno it ended with."""
    done = register(holder, 0x10)
    os.pwrite(holder.device.fd, struct.pack("<QII", iova, pages, what), 0)
    wait_for(lambda: register(holder, 0x10) == done + 1)
    return register(holder, 0x14)


def test_pinned_pages_stay_the_devices(holder: Opened) -> None:
    with mapped(holder, 0, Memory(4 * PAGE, private=True)) as memory:
        assert tell(holder, PIN, PAGE, 2) == 0
        assert tell(holder, STORE, 0, 2) == 0
        assert memory.read() == bytes(PAGE) + b"held" * (PAGE // 2) + bytes(PAGE)
        assert register(holder, 0x18) == 0


def test_an_unmap_makes_the_device_let_go(holder: Opened) -> None:
    pages = Memory(4 * PAGE)
    holder.container.map(0, pages.address, pages.size)
    for _ in range(3):
        assert tell(holder, PIN, 0, 4) == 0
    assert holder.container.unmap(0, pages.size) == pages.size
    assert register(holder, 0x18) == 3  # before the unmap returned
    pages.close()


def test_what_cannot_be_pinned(holder: Opened) -> None:
    with mapped(holder, 0, Memory(4 * PAGE)), mapped(holder, 1 << 20, Memory(PAGE), READ):
        assert tell(holder, PIN, 1, 1) == errno.EINVAL
        by_iommufd = isinstance(holder.container, IommufdContainer)
        assert tell(holder, PIN, 4 * PAGE, 1) == (errno.ENOENT if by_iommufd else errno.EINVAL)
        assert tell(holder, PIN, 0, 0) == errno.EINVAL
        assert tell(holder, PIN, 0, 513) == errno.E2BIG
        assert tell(holder, PIN, 1 << 20, 1) == errno.EPERM
        assert tell(holder, PIN, 0, 4) == 0
        assert tell(holder, UNPIN, 0, 4) == 0
        assert register(holder, 0x18) == 1


def test_a_client_that_ends_takes_its_pins_along(machine: MountedLab) -> None:
    with machine.create("holder-1", "holders") as vgpu:
        for _ in range(2):
            with opened(machine, vgpu.group, vgpu.name) as found:
                found.device.set_config(COMMAND_REGISTER, DECODE | MASTER)
                pages = Memory(PAGE)
                found.container.map(0, pages.address, PAGE)
                before = register(found, 0x18)
                assert tell(found, PIN) == 0
            with opened(machine, vgpu.group, vgpu.name) as after:
                assert register(after, 0x18) == before + 1
            pages.close()
