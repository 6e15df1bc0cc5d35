# SPDX-License-Identifier: Apache-2.0
"""What devices pin and reach of mappings, copies and files, against a real mount."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from tests import needs
from tests.iommufd.client import ALL, MAP_READABLE, MAP_WRITEABLE, Cdev, Iommufd
from tests.iommufd.devices import LAB, NEIGHBOUR, UNPROTECTED, Copier, Holder, cdev_of, in_another_process
from tests.iommufd.functions import without_iommu
from tests.labs import MountedLab, described
from tests.vfio.client import PAGE, Memory, fails, unmapped_address
from tests.vfio.copiers import DONE, FAULT, PIN, STORE
from tests.vfio.devices import bound

POOL = """
[parents.pool]
kind = "virtual"
driver = "pool"
model = "vgpu"
memory = "4M"
types.sparse = { memory = "1M", description = "memory to map", options = { vectors = 64 } }
"""
IOVA, ELSEWHERE = 0x10_0000, 0x50_0000


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("pins"), LAB + POOL) as mounted:
        yield mounted


@pytest.fixture
def holder(machine: MountedLab, iommufd: Iommufd) -> Iterator[Holder]:
    """A mediated device that pins pages, bound."""
    with machine.create("holder-1", "holders") as vgpu, Holder(vgpu.cdev) as opened:
        opened.ready(iommufd)
        yield opened


@pytest.fixture
def neighbour(machine: MountedLab, iommufd: Iommufd) -> Iterator[Copier]:
    """Another physical function, bound."""
    with bound(machine, NEIGHBOUR), Copier(cdev_of(machine, NEIGHBOUR)) as opened:
        opened.ready(iommufd)
        yield opened


def other_memory_at(memory: Memory) -> Memory:
    """New pages in place of those of `memory`."""
    return Memory(memory.size, address=memory.address)


# ---- which memory can be pinned ----


def bad_memory() -> dict[str, tuple[int, int]]:
    """Addresses that cannot be pinned with these rights."""
    return {
        "nothing": (unmapped_address(), MAP_READABLE),
        "no access": (Memory(PAGE, prot=0).address, MAP_READABLE),
        "read-only": (Memory(PAGE, prot=mmap.PROT_READ).address, MAP_WRITEABLE),
        "the kernel's": (0xFFFF_8000_0000_0000, MAP_READABLE),
    }


@pytest.mark.parametrize("kind", list(bad_memory()))
def test_memory_is_looked_at_when_it_is_pinned(
    kind: str, gpu: Copier, copier: Copier, iommufd: Iommufd
) -> None:
    address, flags = bad_memory()[kind]
    ioas, memory = iommufd.ioas(), Memory(2 * PAGE)
    iommufd.map(ioas, memory.address, 2 * PAGE, IOVA)
    iommufd.map(ioas, address, PAGE, ELSEWHERE, flags)
    copier.attach(ioas)  # it touches nothing
    assert copier.reaches(IOVA, memory)
    source, target = (IOVA, ELSEWHERE) if flags == MAP_WRITEABLE else (ELSEWHERE, IOVA)
    assert copier.copy(source, target, 4) == FAULT
    fails(errno.EFAULT, gpu.attach, ioas)
    iommufd.unmap(ioas, ELSEWHERE, PAGE)
    gpu.attach(ioas)
    fails(errno.EFAULT, iommufd.map, ioas, address, PAGE, ELSEWHERE, flags)
    source_ioas = iommufd.ioas()
    iommufd.map(source_ioas, address, PAGE, 0, flags)
    fails(errno.EFAULT, iommufd.copy, ioas, source_ioas, 0, PAGE, ELSEWHERE, flags)
    assert iommufd.unmap(ioas) == 2 * PAGE


def test_a_read_only_page_is_pinned_to_be_read(gpu: Copier, iommufd: Iommufd) -> None:
    ioas, target = iommufd.ioas(), Memory(PAGE)
    rom = Memory(PAGE)
    rom.write(b"rom")
    gpu.attach(ioas)
    iommufd.map(ioas, rom.address, PAGE, IOVA, MAP_READABLE)
    iommufd.map(ioas, target.address, PAGE, ELSEWHERE, MAP_WRITEABLE)
    assert gpu.copy(IOVA, ELSEWHERE, 3) == DONE and target.read(0, 3) == b"rom"
    assert gpu.copy(ELSEWHERE, IOVA, 3) == FAULT


def test_the_memory_of_a_process_ends_with_it(
    gpu: Copier, copier: Copier, holder: Holder, iommufd: Iommufd, machine: MountedLab
) -> None:
    ioas = iommufd.ioas()
    copier.attach(ioas)
    holder.attach(ioas)
    in_another_process(lambda: _map_two_pages(iommufd, ioas))
    assert copier.copy(IOVA, IOVA + PAGE, 4) == FAULT
    assert holder.command(PIN, IOVA) == errno.EFAULT
    fails(errno.EFAULT, gpu.attach, ioas)
    other = iommufd.ioas()
    iommufd.copy(other, ioas, IOVA, PAGE, 0)
    fails(errno.EFAULT, gpu.attach, other)
    assert iommufd.unmap(ioas) == 2 * PAGE


def _map_two_pages(iommufd: Iommufd, ioas: int) -> None:
    iommufd.map(ioas, Memory(2 * PAGE, private=True).address, 2 * PAGE, IOVA)


@needs.passthrough
def test_a_bar_is_no_memory_to_map(
    gpu: Copier, copier: Copier, iommufd: Iommufd, machine: MountedLab
) -> None:
    """As in Linux, where it is VM_PFNMAP. type1 takes it."""
    ioas, memory = iommufd.ioas(), Memory(2 * PAGE)
    with machine.create("sparse", "pool") as vgpu, Cdev(vgpu.cdev) as device:
        device.bind(iommufd)
        bar = Memory(PAGE, device.fd)
        iommufd.map(ioas, bar.address, PAGE, ELSEWHERE)
        iommufd.map(ioas, memory.address, 2 * PAGE, IOVA)
        copier.attach(ioas)
        assert copier.copy(IOVA, ELSEWHERE, 4) == FAULT and copier.copy(ELSEWHERE, IOVA, 4) == FAULT
        fails(errno.EFAULT, gpu.attach, ioas)
        iommufd.unmap(ioas, ELSEWHERE, PAGE)
        gpu.attach(ioas)
        fails(errno.EFAULT, iommufd.map, ioas, bar.address, PAGE, ELSEWHERE)
        bar.close()


# ---- copies ----


def test_a_copy_of_pinned_memory_reaches_the_same_pages(
    gpu: Copier, neighbour: Copier, copier: Copier, iommufd: Iommufd, memfd: int
) -> None:
    """Even if the process has other memory at the address since."""
    src, dst, third = iommufd.ioas(), iommufd.ioas(), iommufd.ioas()
    pinned = Memory(2 * PAGE, memfd)
    iommufd.map(src, pinned.address, 2 * PAGE, IOVA)
    gpu.attach(src)
    new = other_memory_at(pinned)
    neighbour.attach(dst)
    iommufd.copy(dst, src, IOVA, 2 * PAGE, ELSEWHERE)
    iommufd.copy(third, dst, ELSEWHERE, 2 * PAGE, 0)
    copier.attach(third)
    iommufd.unmap(src)
    for device, iova, said in ((neighbour, ELSEWHERE, b"physical"), (copier, 0, b"mediated")):
        os.pwrite(memfd, said, 0)
        assert device.copy(iova, iova + PAGE, 8) == DONE
        assert os.pread(memfd, 8, PAGE) == said
    assert new.read() == bytes(2 * PAGE)
    neighbour.detach()
    new.write(b"follows")  # nobody pins it any more
    assert copier.copy(0, PAGE, 7) == DONE and new.read(PAGE, 7) == b"follows"


def test_a_copy_of_what_is_not_pinned_follows_the_address(copier: Copier, iommufd: Iommufd) -> None:
    src, dst = iommufd.ioas(), iommufd.ioas()
    memory = Memory(2 * PAGE)
    iommufd.map(src, memory.address, 2 * PAGE, IOVA)
    iommufd.copy(dst, src, IOVA, 2 * PAGE, 0)
    copier.attach(dst)
    assert copier.reaches(0, memory)
    assert copier.reaches(0, other_memory_at(memory))


def test_the_pages_that_a_mediated_device_pins(
    holder: Holder, copier: Copier, gpu: Copier, iommufd: Iommufd, memfd: int
) -> None:
    src, dst = iommufd.ioas(), iommufd.ioas()
    pinned = Memory(2 * PAGE, memfd)
    iommufd.map(src, pinned.address, 2 * PAGE, IOVA)
    holder.attach(src)
    assert holder.command(PIN, IOVA) == 0
    new = other_memory_at(pinned)
    iommufd.copy(dst, src, IOVA, 2 * PAGE, ELSEWHERE)
    copier.attach(dst)
    gpu.attach(dst)
    assert holder.command(STORE, IOVA) == 0
    for device in (copier, gpu):
        new.write(bytes(8), PAGE)
        assert device.copy(ELSEWHERE, ELSEWHERE + PAGE, 8) == DONE
        assert new.read(PAGE, 8) == b"heldheld"  # the other page is the new one
    assert holder.let_go == 0
    iommufd.unmap(src)
    assert holder.let_go == 1
    assert gpu.copy(ELSEWHERE, ELSEWHERE + PAGE, 8) == DONE and new.read(PAGE, 8) == b"heldheld"


def test_what_can_be_pinned_by_a_mediated_device(holder: Holder, iommufd: Iommufd) -> None:
    ioas, memory = iommufd.ioas(), Memory(PAGE)
    iommufd.map(ioas, memory.address, PAGE, IOVA)
    iommufd.map(ioas, memory.address, PAGE, ELSEWHERE, MAP_READABLE)
    holder.attach(ioas)
    assert holder.command(PIN, IOVA, 2) == errno.ENOENT
    assert holder.command(PIN, IOVA - PAGE) == errno.ENOENT
    assert holder.command(PIN, ELSEWHERE) == holder.command(PIN, ELSEWHERE, 2) == errno.EPERM
    assert holder.command(PIN, IOVA + 1) == errno.EINVAL
    assert holder.command(PIN, IOVA, 513) == errno.E2BIG
    assert holder.command(PIN, IOVA) == holder.command(PIN, IOVA) == 0
    iommufd.map(ioas, memory.address, PAGE, IOVA + PAGE)  # beside pins
    assert iommufd.unmap(ioas, IOVA, PAGE) == PAGE and holder.let_go == 2
    assert holder.command(PIN, IOVA) == errno.ENOENT


# ---- files ----


def test_a_file_is_reached_after_it_was_closed(either: Copier, iommufd: Iommufd, memfd: int) -> None:
    ioas, other = iommufd.ioas(), iommufd.ioas()
    fd = os.dup(memfd)
    assert iommufd.map_file(ioas, fd, PAGE, 2 * PAGE, IOVA) == IOVA
    os.close(fd)
    os.pwrite(memfd, b"file", PAGE)
    either.attach(ioas)
    assert either.copy(IOVA, IOVA + PAGE, 4) == DONE and os.pread(memfd, 4, 2 * PAGE) == b"file"
    iommufd.copy(other, ioas, IOVA + PAGE, PAGE, 0)
    either.attach(other)
    iommufd.destroy(ioas)
    assert either.copy(0, 8, 4) == DONE and os.pread(memfd, 4, 2 * PAGE + 8) == b"file"


def test_a_file_is_reached_after_its_process_has_ended(either: Copier, iommufd: Iommufd, memfd: int) -> None:
    ioas = iommufd.ioas()

    def map_it() -> None:
        iommufd.map_file(ioas, memfd, 0, 2 * PAGE, IOVA)

    in_another_process(map_it)
    os.pwrite(memfd, b"file", 0)
    either.attach(ioas)
    assert either.copy(IOVA, IOVA + PAGE, 4) == DONE and os.pread(memfd, 4, PAGE) == b"file"
    iommufd.change_process()
    assert either.copy(IOVA, IOVA + PAGE, 4) == DONE


def test_a_file_that_becomes_shorter_faults(either: Copier, iommufd: Iommufd, memfd: int) -> None:
    ioas = iommufd.ioas()
    iommufd.map_file(ioas, memfd, 0, 4 * PAGE, IOVA)
    either.attach(ioas)
    os.ftruncate(memfd, PAGE)
    assert either.copy(IOVA, IOVA + 2 * PAGE, 4) == FAULT
    assert either.copy(IOVA + 2 * PAGE, IOVA, 4) == FAULT
    assert either.copy(IOVA, IOVA + 8, 4) == DONE
    os.ftruncate(memfd, 4 * PAGE)
    assert either.copy(IOVA, IOVA + 2 * PAGE, 4) == DONE


def test_a_file_is_looked_at_when_it_is_pinned(
    gpu: Copier, copier: Copier, iommufd: Iommufd, memfd: int, machine: MountedLab
) -> None:
    foreign = [os.open(path, os.O_RDWR) for path in ("/dev/zero", machine.path / "dev/iommu")]
    tries = [(fd, 0) for fd in foreign] + [(memfd, 4 * PAGE), (memfd, 3 * PAGE + 1), (memfd, 2**62)]
    for fd, start in tries:
        ioas = iommufd.ioas()
        if start % PAGE:
            iommufd.map_file(ioas, fd, start, PAGE, IOVA + 1)
            fails(errno.EADDRINUSE, gpu.attach, ioas)
            continue
        iommufd.map_file(ioas, fd, start, PAGE, IOVA)
        fails(errno.EINVAL, gpu.attach, ioas)
        copier.attach(ioas)
        assert copier.copy(IOVA, IOVA + 8, 4) == FAULT
        iommufd.unmap(ioas)
        gpu.attach(ioas)
        fails(errno.EINVAL, iommufd.map_file, ioas, fd, start, PAGE, IOVA)
        iommufd.map_file(ioas, memfd, 0, PAGE, IOVA)
        gpu.detach()
    for fd in foreign:
        os.close(fd)


def test_a_sealed_file(either: Copier, iommufd: Iommufd, memfd: int) -> None:
    ioas = iommufd.ioas()
    os.pwrite(memfd, b"sealed", 0)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    iommufd.map_file(ioas, memfd, PAGE, PAGE, ELSEWHERE)
    either.attach(ioas)
    iommufd.unmap(ioas)
    either.detach()
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    fails(errno.EPERM, iommufd.map_file, ioas, memfd, 0, PAGE, IOVA)
    iommufd.map_file(ioas, memfd, 0, PAGE, IOVA, MAP_READABLE)
    target = Memory(PAGE)
    iommufd.map(ioas, target.address, PAGE, ELSEWHERE)
    either.attach(ioas)
    assert either.copy(IOVA, ELSEWHERE, 6) == DONE and target.read(0, 6) == b"sealed"
    assert either.copy(ELSEWHERE, IOVA, 6) == FAULT


@pytest.mark.parametrize("how", ["va", "file"])
def test_huge_pages(either: Copier, iommufd: Iommufd, how: str) -> None:
    size = 2 << 20
    fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        memory = Memory(size, fd)
    except OSError as error:
        pytest.skip(f"the machine has no huge page to give: {error.strerror}")
    ioas = iommufd.ioas()
    if how == "va":
        iommufd.map(ioas, memory.address, size, IOVA)
    else:
        iommufd.map_file(ioas, fd, 0, size, IOVA)
    either.attach(ioas)
    assert either.reaches(IOVA, memory)
    os.close(fd)


# ---- a device without an IOMMU ----


@needs.capability("CAP_SYS_RAWIO")
def test_a_device_without_an_iommu_reaches_its_physical_addresses(
    machine: MountedLab, iommufd: Iommufd
) -> None:
    ioas, memory = iommufd.ioas(), Memory(4 * PAGE)
    iommufd.map(ioas, memory.address, 4 * PAGE, IOVA)
    with (
        without_iommu(machine),
        bound(machine, UNPROTECTED),
        Copier(cdev_of(machine, UNPROTECTED)) as device,
    ):
        device.ready(iommufd)
        device.attach(ioas)
        memory.write(b"found", 5)
        source, left = iommufd.get_pa(ioas, IOVA + 5)
        target, _ = iommufd.get_pa(ioas, IOVA + 2 * PAGE)
        assert left == 4 * PAGE - 5
        assert iommufd.get_pa(ioas, IOVA + 5, 100) == (source, 100)
        assert iommufd.get_pa(ioas, IOVA + 4 * PAGE - 1, ALL)[1] == 1
        fails(errno.ENOENT, iommufd.get_pa, ioas, IOVA + 4 * PAGE)
        assert device.copy(source, target, 5) == DONE and memory.read(2 * PAGE, 5) == b"found"
        other = iommufd.ioas()
        iommufd.map(other, memory.address, PAGE, IOVA)
        fails(errno.EOPNOTSUPP, iommufd.get_pa, other, IOVA)
        device.detach()
        fails(errno.EOPNOTSUPP, iommufd.get_pa, ioas, IOVA)
