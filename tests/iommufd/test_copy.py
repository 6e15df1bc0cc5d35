# SPDX-License-Identifier: Apache-2.0
"""IOAS_COPY: the good call and each way to get it wrong. test_pins.py has what devices see of copies."""

from __future__ import annotations

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
    READ_WRITE,
    IoasCopy,
    Iommufd,
)
from tests.vfio.client import PAGE, Memory, fails, ioctl

BASE = 0x100000
FIXED = READ_WRITE | MAP_FIXED_IOVA


@pytest.fixture
def src(iommufd: Iommufd, memory: Memory) -> int:
    """An IOAS with four pages at BASE, two behind them, a hole of a page, and a page that is read-only."""
    ioas = iommufd.ioas()
    iommufd.map(ioas, memory.address, 4 * PAGE, BASE)
    iommufd.map(ioas, memory.address + 8 * PAGE, 2 * PAGE, BASE + 4 * PAGE)
    iommufd.map(ioas, memory.address, PAGE, BASE + 7 * PAGE, MAP_READABLE)
    return ioas


@pytest.fixture
def dst(iommufd: Iommufd, src: int) -> int:
    return iommufd.ioas()


WRONG = [
    ({"flags": 8 | FIXED}, errno.EOPNOTSUPP),
    ({"flags": 2**31, "length": ALL}, errno.EOPNOTSUPP),
    ({"length": ALL, "src_ioas_id": 99}, errno.EOVERFLOW),
    ({"src_iova": ALL}, errno.EOVERFLOW),
    ({"src_iova": ALL, "flags": 0}, errno.EOVERFLOW),
    ({"src_iova": ALL, "flags": 8}, errno.EOPNOTSUPP),
    ({"dst_iova": ALL}, errno.EOVERFLOW),
    ({"dst_iova": ALL, "flags": READ_WRITE}, errno.EOVERFLOW),
    ({"flags": MAP_FIXED_IOVA, "src_ioas_id": 99}, errno.EINVAL),
    ({"flags": 0}, errno.EINVAL),
    ({"src_ioas_id": 0}, errno.ENOENT),
    ({"src_ioas_id": 99, "length": 0}, errno.ENOENT),
    ({"length": 0}, errno.EINVAL),
    ({"length": 0, "dst_ioas_id": 99}, errno.EINVAL),
    ({"src_iova": ALL - 1, "length": 3}, errno.EOVERFLOW),
    ({"src_iova": ALL - 1, "length": 2}, errno.ENOENT),
    ({"src_iova": BASE - 1}, errno.ENOENT),
    ({"src_iova": BASE - 1, "dst_ioas_id": 99}, errno.ENOENT),
    ({"length": 6 * PAGE + 1}, errno.ENOENT),
    ({"length": 8 * PAGE}, errno.ENOENT),
    ({"src_iova": BASE + 6 * PAGE}, errno.ENOENT),
    ({"dst_ioas_id": 0}, errno.ENOENT),
    ({"dst_ioas_id": 99}, errno.ENOENT),
    ({"dst_iova": ALL - PAGE + 2}, errno.EOVERFLOW),
    ({"src_iova": BASE + 7 * PAGE}, errno.EPERM),
    ({"src_iova": BASE + 7 * PAGE, "flags": MAP_FIXED_IOVA | MAP_WRITEABLE}, errno.EPERM),
]


@pytest.mark.parametrize(("fields", "expected"), WRONG)
def test_a_wrong_copy(iommufd: Iommufd, src: int, dst: int, fields: dict[str, int], expected: int) -> None:
    good = {
        "flags": FIXED,
        "src_ioas_id": src,
        "dst_ioas_id": dst,
        "length": PAGE,
        "src_iova": BASE,
        "dst_iova": BASE,
    }
    asked = IoasCopy(**good | fields)
    before = bytes(asked)
    fails(expected, iommufd.call, asked)
    assert bytes(asked) == before  # nothing is written
    assert iommufd.unmap(dst) == 0
    iommufd.call(IoasCopy(**good))


def test_an_ioas_is_no_hwpt(iommufd: Iommufd, src: int) -> None:
    """An id is looked for by its type: there is only IOAS 1 and 2."""
    iommufd.destroy(iommufd.ioas())
    fails(errno.ENOENT, iommufd.copy, src + 1, src, BASE, PAGE)


def test_where_a_copy_goes(iommufd: Iommufd, src: int, dst: int) -> None:
    assert iommufd.copy(dst, src, BASE, 6 * PAGE, 0x40000) == 0x40000
    fails(errno.EEXIST, iommufd.copy, dst, src, BASE, PAGE, 0x45000)
    fails(errno.EEXIST, iommufd.copy, dst, src, BASE, 2 * PAGE, 0x3F000)
    assert iommufd.copy(dst, src, BASE, PAGE) == 0x1000  # the lowest page but the first
    assert iommufd.copy(dst, src, BASE + PAGE, PAGE, 0x46000) == 0x46000
    assert iommufd.unmap(dst) == 8 * PAGE


def test_a_copy_is_unmapped_by_the_pieces_of_its_source(iommufd: Iommufd, src: int, dst: int) -> None:
    iommufd.copy(dst, src, BASE + 3 * PAGE, 2 * PAGE, 0)
    fails(errno.ENOENT, iommufd.unmap, dst, 0, PAGE // 2)
    assert iommufd.unmap(dst, PAGE, PAGE) == PAGE
    assert iommufd.unmap(dst, 0, PAGE) == PAGE


def test_a_copy_survives_its_source(iommufd: Iommufd, src: int, dst: int) -> None:
    iommufd.copy(dst, src, BASE, 4 * PAGE, 0)
    iommufd.unmap(src)
    iommufd.destroy(src)
    third = iommufd.ioas()
    assert third == src  # the lowest free id
    assert iommufd.copy(third, dst, PAGE, PAGE, BASE) == BASE
    iommufd.destroy(dst)
    assert iommufd.unmap(third) == PAGE


def test_a_copy_within_one_ioas(iommufd: Iommufd, src: int) -> None:
    assert iommufd.copy(src, src, BASE, PAGE, 0) == 0
    fails(errno.EEXIST, iommufd.copy, src, src, BASE, 2 * PAGE, BASE + PAGE)
    assert iommufd.copy(src, src, 0, PAGE, BASE + 8 * PAGE) == BASE + 8 * PAGE  # of the copy
    assert iommufd.unmap(src) == 9 * PAGE


def test_the_rights_of_a_copy_are_at_most_those_of_the_first_mapping(
    iommufd: Iommufd, src: int, dst: int
) -> None:
    iommufd.copy(dst, src, BASE, PAGE, 0, MAP_READABLE)
    iommufd.copy(dst, dst, 0, PAGE, PAGE, READ_WRITE)  # the first one could be written to
    iommufd.copy(dst, src, BASE + 7 * PAGE, PAGE, 2 * PAGE, MAP_READABLE)
    fails(errno.EPERM, iommufd.copy, dst, dst, 2 * PAGE, PAGE, 3 * PAGE, READ_WRITE)
    fails(errno.EPERM, iommufd.copy, dst, dst, PAGE, 2 * PAGE, 3 * PAGE, MAP_WRITEABLE)  # in part
    assert iommufd.unmap(dst) == 3 * PAGE


def test_bytes_are_copied_while_no_device_needs_pages(iommufd: Iommufd, src: int, dst: int) -> None:
    assert iommufd.copy(dst, src, BASE + 5, 3, 1) == 1
    iommufd.unmap(dst)
    iommufd.set_option(HUGE_PAGES, 0, dst)
    fails(errno.EINVAL, iommufd.copy, dst, src, BASE, 3, 0)
    fails(errno.EINVAL, iommufd.copy, dst, src, BASE, PAGE, 1)
    fails(errno.EINVAL, iommufd.copy, dst, src, BASE + 1, PAGE, 0)
    fails(errno.EINVAL, iommufd.copy, dst, src, BASE + 1, PAGE)
    assert iommufd.copy(dst, src, BASE, PAGE, 0) == 0


def test_a_chosen_iova_is_allowed_and_has_room(iommufd: Iommufd, src: int, dst: int) -> None:
    iommufd.allow(dst, (0x20000, 0x22FFF))
    fails(errno.ENOSPC, iommufd.copy, dst, src, BASE, 4 * PAGE)
    assert iommufd.copy(dst, src, BASE, PAGE) == 0x20000
    assert iommufd.copy(dst, src, BASE, PAGE, 0) == 0


def test_a_result_that_cannot_be_written_leaves_the_copy(iommufd: Iommufd, src: int, dst: int) -> None:
    asked = IoasCopy(
        flags=FIXED, src_ioas_id=src, dst_ioas_id=dst, length=PAGE, src_iova=BASE, dst_iova=0x3000
    )
    fd = os.memfd_create("argument")
    os.write(fd, bytes(asked))
    os.ftruncate(fd, PAGE)
    readonly = Memory(PAGE, fd, prot=mmap.PROT_READ)
    fails(errno.EFAULT, ioctl, iommufd.fd, IoasCopy.cmd(), readonly.address)
    readonly.close()
    os.close(fd)
    assert iommufd.unmap(dst) == PAGE


def test_many_pieces(iommufd: Iommufd, memory: Memory) -> None:
    """A copy of very many mappings is made elsewhere than on the device lane, and all or nothing."""
    src, dst = iommufd.ioas(), iommufd.ioas()
    for number in range(5000):
        iommufd.map(src, memory.address, 1, 2 * number)
        iommufd.map(src, memory.address, 1, 2 * number + 1)
    iommufd.map(dst, memory.address, 1, 9999)
    fails(errno.EEXIST, iommufd.copy, dst, src, 0, 10_000, 0)
    assert iommufd.copy(dst, src, 0, 10_000, 10_000) == 10_000
    assert iommufd.unmap(dst) == 10_001
