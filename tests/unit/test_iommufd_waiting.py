# SPDX-License-Identifier: Apache-2.0
"""Calls on an IOAS whose client does not answer: nobody else waits, and what is mapped and counted is right
afterwards."""

import errno
from collections.abc import Callable

import pytest

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import PAGE_SIZE, DmaFault, MustWait
from devmodel.iommufd import objects
from devmodel.iommufd.context import Context
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.iovas import LAST
from tests.unit.clients import Call, Unhurried
from tests.unit.fakes import FakeClient, fails
from tests.unit.test_iommufd import APERTURE, RW, Attached, fixed, mapped

HERE, THERE, SIZE = 0x10000, 0x80000, 4 * PAGE_SIZE
"""Where the slow client's memory is mapped, and somebody else's."""


@pytest.fixture
def context() -> Context:
    return Context()


@pytest.fixture
def ioas(context: Context) -> Ioas:
    made = Ioas(LockedMemory(), context.budget)
    context.objects.add(made)
    return made


@pytest.fixture
def slow() -> Unhurried:
    return Unhurried(memlock=64 * PAGE_SIZE)


@pytest.fixture
def domain() -> Attached:
    return Attached(7)


def held(slow: Unhurried, begin: Callable[[], object]) -> Call:
    """A call that has asked the slow client for its memory, and waits."""
    slow.hold("pin")
    call = Call(begin)
    assert slow.begun.wait(60)
    return call


def others_go_on(ioas: Ioas, alignment: int = PAGE_SIZE) -> None:
    other = FakeClient(2)
    assert (ioas.iova_ranges(), ioas.alignment) == ([(0, APERTURE - 1)], alignment)
    fixed(ioas, other, THERE, PAGE_SIZE)
    ioas.space.dma_write(THERE, b"goes on")
    assert ioas.space.dma_read(THERE, 7) == b"goes on"
    assert ioas.unmap(THERE, PAGE_SIZE, may_wait=False) == PAGE_SIZE
    assert ioas.map(other, RW, 0, PAGE_SIZE, 0) == PAGE_SIZE
    assert ioas.unmap(0, 2 * PAGE_SIZE) == PAGE_SIZE
    ioas.allow([(0, 5)])
    ioas.allow([])
    assert ioas.space.locked.of(other) == 0


def test_a_map_that_waits(ioas: Ioas, slow: Unhurried, domain: Attached) -> None:
    ioas.add_domain(domain)
    call = held(slow, lambda: fixed(ioas, slow, HERE, SIZE))
    others_go_on(ioas)
    fails(errno.EEXIST, fixed, ioas, FakeClient(2), HERE + PAGE_SIZE, PAGE_SIZE)
    for iova, length in ((HERE, SIZE), (0, LAST), (HERE, PAGE_SIZE)):
        fails(errno.EBUSY, ioas.unmap, iova, length)
        fails(errno.EBUSY, ioas.unmap, iova, length, may_wait=False)
    with pytest.raises(DmaFault):
        ioas.space.dma_read(HERE, 4)
    assert call.waits
    slow.answer()
    assert call.result() == HERE
    assert ioas.space.dma_read(HERE, 4) == bytes(4) and ioas.space.locked.of(slow) == 4
    assert ioas.unmap(0, LAST) == SIZE and ioas.space.locked.of(slow) == 0


def test_an_unmap_takes_what_lies_below_a_mapping_that_is_being_made(
    ioas: Ioas, slow: Unhurried, domain: Attached
) -> None:
    ioas.add_domain(domain)
    fixed(ioas, FakeClient(2), 0, PAGE_SIZE)
    fixed(ioas, FakeClient(2), THERE, PAGE_SIZE)
    call = held(slow, lambda: fixed(ioas, slow, HERE, SIZE))
    fails(errno.EBUSY, ioas.unmap, 0, LAST)
    assert mapped(ioas) == [(HERE, SIZE), (THERE, PAGE_SIZE)]
    slow.answer()
    call.result()


def test_a_map_whose_memory_is_not_there_leaves_a_hole(ioas: Ioas, slow: Unhurried, domain: Attached) -> None:
    ioas.add_domain(domain)
    slow.limit = 0
    call = held(slow, lambda: ioas.map(slow, RW, 0, SIZE, 0))
    other = FakeClient(2)
    assert ioas.map(other, RW, 0, SIZE, 0) == 2 * SIZE
    slow.answer()
    fails(errno.EFAULT, call.result)
    assert ioas.map(other, RW, 0, SIZE, 0) == SIZE
    assert ioas.space.locked.of(slow) == 0


def test_a_domain_that_leaves_meanwhile_pins_nothing(ioas: Ioas, slow: Unhurried, domain: Attached) -> None:
    ioas.add_domain(domain)
    call = held(slow, lambda: fixed(ioas, slow, HERE, SIZE))
    ioas.remove_domain(domain)
    assert ioas.alignment == 1
    slow.answer()
    call.result()
    assert ioas.space.locked.of(slow) == 0
    assert ioas.space.dma_read(HERE, 4) == bytes(4)
    assert ioas.unmap(HERE, SIZE) == SIZE


@pytest.mark.parametrize("unmapped", [False, True])
def test_a_domain_that_waits(ioas: Ioas, slow: Unhurried, domain: Attached, unmapped: bool) -> None:
    fixed(ioas, slow, HERE, SIZE)
    call = held(slow, lambda: ioas.add_domain(domain))
    others_go_on(ioas)
    fails(errno.EINVAL, fixed, ioas, FakeClient(2), THERE + 1, PAGE_SIZE)
    fails(errno.EADDRINUSE, ioas.allow, [(0, LAST)])
    if unmapped:
        assert ioas.unmap(0, LAST) == SIZE
    slow.answer()
    call.result()
    assert ioas.space.locked.of(slow) == (0 if unmapped else 4)


def test_a_domain_that_waits_and_fails(ioas: Ioas, slow: Unhurried, domain: Attached) -> None:
    slow.limit = 0
    fixed(ioas, slow, HERE, SIZE)
    call = held(slow, lambda: ioas.add_domain(domain))
    assert ioas.alignment == PAGE_SIZE
    slow.answer()
    fails(errno.EFAULT, call.result)
    assert (ioas.alignment, ioas.iova_ranges()) == (1, [(0, LAST)])
    assert mapped(ioas) == [(HERE, SIZE)]


def test_destroy_waits_for_a_map(
    context: Context, ioas: Ioas, slow: Unhurried, domain: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    ioas.add_domain(domain)

    def map_it() -> None:
        with context.objects.using(ioas.id, Ioas) as found:
            fixed(found, slow, HERE, SIZE)

    call = held(slow, map_it)
    with pytest.raises(MustWait):
        context.objects.destroy(ioas.id, may_wait=False)
    with monkeypatch.context() as patch:
        patch.setattr(objects, "CALL_SECONDS", 0.05)
        fails(errno.EBUSY, context.objects.destroy, ioas.id)
    ioas.remove_domain(domain)
    destroy = Call(lambda: context.objects.destroy(ioas.id))
    assert destroy.waits
    slow.answer()
    call.result()
    destroy.result()
    assert mapped(ioas) == [] and ioas.space.locked.of(slow) == 0


def test_the_lane_leaves_the_end_of_an_ioas_to_others(context: Context, ioas: Ioas) -> None:
    with pytest.raises(MustWait):
        context.objects.destroy(ioas.id, may_wait=False)
    context.objects.destroy(ioas.id)
