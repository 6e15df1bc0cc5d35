# SPDX-License-Identifier: Apache-2.0
"""An iommufd as a container, without a mount: mappings that are split, and what a context is kept by."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from devmodel.iommu.api import PAGE_SIZE, DmaFault, Extension, Prot
from devmodel.iommufd.compat import Compat
from devmodel.iommufd.context import Context
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.sharing import copy, source
from tests.unit.fakes import FakeClient, fails

RW, FLAGS = 3, 7
IOVA, VADDR, PAGES = 0x100000, 0x7000000, 16
SIZE = PAGES * PAGE_SIZE


class Group:
    """A group of a device, mediated or not."""

    def __init__(self, number: int, emulated: bool) -> None:
        self.number, self.emulated = number, emulated


class User:
    """A mediated device that pins pages, and keeps them."""

    def dma_unmap(self, iova: int, size: int) -> None: ...


@pytest.fixture
def client() -> FakeClient:
    made = FakeClient()
    for page in range(PAGES):
        made.write(VADDR + page * PAGE_SIZE, b"page%02d" % page)
    return made


@pytest.fixture
def compat() -> Compat:
    """A container with TYPE1's rules."""
    made = Compat(Context())
    made.join(noiommu=False)
    made.set_iommu(Extension.TYPE1, rawio=False)
    return made


def ioas_of(compat: Compat) -> Ioas:
    return compat.context.objects.find(compat.ioas_id(), Ioas)


def locked(compat: Compat, client: FakeClient) -> int:
    return compat.context.locked.of_user(client.user)


def unmap(compat: Compat, page: int, pages: int) -> int:
    removed, stopped = compat.unmap_dma(IOVA + page * PAGE_SIZE, pages * PAGE_SIZE)
    assert stopped is None
    return removed // PAGE_SIZE


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_parts_share_memory_and_charge(
    compat: Compat, client: FakeClient, pinned: bool, copied: bool
) -> None:
    """Any pages are cut out, in any order: the others are what they were, and as many are charged."""
    domain, ioas = Group(1, emulated=False), ioas_of(compat)
    compat.map_dma(client, RW, IOVA, VADDR, SIZE)
    if pinned:
        ioas.add_domain(domain)
    if copied:
        other = Ioas(compat.context.locked)
        copy(other, source(ioas, IOVA, SIZE), FLAGS, IOVA)
    left = set(range(PAGES))
    order = random.Random(14)
    while left:
        page, count = order.choice(sorted(left)), order.choice((1, 1, 2, 3))
        gone = left & set(range(page, page + count))
        assert unmap(compat, page, min(count, PAGES - page)) == len(gone)
        left -= gone
        assert locked(compat, client) == (len(left) if pinned else 0)
        for each in range(PAGES):
            iova = IOVA + each * PAGE_SIZE
            if each in left:
                assert ioas.space.dma_read(iova, 6) == b"page%02d" % each
            else:
                with pytest.raises(DmaFault):
                    ioas.space.dma_read(iova, 6)
    if copied:
        assert other.space.dma_read(IOVA + SIZE - PAGE_SIZE, 6) == b"page15"


def test_a_split_of_a_split_is_written_where_it_is(compat: Compat, client: FakeClient) -> None:
    ioas = ioas_of(compat)
    ioas.add_domain(Group(1, emulated=False))
    compat.map_dma(client, RW, IOVA, VADDR, SIZE)
    for page in (4, 9):
        unmap(compat, page, 1)
    ioas.space.dma_write(IOVA + 12 * PAGE_SIZE + 5, b"here")
    assert client.read(VADDR + 12 * PAGE_SIZE + 5, 4) == b"here"
    buffer = bytearray(PAGE_SIZE + 6)
    ioas.space.dma_rw(IOVA + 10 * PAGE_SIZE, buffer, write=False)
    assert bytes(buffer[:6] + buffer[PAGE_SIZE:]) == b"page10page11"


def test_what_a_mediated_device_has_pinned_is_not_split(compat: Compat, client: FakeClient) -> None:
    ioas = ioas_of(compat)
    ioas.add_access(Group(1, emulated=True), User())
    compat.map_dma(client, RW, IOVA, VADDR, SIZE)
    pin = ioas.space.pin_pages(IOVA + PAGE_SIZE, 1, Prot.READ)
    fails(errno.EINVAL, unmap, compat, 8, 1)
    pin.release()
    assert unmap(compat, 8, 1) == 1


def test_what_is_being_pinned_is_not_split(compat: Compat) -> None:
    """Neither a new mapping, nor one that is pinned for the first function."""
    ioas = ioas_of(compat)
    domain = Group(1, emulated=False)

    class Slow(FakeClient):
        def pin(self, vaddr: int, size: int, write: bool):  # type: ignore[no-untyped-def]
            fails(errno.EBUSY, unmap, compat, 8, 1)
            return super().pin(vaddr, size, write)

    compat.map_dma(Slow(), RW, IOVA, VADDR, SIZE)
    ioas.add_domain(domain)
    assert unmap(compat, 8, 1) == 1
    assert unmap(compat, 0, PAGES) == PAGES - 1
    compat.map_dma(Slow(), RW, IOVA, VADDR, SIZE)
    assert unmap(compat, 0, PAGES) == PAGES


def test_the_last_one_that_keeps_a_context_ends_its_objects() -> None:
    """On another thread, whoever it is: the file, a group or a device."""
    ended: list[Callable[[], None]] = []
    context = Context(later=ended.append)
    compat = Compat(context)
    compat.join(noiommu=False)
    compat.join(noiommu=False)
    compat.leave()
    context.put()
    assert not ended and compat.ioas_id() == 1
    compat.leave()
    fails(errno.EBADFD, compat.join, False)
    assert len(context.objects) == 1
    (end,) = ended
    end()
    assert not len(context.objects)


def test_groups_do_not_mix() -> None:
    with_iommu, without, reserved = Compat(Context()), Compat(Context()), Compat(Context())
    with_iommu.join(noiommu=False)
    fails(errno.EINVAL, with_iommu.join, True)
    without.join(noiommu=True)
    without.join(noiommu=True)
    fails(errno.EINVAL, without.join, False)
    reserved.set_ioas(reserved.context.objects.add(Ioas()))
    fails(errno.EINVAL, reserved.join, True)
    without.set_ioas(without.context.objects.add(Ioas()))  # VFIO_IOAS does not ask
    fails(errno.EINVAL, without.join, False)


def test_a_join_that_fails_keeps_nothing() -> None:
    compat = Compat(Context())
    compat.join(noiommu=False)
    fails(errno.EINVAL, compat.join, True)
    compat.leave()
    compat.context.put()
    assert not len(compat.context.objects)
    fails(errno.EBADFD, compat.join, False)
