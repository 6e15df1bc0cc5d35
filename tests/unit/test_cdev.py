# SPDX-License-Identifier: Apache-2.0
"""Files of devices' own character devices, without a mount: who owns a group of several devices, what an
attachment that fails leaves, and clients that have ended."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator

import pytest

from devmodel.iommu.dmaspace import DmaSpace
from devmodel.iommufd.context import Context
from devmodel.iommufd.device import Access, PhysicalDevice
from devmodel.iommufd.ioas import Ioas
from devmodel.vfio.cdev import CdevFile
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Group
from devmodel.vfio.groupfile import open_group
from devmodel.vfio.lingering import InUse, Lingering
from tests.unit.fakes import fails
from tests.unit.test_vfio import Toy


class Function(Toy):
    """A physical function, without an IOMMU unit."""

    emulated_iommu = False


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    yield made
    made.put()


def bound(device: Toy, context: Context, ended: Callable[[], bool] = lambda: False) -> CdevFile:
    """The device, opened by its own character device and bound."""
    file = CdevFile(device, ended)
    file.bind(None, lambda: context, ended)
    return file


def ioas(context: Context) -> Ioas:
    made = Ioas()
    context.objects.add(made)
    return made


def space_of(device: Toy) -> DmaSpace | None:
    """Where the DMA of the device goes."""
    return device.made.dma._space


# ---- a group of several devices ----


def test_a_group_belongs_to_one_context(context: Context) -> None:
    group, other = Group(1), Context()
    first, second = Function("first", group), Function("second", group)
    one = bound(first, context)
    fails(errno.EPERM, bound, second, other)
    assert second.users == 0
    two = bound(second, context)
    assert group.owner is context and [each.bound and each.bound.id for each in (one, two)] == [1, 2]
    one.close()
    fails(errno.EPERM, bound, first, other)
    two.close()
    assert [group.owner] == [None]
    bound(first, other).close()


def test_mediated_devices_of_a_group_may_have_several_contexts(context: Context) -> None:
    group, other = Group(1), Context()
    files = [bound(Toy("first", group), context), bound(Toy("second", group), other)]
    assert all(isinstance(file.bound, Access) for file in files)
    fails(errno.EBUSY, open_group, group)
    files[0].close()
    fails(errno.EBUSY, open_group, group)
    files[1].close()
    open_group(group).close()


def test_a_host_driver_keeps_a_group(context: Context) -> None:
    group, mediated = Group(1), Group(2)
    for each in (group, mediated):
        each.begin_host_use()
    fails(errno.EPERM, bound, Function("function", group), context)
    bound(Toy("mediated", mediated), context).close()
    group.end_host_use()
    bound(Function("function", group), context).close()


def test_a_group_without_an_iommu_takes_rawio(context: Context) -> None:
    function = Function("function", Group(1, noiommu=True))
    fails(errno.EPERM, CdevFile, function)
    assert function.open_count == 0
    file = CdevFile(function, rawio=True)
    file.bind(None, lambda: context)
    assert isinstance(file.bound, PhysicalDevice) and not file.bound.reserved_iovas
    file.close()


# ---- what fails leaves nothing ----


def test_a_device_that_does_not_start_is_not_bound(context: Context) -> None:
    class Failing(Toy):
        def first_opened(self) -> None:
            raise OSError(errno.EIO, "does not start")

    device = Failing("toy", Group(1))
    file = CdevFile(device)
    fails(errno.EIO, file.bind, None, lambda: context)
    assert (device.users, len(context.objects), file.bound) == (0, 0, None)
    open_group(device.group).close()
    file.close()
    assert device.open_count == 0


def test_a_context_that_has_ended_takes_nobody() -> None:
    device, ended = Toy("toy", Group(1)), Context()
    ended.put()
    fails(errno.EBADFD, bound, device, ended)
    assert device.users == 0


@pytest.mark.parametrize("kind", [Toy, Function])
def test_a_client_that_cannot_be_told_the_id(context: Context, kind: type[Toy]) -> None:
    """The client has the device only when it knows its id. Until then no other call can use the binding,
    which may have to be undone."""
    device = kind("toy", Group(1))
    file, other, target = CdevFile(device), CdevFile(device), ioas(context)

    def tell(number: int) -> None:
        fails(errno.EINVAL, file.attach, target.id)
        fails(errno.EINVAL, file.detach)
        fails(errno.EINVAL, other.bind, None, lambda: context)
        assert not file.granted
        raise OSError(errno.EFAULT, "told nothing")

    fails(errno.EFAULT, file.bind, None, lambda: context, tell=tell)
    assert (device.users, len(context.objects), device.open_count) == (0, 1, 2)
    other.close()
    told: list[int] = []
    file.bind(None, lambda: context, tell=told.append)
    assert told == [2] and [file.granted] == [True]
    file.attach(target.id)
    file.close()
    assert [file.granted] == [False] and len(context.objects) == 1


@pytest.mark.parametrize("kind", [Toy, Function])
def test_dma_that_does_not_end_leaves_the_attachment(
    context: Context, kind: type[Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devmodel.device.dma.DRAIN_SECONDS", 0.02)
    device = kind("toy", Group(1))
    file, first, second = bound(device, context), ioas(context), ioas(context)
    file.attach(first.id)
    objects = len(context.objects)
    with device.made.dma.under_way():
        fails(errno.EBUSY, file.attach, second.id)
        fails(errno.EBUSY, file.detach)
        assert space_of(device) is first.space and len(context.objects) == objects
    context.objects.destroy(second.id)
    fails(errno.EBUSY, context.objects.destroy, first.id)
    file.detach()
    assert space_of(device) is None
    context.objects.destroy(first.id)
    file.close()


@pytest.mark.parametrize("kind", [Toy, Function])
def test_a_function_is_never_without_a_space(context: Context, kind: type[Toy]) -> None:
    """While one attachment takes the place of another; a mediated device is, as in the kernel."""
    device = kind("toy", Group(1))
    file, first, second = bound(device, context), ioas(context), ioas(context)
    file.attach(first.id)
    seen: list[object] = []
    begun, go_on = threading.Event(), threading.Event()

    def dma() -> None:
        with device.made.dma.under_way():
            begun.set()
            while space_of(device) is first.space:
                go_on.wait(0.001)
            seen.append(space_of(device))

    thread = threading.Thread(target=dma)
    thread.start()
    begun.wait(60)
    file.attach(second.id)
    thread.join()
    assert seen == [None if kind is Toy else second.space] and space_of(device) is second.space
    file.close()


# ---- clients that have ended ----


def test_a_removal_waits_for_clients_that_have_all_ended(context: Context) -> None:
    device = Toy("toy", Group(1))
    lives, dead = CdevFile(device, lambda: False), bound(device, context, lambda: True)
    with pytest.raises(InUse) as caught:
        device.retire()
    assert not isinstance(caught.value, Lingering)
    lives.close()
    with pytest.raises(Lingering):
        device.retire()
    nobodys = DeviceFile(device)
    with pytest.raises(InUse) as caught:
        device.retire()
    assert not isinstance(caught.value, Lingering)
    nobodys.close()
    dead.close()
    device.retire()


def test_a_bind_waits_for_a_client_that_has_ended(context: Context) -> None:
    device = Toy("toy", Group(1))
    dead, file = bound(device, context, lambda: True), CdevFile(device)
    timer = threading.Timer(0.05, dead.close)
    timer.start()
    told: list[int] = []
    file.bind(None, lambda: context, tell=told.append)
    timer.join()
    assert told == [1]
    assert not device.group.watchers
    file.close()
