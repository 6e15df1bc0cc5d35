# SPDX-License-Identifier: Apache-2.0
"""dev/iommu as a container: each of VFIO's ioctls on it, the good call and each way to get it wrong."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator

import pytest

from tests.iommufd.client import ALL, HUGE_PAGES, Iommufd, IommufdContainer
from tests.labs import MountedLab
from tests.vfio import client
from tests.vfio.client import PAGE, DmaMap, DmaUnmap, IommuInfo, Memory, buffer, chain, fails

BASE = 0x100000
DMA_AVAIL, IOVA_RANGE = 3, 1
HEAD = ctypes.sizeof(IommuInfo)


@pytest.fixture
def container(machine: MountedLab) -> Iterator[IommufdContainer]:
    """A container with an IOAS that no device uses."""
    with IommufdContainer(machine.path) as made:
        context = Iommufd(made.fd)
        context.set_vfio_ioas(context.ioas())
        yield made


def context_of(container: IommufdContainer) -> Iommufd:
    return Iommufd(container.fd)


def dma_map(memory: Memory, **changes: int) -> DmaMap:
    good = {"flags": client.READ | client.WRITE, "vaddr": memory.address, "iova": BASE, "size": PAGE}
    return DmaMap(**{**good, **changes})


# ---- what needs an IOAS, and what does not ----


def test_without_an_ioas(machine: MountedLab, memory: Memory) -> None:
    with IommufdContainer(machine.path) as fresh:
        assert fresh.by_value(client.API_VERSION) == 0
        supported = {client.TYPE1, client.TYPE1V2, client.NOIOMMU, client.UNMAP_ALL}
        unknown = [number for number in range(32) if number != client.DMA_CC]
        assert {number for number in unknown if fresh.check_extension(number)} == supported
        fails(errno.ENODEV, fresh.check_extension, client.DMA_CC)
        for kind in (client.TYPE1, client.TYPE1V2):
            fails(errno.ENODEV, fresh.set_iommu, kind)
        fails(errno.ENODEV, fresh.info)
        fails(errno.ENODEV, fresh.ioctl, client.IOMMU_MAP_DMA, dma_map(memory))
        fails(errno.ENODEV, fresh.unmap, BASE, PAGE)
        fails(errno.ENODEV, fresh.unmap, BASE, PAGE, client.UNMAP_EVERYTHING)  # before the range is looked at


def test_with_an_ioas(container: IommufdContainer) -> None:
    assert container.check_extension(client.DMA_CC) == 1
    for extension in (client.NESTING, client.UPDATE_VADDR, 0, 2, 99, 2**32 + 1):
        assert container.ioctl(client.CHECK_EXTENSION, extension) == 0


def test_bad_arguments_come_before_the_missing_ioas(machine: MountedLab, memory: Memory) -> None:
    with IommufdContainer(machine.path) as fresh:
        fails(errno.EINVAL, fresh.set_iommu, client.NOIOMMU)
        fails(errno.EINVAL, fresh.set_iommu, 99)
        fails(errno.EINVAL, fresh.ioctl, client.IOMMU_MAP_DMA, dma_map(memory, flags=4))
        fails(errno.EINVAL, fresh.unmap, BASE, PAGE, 1)


STRUCTS: list[tuple[int, Callable[[Memory], client.Struct], int]] = [
    (client.IOMMU_GET_INFO, lambda memory: IommuInfo(), 16),
    (client.IOMMU_MAP_DMA, dma_map, 32),
    (client.IOMMU_UNMAP_DMA, lambda memory: DmaUnmap(iova=BASE, size=PAGE), 24),
]


@pytest.mark.parametrize(("cmd", "make", "least"), STRUCTS, ids=["GET_INFO", "MAP_DMA", "UNMAP_DMA"])
def test_argsz_and_pointers(
    container: IommufdContainer,
    memory: Memory,
    cmd: int,
    make: Callable[[Memory], client.Struct],
    least: int,
) -> None:
    for bad in (0, 1, client.unmapped_address()):
        fails(errno.EFAULT, container.ioctl, cmd, bad)
    for argsz in (0, 4, least - 1):
        small = make(memory)
        small.argsz = argsz
        fails(errno.EINVAL, container.ioctl, cmd, small)
    tail = Memory(2 * PAGE)
    hole = Memory(PAGE, prot=0, address=tail.address + PAGE)
    cut = bytes(make(memory))[: least - 4]
    tail.write(cut, PAGE - len(cut))
    fails(errno.EFAULT, container.ioctl, cmd, tail.address + PAGE - len(cut))
    hole.close()
    tail.close()


@pytest.mark.parametrize("cmd", [client.IOMMU_DIRTY_PAGES, 0x3B73, 0x3B74, 0x3B76, 0x3BFF, 0x3B63])
def test_others_are_unknown(machine: MountedLab, container: IommufdContainer, cmd: int) -> None:
    with IommufdContainer(machine.path) as fresh:
        for each in (fresh, container):
            fails(errno.ENOTTY, each.ioctl, cmd, client.DirtyBitmap(flags=client.DIRTY_START))


# ---- SET_IOMMU ----


def test_set_iommu_is_no_state_but_pages(container: IommufdContainer, memory: Memory) -> None:
    context = context_of(container)
    ioas = context.vfio_ioas()
    container.map(BASE, memory.address, PAGE)  # it is not needed first
    for _ in range(2):
        container.set_iommu(client.TYPE1V2)
        assert context.get_option(HUGE_PAGES, ioas) == 1
    for _ in range(2):
        container.set_iommu(client.TYPE1)
        assert context.get_option(HUGE_PAGES, ioas) == 0
    container.set_iommu(client.TYPE1V2)
    assert context.get_option(HUGE_PAGES, ioas) == 0  # they stay off
    for kind in (0, 2, client.DMA_CC, client.NESTING, client.NOIOMMU, client.UNMAP_ALL, 99, 2**32 + 1):
        fails(errno.EINVAL, container.ioctl, client.SET_IOMMU, kind)


def test_type1_refuses_what_is_not_of_pages(container: IommufdContainer, memory: Memory) -> None:
    container.map(BASE, memory.address, 17)
    fails(errno.EADDRINUSE, container.set_iommu, client.TYPE1)
    container.set_iommu(client.TYPE1V2)
    assert container.unmap(BASE, 17) == 17
    container.set_iommu(client.TYPE1)
    fails(errno.EINVAL, container.map, BASE, memory.address, 17)


# ---- IOMMU_GET_INFO ----


def info(container: IommufdContainer, argsz: int, room: int = 256) -> tuple[IommuInfo, bytes]:
    """GET_INFO with this argsz; what the kernel leaves in a buffer of `room` bytes, which are 0xff before."""
    whole = buffer(IommuInfo(argsz=argsz, flags=0xFFFFFFFF, cap_offset=0xFFFFFFFF), b"\xff" * (room - HEAD))
    container.ioctl(client.IOMMU_GET_INFO, whole)
    return IommuInfo.from_buffer_copy(whole.raw), whole.raw[:room]


def test_info_of_no_device(container: IommufdContainer) -> None:
    found, raw = info(container, 72)
    assert (found.argsz, found.flags, found.iova_pgsizes, found.cap_offset) == (72, 3, 2**64 - PAGE, HEAD)
    assert chain(raw[:72], HEAD) == [
        (DMA_AVAIL, 1, b"\xff" * 4 + raw[36:40]),
        (IOVA_RANGE, 1, (1).to_bytes(8, "little") + bytes(8) + b"\xff" * 8),
    ]
    assert raw[72:] == b"\xff" * (256 - 72)


@pytest.mark.parametrize(("argsz", "capabilities"), [(16, 0), (24, 0), (35, 0), (36, 1), (40, 1), (71, 1)])
def test_info_without_room_says_how_much_it_takes(
    container: IommufdContainer, argsz: int, capabilities: int
) -> None:
    """What fits is written all the same."""
    found, raw = info(container, argsz)
    assert found.argsz == 72 and found.flags == 3 and found.iova_pgsizes == 2**64 - PAGE
    assert found.cap_offset == (0 if argsz >= 24 else 0xFFFFFFFF)
    following = (40 if argsz >= 40 else 0).to_bytes(4, "little")
    first = b"\x03\0\1\0" + following + b"\xff" * 4 if capabilities else b"\xff" * 12
    assert raw[24:36] == first and raw[36:] == b"\xff" * (256 - 36)


def test_info_whose_capabilities_cannot_be_written(container: IommufdContainer) -> None:
    pages = Memory(2 * PAGE)
    hole = Memory(PAGE, prot=0, address=pages.address + PAGE)
    for room in (HEAD, 50):
        at = PAGE - room
        pages.write(bytes(IommuInfo(argsz=72)), at)
        fails(errno.EFAULT, container.ioctl, client.IOMMU_GET_INFO, pages.address + at)
    hole.close()
    pages.close()


# ---- MAP_DMA ----


def test_map_and_unmap(container: IommufdContainer, memory: Memory) -> None:
    container.map(BASE, memory.address, 2 * PAGE)
    fails(errno.EEXIST, container.map, BASE + PAGE, memory.address, PAGE)
    assert container.unmap(BASE, 2 * PAGE) == 2 * PAGE
    assert container.unmap(BASE, 2 * PAGE) == 0


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"flags": 4}, errno.EINVAL),
        ({"flags": 7}, errno.EINVAL),
        ({"flags": 1 << 31}, errno.EINVAL),
        ({"size": 0}, errno.EINVAL),
        ({"size": 2**64 - PAGE + 1, "vaddr": 0, "iova": 0}, errno.EINVAL),
        ({"vaddr": 2**64 - PAGE}, errno.EOVERFLOW),
        ({"vaddr": 2**64 - 1, "size": 2}, errno.EOVERFLOW),
        ({"iova": 2**64 - PAGE, "size": 2 * PAGE}, errno.EOVERFLOW),
    ],
)
def test_map_refuses(
    container: IommufdContainer, memory: Memory, changes: dict[str, int], number: int
) -> None:
    fails(number, container.ioctl, client.IOMMU_MAP_DMA, dma_map(memory, **changes))


def test_map_takes_the_top_of_the_addresses_and_any_byte(container: IommufdContainer, memory: Memory) -> None:
    container.map(2**64 - PAGE, memory.address, PAGE)
    container.map(1, memory.address + 3, 5)
    assert container.unmap(0, 0, client.UNMAP_EVERYTHING) == PAGE + 5


def test_map_without_a_right_takes_its_range(container: IommufdContainer, memory: Memory) -> None:
    container.map(BASE, memory.address, PAGE, 0)
    fails(errno.EEXIST, container.map, BASE, memory.address, PAGE)
    assert container.unmap(BASE, PAGE) == PAGE


def test_map_touches_no_memory_without_a_device(container: IommufdContainer) -> None:
    container.map(BASE, client.unmapped_address(), PAGE)
    assert container.unmap(BASE, PAGE) == PAGE


# ---- UNMAP_DMA ----


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"flags": client.UNMAP_DIRTY}, errno.EINVAL),
        ({"flags": 4}, errno.EINVAL),
        ({"flags": client.UNMAP_EVERYTHING}, errno.EINVAL),
        ({"flags": client.UNMAP_EVERYTHING, "iova": 0}, errno.EINVAL),
        ({"flags": client.UNMAP_EVERYTHING, "size": 0}, errno.EINVAL),
        ({"size": 0}, errno.EINVAL),
        ({"iova": 2**64 - PAGE, "size": 2 * PAGE}, errno.EOVERFLOW),
        ({"iova": 2**64 - 1}, errno.EOVERFLOW),
        ({"size": 2**64 - 1}, errno.EOVERFLOW),
    ],
)
def test_unmap_refuses(
    container: IommufdContainer, memory: Memory, changes: dict[str, int], number: int
) -> None:
    container.map(BASE, memory.address, PAGE)
    asked = DmaUnmap(**{"iova": BASE, "size": PAGE, **changes})
    fails(number, container.ioctl, client.IOMMU_UNMAP_DMA, asked)
    assert container.unmap(BASE, PAGE) == PAGE


def test_unmap_of_nothing(container: IommufdContainer) -> None:
    assert container.unmap(BASE, PAGE) == 0
    assert container.unmap(0, 0, client.UNMAP_EVERYTHING) == 0
    assert container.unmap(0, ALL - PAGE) == 0


def test_unmap_takes_whole_mappings_and_holes(container: IommufdContainer, memory: Memory) -> None:
    for page in (0, 2, 3):
        container.map(BASE + page * PAGE, memory.address, PAGE)
    assert container.unmap(BASE - PAGE, 8 * PAGE) == 3 * PAGE


def test_v2_does_not_split(container: IommufdContainer, memory: Memory) -> None:
    container.set_iommu(client.TYPE1V2)
    container.map(BASE, memory.address, PAGE)
    container.map(BASE + PAGE, memory.address, 4 * PAGE)
    fails(errno.ENOENT, container.unmap, BASE + 2 * PAGE, PAGE)
    fails(errno.ENOENT, container.unmap, BASE + 2 * PAGE, 3 * PAGE)
    asked = DmaUnmap(iova=BASE, size=2 * PAGE)
    fails(errno.ENOENT, container.ioctl, client.IOMMU_UNMAP_DMA, asked)
    assert asked.size == PAGE  # what lies below is unmapped, and it says so
    assert container.unmap(BASE, 5 * PAGE) == 4 * PAGE


def test_v1_splits(container: IommufdContainer, memory: Memory) -> None:
    container.set_iommu(client.TYPE1)
    container.map(BASE, memory.address, 8 * PAGE)
    assert container.unmap(BASE + 2 * PAGE, PAGE) == PAGE
    assert container.unmap(BASE + PAGE, 3 * PAGE) == 2 * PAGE  # both edges, with a hole between
    fails(errno.EINVAL, container.unmap, BASE + 5 * PAGE + 1, PAGE)
    fails(errno.EINVAL, container.unmap, BASE + 5 * PAGE, 1)
    container.map(BASE + PAGE, memory.address, 3 * PAGE)
    fails(errno.EEXIST, container.map, BASE, memory.address, PAGE)
    assert container.unmap(0, 0, client.UNMAP_EVERYTHING) == 8 * PAGE


# ---- a context without IOMMU ----
