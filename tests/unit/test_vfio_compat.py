# SPDX-License-Identifier: Apache-2.0
"""Devices of a group that has joined an iommufd, opened by several threads at once, without a mount."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from devmodel.iommu.api import MustWait
from devmodel.iommufd.compat import Compat
from devmodel.iommufd.context import Context
from devmodel.vfio.compat import CompatContainer
from devmodel.vfio.container import Container
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Group
from devmodel.vfio.groupfile import GroupFile, open_group
from tests.unit.fakes import FakeClient, FakePages, fails
from tests.unit.test_vfio import Toy

IOVA, VADDR, PAGE = 0x10000, 0x7000, 4096
SECONDS = 60


class Function(Toy):
    """A physical function."""

    __slots__ = ()
    emulated_iommu = False


class Held(FakeClient):
    """A client that lets nothing be pinned before it is told to; then `answer` decides."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.told = threading.Semaphore(0), threading.Semaphore(0)
        self.answer: Callable[[], None] = lambda: None

    def pin(self, vaddr: int, size: int, write: bool) -> FakePages:
        self.asked.release()
        assert self.told.acquire(timeout=SECONDS)
        self.answer()
        return super().pin(vaddr, size, write)


def gone() -> None:
    raise OSError(errno.EFAULT, "no such memory")


@pytest.fixture
def compat() -> Compat:
    return Compat(Context())


@pytest.fixture
def file(compat: Compat) -> GroupFile:
    """The open file of a group with a function, which has joined the iommufd."""
    group = Group(7)
    Function("function", group)
    made = open_group(group)
    made.set_container(CompatContainer(compat))
    return made


def numbers(compat: Compat) -> list[int]:
    return sorted(each.id for each in compat.context.objects.all())


def test_the_device_lane_opens_nothing(file: GroupFile, compat: Compat) -> None:
    with pytest.raises(MustWait):
        DeviceFile.named(file, "function", may_wait=False)
    assert numbers(compat) == [1] and not file.group.devices[0].users


def test_others_wait_for_the_first_open(file: GroupFile, compat: Compat) -> None:
    """They attach nothing. The group can be asked meanwhile, and its file closed."""
    client, toy = Held(), file.group.devices[0]
    compat.map_dma(client, 3, IOVA, VADDR, PAGE)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(DeviceFile.named, file, "function")
        assert client.asked.acquire(timeout=SECONDS)
        second = threads.submit(DeviceFile.named, file, "function")
        assert file.status() == (True, True)
        fails(errno.EBUSY, open_group, file.group)
        file.close()
        assert not (first.done() or second.done())
        client.told.release()
        files = [first.result(SECONDS), second.result(SECONDS)]
    assert numbers(compat) == [1, 2, 3] and toy.users == 2
    assert not client.asked.acquire(blocking=False)  # it was pinned once
    for each in files:
        assert file.group.opened is file
        each.close()
    assert numbers(compat) == [1] and file.group.opened is None


def test_the_next_tries_when_the_first_fails(file: GroupFile, compat: Compat) -> None:
    client = Held()
    compat.map_dma(client, 3, IOVA, VADDR, PAGE)
    client.answer = gone
    with ThreadPoolExecutor() as threads:
        first = threads.submit(DeviceFile.named, file, "function")
        assert client.asked.acquire(timeout=SECONDS)
        second = threads.submit(DeviceFile.named, file, "function")
        client.told.release()
        fails(errno.EFAULT, first.result, SECONDS)
        assert client.asked.acquire(timeout=SECONDS)
        client.answer = lambda: None
        client.told.release()
        opened = second.result(SECONDS)
    assert numbers(compat) == [1, 2, 3]
    opened.close()
    assert numbers(compat) == [1]


def test_unset_while_a_device_is_being_opened(file: GroupFile, compat: Compat) -> None:
    """The open goes on; the device stays in the iommufd, which a container cannot claim it from."""
    client = Held()
    compat.map_dma(client, 3, IOVA, VADDR, PAGE)
    with ThreadPoolExecutor() as threads:
        opening = threads.submit(DeviceFile.named, file, "function")
        assert client.asked.acquire(timeout=SECONDS)
        file.unset_container()
        fails(errno.EPERM, file.set_container, Container())
        assert file.status() == (False, False)
        client.told.release()
        opened = opening.result(SECONDS)
    owners = [file.group.owner]
    opened.close()
    assert [*owners, file.group.owner] == [compat.context, None]
    assert file.status() == (True, False)
    file.set_container(Container())


def test_two_contexts_do_not_own_one_group(file: GroupFile, compat: Compat) -> None:
    second = Function("second", file.group)
    opened = DeviceFile.named(file, "function")
    file.unset_container()
    other = Compat(Context())
    file.set_container(CompatContainer(other))
    fails(errno.EPERM, DeviceFile.named, file, "second")
    assert not second.users and numbers(other) == [1]
    again = DeviceFile.named(file, "function")  # it is open already
    assert numbers(other) == [1]
    again.close()
    opened.close()
    DeviceFile.named(file, "second").close()


def test_an_ioas_that_is_gone(file: GroupFile, compat: Compat) -> None:
    compat.clear_ioas()
    fails(errno.ENODEV, DeviceFile.named, file, "function")
    assert numbers(compat) == [1] and not file.links and not file.group.devices[0].users


def test_a_device_that_cannot_be_made_is_not_bound(file: GroupFile, compat: Compat) -> None:
    toy = file.group.devices[0]
    assert isinstance(toy, Function)
    toy.broken = True
    fails(errno.EIO, DeviceFile.named, file, "function")
    assert numbers(compat) == [1] and not file.links
    toy.broken = False
    DeviceFile.named(file, "function").close()
