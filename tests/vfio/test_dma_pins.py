# SPDX-License-Identifier: Apache-2.0
"""Which memory can be pinned: for a physical function at MAP_DMA, for a mediated device when it pins pages.

Source: pin_user_pages() with FOLL_LONGTERM (Documentation/core-api/pin_user_pages.rst), vfio_iommu_type1.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from ioctl_shim.process import Process
from ioctl_shim.sharedfile import WRITTEN_BACK
from tests import needs
from tests.labs import MountedLab, Vgpu
from tests.vfio import client
from tests.vfio.client import PAGE, Container, Memory, fails, unmapped_address
from tests.vfio.test_container import BASE, in_container, pf_group, physical, vgpu

__all__ = ["pf_group", "physical", "vgpu"]
SIZE = 4 * PAGE
MEMFD_SECRET = 447
F_ADD_SEALS, F_SEAL_FUTURE_WRITE = 1033, 16
libc = ctypes.CDLL(None, use_errno=True)


class Place(NamedTuple):
    """Memory of the test, and whether it can be pinned to be read and to be written."""

    address: int
    reads: bool
    writes: bool
    size: int = SIZE


def disk() -> Path:
    """A folder on a file system that writes its pages back."""
    table = Path("/proc/self/mountinfo").read_bytes().splitlines()
    kinds = {
        tuple(map(int, row.split()[2].split(b":"))): row.partition(b" - ")[2].split()[0] for row in table
    }
    for folder in (Path.cwd(), Path("/var/tmp"), Path("/tmp")):
        device = folder.stat().st_dev
        if kinds.get((os.major(device), os.minor(device))) in WRITTEN_BACK and os.access(folder, os.W_OK):
            return folder
    pytest.skip("the checkout, /var/tmp and /tmp are on no local disk: " + str(sorted(set(kinds.values()))))


@contextmanager
def file_of(size: int, flags: int = os.O_RDWR, folder: Path | None = None) -> Iterator[int]:
    """An unnamed file on a disk."""
    made = os.open(folder or disk(), os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(made, size)
    fd = os.open(f"/proc/self/fd/{made}", flags)
    os.close(made)
    yield fd
    os.close(fd)


def memfd(stack: ExitStack, size: int, flags: int = 0) -> int:
    fd = os.memfd_create("pinned", flags)
    stack.callback(os.close, fd)
    os.ftruncate(fd, size)
    return fd


def changed(change: Callable[[int], int]) -> int:
    """Shared memory, on whose third page `change` was called."""
    memory = Memory(SIZE)
    assert change(memory.address + 2 * PAGE) == 0
    return memory.address


def nowhere(stack: ExitStack) -> Place:
    return Place(unmapped_address(), False, False, PAGE)


def hole(stack: ExitStack) -> Place:
    return Place(changed(lambda at: int(libc.munmap(ctypes.c_void_p(at), PAGE))), False, False)


def guarded(stack: ExitStack) -> Place:
    return Place(changed(lambda at: int(libc.mprotect(ctypes.c_void_p(at), PAGE, 0))), False, False)


def read_only(stack: ExitStack) -> Place:
    return Place(Memory(SIZE, private=True, prot=mmap.PROT_READ).address, True, False)


def anonymous(stack: ExitStack) -> Place:
    return Place(Memory(SIZE, private=True).address, True, True)


def shared(stack: ExitStack) -> Place:
    return Place(Memory(SIZE).address, True, True)


def whole_memfd(stack: ExitStack) -> Place:
    return Place(Memory(SIZE, memfd(stack, SIZE)).address, True, True)


def odd_memfd(stack: ExitStack) -> Place:
    """Its last page has one byte."""
    return Place(Memory(SIZE, memfd(stack, SIZE - PAGE + 1)).address, True, True)


def short_memfd(stack: ExitStack) -> Place:
    return Place(Memory(SIZE, memfd(stack, SIZE - PAGE)).address, False, False)


def short_private_memfd(stack: ExitStack) -> Place:
    return Place(Memory(SIZE, memfd(stack, PAGE), private=True).address, False, False)


def sealed_memfd(stack: ExitStack) -> Place:
    fd = memfd(stack, SIZE, os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    return Place(Memory(SIZE, fd, prot=mmap.PROT_READ).address, True, False)


def memfd_sealed_later(stack: ExitStack) -> Place:
    fd = memfd(stack, SIZE, os.MFD_ALLOW_SEALING)
    memory = Memory(SIZE, fd)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    return Place(memory.address, True, True)


def tmpfs(stack: ExitStack) -> Place:
    return Place(
        Memory(SIZE, stack.enter_context(file_of(SIZE, folder=Path("/dev/shm")))).address, True, True
    )


def on_disk(stack: ExitStack) -> Place:
    return Place(Memory(SIZE, stack.enter_context(file_of(SIZE))).address, True, False)


def on_disk_read_only(stack: ExitStack) -> Place:
    fd = stack.enter_context(file_of(SIZE, os.O_RDONLY))
    return Place(Memory(SIZE, fd, prot=mmap.PROT_READ).address, True, False)


def private_on_disk(stack: ExitStack) -> Place:
    return Place(Memory(SIZE, stack.enter_context(file_of(SIZE)), private=True).address, True, True)


def short_on_disk(stack: ExitStack) -> Place:
    return Place(Memory(SIZE, stack.enter_context(file_of(PAGE)), private=True).address, False, False)


def secret(stack: ExitStack) -> Place:
    fd = libc.syscall(MEMFD_SECRET, 0)
    if fd < 0:
        pytest.skip(f"memfd_secret(2): {os.strerror(ctypes.get_errno())}")
    stack.callback(os.close, fd)
    os.ftruncate(fd, SIZE)
    return Place(Memory(SIZE, fd).address, False, False)


def huge(stack: ExitStack) -> Place:
    size = 2 << 20
    try:
        return Place(Memory(size, memfd(stack, size, os.MFD_HUGETLB)).address, True, True)
    except OSError as error:
        pytest.skip(f"no huge page is free: {error.strerror}")


def vdso(stack: ExitStack) -> Place:
    line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if "[vdso]" in line)
    return Place(int(line.split("-")[0], 16), True, False, PAGE)


PLACES = (
    *(nowhere, hole, guarded, read_only, anonymous, shared, whole_memfd, odd_memfd, short_memfd),
    *(short_private_memfd, sealed_memfd, memfd_sealed_later, tmpfs, on_disk, on_disk_read_only),
    *(private_on_disk, short_on_disk, secret, huge, vdso),
)


@pytest.fixture(params=PLACES, ids=[place.__name__ for place in PLACES])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with ExitStack() as stack:
        yield request.param(stack)


def test_memory_for_a_physical_function(physical: Container, place: Place) -> None:
    for flags, may in ((client.READ, place.reads), (client.READ | client.WRITE, place.writes)):
        if may:
            physical.map(BASE, place.address, place.size, flags)
            assert physical.unmap(BASE, place.size) == place.size
        else:
            fails(errno.EFAULT, physical.map, BASE, place.address, place.size, flags)
    assert physical.dma_avail == 65535


def test_memory_for_mediated_devices(lab: MountedLab, vgpu: Vgpu, place: Place) -> None:
    """It is mapped whatever it is. A pin of it, which is the device's, fails."""
    process = Process(os.getpid(), os.getpid(), -1)
    with in_container(lab, vgpu.group) as container:
        container.map(BASE, place.address, place.size)
    for write, may in ((False, place.reads), (True, place.writes)):
        if may:
            pages = process.pin(place.address, place.size, write)
            assert pages.read(place.size - 1, 1) == ctypes.string_at(place.address + place.size - 1, 1)
        else:
            fails(errno.EFAULT, process.pin, place.address, place.size, write)


@needs.passthrough
def test_memory_of_a_device_can_be_pinned(lab: MountedLab, vgpu: Vgpu, physical: Container) -> None:
    fd = os.open(vgpu.path / "resource0", os.O_RDWR)
    bar = Memory(PAGE, fd)
    os.close(fd)
    physical.map(BASE, bar.address, PAGE)
    assert physical.unmap(BASE, PAGE) == PAGE
    bar.close()
