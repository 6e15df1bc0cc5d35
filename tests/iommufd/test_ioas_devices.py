# SPDX-License-Identifier: Apache-2.0
"""Address spaces that devices are attached to: how that changes MAP, UNMAP, ALLOW_IOVAS, IOVA_RANGES and
OPTION, and what the devices then reach."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests import needs
from tests.iommufd.client import (
    ALL,
    HUGE_PAGES,
    MAP_FIXED_IOVA,
    MAP_READABLE,
    MAP_WRITEABLE,
    READ_WRITE,
    IoasMap,
    Iommufd,
)
from tests.iommufd.devices import LAB, MSI_WINDOW, Copier, Holder
from tests.labs import MountedLab, described
from tests.vfio.client import PAGE, Memory, fails, unmapped_address
from tests.vfio.copiers import DONE, FAULT, PIN
from tests.waiting import wait_for

IOVA = 0x10_0000
APERTURE = 2**48
FIXED = READ_WRITE | MAP_FIXED_IOVA


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("ioas"), LAB) as mounted:
        yield mounted


@pytest.fixture
def attached(gpu: Copier, iommufd: Iommufd) -> int:
    """An IOAS that a physical function is attached to."""
    ioas = iommufd.ioas()
    gpu.attach(ioas)
    return ioas


# ---- MAP with a physical function ----


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"iova": IOVA + 1}, errno.EINVAL),
        ({"length": PAGE + 1}, errno.EINVAL),
        ({"length": 1, "iova": 2 * IOVA}, errno.EINVAL),
        ({"iova": 2 * IOVA, "misplaced": 1}, errno.EINVAL),
        ({"iova": APERTURE}, errno.EINVAL),
        ({"iova": APERTURE - PAGE, "length": 2 * PAGE}, errno.EINVAL),
        ({"iova": MSI_WINDOW[0]}, errno.EINVAL),
        ({"iova": MSI_WINDOW[1] + 1 - PAGE}, errno.EINVAL),
        ({"iova": MSI_WINDOW[0] - PAGE, "length": 2 * PAGE}, errno.EINVAL),
        ({"iova": IOVA, "length": APERTURE - IOVA + PAGE}, errno.EINVAL),  # reserved comes before mapped
        ({"iova": 2**64 - PAGE, "length": 2 * PAGE}, errno.EOVERFLOW),
        ({"misplaced": 1}, errno.EEXIST),  # mapped comes before the address
        ({}, errno.EEXIST),
        ({"flags": READ_WRITE, "misplaced": 0x800}, errno.EINVAL),
        ({"flags": READ_WRITE, "length": 0x800}, errno.EINVAL),
        ({"flags": READ_WRITE, "length": APERTURE}, errno.ENOSPC),
    ],
    ids=repr,
)
def test_a_wrong_map(
    iommufd: Iommufd, gpu: Copier, attached: int, memory: Memory, changes: dict[str, int], number: int
) -> None:
    iommufd.map(attached, memory.address, 2 * PAGE, IOVA)
    good = {"flags": FIXED, "ioas_id": attached, "length": PAGE, "iova": IOVA}
    changes = {"user_va": memory.address + changes.pop("misplaced", 0), **changes}
    fails(number, iommufd.call, IoasMap(**{**good, **changes}))
    assert gpu.reaches(IOVA, memory)
    assert iommufd.unmap(attached) == 2 * PAGE


def test_memory_that_cannot_be_pinned(iommufd: Iommufd, gpu: Copier, attached: int, memory: Memory) -> None:
    with closing(Memory(2 * PAGE, prot=0)) as nobody, closing(Memory(PAGE, prot=1)) as readable:
        whole = Memory(2 * PAGE)
        end = Memory(PAGE, prot=0, address=whole.address + PAGE)
        for address in (0, 0x7000_0000_0000_0000, unmapped_address(), nobody.address, whole.address):
            fails(errno.EFAULT, iommufd.map, attached, address, 2 * PAGE, IOVA)
        for flags in (READ_WRITE, MAP_WRITEABLE):
            fails(errno.EFAULT, iommufd.map, attached, readable.address, PAGE, IOVA, flags)
        assert iommufd.unmap(attached) == 0
        iommufd.map(attached, readable.address, PAGE, IOVA, MAP_READABLE)
        end.close()
        whole.close()
    iommufd.map(attached, memory.address, 2 * PAGE, 2 * IOVA)
    assert gpu.reaches(2 * IOVA, memory)


def test_chosen_iovas_are_within_reach(iommufd: Iommufd, gpu: Copier, attached: int, memory: Memory) -> None:
    first, last = MSI_WINDOW
    iommufd.allow(attached, (first - PAGE, first - 1), (last + 1, last + 2 * PAGE))
    found = [iommufd.map(attached, memory.address, PAGE) for _ in range(3)]
    assert found == [first - PAGE, last + 1, last + 1 + PAGE]
    memory.write(b"reach me")
    assert gpu.copy(found[0], found[2] + 16, 8) == DONE
    assert memory.read(16, 8) == b"reach me"
    fails(errno.ENOSPC, iommufd.map, attached, memory.address, PAGE)
    fails(errno.EADDRINUSE, iommufd.allow, attached, (0, PAGE), (first, first + 1))
    fails(errno.EADDRINUSE, iommufd.allow, attached, (0, ALL))
    fails(errno.ENOSPC, iommufd.map, attached, memory.address, PAGE)
    iommufd.allow(attached)
    assert iommufd.map(attached, memory.address, PAGE) == PAGE


def test_pinned_memory_stays_whatever_its_client_does(
    iommufd: Iommufd, gpu: Copier, attached: int, memory: Memory
) -> None:
    fd = os.memfd_create("pinned")
    os.truncate(fd, 2 * PAGE)
    pages = Memory(2 * PAGE, fd)
    iommufd.map(attached, pages.address, 2 * PAGE, IOVA)
    pages.close()
    os.pwrite(fd, b"still here", 0)
    assert gpu.copy(IOVA, IOVA + PAGE, 16) == DONE
    assert os.pread(fd, 10, PAGE) == b"still here"
    os.close(fd)
    assert iommufd.unmap(attached, IOVA, 2 * PAGE) == 2 * PAGE
    assert gpu.copy(IOVA, IOVA + PAGE, 16) == FAULT


def test_mappings_stay_without_a_device(iommufd: Iommufd, gpu: Copier, memory: Memory) -> None:
    ioas = iommufd.ioas()
    iommufd.map(ioas, memory.address, 2 * PAGE, IOVA)
    for _ in range(2):
        gpu.attach(ioas)
        assert gpu.reaches(IOVA, memory)
        gpu.detach()
        assert iommufd.ranges(ioas) == ([(0, ALL)], 1)
        iommufd.map(ioas, memory.address, 1, 2 * IOVA + 1)
        iommufd.unmap(ioas, 2 * IOVA + 1, 1)
    assert iommufd.unmap(ioas) == 2 * PAGE


@pytest.mark.parametrize("misplaced", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0x800, 0x800, 0x800)])
def test_a_function_needs_whole_pages(
    iommufd: Iommufd, gpu: Copier, memory: Memory, misplaced: tuple[int, int, int]
) -> None:
    ioas = iommufd.ioas()
    iova, va, length = misplaced
    iommufd.map(ioas, memory.address + va, PAGE + length, IOVA + iova)
    fails(errno.EADDRINUSE, gpu.attach, ioas)
    assert iommufd.ranges(ioas) == ([(0, ALL)], 1)
    iommufd.unmap(ioas)
    gpu.attach(ioas)


# ---- UNMAP ----


def test_unmapped_in_part(iommufd: Iommufd, either: Copier, memory: Memory) -> None:
    """The mappings below the one that would be split are gone, that one stays."""
    ioas = iommufd.ioas()
    either.attach(ioas)
    for number in range(3):
        iommufd.map(ioas, memory.address + 2 * number * PAGE, 2 * PAGE, IOVA + 2 * number * PAGE)
    fails(errno.ENOENT, iommufd.unmap, ioas, IOVA, 5 * PAGE)
    assert either.copy(IOVA, IOVA + 2 * PAGE, 8) == FAULT
    assert either.copy(IOVA + 4 * PAGE, IOVA + 5 * PAGE, 8) == DONE
    fails(errno.ENOENT, iommufd.unmap, ioas, IOVA + 4 * PAGE, PAGE)
    assert iommufd.unmap(ioas, 0, 2 * IOVA) == 2 * PAGE


def test_an_unmap_waits_for_dma(iommufd: Iommufd, either: Copier) -> None:
    """No byte is written by a device after the unmap has returned."""
    ioas, size = iommufd.ioas(), 3 << 20  # twice that is pinned, which is less than a user may lock
    either.attach(ioas)
    with closing(Memory(2 * size)) as pages:
        for _ in range(10):
            iommufd.map(ioas, pages.address, 2 * size, IOVA)
            pages.write(b"\xff" * size)
            pages.write(bytes(size), size)
            either.begin(IOVA, IOVA + size, size)
            iommufd.unmap(ioas, IOVA, 2 * size)
            after = pages.read(size, size)
            time.sleep(0.01)
            assert pages.read(size, size) == after
            wait_for(lambda: either.status)
            either.acknowledge()


def test_a_device_is_told_of_an_unmap(machine: MountedLab, iommufd: Iommufd, memory: Memory) -> None:
    ioas = iommufd.ioas()
    with machine.create("holder-1", "holders") as vgpu, Holder(vgpu.cdev) as holder:
        holder.ready(iommufd)
        holder.attach(ioas)
        for number in range(3):
            iommufd.map(ioas, memory.address + number * PAGE, PAGE, IOVA + number * PAGE)
        assert not holder.command(PIN, IOVA + PAGE)
        iommufd.unmap(ioas, IOVA, PAGE)
        assert holder.let_go == 0
        fails(errno.ENOENT, iommufd.unmap, ioas, IOVA + PAGE, 2 * PAGE - 1)
        assert holder.let_go == 1
        assert holder.command(PIN, IOVA + PAGE) and not holder.command(PIN, IOVA + 2 * PAGE)
        assert iommufd.unmap(ioas) == PAGE
        assert holder.let_go == 2


@needs.capability("CAP_IPC_LOCK")
def test_very_many_mappings(iommufd: Iommufd, gpu: Copier, memory: Memory) -> None:
    """Those of an attach, of an unmap, and of a close with the device attached."""
    ioas, count = iommufd.ioas(), 5000
    for number in range(count):
        iommufd.map(ioas, memory.address, PAGE, number * 2 * PAGE)
    gpu.attach(ioas)
    assert gpu.copy(0, 2 * PAGE * (count - 1), 64) == DONE
    assert gpu.copy(0, 2 * PAGE * count, 64) == FAULT
    iommufd.map(ioas, memory.address, PAGE, 2 * PAGE * count)
    assert iommufd.unmap(ioas) == (count + 1) * PAGE
    for number in range(count):
        iommufd.map(ioas, memory.address, PAGE, number * PAGE)
    iommufd.close()
    assert gpu.copy(0, PAGE, 64) == DONE


# ---- OPTION_HUGE_PAGES ----


def test_huge_pages_with_a_function(iommufd: Iommufd, gpu: Copier, attached: int, memory: Memory) -> None:
    iommufd.map(attached, memory.address, 2 * PAGE, IOVA)
    fails(errno.EINVAL, iommufd.set_option, HUGE_PAGES, 0, attached)
    assert iommufd.get_option(HUGE_PAGES, attached) == 1
    iommufd.unmap(attached)
    iommufd.set_option(HUGE_PAGES, 0, attached)
    iommufd.map(attached, memory.address, 2 * PAGE, IOVA)
    iommufd.set_option(HUGE_PAGES, 0, attached)
    assert gpu.reaches(IOVA, memory)
    gpu.detach()
    assert iommufd.ranges(attached)[1] == PAGE
    iommufd.set_option(HUGE_PAGES, 1, attached)
    assert iommufd.ranges(attached)[1] == 1
    gpu.attach(attached)
    assert iommufd.ranges(attached)[1] == PAGE


def test_huge_pages_with_a_mediated_device(iommufd: Iommufd, copier: Copier, memory: Memory) -> None:
    ioas = iommufd.ioas()
    copier.attach(ioas)
    iommufd.map(ioas, memory.address, 2 * PAGE, IOVA)
    iommufd.set_option(HUGE_PAGES, 0, ioas)
    copier.detach()
    assert iommufd.ranges(ioas) == ([(0, ALL)], PAGE)


# ---- at once ----


def test_threads_map_and_unmap_while_a_device_attaches(iommufd: Iommufd, gpu: Copier) -> None:
    """Each thread sees its own mappings and no others, whatever is pinned when."""
    ioas, stop, wrong = iommufd.ioas(), threading.Event(), []

    def work(number: int, pages: Memory) -> None:
        iova = IOVA * (number + 1)
        try:
            while not stop.is_set():
                iommufd.map(ioas, pages.address, 2 * PAGE, iova)
                fails(errno.EEXIST, iommufd.map, ioas, pages.address, PAGE, iova + PAGE)
                assert iommufd.unmap(ioas, iova, 2 * PAGE) == 2 * PAGE
                chosen = iommufd.map(ioas, pages.address, PAGE)
                assert iommufd.unmap(ioas, chosen, PAGE) == PAGE
        except BaseException as error:
            wrong.append(error)

    with closing(Memory(2 * PAGE)) as pages:
        threads = [threading.Thread(target=work, args=(number, pages)) for number in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            gpu.attach(ioas)
            time.sleep(0.01)
            gpu.detach()
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert iommufd.unmap(ioas) == 0
    iommufd.destroy(ioas)
