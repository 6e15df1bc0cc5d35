# SPDX-License-Identifier: Apache-2.0
"""The size of an iommufd struct, for every ioctl: what is too small, what is longer, and where it cannot be
read.

The tables are the client's own declarations.  An ioctl that refuses its size does nothing, so most of these
calls have zeros for all else; a good size reaches the ioctl's own rules, whatever these say of zeros.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
from collections.abc import Iterator

import pytest

from tests.iommufd.client import STRUCTS, Destroy, Iommufd, Struct
from tests.labs import MountedLab
from tests.vfio.client import PAGE, Memory, fails, ioctl, unmapped_address

KERNEL = 0xFFFF_8000_0000_0000
"""An address that is no client's."""
SIZE_ERRORS = {errno.EFAULT, errno.E2BIG}
"""What only the handshake gives for a struct of zeros behind its size."""
every = pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)


def size_of(struct: type[Struct]) -> int:
    return ctypes.sizeof(struct)


def put(memory: Memory, at: int, size: int, there: int | None = None, tail: bytes = b"") -> int:
    """A struct of zeros with the member `size` in the memory, which has `there` bytes of it and `tail` behind
    them. Returns its address."""
    body = size.to_bytes(4, "little").ljust(size if there is None else there, b"\0")
    memory.write((body + tail)[: 2 * PAGE - at], at)
    return memory.address + at


def outcome(iommufd: Iommufd, struct: type[Struct], address: int) -> int:
    """The errno of the call, 0 if it works. What it makes is destroyed with its id."""
    try:
        ioctl(iommufd.fd, struct.cmd(), address)
    except OSError as error:
        return error.errno or 0
    return 0


@every
def test_a_size_below_the_least_is_einval(iommufd: Iommufd, pages: Memory, struct: type[Struct]) -> None:
    for size in (0, 1, 3, 4, struct.minimum() - 1):
        assert outcome(iommufd, struct, put(pages, 0, size, there=size_of(struct))) == errno.EINVAL


@every
def test_a_short_struct_at_the_end_of_a_page_is_einval(
    iommufd: Iommufd, pages: Memory, struct: type[Struct]
) -> None:
    """No more is read than the size, when that is too small."""
    for there in (4, struct.minimum() - 4):
        at = 2 * PAGE - there
        assert outcome(iommufd, struct, put(pages, at, there, there)) == errno.EINVAL


@every
def test_a_struct_may_end_where_its_memory_ends(
    iommufd: Iommufd, pages: Memory, struct: type[Struct]
) -> None:
    for size in {struct.minimum(), size_of(struct)}:
        at = 2 * PAGE - size
        assert outcome(iommufd, struct, put(pages, at, size)) not in SIZE_ERRORS
        assert outcome(iommufd, struct, put(pages, at + 4, size)) == errno.EFAULT


@every
def test_sizes_between_the_least_and_the_whole(iommufd: Iommufd, pages: Memory, struct: type[Struct]) -> None:
    """Every size from the least to the whole is taken, and no more is read."""
    for size in range(struct.minimum(), size_of(struct) + 1):
        assert outcome(iommufd, struct, put(pages, 2 * PAGE - size, size)) not in SIZE_ERRORS


@every
def test_a_longer_struct_has_zeros_behind_ours(iommufd: Iommufd, pages: Memory, struct: type[Struct]) -> None:
    whole = size_of(struct)
    for more in (1, 8, PAGE):
        assert outcome(iommufd, struct, put(pages, 0, whole + more)) not in SIZE_ERRORS
        for at in {0, more // 2, more - 1}:
            tail = bytes(at) + b"\1" + bytes(more - at - 1)
            address = put(pages, 0, whole + more, whole, tail)
            assert outcome(iommufd, struct, address) == errno.E2BIG


@every
def test_a_tail_that_cannot_be_read(iommufd: Iommufd, pages: Memory, struct: type[Struct]) -> None:
    """EFAULT, unless a byte before that is not 0."""
    whole = size_of(struct)
    at = 2 * PAGE - whole - 8
    assert outcome(iommufd, struct, put(pages, at, whole + 8)) not in SIZE_ERRORS
    assert outcome(iommufd, struct, put(pages, at, whole + 16, whole, bytes(8))) == errno.EFAULT
    assert outcome(iommufd, struct, put(pages, at, whole + 16, whole, b"\0" * 7 + b"\1")) == errno.E2BIG
    assert outcome(iommufd, struct, put(pages, 0, 2**32 - 1, 2 * PAGE)) == errno.EFAULT


@every
@pytest.mark.parametrize("pointer", [0, 1, KERNEL, 2**64 - 1, 2**64 - 4096])
def test_a_bad_pointer_is_efault(iommufd: Iommufd, struct: type[Struct], pointer: int) -> None:
    fails(errno.EFAULT, ioctl, iommufd.fd, struct.cmd(), pointer)
    fails(errno.EFAULT, ioctl, iommufd.fd, struct.cmd(), unmapped_address())


@pytest.fixture
def huge() -> Iterator[Memory]:
    """More than 4 GiB of zeros, of which the first page can be written."""
    memory = Memory(2**32 + PAGE, private=True, prot=mmap.PROT_READ)
    Memory(PAGE, private=True, address=memory.address)
    yield memory
    memory.close()


def test_four_gigabytes_of_zeros_hold_up_their_caller_alone(
    machine: MountedLab, iommufd: Iommufd, huge: Memory
) -> None:
    iommufd.ioas()
    answered, largest = 0, 2**32 - 1
    address = put(huge, 0, largest, there=4, tail=(1).to_bytes(4, "little"))
    caller = threading.Thread(target=ioctl, args=(iommufd.fd, Destroy.cmd(), address))
    with Iommufd(machine.path) as other:
        caller.start()
        while caller.is_alive():
            fails(errno.ENOENT, other.destroy, 1)
            fails(errno.ENOENT, iommufd.destroy, 2)
            answered += 1
        caller.join()
    assert answered > 10
    fails(errno.ENOENT, iommufd.destroy, 1)
