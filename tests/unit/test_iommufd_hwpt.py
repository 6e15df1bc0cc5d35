# SPDX-License-Identifier: Apache-2.0
"""HWPTs: who makes them, who keeps them, and the errnos of HWPT_ALLOC and GET_HW_INFO, without a mount."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from devmodel.iommu.api import PAGE_SIZE, DmaFault
from devmodel.iommufd.context import Context
from devmodel.iommufd.dirty import TrackedSpace
from devmodel.iommufd.hwinfo import HwCapability, HwInfo, HwInfoType, IommuDevice, check_hw_info, hw_info
from devmodel.iommufd.hwpt import Hwpt, Wish, allocated, hwpt_for, tracked_space
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.objects import IommufdObject, ObjectType
from devmodel.lifecycle.iommuunit import IommuUnit
from devmodel.lifecycle.spec import IommuSpec
from tests.unit.fakes import FakeClient, fails

FIXED, WRITE, READ = 1, 2, 4
MAP = FIXED | WRITE | READ
NEST, DIRTY, FAULT, PASID, UNKNOWN = 1, 2, 4, 8, 16
IOVA = 0x10000
NO_ATS = HwCapability.PCI_ATS_NOT_SUPPORTED
TRACKING = HwCapability.DIRTY_TRACKING | NO_ATS
FULL, BARE = IommuUnit(0), IommuUnit(1, IommuSpec(dirty_tracking=False))


class Function(IommuDevice):
    """A function that is bound to the context."""

    __slots__ = ("_unit", "context")

    def __init__(self, context: Context, unit: IommuUnit | None = FULL) -> None:
        super().__init__()
        self.context, self._unit = context, unit
        context.objects.add(self)

    @property
    def unit(self) -> IommuUnit | None:
        return self._unit


class Mediated(IommufdObject):
    """A mediated device that is bound to the context."""

    type = ObjectType.ACCESS


@pytest.fixture
def context() -> Context:
    return Context()


@pytest.fixture
def ioas(context: Context) -> Ioas:
    made = Ioas()
    context.objects.add(made)
    return made


@pytest.fixture
def function(context: Context, ioas: Ioas) -> Function:
    return Function(context)


def alloc(context: Context, wish: Wish) -> Hwpt:
    with allocated(context.objects, wish) as made:
        pass
    return made


def ids(context: Context) -> set[int]:
    return {each.id for each in context.objects.all()}


# ---- automatic ones ----


def test_functions_share_the_automatic_one_and_it_goes_with_the_last(
    context: Context, ioas: Ioas, function: Function
) -> None:
    other = Function(context, IommuUnit(7))  # another unit of the same kind
    first = hwpt_for(ioas, function)
    assert hwpt_for(ioas, other) is first and first.auto and first.space is ioas.space
    fails(errno.EBUSY, context.objects.destroy, first.id)
    fails(errno.EBUSY, context.objects.destroy, ioas.id)
    first.leave(function)
    assert first.id in ids(context) and ioas.alignment == PAGE_SIZE
    first.leave(other)
    assert first.id not in ids(context) and ioas.alignment == 1
    assert hwpt_for(ioas, function).id == first.id, "the lowest free id"


def test_other_kinds_of_iommu_have_one_of_their_own(context: Context, ioas: Ioas, function: Function) -> None:
    found = [hwpt_for(ioas, each) for each in (function, Function(context, BARE), Function(context, None))]
    assert len({each.id for each in found}) == 3
    for device, hwpt in ((Function(context, BARE), found[0]), (function, found[1]), (function, found[2])):
        fails(errno.EINVAL, hwpt.join, device)


def test_what_a_domain_translates(context: Context, ioas: Ioas, function: Function) -> None:
    bare = alloc(context, Wish(Function(context, None).id, ioas.id))
    assert ioas.iova_ranges() == [(0, 2**64 - 1)] and ioas.alignment == PAGE_SIZE
    alloc(context, Wish(function.id, ioas.id))
    assert ioas.iova_ranges() == [(0, 2**48 - 1)]
    context.objects.destroy(bare.id)
    assert ioas.iova_ranges() == [(0, 2**48 - 1)]


def test_an_explicit_one_is_not_chosen(context: Context, ioas: Ioas, function: Function) -> None:
    explicit = alloc(context, Wish(function.id, ioas.id))
    automatic = hwpt_for(ioas, function)
    assert automatic is not explicit and not explicit.auto
    context.objects.destroy(explicit.id)
    fails(errno.EBUSY, context.objects.destroy, ioas.id)
    automatic.leave(function)
    context.objects.destroy(ioas.id)


def test_memory_is_pinned_as_long_as_there_is_a_domain(
    context: Context, ioas: Ioas, function: Function
) -> None:
    client = FakeClient()
    ioas.map(client, MAP, 0, 2 * PAGE_SIZE, IOVA)
    (mapping,) = ioas.space.mappings
    explicit = alloc(context, Wish(function.id, ioas.id))
    automatic = hwpt_for(ioas, function)
    assert ioas.space.locked.of(client) == 2, "once for both"
    context.objects.destroy(explicit.id)
    assert mapping.pages is not None
    automatic.leave(function)
    assert [each.pages for each in ioas.space.mappings] == [None]
    assert ioas.space.locked.of(client) == 0


def test_memory_that_is_not_there_fails_the_attachment(
    context: Context, ioas: Ioas, function: Function
) -> None:
    ioas.map(FakeClient(limit=PAGE_SIZE), MAP, 0, 2 * PAGE_SIZE, IOVA)
    before = ids(context)
    fails(errno.EFAULT, hwpt_for, ioas, function)
    fails(errno.EFAULT, alloc, context, Wish(function.id, ioas.id))
    assert ids(context) == before and ioas.alignment == 1
    ioas.unmap(0, 2**64 - 1)
    assert hwpt_for(ioas, function).id == max(before) + 1
    context.objects.find(ioas.id, Ioas)


def test_two_attachments_at_once_make_one(context: Context, ioas: Ioas, function: Function) -> None:
    class Slow(FakeClient):
        asked, go = threading.Event(), threading.Event()

        def memlock_limit(self) -> int:
            self.asked.set()
            assert self.go.wait(60)
            return super().memlock_limit()

    client = Slow()
    ioas.map(client, MAP, 0, PAGE_SIZE, IOVA)
    found: list[Hwpt] = []
    threads = [threading.Thread(target=lambda: found.append(hwpt_for(ioas, function))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert client.asked.wait(60)
    assert not any(each.type is ObjectType.HWPT for each in context.objects.all()), "half made"
    client.go.set()
    for thread in threads:
        thread.join()
    assert found[0] is found[1] and found[0].users == 2


def test_the_end_of_the_context_ends_all(context: Context, ioas: Ioas, function: Function) -> None:
    client = FakeClient()
    ioas.map(client, MAP, 0, PAGE_SIZE, IOVA)
    alloc(context, Wish(function.id, ioas.id, DIRTY))
    alloc(context, Wish(function.id, ioas.id))
    context.put()
    assert not context.objects.all() and context.locked.of(client) == 0
    assert ioas.space.locked.of(client) == 0


# ---- HWPT_ALLOC ----


def test_the_client_names_it_when_the_block_ends(context: Context, ioas: Ioas, function: Function) -> None:
    with allocated(context.objects, Wish(function.id, ioas.id)) as made:
        assert made.id == 3
        fails(errno.ENOENT, context.objects.find, made.id, Hwpt)
        fails(errno.EBUSY, context.objects.destroy, ioas.id)
    assert context.objects.find(made.id, Hwpt) is made
    context.objects.destroy(made.id)
    context.objects.destroy(ioas.id)


def test_a_block_that_fails_takes_it_back(context: Context, ioas: Ioas, function: Function) -> None:
    with pytest.raises(KeyError), allocated(context.objects, Wish(function.id, ioas.id, DIRTY)):
        raise KeyError
    assert ids(context) == {1, 2} and ioas.alignment == 1
    context.objects.destroy(ioas.id)


Make = Callable[[Context, Ioas, Function], Wish]


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda c, i, f: Wish(99, 98, UNKNOWN, 1, 0, reserved=1), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(99, 98, UNKNOWN, data_type=1), errno.EINVAL),
        (lambda c, i, f: Wish(99, 98, UNKNOWN, data_size=1), errno.EINVAL),
        (lambda c, i, f: Wish(99, 98, UNKNOWN), errno.ENOENT),
        (lambda c, i, f: Wish(0, i.id), errno.ENOENT),
        (lambda c, i, f: Wish(i.id, i.id), errno.ENOENT),
        (lambda c, i, f: Wish(c.objects.add(Mediated()), i.id), errno.ENOENT),
        (lambda c, i, f: Wish(f.id, 98, UNKNOWN), errno.EINVAL),
        (lambda c, i, f: Wish(f.id, f.id, UNKNOWN), errno.EINVAL),
        (lambda c, i, f: Wish(f.id, i.id, UNKNOWN), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(f.id, i.id, 1 << 31 | FAULT), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(f.id, i.id, NEST), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(f.id, i.id, NEST | FAULT), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(f.id, i.id, 0, 1, 24), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(f.id, i.id, FAULT), errno.ENOENT),
        (lambda c, i, f: Wish(f.id, i.id, FAULT | DIRTY), errno.ENOENT),
        (lambda c, i, f: Wish(Function(c, BARE).id, i.id, DIRTY), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(Function(c, None).id, i.id, DIRTY), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(Function(c, None).id, i.id, PASID), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(Function(c, None).id, i.id, 0, 1, 24), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(f.id, hwpt_for(i, f).id), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(f.id, hwpt_for(i, f).id, DIRTY, 1, 24), errno.EOPNOTSUPP),
        (lambda c, i, f: Wish(f.id, hwpt_for(i, f).id, 0, 1, 24), errno.EINVAL),
        (lambda c, i, f: Wish(f.id, alloc(c, Wish(f.id, i.id)).id, PASID | FAULT, 1, 24), errno.EINVAL),
    ],
)
def test_errors_in_the_kernels_order(
    context: Context, ioas: Ioas, function: Function, make: Make, number: int
) -> None:
    wish = make(context, ioas, function)
    before = ids(context)
    fails(number, alloc, context, wish)
    assert ids(context) == before and not any(each.calls for each in context.objects.all())
    assert ioas.users == len([each for each in context.objects.all() if isinstance(each, Hwpt)])


@pytest.mark.parametrize("flags", [0, DIRTY, PASID, DIRTY | PASID])
def test_flags_that_the_iommu_has(context: Context, ioas: Ioas, function: Function, flags: int) -> None:
    made = alloc(context, Wish(function.id, ioas.id, flags))
    made.join(function)
    if flags & DIRTY:
        assert isinstance(made.space, TrackedSpace) and tracked_space(made) is made.space
    else:
        assert made.space is ioas.space
        fails(errno.EOPNOTSUPP, tracked_space, made)
    fails(errno.EBUSY, context.objects.destroy, made.id)
    made.leave(function)
    context.objects.destroy(made.id)


def test_a_destroyed_one_is_told_of_no_unmaps(context: Context, ioas: Ioas, function: Function) -> None:
    made = alloc(context, Wish(function.id, ioas.id, DIRTY))
    tracked_space(made).start()
    context.objects.destroy(made.id)
    assert not ioas.space.trackers


def test_dma_through_a_tracked_hwpt_is_that_of_the_ioas(
    context: Context, ioas: Ioas, function: Function
) -> None:
    made = alloc(context, Wish(function.id, ioas.id, DIRTY))
    client = FakeClient()
    ioas.map(client, MAP, 0, PAGE_SIZE, IOVA)
    made.space.dma_write(IOVA + 1, b"abc")
    assert client.read(1, 3) == b"abc" and ioas.space.dma_read(IOVA + 1, 3) == b"abc"
    ioas.unmap(IOVA, PAGE_SIZE)
    with pytest.raises(DmaFault):
        made.space.dma_write(IOVA, b"x")


# ---- GET_HW_INFO ----


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (IommuSpec(), HwInfo(HwInfoType.NONE, None, TRACKING)),
        (IommuSpec(dirty_tracking=False), HwInfo(HwInfoType.NONE, None, NO_ATS)),
    ],
)
def test_an_iommu_that_tells_nothing(context: Context, spec: IommuSpec, expected: HwInfo) -> None:
    function = Function(context, IommuUnit(0, spec))
    for flags, wanted in ((0, 0), (0, 2), (1, 0), (1, 2)):
        assert hw_info(function, flags, wanted) == expected
    assert hw_info(Function(context, None), 0, 0) == HwInfo(HwInfoType.NONE, None, NO_ATS)


def test_vtd_tells_its_registers(context: Context) -> None:
    unit = IommuUnit(0, IommuSpec(vtd_info=True))
    function = Function(context, unit)
    registers = (0, unit.capabilities, unit.extended_capabilities)
    for flags, wanted in ((0, 0), (0, 2), (1, 0), (1, 1)):
        found = hw_info(function, flags, wanted)
        assert found == HwInfo(HwInfoType.INTEL_VTD, registers, TRACKING)
    for wanted in (2, 3, 4, 2**32 - 1):
        fails(errno.EOPNOTSUPP, hw_info, function, 1, wanted)


def test_flags_and_reserved_bytes_of_hw_info() -> None:
    for flags, reserved in ((2, b"\0\0\0"), (3, b"\0\0\0"), (0, b"\0\0\1"), (1, b"\1\0\0")):
        fails(errno.EOPNOTSUPP, check_hw_info, flags, reserved)
    check_hw_info(0, b"\0\0\0")
    check_hw_info(1, b"\0\0\0")
