# SPDX-License-Identifier: Apache-2.0
"""Groups whose container is an iommufd: SET_CONTAINER, GET_STATUS, and the devices that they open."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.iommufd.client import Cdev, Iommufd, IommufdContainer
from tests.labs import MountedLab
from tests.vfio import client
from tests.vfio.client import PAGE, Container, Group, Memory, fails
from tests.vfio.devices import (
    GPU,
    NEIGHBOUR,
    UNPROTECTED,
    Device,
    bound,
    function_dir,
    group_device,
)
from tests.waiting import wait_for

BASE = 0x100000
MSI = 0xFEE00000
IOVA_RANGE = 1
VIABLE, CONTAINER_SET = 1, 2


@contextlib.contextmanager
def with_device(machine: MountedLab, group: str, name: str) -> Iterator[IommufdContainer]:
    """A container that the device `name` uses."""
    with (
        IommufdContainer(machine.path) as made,
        Group(machine.path, group) as member,
    ):
        member.set_container(made)
        with Device(group_device(machine.path, member, name)):
            yield made


@pytest.fixture
def physical(machine: MountedLab) -> Iterator[IommufdContainer]:
    with bound(machine, GPU) as (number,), with_device(machine, number, GPU) as made:
        yield made


@pytest.fixture
def card(machine: MountedLab) -> Iterator[tuple[str, str]]:
    """A mediated device: its group and its name."""
    with machine.create("mtty-2", "mtty") as made:
        yield made.group, made.name


@pytest.fixture
def gpu(machine: MountedLab) -> Iterator[tuple[str, str]]:
    """A physical function: its group and its name."""
    with bound(machine, GPU) as (number,):
        yield number, GPU


def context_of(container: IommufdContainer) -> Iommufd:
    return Iommufd(container.fd)


# ---- SET_CONTAINER, UNSET_CONTAINER, GET_STATUS ----


def test_set_container_refuses(machine: MountedLab, card: tuple[str, str]) -> None:
    with Group(machine.path, card[0]) as group, Iommufd(machine.path) as context:
        fails(errno.EFAULT, group.ioctl, client.GROUP_SET_CONTAINER, client.unmapped_address())
        fails(errno.EBADF, group.set_container, 9999)
        for path in (machine.path / "dev/vfio" / card[0], Path("/dev/null")):
            fd = group.fd if path.parent.name == "vfio" else os.open(path, os.O_RDWR)
            fails(errno.EBADFD, group.set_container, fd)
        assert group.flags == VIABLE
        group.set_container(context)
        for other in (context.fd, 9999):  # a bad descriptor comes first
            fails(errno.EBADF if other == 9999 else errno.EINVAL, group.set_container, other)
        with Container(machine.path) as container:
            fails(errno.EINVAL, group.set_container, container)
        assert group.flags == VIABLE | CONTAINER_SET
        group.unset_container()
        assert group.flags == VIABLE
        fails(errno.EINVAL, group.unset_container)
        with Container(machine.path) as container:
            group.set_container(container)
            fails(errno.EINVAL, group.set_container, context)


def test_no_set_iommu_is_needed(machine: MountedLab, card: tuple[str, str]) -> None:
    with Group(machine.path, card[0]) as group, Iommufd(machine.path) as context:
        fails(errno.EINVAL, group_device, machine.path, group, card[1])
        group.set_container(context)
        fails(errno.ENODEV, group_device, machine.path, group, "none")
        Device(group_device(machine.path, group, card[1])).close()
        group.unset_container()
        fails(errno.EINVAL, group_device, machine.path, group, card[1])


@pytest.mark.parametrize("kind", ["card", "gpu"])
def test_objects(machine: MountedLab, kind: str, request: pytest.FixtureRequest) -> None:
    """The compat IOAS is 1, the device that is opened 2, and the HWPT of a physical function 3."""
    number, name = request.getfixturevalue(kind)
    with Group(machine.path, number) as group, Iommufd(machine.path) as context:
        group.set_container(context)
        assert context.vfio_ioas() == 1
        fails(errno.ENOENT, context.destroy, 2)
        with Device(group_device(machine.path, group, name)) as device:
            for each in (1, 2, 3) if kind == "gpu" else (1, 2):
                fails(errno.EBUSY, context.destroy, each)
            with Device(group_device(machine.path, group, name)):  # it is bound once
                device.close()
                fails(errno.EBUSY, context.destroy, 2)
        fails(errno.ENOENT, context.destroy, 2)
        fails(errno.ENOENT, context.destroy, 3)
        context.destroy(1)
        fails(errno.ENODEV, context.vfio_ioas)
        fails(errno.ENODEV, group_device, machine.path, group, name)
        assert context.ioas() == 1  # nothing is left of the open that failed
        context.set_vfio_ioas(1)
        Device(group_device(machine.path, group, name)).close()


def test_a_group_leaves_although_its_device_is_open(
    machine: MountedLab, gpu: tuple[str, str], card: tuple[str, str]
) -> None:
    for number, name in (gpu, card):
        with Group(machine.path, number) as group, Iommufd(machine.path) as context:
            group.set_container(context)
            with Device(group_device(machine.path, group, name)) as device:
                group.unset_container()
                fails(errno.EBUSY, context.destroy, 2)
                assert device.config(0)
                fails(errno.EINVAL, group_device, machine.path, group, name)
                with Iommufd(machine.path) as other, Container(machine.path) as container:
                    assert group.flags == (0 if name == GPU else VIABLE)  # the context owns the function
                    if name == GPU:
                        fails(errno.EPERM, group.set_container, container)
                    group.set_container(other)
                    assert group.flags == VIABLE | CONTAINER_SET  # nobody looks
                    with Device(group_device(machine.path, group, name)):  # open already, so bound already
                        fails(errno.ENOENT, other.destroy, 2)
            fails(errno.ENOENT, context.destroy, 2)


def test_two_groups_share_the_ioas(machine: MountedLab, memory: Memory) -> None:
    with (
        bound(machine, GPU, NEIGHBOUR) as (one, two),
        IommufdContainer(machine.path) as container,
        Group(machine.path, one) as first,
        Group(machine.path, two) as second,
    ):
        first.set_container(container)
        second.set_container(container)
        with Device(group_device(machine.path, first, GPU)):
            container.map(BASE, memory.address, PAGE)
            with Device(group_device(machine.path, second, NEIGHBOUR)):
                fails(errno.EEXIST, container.map, BASE, memory.address, PAGE)
                fails(errno.ENOENT, context_of(container).destroy, 5)  # 1 and two devices and one HWPT
                fails(errno.EBUSY, context_of(container).destroy, 4)
        first.unset_container()
        second.unset_container()
        assert container.unmap(BASE, PAGE) == PAGE  # mappings outlive devices and groups


def test_group_and_cdev_exclude_each_other(machine: MountedLab, card: tuple[str, str]) -> None:
    minor = os.listdir(machine.path / f"sys/bus/mdev/devices/{card[1]}/vfio-dev")[0]
    node = machine.path / "dev/vfio/devices" / minor
    with Cdev(node) as cdev, Iommufd(machine.path) as context:
        with Group(machine.path, card[0]) as group:
            group.set_container(context)
            device = Device(group_device(machine.path, group, card[1]))
            fails(errno.EBUSY, cdev.bind, context)
        fails(errno.EBUSY, cdev.bind, context)  # the device keeps the group
        device.close()
        number = cdev.bind(context)
        fails(errno.EBUSY, Group, machine.path, card[0])
        fails(errno.EBUSY, context.destroy, number)
    Group(machine.path, card[0]).close()


def test_domains_are_counted(machine: MountedLab) -> None:
    """Functions in one IOAS share the domain of its HWPT, whether they were opened by group or bound."""
    used = machine.path / "sys/class/iommu/dmar0/intel-iommu/domains_used"
    before = int(used.read_text())
    with (
        bound(machine, GPU, NEIGHBOUR) as (one, _),
        IommufdContainer(machine.path) as container,
        Group(machine.path, one) as group,
    ):
        group.set_container(container)
        assert int(used.read_text()) == before  # nothing is claimed
        with Device(group_device(machine.path, group, GPU)):
            fails(errno.EPERM, (function_dir(machine, GPU) / "iommu_group/type").write_text, "identity")
            minor = os.listdir(function_dir(machine, NEIGHBOUR) / "vfio-dev")[0]
            with Cdev(machine.path / "dev/vfio/devices" / minor) as cdev:
                cdev.bind(container)
                assert int(used.read_text()) == before - 1
                assert cdev.attach(context_of(container).vfio_ioas()) == 3
                assert int(used.read_text()) == before - 1
        wait_for(lambda: int(used.read_text()) == before)


# ---- opening a device attaches it ----


def test_what_cannot_be_attached_is_not_opened(
    machine: MountedLab, gpu: tuple[str, str], memory: Memory
) -> None:
    """Mappings that were made before are looked at, and pinned, as the device is opened."""
    bad = [
        (MSI, memory.address, PAGE, errno.EADDRINUSE),
        (2**48, memory.address, PAGE, errno.EADDRINUSE),
        (BASE, memory.address, 17, errno.EADDRINUSE),
        (BASE + 1, memory.address + 1, PAGE, errno.EADDRINUSE),
        (BASE, client.unmapped_address(), PAGE, errno.EFAULT),
    ]
    number, name = gpu
    with Group(machine.path, number) as group, IommufdContainer(machine.path) as container:
        group.set_container(container)
        for iova, vaddr, size, wrong in bad:
            container.map(iova, vaddr, size)
            for _ in range(2):
                fails(wrong, group_device, machine.path, group, name)
            assert container.unmap(iova, size) == size
        fails(errno.ENOENT, context_of(container).destroy, 2)
        with Device(group_device(machine.path, group, name)):
            fails(errno.EFAULT, container.map, BASE, client.unmapped_address(), PAGE)
        container.map(BASE, client.unmapped_address(), PAGE)


def test_a_mediated_device_takes_what_a_physical_function_does_not(
    machine: MountedLab, card: tuple[str, str], memory: Memory
) -> None:
    """But it needs whole pages, too."""
    with Group(machine.path, card[0]) as group, IommufdContainer(machine.path) as container:
        group.set_container(container)
        for iova, vaddr in ((MSI, memory.address), (2**48, memory.address), (0, client.unmapped_address())):
            container.map(iova, vaddr, PAGE)
        with Device(group_device(machine.path, group, card[1])):
            fails(errno.EINVAL, container.map, BASE, memory.address, 17)
        container.map(BASE, memory.address, 17)
        fails(errno.EADDRINUSE, group_device, machine.path, group, card[1])


def test_type1_after_a_domain_with_mappings(physical: IommufdContainer, memory: Memory) -> None:
    physical.map(BASE, memory.address, PAGE)
    fails(errno.EINVAL, physical.set_iommu, client.TYPE1)
    physical.unmap(BASE, PAGE)
    physical.set_iommu(client.TYPE1)


def test_info_of_a_physical_function(physical: IommufdContainer) -> None:
    found, caps = physical.info()
    assert found.iova_pgsizes == 1 << 12 | 1 << 21 | 1 << 30
    body = caps[IOVA_RANGE][1]
    assert found.argsz == 88 and int.from_bytes(body[:4], "little") == 2
    numbers = [int.from_bytes(body[at : at + 8], "little") for at in range(8, 40, 8)]
    assert numbers == [0, MSI - 1, MSI + 0x100000, 2**48 - 1]
    assert physical.dma_avail == 2**32 - 1


def test_info_of_a_mediated_device(machine: MountedLab, card: tuple[str, str]) -> None:
    with with_device(machine, *card) as mediated:
        found, caps = mediated.info()
        assert (found.argsz, found.iova_pgsizes) == (72, 2**64 - PAGE)
        assert caps[IOVA_RANGE][1][8:] == bytes(8) + b"\xff" * 8


def test_map_for_a_physical_function(physical: IommufdContainer, memory: Memory) -> None:
    fails(errno.EFAULT, physical.map, BASE, client.unmapped_address(), PAGE)
    for iova in (MSI, MSI - PAGE, 2**48 - PAGE):
        fails(errno.EINVAL, physical.map, iova, memory.address, 2 * PAGE)
    fails(errno.EINVAL, physical.map, BASE, memory.address, 17)
    fails(errno.EINVAL, physical.map, BASE + 1, memory.address, PAGE)
    fails(errno.EINVAL, physical.map, BASE, memory.address + 1, PAGE)
    physical.map(MSI - PAGE, memory.address, PAGE)
    physical.map(BASE, memory.address, PAGE, 0)
    assert physical.unmap(0, 0, client.UNMAP_EVERYTHING) == 2 * PAGE


def test_v1_splits_what_is_pinned(physical: IommufdContainer, memory: Memory) -> None:
    physical.set_iommu(client.TYPE1)
    physical.map(BASE, memory.address, 8 * PAGE)
    assert physical.unmap(BASE + 2 * PAGE, PAGE) == PAGE
    assert physical.unmap(BASE, 8 * PAGE) == 7 * PAGE


@needs.capability("CAP_SYS_RAWIO")
def test_noiommu(machine: MountedLab, memory: Memory) -> None:
    enable = machine.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    enable.write_text("Y")
    try:
        with bound(machine, UNPROTECTED, GPU) as (number, other), IommufdContainer(machine.path) as container:
            context = context_of(container)
            with Group(machine.path, f"noiommu-{number}") as group:
                group.set_container(container)
                assert container.check_extension(client.NOIOMMU) == 1
                for extension in (client.TYPE1, client.TYPE1V2, client.UNMAP_ALL):
                    assert container.check_extension(extension) == 0
                for kind in (client.TYPE1, client.TYPE1V2, 0):
                    fails(errno.EINVAL, container.set_iommu, kind)
                container.set_iommu(client.NOIOMMU)
                container.set_iommu(client.NOIOMMU)
                fails(errno.ENODEV, container.info)
                fails(errno.ENODEV, container.map, BASE, memory.address, PAGE)
                fails(errno.ENODEV, context.vfio_ioas)
                with Group(machine.path, other) as protected:
                    fails(errno.EINVAL, protected.set_container, container)
                with Device(group_device(machine.path, group, UNPROTECTED)) as device:
                    assert device.config(0)
                    fails(errno.ENOENT, context.destroy, 1)  # it is not bound
                context.set_vfio_ioas(context.ioas())
                fails(errno.EPERM, group_device, machine.path, group, UNPROTECTED)
                with Iommufd(machine.path) as mixed:
                    mixed.set_vfio_ioas(mixed.ioas())
                    group.unset_container()
                    fails(errno.EINVAL, group.set_container, mixed)
    finally:
        enable.write_text("N")
