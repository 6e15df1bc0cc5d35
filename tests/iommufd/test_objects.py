# SPDX-License-Identifier: Apache-2.0
"""The objects of a context: their ids, IOAS_ALLOC and DESTROY, and what a close leaves."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from tests.iommufd.client import Destroy, IoasAlloc, Iommufd
from tests.labs import MountedLab
from tests.vfio.client import PAGE, Memory, fails, ioctl


@pytest.fixture
def readable() -> Iterator[Memory]:
    """A page that can be read, and that ioctls cannot write to."""
    fd = os.memfd_create("readable")
    os.truncate(fd, PAGE)
    memory = Memory(PAGE, fd, prot=mmap.PROT_READ)
    asked = IoasAlloc()
    os.pwrite(fd, bytes(asked), 0)
    os.close(fd)
    yield memory
    memory.close()


def test_the_lowest_free_id_is_given_first(iommufd: Iommufd) -> None:
    assert [iommufd.ioas() for _ in range(3)] == [1, 2, 3]
    iommufd.destroy(2)
    iommufd.destroy(1)
    assert [iommufd.ioas() for _ in range(3)] == [1, 2, 4]


def test_ids_that_are_no_objects(iommufd: Iommufd) -> None:
    iommufd.ioas()
    for number in (0, 2, 2**31 - 1, 2**31, 2**32 - 1):
        fails(errno.ENOENT, iommufd.destroy, number)
    iommufd.destroy(1)
    fails(errno.ENOENT, iommufd.destroy, 1)


def test_an_ioas_has_no_flags(iommufd: Iommufd) -> None:
    for flags in (1, 2**31):
        fails(errno.EOPNOTSUPP, iommufd.call, IoasAlloc(flags=flags))
    assert iommufd.ioas() == 1


def test_an_ioas_whose_id_cannot_be_told_is_not_made(iommufd: Iommufd, readable: Memory) -> None:
    fails(errno.EFAULT, ioctl, iommufd.fd, IoasAlloc.cmd(), readable.address)
    assert iommufd.ioas() == 1
    fails(errno.ENOENT, iommufd.destroy, 2)


def test_an_answer_is_as_long_as_the_clients_struct(iommufd: Iommufd) -> None:
    """A client may have a longer struct than Linux: what is behind it stays."""
    longer = ctypes.create_string_buffer(ctypes.sizeof(IoasAlloc) + 8)
    ctypes.memmove(longer, bytes(IoasAlloc(size=len(longer))), ctypes.sizeof(IoasAlloc))
    ioctl(iommufd.fd, IoasAlloc.cmd(), longer)
    assert longer.raw == len(longer).to_bytes(4, "little") + bytes(4) + b"\1\0\0\0" + bytes(8)


def test_destroy_writes_nothing(iommufd: Iommufd) -> None:
    iommufd.ioas()
    fd = os.memfd_create("destroy")
    os.write(fd, bytes(Destroy(id=1)))
    pages = Memory(PAGE, fd, prot=mmap.PROT_READ)
    os.close(fd)
    ioctl(iommufd.fd, Destroy.cmd(), pages.address)
    pages.close()
    fails(errno.ENOENT, iommufd.destroy, 1)


def test_each_open_has_objects_of_its_own(machine: MountedLab, iommufd: Iommufd) -> None:
    with Iommufd(machine.path) as other:
        assert (iommufd.ioas(), other.ioas(), other.ioas()) == (1, 1, 2)
        fails(errno.ENOENT, iommufd.destroy, 2)
    iommufd.destroy(1)


def test_a_descriptor_of_the_same_open_has_the_same_objects(iommufd: Iommufd) -> None:
    with Iommufd(os.dup(iommufd.fd)) as other:
        assert other.ioas() == 1
    iommufd.destroy(1)


def test_a_child_shares_its_parents_context(iommufd: Iommufd) -> None:
    child = os.fork()
    if not child:
        with Iommufd(iommufd.fd) as shared:
            os._exit(shared.ioas())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert iommufd.ioas() == 2
    iommufd.destroy(1)


def test_a_context_has_a_limit(iommufd: Iommufd) -> None:
    """Each object takes memory of the server."""
    most = 4096
    assert [iommufd.ioas() for _ in range(most)] == list(range(1, most + 1))
    fails(errno.ENOMEM, iommufd.ioas)
    iommufd.destroy(7)
    assert iommufd.ioas() == 7
