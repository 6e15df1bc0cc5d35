# SPDX-License-Identifier: Apache-2.0
"""Address spaces by the ioctls of dev/iommu: MAP, UNMAP, IOVA_RANGES, ALLOW_IOVAS and OPTION, each good call
and each way to get it wrong.  No device uses them here."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

import pytest

from tests.iommufd.client import (
    ALL,
    HUGE_PAGES,
    MAP_FIXED_IOVA,
    MAP_READABLE,
    MAP_WRITEABLE,
    OP_GET,
    OP_SET,
    READ_WRITE,
    AllowIovas,
    IoasMap,
    IoasUnmap,
    Iommufd,
    IovaRange,
    IovaRanges,
    Option,
)
from tests.vfio.client import PAGE, Memory, fails, ioctl, unmapped_address

BASE = 0x100000
FIXED = READ_WRITE | MAP_FIXED_IOVA
KERNEL = 0xFFFF_8000_0000_0000
"""An address that is no client's."""


@pytest.fixture
def ioas(iommufd: Iommufd) -> int:
    return iommufd.ioas()


# ---- IOAS_MAP ----


WRONG_MAPS = [
    ({"flags": 8 | READ_WRITE}, errno.EOPNOTSUPP),
    ({"flags": 2**31 | READ_WRITE}, errno.EOPNOTSUPP),
    ({"reserved": 1}, errno.EOPNOTSUPP),
    ({"reserved": 1, "ioas_id": 99, "iova": ALL}, errno.EOPNOTSUPP),
    ({"iova": ALL}, errno.EOVERFLOW),
    ({"iova": ALL, "flags": READ_WRITE}, errno.EOVERFLOW),
    ({"length": ALL, "ioas_id": 99}, errno.EOVERFLOW),
    ({"length": ALL, "flags": 0}, errno.EOVERFLOW),
    ({"flags": 0}, errno.EINVAL),
    ({"flags": MAP_FIXED_IOVA, "ioas_id": 99}, errno.EINVAL),
    ({"ioas_id": 0}, errno.ENOENT),
    ({"ioas_id": 2}, errno.ENOENT),
    ({"ioas_id": 2**32 - 1, "user_va": ALL}, errno.ENOENT),
    ({"user_va": ALL}, errno.EOVERFLOW),
    ({"user_va": ALL, "length": 0}, errno.EINVAL),
    ({"user_va": 2**64 - PAGE}, errno.EOVERFLOW),
    ({"length": 0}, errno.EINVAL),
    ({"length": ALL - PAGE + 1, "user_va": 0}, errno.EINVAL),
    ({"iova": 2**64 - 2, "length": 3}, errno.EOVERFLOW),
    ({"length": (2**64 - 1) // 2, "user_va": 0, "flags": READ_WRITE}, errno.EOVERFLOW),
]


@pytest.mark.parametrize(("changes", "number"), WRONG_MAPS, ids=repr)
def test_a_wrong_map(
    iommufd: Iommufd, ioas: int, memory: Memory, changes: dict[str, int], number: int
) -> None:
    good = {"flags": FIXED, "ioas_id": ioas, "user_va": memory.address, "length": PAGE, "iova": BASE}
    fails(number, iommufd.call, IoasMap(**{**good, **changes}))
    assert iommufd.unmap(ioas) == 0


def test_a_map_gives_the_iova(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    asked = IoasMap(flags=FIXED, ioas_id=ioas, user_va=memory.address, length=PAGE, iova=BASE)
    before = bytes(asked)
    iommufd.call(asked)
    assert bytes(asked) == before
    asked.flags, asked.iova = READ_WRITE, 0x123
    iommufd.call(asked)
    assert asked.iova == PAGE
    wanted = IoasMap(flags=READ_WRITE, ioas_id=ioas, user_va=memory.address, length=PAGE, iova=PAGE)
    assert bytes(asked) == bytes(wanted)


@pytest.mark.parametrize("flags", [MAP_READABLE, MAP_WRITEABLE, READ_WRITE])
def test_rights(iommufd: Iommufd, ioas: int, memory: Memory, flags: int) -> None:
    assert iommufd.map(ioas, memory.address, PAGE, BASE, flags) == BASE


@pytest.mark.parametrize(
    ("iova", "length"), [(BASE, PAGE), (BASE - 1, 2), (BASE + PAGE - 1, 1), (0, 2 * BASE), (BASE, 1)]
)
def test_mappings_do_not_overlap(iommufd: Iommufd, ioas: int, memory: Memory, iova: int, length: int) -> None:
    iommufd.map(ioas, memory.address, PAGE, BASE)
    fails(errno.EEXIST, iommufd.map, ioas, memory.address, length, iova)
    assert iommufd.unmap(ioas) == PAGE


def test_single_bytes_and_memory_that_is_not_there(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    assert iommufd.map(ioas, memory.address + 3, 1, 0) == 0
    assert iommufd.map(ioas, unmapped_address() + 5, 7, 1) == 1
    assert iommufd.map(ioas, KERNEL, 0x12345, 8) == 8
    assert iommufd.map(ioas, 0, 1, 2**64 - 2) == 2**64 - 2
    assert iommufd.unmap(ioas) == 1 + 7 + 0x12345 + 1


def test_the_mapping_stays_when_the_iova_cannot_be_told(iommufd: Iommufd, ioas: int) -> None:
    fd = os.memfd_create("read-only")
    asked = IoasMap(flags=FIXED, ioas_id=ioas, user_va=0, length=PAGE, iova=BASE)
    os.write(fd, bytes(asked))
    pages = Memory(PAGE, fd, prot=mmap.PROT_READ)
    os.close(fd)
    fails(errno.EFAULT, ioctl, iommufd.fd, IoasMap.cmd(), pages.address)
    pages.close()
    assert iommufd.unmap(ioas) == PAGE


@pytest.mark.parametrize(
    ("va", "length", "iova"),
    [
        (0x7F0000001000, PAGE, PAGE),
        (0x7F0000200000, 0x200000, 0x200000),
        (0x7F0000000000, 0x3000, 0x4000),
        (0x7F0000001300, 0x100, 0x1300),
        (0x7F0000000000, 2**40, 0x200000),
    ],
)
def test_the_lowest_aligned_iova_is_chosen(
    iommufd: Iommufd, ioas: int, va: int, length: int, iova: int
) -> None:
    assert iommufd.map(ioas, va, length) == iova


def test_chosen_iovas_use_holes_again(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    first = [iommufd.map(ioas, memory.address, PAGE) for _ in range(5)]
    assert first == [PAGE * number for number in range(1, 6)]
    iommufd.unmap(ioas, first[1], PAGE)
    iommufd.unmap(ioas, first[3], PAGE)
    found = [iommufd.map(ioas, memory.address, PAGE) for _ in range(3)]
    assert found == [first[1], first[3], 6 * PAGE]


def test_no_hole_is_enospc(iommufd: Iommufd, ioas: int) -> None:
    iommufd.map(ioas, 0, 2**64 - 3 * PAGE, PAGE)
    fails(errno.ENOSPC, iommufd.map, ioas, 0, 2 * PAGE)
    iommufd.map(ioas, 0, PAGE, 0)


# ---- IOAS_UNMAP ----


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"ioas_id": 0}, errno.ENOENT),
        ({"ioas_id": 2, "length": 0}, errno.ENOENT),
        ({"iova": ALL, "length": 1}, errno.EOVERFLOW),
        ({"length": ALL}, errno.EOVERFLOW),
        ({"length": 0}, errno.EINVAL),
        ({"iova": 2**64 - PAGE, "length": PAGE + 1}, errno.EOVERFLOW),
        ({"iova": 0, "length": PAGE}, errno.ENOENT),
        ({"iova": BASE + 2 * PAGE}, errno.ENOENT),
        ({"iova": BASE + 1}, errno.ENOENT),
        ({"length": 2 * PAGE - 1}, errno.ENOENT),
        ({"iova": BASE + PAGE, "length": PAGE}, errno.ENOENT),
        ({"iova": 0, "length": ALL - 1, "ioas_id": 99}, errno.ENOENT),
    ],
    ids=repr,
)
def test_a_wrong_unmap(
    iommufd: Iommufd, ioas: int, memory: Memory, changes: dict[str, int], number: int
) -> None:
    iommufd.map(ioas, memory.address, 2 * PAGE, BASE)
    asked = IoasUnmap(**{"ioas_id": ioas, "iova": BASE, "length": 2 * PAGE, **changes})
    before = bytes(asked)
    fails(number, iommufd.call, asked)
    assert bytes(asked) == before
    assert iommufd.unmap(ioas) == 2 * PAGE


def test_an_unmap_gives_the_bytes_of_whole_mappings(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    for iova in (BASE, BASE + PAGE, 2 * BASE):
        iommufd.map(ioas, memory.address, 0x800, iova)
    assert iommufd.unmap(ioas, 0, BASE + 2 * PAGE) == 2 * 0x800
    assert iommufd.unmap(ioas, 2 * BASE, 0x800) == 0x800
    assert iommufd.unmap(ioas) == 0
    fails(errno.ENOENT, iommufd.unmap, ioas, 0, ALL - 1)


def test_an_unmap_ends_at_a_mapping_that_it_would_split(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    for iova in (BASE, 2 * BASE):
        iommufd.map(ioas, memory.address, PAGE, iova)
    fails(errno.ENOENT, iommufd.unmap, ioas, 0, 2 * BASE + 1)
    assert iommufd.unmap(ioas) == PAGE


def test_address_spaces_are_apart(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    other = iommufd.ioas()
    iommufd.map(ioas, memory.address, PAGE, BASE)
    iommufd.map(other, memory.address, 2 * PAGE, BASE)
    assert iommufd.unmap(ioas) == PAGE
    assert iommufd.unmap(other) == 2 * PAGE


def test_an_address_space_with_mappings_can_be_destroyed(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    iommufd.map(ioas, memory.address, PAGE, BASE)
    iommufd.destroy(ioas)
    fails(errno.ENOENT, iommufd.unmap, ioas)
    assert iommufd.ioas() == ioas
    assert iommufd.unmap(ioas) == 0


def test_very_many_mappings(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    """The lane leaves the removal of very many to another thread, and DESTROY as well."""
    count = 6000
    found = [iommufd.map(ioas, memory.address, PAGE) for _ in range(count)]
    assert found == [PAGE * number for number in range(1, count + 1)]
    assert iommufd.unmap(ioas) == count * PAGE
    for number in range(count):
        iommufd.map(ioas, memory.address, PAGE, number * PAGE)
    assert iommufd.map(ioas, memory.address, 2 * PAGE) == count * PAGE
    iommufd.destroy(ioas)


def test_the_most_mappings(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    """The limit is of all address spaces of an open together. Copies reach it in a few calls."""
    most, other = 2**18, iommufd.ioas()
    iommufd.map(ioas, memory.address, PAGE, 0)
    count = 1
    while count < most:
        iommufd.copy(ioas, ioas, 0, count * PAGE, count * PAGE)
        count *= 2
    for full in (ioas, other):
        fails(errno.ENOMEM, iommufd.map, full, memory.address, PAGE, most * PAGE)
        fails(errno.ENOMEM, iommufd.copy, full, ioas, 0, PAGE, most * PAGE)
    fails(errno.EEXIST, iommufd.map, ioas, memory.address, PAGE, 0)
    iommufd.unmap(ioas, 0, PAGE)
    iommufd.map(ioas, memory.address, PAGE, 0)
    iommufd.destroy(ioas)
    iommufd.map(other, memory.address, PAGE, 0)


# ---- IOAS_IOVA_RANGES ----


def test_the_ranges_of_no_device(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    iommufd.map(ioas, memory.address, PAGE, BASE)
    iommufd.allow(ioas, (BASE, 2 * BASE))
    assert iommufd.ranges(ioas) == ([(0, ALL)], 1)
    assert iommufd.ranges(ioas, 1) == ([(0, ALL)], 1)


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"reserved": 1}, errno.EOPNOTSUPP),
        ({"reserved": 1, "ioas_id": 99}, errno.EOPNOTSUPP),
        ({"ioas_id": 99}, errno.ENOENT),
        ({"ioas_id": 0}, errno.ENOENT),
        ({"allowed_iovas": 0}, errno.EFAULT),
        ({"allowed_iovas": KERNEL}, errno.EFAULT),
        ({"allowed_iovas": 2**64 - 8}, errno.EFAULT),
        ({"allowed_iovas": 0, "num_iovas": 2**32 - 1}, errno.EFAULT),
    ],
    ids=repr,
)
def test_wrong_iova_ranges(iommufd: Iommufd, ioas: int, changes: dict[str, int], number: int) -> None:
    array = (IovaRange * 4)()
    good = {"ioas_id": ioas, "num_iovas": 4, "allowed_iovas": ctypes.addressof(array)}
    asked = IovaRanges(**{**good, **changes})
    before = bytes(asked)
    fails(number, iommufd.call, asked)
    assert bytes(asked) == before and not any(bytes(array))


def test_too_little_room_says_how_much_it_takes(iommufd: Iommufd, ioas: int) -> None:
    asked = IovaRanges(ioas_id=ioas, num_iovas=0, allowed_iovas=KERNEL)
    fails(errno.EMSGSIZE, iommufd.call, asked)
    assert (asked.size, asked.num_iovas, asked.out_iova_alignment) == (32, 1, 1)


def test_more_room_than_ranges_stays_as_it_is(iommufd: Iommufd, ioas: int) -> None:
    array = (IovaRange * 3)(*[IovaRange(7, 8)] * 3)
    asked = IovaRanges(ioas_id=ioas, num_iovas=3, allowed_iovas=ctypes.addressof(array))
    iommufd.call(asked)
    assert asked.num_iovas == 1
    assert [(one.start, one.last) for one in array] == [(0, ALL), (7, 8), (7, 8)]


def test_only_the_ranges_are_written(iommufd: Iommufd, ioas: int, pages: Memory) -> None:
    """The memory behind the last range need not be there."""
    asked = IovaRanges(ioas_id=ioas, num_iovas=2**32 - 1, allowed_iovas=pages.address + 2 * PAGE - 16)
    iommufd.call(asked)
    assert pages.read(2 * PAGE - 16, 16) == bytes(8) + b"\xff" * 8
    asked.allowed_iovas += 8
    fails(errno.EFAULT, iommufd.call, asked)


# ---- IOAS_ALLOW_IOVAS ----


def test_allowed_ranges_are_for_chosen_iovas(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    iommufd.allow(ioas, (0x9000, 0x9FFF), (0x3000, 0x4FFF), (0x5000, 0x5FFF))
    assert iommufd.map(ioas, memory.address, PAGE, 0x100000) == 0x100000
    assert [iommufd.map(ioas, memory.address, PAGE) for _ in range(4)] == [0x3000, 0x4000, 0x5000, 0x9000]
    fails(errno.ENOSPC, iommufd.map, ioas, memory.address, PAGE)
    iommufd.allow(ioas, (0x20000, 0x20FFF))
    assert iommufd.map(ioas, memory.address, PAGE) == 0x20000
    iommufd.allow(ioas)
    assert iommufd.map(ioas, memory.address, PAGE) == PAGE


@pytest.mark.parametrize(
    "ranges",
    [
        [(5, 5)],
        [(6, 5)],
        [(0, 1), (5, 4)],
        [(0, 9), (9, 12)],
        [(9, 12), (0, 9)],
        [(0, ALL), (5, 6)],
        [(5, 6), (5, 6)],
    ],
    ids=repr,
)
def test_wrong_ranges_leave_the_old_ones(
    iommufd: Iommufd, ioas: int, memory: Memory, ranges: list[tuple[int, int]]
) -> None:
    iommufd.allow(ioas, (0x7000, 0x7FFF))
    fails(errno.EINVAL, iommufd.allow, ioas, *ranges)
    assert iommufd.map(ioas, memory.address, PAGE) == 0x7000


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"reserved": 1, "ioas_id": 99}, errno.EOPNOTSUPP),
        ({"ioas_id": 99}, errno.ENOENT),
        ({"allowed_iovas": 0}, errno.EFAULT),
        ({"allowed_iovas": KERNEL}, errno.EFAULT),
        ({"allowed_iovas": 2**64 - 16}, errno.EFAULT),
        ({"allowed_iovas": 0, "num_iovas": 2**32 - 1}, errno.EFAULT),
    ],
    ids=repr,
)
def test_wrong_allow_iovas(iommufd: Iommufd, ioas: int, changes: dict[str, int], number: int) -> None:
    array = (IovaRange * 1)(IovaRange(0, 1))
    good = {"ioas_id": ioas, "num_iovas": 1, "allowed_iovas": ctypes.addressof(array)}
    fails(number, iommufd.call, AllowIovas(**{**good, **changes}))


def test_what_is_wrong_first_counts(iommufd: Iommufd, ioas: int, pages: Memory) -> None:
    """The ranges are looked at one after the other, and each is read when it is looked at."""
    at = 2 * PAGE - 32
    asked = AllowIovas(ioas_id=ioas, num_iovas=3, allowed_iovas=pages.address + at)
    for second, number in (((4, 4), errno.EINVAL), ((1, 2), errno.EINVAL), ((2, 3), errno.EFAULT)):
        pages.write(bytes(IovaRange(0, 1)) + bytes(IovaRange(*second)), at)
        for count in (3, 2**32 - 1):
            asked.num_iovas = count
            fails(number, iommufd.call, asked)
    asked.num_iovas = 2
    iommufd.call(asked)


def test_very_many_ranges(iommufd: Iommufd, ioas: int) -> None:
    most = 4096
    pages = [IovaRange(2 * number * PAGE, (2 * number + 1) * PAGE - 1) for number in range(most + 1)]
    array = (IovaRange * len(pages))(*pages)
    asked = AllowIovas(ioas_id=ioas, num_iovas=most + 1, allowed_iovas=ctypes.addressof(array))
    fails(errno.ENOMEM, iommufd.call, asked)
    asked.num_iovas = most
    iommufd.call(asked)
    assert [iommufd.map(ioas, 0, PAGE) for _ in range(3)] == [2 * PAGE, 4 * PAGE, 6 * PAGE]
    asked.num_iovas = most + 1
    array[0].last = 0
    fails(errno.EINVAL, iommufd.call, asked)


# ---- OPTION_HUGE_PAGES ----


def test_huge_pages(iommufd: Iommufd, ioas: int, memory: Memory) -> None:
    assert iommufd.get_option(HUGE_PAGES, ioas) == 1
    iommufd.map(ioas, memory.address, 1, BASE)
    fails(errno.EADDRINUSE, iommufd.set_option, HUGE_PAGES, 0, ioas)
    assert iommufd.get_option(HUGE_PAGES, ioas) == 1
    iommufd.unmap(ioas)
    iommufd.map(ioas, memory.address, PAGE, BASE)
    for _ in range(2):
        iommufd.set_option(HUGE_PAGES, 0, ioas)
        assert iommufd.get_option(HUGE_PAGES, ioas) == 0
    assert iommufd.ranges(ioas)[1] == PAGE
    for iova, va, length in ((0x1001, 0, PAGE), (0x1000, 1, PAGE), (0x1000, 0, PAGE + 1)):
        fails(errno.EINVAL, iommufd.map, ioas, memory.address + va, length, iova)
    fails(errno.EEXIST, iommufd.map, ioas, memory.address + 1, PAGE, BASE)
    iommufd.set_option(HUGE_PAGES, 1, ioas)
    assert iommufd.map(ioas, memory.address, 1, 0x1001) == 0x1001
    assert iommufd.ranges(ioas)[1] == 1


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"reserved": 1, "object_id": 99}, errno.EOPNOTSUPP),
        ({"option_id": 2}, errno.EOPNOTSUPP),
        ({"option_id": 2**32 - 1, "object_id": 99}, errno.EOPNOTSUPP),
        ({"object_id": 99, "op": 9}, errno.ENOENT),
        ({"object_id": 0}, errno.ENOENT),
        ({"op": 2}, errno.EOPNOTSUPP),
        ({"val64": 2}, errno.EINVAL),
        ({"val64": 2**64 - 1}, errno.EINVAL),
        ({"val64": 2**32}, errno.EINVAL),
    ],
    ids=repr,
)
def test_a_wrong_option(iommufd: Iommufd, ioas: int, changes: dict[str, int], number: int) -> None:
    asked = Option(**{"option_id": HUGE_PAGES, "op": OP_SET, "object_id": ioas, "val64": 0, **changes})
    before = bytes(asked)
    fails(number, iommufd.call, asked)
    assert bytes(asked) == before
    assert iommufd.get_option(HUGE_PAGES, ioas) == 1


def test_an_option_writes_its_value_alone(iommufd: Iommufd, ioas: int) -> None:
    """The members before the value are in a page that cannot be written to."""
    fd = os.memfd_create("option")
    os.truncate(fd, 2 * PAGE)
    whole = Memory(2 * PAGE, fd)
    head = Memory(PAGE, fd, prot=mmap.PROT_READ, address=whole.address)
    for op, value in ((OP_SET, 0), (OP_GET, 77)):
        asked = Option(option_id=HUGE_PAGES, op=op, object_id=ioas, val64=value)
        os.pwrite(fd, bytes(asked), PAGE - 16)
        ioctl(iommufd.fd, Option.cmd(), whole.address + PAGE - 16)
        assert os.pread(fd, 8, PAGE) == bytes(8)
    head.close()
    whole.close()
    os.close(fd)


# ---- two clients ----


def test_a_child_maps_its_own_memory(iommufd: Iommufd, ioas: int) -> None:
    child = os.fork()
    if not child:
        with Iommufd(iommufd.fd) as shared:
            os._exit(int(shared.map(ioas, 0, PAGE, BASE) != BASE))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    fails(errno.EEXIST, iommufd.map, ioas, 0, PAGE, BASE)
    assert iommufd.unmap(ioas) == PAGE
