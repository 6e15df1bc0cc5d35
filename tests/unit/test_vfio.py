# SPDX-License-Identifier: Apache-2.0
"""Containers, groups and device files: preconditions, errnos, and lifetimes in every order of closing."""

import errno
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from devmodel.device.base import Device
from devmodel.iommu.api import Extension, MustWait, Prot
from devmodel.iommu.type1 import Type1
from devmodel.looks import GRACE, Looks, looks
from devmodel.vfio.container import Container, ContainerGroup
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Assignable, Group, retire_all
from devmodel.vfio.groupfile import GroupFile, open_group
from devmodel.vfio.lingering import PATIENCE, InUse, Lingering
from tests.unit.fakes import FakeClient, fails


class Toy(Assignable):
    """An assignable device without anything."""

    __slots__ = ("broken", "made")

    def __init__(self, name: str, group: Group) -> None:
        super().__init__(name, group)
        self.made = Device(name, [], [])
        self.broken = False

    @property
    def device(self) -> Device:
        if self.broken:
            raise OSError(errno.EIO, "cannot be made")
        return self.made


class Closable(Protocol):
    def close(self) -> None: ...


def iommu_of(container: Container) -> Type1:
    """The container's IOMMU, which must be a type1."""
    assert isinstance(container.iommu, Type1)
    return container.iommu


@pytest.fixture
def group() -> Group:
    made = Group(7)
    Toy("toy", made)
    return made


@pytest.fixture
def container() -> Container:
    return Container()


@pytest.fixture
def ready(group: Group, container: Container) -> GroupFile:
    """An open group in a container with a type1v2 IOMMU."""
    file = open_group(group)
    file.set_container(container)
    container.set_iommu(Extension.TYPE1V2)
    return file


def test_extensions_before_and_after_set_iommu(container: Container, group: Group) -> None:
    supported = {ext for ext in range(-1, 64) if container.check_extension(ext)}
    assert supported == {Extension.TYPE1, Extension.TYPE1V2, Extension.UNMAP_ALL}
    assert {container.check_extension(ext) for ext in supported} == {1}
    open_group(group).set_container(container)
    container.set_iommu(Extension.TYPE1)
    assert container.check_extension(Extension.DMA_CC) == 1
    assert container.check_extension(Extension.NOIOMMU) == 0


def test_set_iommu_needs_a_group_and_happens_once(container: Container, group: Group) -> None:
    fails(errno.EINVAL, container.set_iommu, Extension.TYPE1)
    open_group(group).set_container(container)
    for unknown in (0, -1, 6, Extension.NOIOMMU, Extension.DMA_CC, 2**31):
        fails(errno.ENODEV, container.set_iommu, unknown)
    fails(errno.EINVAL, container.set_iommu, Extension.UNMAP_ALL)
    container.set_iommu(Extension.TYPE1)
    assert not iommu_of(container).v2
    fails(errno.EINVAL, container.set_iommu, Extension.TYPE1V2)


def test_a_group_opens_once(group: Group) -> None:
    file = open_group(group)
    fails(errno.EBUSY, open_group, group)
    file.close()
    file.close()
    open_group(group).close()


def test_what_an_ended_client_has_open_is_waited_for_by_who_may(group: Group) -> None:
    file = open_group(group, lambda: True)
    with pytest.raises(MustWait):
        open_group(group)
    timer = threading.Timer(0.05, file.close)
    timer.start()
    open_group(group, may_wait=True).close()
    timer.join()
    assert not group.watchers


def test_clients_that_end_one_after_the_other_are_waited_for_once(group: Group) -> None:
    """A hostile one that has the file says so again and again."""
    file, ended, begun = open_group(group, lambda: True), threading.Event(), time.monotonic()

    def renew() -> None:
        while not ended.wait(0.01):
            file.used_by(lambda: True)
            with group.lock:
                group.let_go()

    thread = threading.Thread(target=renew)
    thread.start()
    fails(errno.EBUSY, open_group, group, may_wait=True)
    ended.set()  # it would never come to this if each of them were waited for
    thread.join()
    assert time.monotonic() - begun > PATIENCE * 0.9


def test_whose_file_it_is_decides(group: Group) -> None:
    file = open_group(group, lambda: True)
    file.used_by(lambda: False)
    fails(errno.EBUSY, open_group, group)
    file.used_by(lambda: True)
    with pytest.raises(MustWait):
        open_group(group)


def test_whose_device_it_is_decides(ready: GroupFile, group: Group) -> None:
    device = group.devices[0]
    held = DeviceFile.named(ready, "toy")
    ready.used_by(lambda: True)
    with pytest.raises(Lingering):
        device.retire()
    beside = DeviceFile(device)
    with pytest.raises(InUse) as caught:
        device.retire()
    assert caught.value.errno == errno.EBUSY and not isinstance(caught.value, Lingering)
    beside.close()
    held.close()
    device.retire()


@pytest.fixture
def look() -> Iterator[Looks]:
    """The looks of this process; the test after this one has none."""
    yield looks
    while looks.may_hold:
        time.sleep(GRACE / 10)


def test_a_look_at_its_files_may_be_all_that_uses_a_group(
    ready: GroupFile, group: Group, look: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is alive, so it is in use by a client as soon as no look can be the reason."""
    device = group.devices[0]
    monkeypatch.setattr("devmodel.vfio.lingering.PATIENCE", 3600.0)
    with monkeypatch.context() as long:
        long.setattr("devmodel.looks.GRACE", 3600.0)
        with look:
            pass
        with pytest.raises(MustWait):  # a moment later, too
            open_group(group)
    begun = time.monotonic()
    with look:
        for each in (ready.group, group):
            with pytest.raises(MustWait):
                open_group(each)
        held = DeviceFile.named(ready, "toy")
        with pytest.raises(MustWait):
            ready.unset_container()
        with pytest.raises(Lingering):
            device.retire()
    fails(errno.EBUSY, open_group, group, may_wait=True)
    assert time.monotonic() - begun >= GRACE and not look.may_hold
    fails(errno.EBUSY, ready.unset_container)
    with pytest.raises(InUse) as caught:
        device.retire()
    assert not isinstance(caught.value, Lingering)
    held.close()


def test_a_group_that_a_look_has_in_use_opens_when_it_is_closed(
    ready: GroupFile, group: Group, look: Looks
) -> None:
    with look:
        later = threading.Timer(0.05, ready.close)
        later.start()
        assert open_group(group, may_wait=True).status()
    later.join()


def test_a_group_without_devices_is_enodev(group: Group) -> None:
    group.devices[0].retire()
    assert group.gone
    fails(errno.ENODEV, open_group, group)


def test_status_follows_the_container(group: Group, container: Container) -> None:
    file = open_group(group)
    assert file.status() == (True, False)
    file.set_container(container)
    assert file.status() == (True, True)
    file.unset_container()
    assert file.status() == (True, False)


def test_set_and_unset_container_preconditions(ready: GroupFile, container: Container) -> None:
    fails(errno.EINVAL, ready.set_container, container)
    held = DeviceFile.named(ready, "toy")
    fails(errno.EBUSY, ready.unset_container)
    held.close()
    ready.unset_container()
    fails(errno.EINVAL, ready.unset_container)


def test_a_closed_container_takes_no_group(group: Group, container: Container) -> None:
    container.close()
    fails(errno.EBADF, open_group(group).set_container, container)


def test_a_group_with_a_host_driver_is_not_viable(container: Container) -> None:
    group = Group(0)
    Toy("pf", group)
    group.begin_host_use()
    file = open_group(group)
    assert file.status() == (False, False)
    fails(errno.EPERM, file.set_container, container)
    assert not container.groups


def test_get_device_preconditions(group: Group, container: Container) -> None:
    file = open_group(group)
    fails(errno.ENODEV, file.get_device, "other")
    fails(errno.EINVAL, file.get_device, "toy")
    file.set_container(container)
    fails(errno.EINVAL, DeviceFile.named, file, "toy")
    container.set_iommu(Extension.TYPE1V2)
    assert file.get_device("toy") is group.devices[0]
    fails(errno.ENODEV, DeviceFile.named, file, "other")


def test_a_device_that_cannot_be_made_is_not_held(ready: GroupFile, group: Group) -> None:
    toy = group.devices[0]
    assert isinstance(toy, Toy)
    toy.broken = True
    fails(errno.EIO, DeviceFile.named, ready, "toy")
    assert toy.open_count == 0
    ready.unset_container()


def test_devices_open_more_than_once_and_close_twice(ready: GroupFile, group: Group) -> None:
    toy = group.devices[0]
    first, second = DeviceFile.named(ready, "toy"), DeviceFile.named(ready, "toy")
    assert first.device is second.device and toy.open_count == 2
    first.close()
    first.close()
    assert toy.open_count == 1


@pytest.mark.parametrize("order", [*itertools.permutations(["container", "group", "one", "two"])])
def test_the_last_file_to_close_ends_the_groups_use_whatever_the_order(
    group: Group, container: Container, order: tuple[str, ...]
) -> None:
    file = open_group(group)
    file.set_container(container)
    container.set_iommu(Extension.TYPE1V2)
    iommu = iommu_of(container)
    iommu.map(FakeClient(), 0, 0, 4096, Prot.READ)
    files: dict[str, Closable] = {
        "container": container,
        "group": file,
        "one": DeviceFile.named(file, "toy"),
        "two": DeviceFile.named(file, "toy"),
    }
    left = set(order)
    for name in order:
        in_use = bool(left & {"group", "one", "two"})
        assert (group.opened is file) is in_use
        assert (container.iommu is iommu) is in_use
        if in_use:
            fails(errno.EBUSY, open_group, group)
            assert iommu.dma_avail == 65534
        files[name].close()
        left.remove(name)
    assert group.opened is None and container.iommu is None and not container.groups
    assert iommu.dma_avail == 65535
    assert open_group(group).status() == (True, False)


def test_the_iommu_lives_until_the_last_group_leaves(container: Container) -> None:
    groups = [Group(number) for number in (1, 2)]
    for group in groups:
        Toy(f"toy{group.number}", group)
    files = [open_group(group) for group in groups]
    for file in files:
        file.set_container(container)
    container.set_iommu(Extension.TYPE1V2)
    files[0].close()
    first = iommu_of(container)
    files[1].unset_container()
    files[1].set_container(container)
    fails(errno.EINVAL, files[1].get_device, "toy2")
    container.set_iommu(Extension.TYPE1)
    assert iommu_of(container) is not first


def test_retire_refuses_while_the_device_is_open(ready: GroupFile, group: Group) -> None:
    toy = group.devices[0]
    for held in (DeviceFile(toy), DeviceFile.named(ready, "toy")):
        fails(errno.EBUSY, toy.retire)
        held.close()
    toy.retire()
    fails(errno.ENODEV, toy.retire)
    fails(errno.ENODEV, toy.hold)
    fails(errno.ENODEV, DeviceFile, toy)


def test_a_group_that_loses_its_devices_revokes_its_file(
    ready: GroupFile, group: Group, container: Container
) -> None:
    """The container loses the group, and what joins the group later has a file of its own."""
    toy = group.devices[0]
    iommu = iommu_of(container)
    iommu.map(FakeClient(), 0, 0, 4096, Prot.READ)
    toy.retire()
    assert ready.revoked and not container.groups
    fails(errno.EINVAL, container.set_iommu, Extension.TYPE1V2)
    assert iommu.dma_avail == 65535

    def check() -> None:
        fails(errno.ENODEV, ready.status)
        fails(errno.ENODEV, ready.set_container, container)
        fails(errno.ENODEV, ready.set_container, None)
        fails(errno.EINVAL, ready.unset_container)
        fails(errno.ENODEV, ready.get_device, "toy")
        fails(errno.ENODEV, DeviceFile.named, ready, "toy")
        fails(errno.EINVAL, DeviceFile, toy, ready)

    fails(errno.ENODEV, open_group, group)
    fails(errno.ENODEV, ready.status)
    toy.join()
    check()
    file = open_group(group)
    file.set_container(container)
    container.set_iommu(Extension.TYPE1V2)
    held = DeviceFile.named(file, "toy")
    check()
    ready.close()
    assert container.groups
    fails(errno.EBUSY, open_group, group)
    held.close()
    file.close()
    open_group(group).close()
    assert not container.groups


def test_the_files_of_a_device_that_vanished_keep_the_container(
    ready: GroupFile, group: Group, container: Container
) -> None:
    held = DeviceFile.named(ready, "toy")
    group.devices[0].withdraw()
    assert ready.status() == (True, True)
    fails(errno.ENODEV, ready.get_device, "toy")
    fails(errno.EBUSY, ready.unset_container)
    held.close()
    assert not container.groups
    fails(errno.ENODEV, ready.status)
    fails(errno.EINVAL, ready.unset_container)
    ready.close()


def test_a_set_container_under_way_keeps_the_device(group: Group, container: Container) -> None:
    """As on Linux, where it holds the lock that the removal of a group takes."""
    file, toy = open_group(group), group.devices[0]
    tried: list[ContainerGroup] = []

    class Slow(Container):
        def attach(self, group: ContainerGroup) -> None:
            fails(errno.EBUSY, toy.retire)
            fails(errno.EINVAL, file.set_container, container)
            tried.append(group)
            super().attach(group)

    slow = Slow()
    file.set_container(slow)
    assert tried == [group]
    toy.retire()
    assert not slow.groups
    file.close()


def test_of_several_devices_all_leave_or_none() -> None:
    groups = [Group(number) for number in (1, 2)]
    toys = [Toy(f"toy{group.number}", group) for group in groups]
    files, held = [open_group(group) for group in groups], DeviceFile(toys[1])
    fails(errno.EBUSY, retire_all, toys)
    for file, toy in zip(files, toys, strict=True):
        assert (toy.gone, toy.leaving, file.revoked) == (False, 0, False)
    held.close()
    retire_all(toys)
    assert [file.revoked for file in files] == [True, True]


def test_hold_and_retire_never_both_succeed() -> None:
    for _ in range(200):
        group = Group(1)
        toy = Toy("toy", group)
        outcome: list[str] = []
        start = threading.Barrier(2)

        def attempt(
            name: str,
            call: Callable[..., object],
            start: threading.Barrier = start,
            outcome: list[str] = outcome,
        ) -> None:
            start.wait()
            try:
                call()
            except OSError as error:
                outcome.append(f"{name} {errno.errorcode[error.errno or 0]}")
            else:
                outcome.append(name)

        threads = [
            threading.Thread(target=attempt, args=("hold", toy.hold)),
            threading.Thread(target=attempt, args=("retire", toy.retire)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcome) in (["hold", "retire EBUSY"], ["hold ENODEV", "retire"])
