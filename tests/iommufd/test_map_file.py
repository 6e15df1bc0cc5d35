# SPDX-License-Identifier: Apache-2.0
"""IOAS_MAP_FILE and IOAS_CHANGE_PROCESS without a device: the good call and each way to get it wrong.

test_pins.py has what devices see of files, and what is refused when they are pinned.
"""

from __future__ import annotations

import errno
import os

import pytest

from tests.iommufd.client import (
    ALL,
    MAP_FIXED_IOVA,
    MAP_READABLE,
    READ_WRITE,
    ChangeProcess,
    Iommufd,
    MapFile,
    NoiommuGetPa,
)
from tests.labs import MountedLab
from tests.needs import has_capability
from tests.vfio.client import PAGE, Memory, fails

BASE = 0x100000
FIXED = READ_WRITE | MAP_FIXED_IOVA


@pytest.fixture
def ioas(iommufd: Iommufd) -> int:
    return iommufd.ioas()


WRONG = [
    ({"flags": 8 | FIXED, "iova": ALL}, errno.EOPNOTSUPP),
    ({"flags": 2**31}, errno.EOPNOTSUPP),
    ({"iova": ALL, "flags": 0}, errno.EOVERFLOW),
    ({"iova": ALL, "flags": READ_WRITE}, errno.EOVERFLOW),
    ({"length": ALL, "ioas_id": 99}, errno.EOVERFLOW),
    ({"flags": 0, "ioas_id": 99}, errno.EINVAL),
    ({"flags": MAP_FIXED_IOVA}, errno.EINVAL),
    ({"ioas_id": 0, "fd": -1}, errno.ENOENT),
    ({"ioas_id": 99, "length": 0}, errno.ENOENT),
    ({"length": 0, "fd": -1}, errno.EINVAL),
    ({"start": ALL, "length": 2, "fd": -1}, errno.EOVERFLOW),
    ({"fd": -1}, errno.EBADF),
    ({"fd": 2**31 - 1, "iova": ALL - PAGE + 2}, errno.EBADF),
    ({"iova": ALL - PAGE + 2}, errno.EOVERFLOW),
]


@pytest.mark.parametrize(("fields", "expected"), WRONG)
def test_a_wrong_map(iommufd: Iommufd, ioas: int, memfd: int, fields: dict[str, int], expected: int) -> None:
    good = {"flags": FIXED, "ioas_id": ioas, "fd": memfd, "start": 0, "length": PAGE, "iova": BASE}
    asked = MapFile(**good | fields)
    before = bytes(asked)
    fails(expected, iommufd.call, asked)
    assert bytes(asked) == before and iommufd.unmap(ioas) == 0
    iommufd.call(MapFile(**good))


def test_where_a_file_goes(iommufd: Iommufd, ioas: int, memfd: int) -> None:
    """A chosen iova is aligned as the offset in the file."""
    assert iommufd.map_file(ioas, memfd, 0, 4 * PAGE, BASE) == BASE
    fails(errno.EEXIST, iommufd.map_file, ioas, memfd, 0, PAGE, BASE + 3 * PAGE)
    assert iommufd.map_file(ioas, memfd, PAGE, 2 * PAGE) == PAGE  # aligned to a page
    assert iommufd.map_file(ioas, memfd, 0, 2 * PAGE) == 4 * PAGE  # to its length
    assert iommufd.map_file(ioas, memfd, 0x300, 0x10) == 0x3300
    assert iommufd.unmap(ioas) == 8 * PAGE + 0x10


def test_what_is_not_memory_is_mapped_and_not_touched(
    iommufd: Iommufd, ioas: int, machine: MountedLab
) -> None:
    """As in Linux the file is looked at when it is to be pinned."""
    opened = [
        os.open(path, os.O_RDONLY)
        for path in (
            "/proc/version",
            "/usr/bin/env",
            "/",
            "/dev/null",
            machine.path / "dev/iommu",
            machine.path,
        )
    ]
    opened += [*os.pipe(), os.eventfd(0)]
    for number, fd in enumerate(opened):
        iommufd.map_file(ioas, fd, 0, PAGE, BASE + number * PAGE)
        os.close(fd)
    assert iommufd.unmap(ioas) == len(opened) * PAGE


def test_what_a_descriptor_is_open_for(iommufd: Iommufd, ioas: int, memfd: int) -> None:
    path = f"/proc/self/fd/{memfd}"
    names, reading, writing = (os.open(path, flags) for flags in (os.O_PATH, os.O_RDONLY, os.O_WRONLY))
    fails(errno.EBADF, iommufd.map_file, ioas, names, 0, PAGE)
    fails(errno.EPERM, iommufd.map_file, ioas, reading, 0, PAGE)
    fails(errno.EPERM, iommufd.map_file, ioas, writing, 0, PAGE)
    iommufd.map_file(ioas, reading, 0, PAGE, flags=MAP_READABLE)
    for fd in (names, reading, writing):
        os.close(fd)
    fails(errno.EBADF, iommufd.map_file, ioas, reading, 0, PAGE)


def test_a_range_beyond_the_end_is_mapped(iommufd: Iommufd, ioas: int, memfd: int) -> None:
    iommufd.map_file(ioas, memfd, 2**62, PAGE, BASE)
    iommufd.map_file(ioas, memfd, ALL - PAGE + 1, PAGE, BASE + PAGE)


def test_the_limit_of_files(iommufd: Iommufd, ioas: int) -> None:
    """A context holds 256 of them, and only as long as they are mapped."""
    fds = [os.memfd_create(f"{number}") for number in range(257)]
    for number, fd in enumerate(fds[:256]):
        iommufd.map_file(ioas, fd, 0, PAGE, number * PAGE)
    fails(errno.ENOMEM, iommufd.map_file, ioas, fds[256], 0, PAGE)
    iommufd.map_file(ioas, fds[0], 0, PAGE)
    iommufd.unmap(ioas, PAGE, PAGE)
    iommufd.map_file(ioas, fds[256], 0, PAGE)
    for fd in fds:
        os.close(fd)


# ---- IOAS_CHANGE_PROCESS ----


def test_change_process(iommufd: Iommufd, ioas: int, memfd: int) -> None:
    """It is for contexts that have files alone, in all of their address spaces."""
    iommufd.change_process()
    fails(errno.EOPNOTSUPP, iommufd.call, ChangeProcess(reserved=1))
    iommufd.map_file(ioas, memfd, 0, PAGE, BASE)
    iommufd.copy(ioas, ioas, BASE, PAGE, 0)
    iommufd.change_process()
    other, memory = iommufd.ioas(), Memory(PAGE)
    iommufd.map(other, memory.address, PAGE, BASE)
    fails(errno.EINVAL, iommufd.change_process)
    fails(errno.EOPNOTSUPP, iommufd.call, ChangeProcess(reserved=1))
    iommufd.copy(ioas, other, BASE, PAGE, 2 * BASE)
    iommufd.destroy(other)
    fails(errno.EINVAL, iommufd.change_process)
    iommufd.unmap(ioas, 2 * BASE, PAGE)
    iommufd.change_process()
    memory.close()


# ---- IOAS_NOIOMMU_GET_PA without a device that has no IOMMU ----


def test_there_is_no_physical_address_with_an_iommu(iommufd: Iommufd, ioas: int, memfd: int) -> None:
    iommufd.map_file(ioas, memfd, 0, PAGE, BASE)
    if not has_capability("CAP_SYS_RAWIO"):
        fails(errno.EPERM, iommufd.get_pa, ioas, BASE)
        fails(errno.EPERM, iommufd.call, NoiommuGetPa(flags=1))
        return
    for fields in ({"flags": 1, "ioas_id": 99}, {"reserved": 1, "ioas_id": 99}):
        fails(errno.EOPNOTSUPP, iommufd.call, NoiommuGetPa(**fields))
    fails(errno.ENOENT, iommufd.get_pa, 99, BASE)
    fails(errno.ENOENT, iommufd.get_pa, ioas, BASE - 1)
    fails(errno.ENOENT, iommufd.get_pa, ioas, BASE + PAGE)
    fails(errno.EOPNOTSUPP, iommufd.get_pa, ioas, BASE)
