# SPDX-License-Identifier: Apache-2.0
"""Functions of one IOMMU group on a real mount, each opened by its own character device: one iommufd has all
of them, and they do DMA through one HWPT."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.iommufd.client import Cdev, Iommufd
from tests.iommufd.devices import Copier, cdev_of
from tests.iommufd.test_exclusion import DEV_ID, DEV_ID_OWNED, NOT_OWNED, OWNED, hot_reset, hot_reset_info
from tests.labs import MountedLab, described
from tests.vfio.client import Container, Group, Memory, fails
from tests.vfio.devices import Device, bound, function_dir, give_back, group_device, vfio_pci
from tests.vfio.test_shared_groups import (
    AUDIO,
    CONTAINER_SET,
    GPU,
    LAB,
    OTHER,
    PAGE,
    VIABLE,
    copies,
    driver,
    number_of,
    unbind,
)

IOVA = 0x10000


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("shared"), LAB) as mounted:
        yield mounted


@pytest.fixture
def number(machine: MountedLab) -> Iterator[str]:
    """The number of the group of two functions, which vfio-pci drives."""
    with bound(machine, GPU, AUDIO) as (number, _):
        yield number


@pytest.fixture
def iommufd(machine: MountedLab) -> Iterator[Iommufd]:
    with Iommufd(machine.path) as opened:
        yield opened


@pytest.fixture
def both(machine: MountedLab, number: str, iommufd: Iommufd) -> Iterator[tuple[Copier, Copier]]:
    """Both functions, bound to one iommufd."""
    with Copier(cdev_of(machine, GPU)) as gpu, Copier(cdev_of(machine, AUDIO)) as audio:
        for each in (gpu, audio):
            each.ready(iommufd)
        yield gpu, audio


@pytest.fixture
def memory() -> Iterator[Memory]:
    with closing(Memory(2 * PAGE)) as pages:
        yield pages


def ioas(iommufd: Iommufd, memory: Memory) -> int:
    """A new IOAS in which the memory is mapped."""
    made = iommufd.ioas()
    iommufd.map(made, memory.address, 2 * PAGE, IOVA)
    return made


# ---- who has the group ----


def test_a_host_driver_of_any_member_keeps_the_group(machine: MountedLab, iommufd: Iommufd) -> None:
    vfio_pci(machine, GPU)
    with Cdev(cdev_of(machine, GPU)) as cdev:
        fails(errno.EPERM, cdev.bind, iommufd)
        unbind(machine, AUDIO)
        cdev.bind(iommufd)
        fails(errno.EBUSY, (machine.path / "sys/bus/pci/drivers/snd/bind").write_text, AUDIO)
        fails(errno.EINVAL, (machine.path / "sys/bus/pci/drivers_probe").write_text, AUDIO)
        assert driver(machine, AUDIO) is None
        fails(errno.EBUSY, Group, machine.path, number_of(machine, GPU))
    for name in (GPU, AUDIO):
        give_back(machine, name)
    assert driver(machine, AUDIO) == "snd"


def test_one_iommufd_has_all_devices_of_a_group(machine: MountedLab, number: str, iommufd: Iommufd) -> None:
    with (
        Iommufd(machine.path) as other,
        Cdev(cdev_of(machine, GPU)) as gpu,
        Cdev(cdev_of(machine, AUDIO)) as audio,
    ):
        gpu.bind(iommufd)
        fails(errno.EPERM, audio.bind, other)
        audio.bind(iommufd)
        fails(errno.EBUSY, Group, machine.path, number)
        gpu.close()
        with Cdev(cdev_of(machine, GPU)) as again:
            fails(errno.EPERM, again.bind, other)
            fails(errno.EBUSY, Group, machine.path, number)
            audio.close()
            again.bind(other)


def test_an_open_group_keeps_all_its_devices(machine: MountedLab, number: str, iommufd: Iommufd) -> None:
    with Container(machine.path), Group(machine.path, number), Cdev(cdev_of(machine, AUDIO)) as audio:
        fails(errno.EBUSY, audio.bind, iommufd)


# ---- where their DMA goes ----


def test_they_attach_to_one_page_table(iommufd: Iommufd, both: tuple[Copier, Copier], memory: Memory) -> None:
    gpu, audio = both
    first, second = ioas(iommufd, memory), ioas(iommufd, memory)
    table = gpu.attach(first)
    fails(errno.EINVAL, audio.attach, second)
    assert audio.attach(first) == table
    assert gpu.reaches(IOVA, memory) and audio.reaches(IOVA, memory)
    iommufd.unmap(first, IOVA, 2 * PAGE)
    assert not gpu.reaches(IOVA, memory) and not audio.reaches(IOVA, memory)
    gpu.attach(second)  # it takes the other one along
    assert gpu.reaches(IOVA, memory) and audio.reaches(IOVA, memory)
    iommufd.destroy(first)
    fails(errno.EBUSY, iommufd.destroy, second)


def test_one_that_is_not_attached_follows(
    iommufd: Iommufd, both: tuple[Copier, Copier], memory: Memory
) -> None:
    gpu, audio = both
    target = ioas(iommufd, memory)
    assert not audio.reaches(IOVA, memory)
    gpu.attach(target)
    assert audio.reaches(IOVA, memory)
    audio.attach(target)
    gpu.detach()
    assert gpu.reaches(IOVA, memory) and audio.reaches(IOVA, memory)
    audio.close()
    assert not gpu.reaches(IOVA, memory)
    iommufd.destroy(target)


def test_an_explicit_page_table_is_for_both(
    iommufd: Iommufd, both: tuple[Copier, Copier], memory: Memory
) -> None:
    gpu, audio = both
    target = ioas(iommufd, memory)
    table = iommufd.hwpt(1, target)
    gpu.attach(table)
    fails(errno.EINVAL, audio.attach, target)  # that would be an automatic one
    assert audio.attach(table) == table and audio.reaches(IOVA, memory)
    fails(errno.EBUSY, iommufd.destroy, table)
    for each in both:
        each.detach()
    iommufd.destroy(table)


def test_an_iommufd_as_container_finds_out_with_the_first_device(
    machine: MountedLab, number: str, iommufd: Iommufd, memory: Memory
) -> None:
    """It claims nothing before, so the group counts as viable."""
    unbind(machine, AUDIO)
    give_back(machine, AUDIO)
    with Group(machine.path, number) as group:
        assert group.flags == 0
        group.set_container(iommufd)
        assert group.flags == VIABLE | CONTAINER_SET
        fails(errno.EPERM, group_device, machine.path, group, GPU)
        vfio_pci(machine, AUDIO)
        iommufd.map(iommufd.vfio_ioas(), memory.address, 2 * PAGE, IOVA)
        with (
            Device(group_device(machine.path, group, GPU)) as gpu,
            Device(group_device(machine.path, group, AUDIO)) as audio,
        ):
            assert copies(gpu, memory) and copies(audio, memory)
            iommufd.set_vfio_ioas(iommufd.ioas())
            assert copies(gpu, memory)
            audio.close()
            fails(errno.EINVAL, group_device, machine.path, group, AUDIO)


# ---- hot reset ----


def test_a_hot_reset_of_the_bus(machine: MountedLab, iommufd: Iommufd, number: str) -> None:
    with ExitStack() as stack:
        gpu = stack.enter_context(Copier(cdev_of(machine, GPU)))
        gpu.ready(iommufd)
        other = stack.enter_context(Iommufd(machine.path))
        assert hot_reset_info(gpu) == (DEV_ID, {GPU: 1, AUDIO: OWNED, OTHER: NOT_OWNED})
        fails(errno.EINVAL, hot_reset, gpu)
        stack.enter_context(bound(machine, OTHER))
        assert hot_reset_info(gpu) == (DEV_ID, {GPU: 1, AUDIO: OWNED, OTHER: NOT_OWNED})
        with Copier(cdev_of(machine, OTHER)) as theirs:
            theirs.ready(other)
            fails(errno.EINVAL, hot_reset, gpu)
            assert hot_reset_info(theirs) == (DEV_ID, {GPU: NOT_OWNED, AUDIO: NOT_OWNED, OTHER: 1})
        with Copier(cdev_of(machine, OTHER)) as mine:
            mine.ready(iommufd)
            assert hot_reset_info(gpu) == (DEV_ID | DEV_ID_OWNED, {GPU: 1, AUDIO: OWNED, OTHER: 2})
            hot_reset(gpu)
            unbind(machine, AUDIO)  # no driver of VFIO keeps it from a reset any more
            assert hot_reset_info(gpu) == (DEV_ID, {GPU: 1, AUDIO: NOT_OWNED, OTHER: 2})
            fails(errno.EINVAL, hot_reset, gpu)
    assert (function_dir(machine, AUDIO) / "driver_override").read_text() == "vfio-pci\n"
