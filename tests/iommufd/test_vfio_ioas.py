# SPDX-License-Identifier: Apache-2.0
"""VFIO_IOAS: which IOAS of a context the ioctls of containers are for."""

from __future__ import annotations

import errno

import pytest

from tests.iommufd.client import Iommufd, IommufdContainer, VfioIoas
from tests.labs import MountedLab
from tests.vfio.client import PAGE, Group, Memory, fails

BASE = 0x100000


def test_there_is_none_at_first(iommufd: Iommufd) -> None:
    fails(errno.ENODEV, iommufd.vfio_ioas)
    iommufd.clear_vfio_ioas()
    fails(errno.ENODEV, iommufd.vfio_ioas)


def test_set_get_clear(iommufd: Iommufd) -> None:
    first, second = iommufd.ioas(), iommufd.ioas()
    for ioas in (first, second, second, first):
        iommufd.set_vfio_ioas(ioas)
        assert iommufd.vfio_ioas() == ioas
    iommufd.clear_vfio_ioas()
    fails(errno.ENODEV, iommufd.vfio_ioas)
    iommufd.set_vfio_ioas(first)  # CLEAR destroys nothing
    assert iommufd.vfio_ioas() == first


@pytest.mark.parametrize("op", [0, 1, 2, 3, 0xFFFF])
def test_reserved_and_unknown(iommufd: Iommufd, op: int) -> None:
    ioas = iommufd.ioas()
    iommufd.set_vfio_ioas(ioas)
    fails(errno.EOPNOTSUPP, iommufd.call, VfioIoas(op=op, ioas_id=ioas, reserved=1))
    if op > 2:
        fails(errno.EOPNOTSUPP, iommufd.call, VfioIoas(op=op, ioas_id=ioas))
    assert iommufd.vfio_ioas() == ioas


@pytest.mark.parametrize("number", [0, 2, 77, 2**31, 2**32 - 1])
def test_set_takes_an_ioas(iommufd: Iommufd, number: int) -> None:
    ioas = iommufd.ioas()
    iommufd.set_vfio_ioas(ioas)
    fails(errno.ENOENT, iommufd.set_vfio_ioas, number)
    assert iommufd.vfio_ioas() == ioas


def test_only_get_writes(iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    for op in (1, 2):
        asked = VfioIoas(op=op, ioas_id=ioas)
        iommufd.call(asked)
        assert (asked.op, asked.ioas_id) == (op, ioas)
    iommufd.set_vfio_ioas(ioas)
    asked = VfioIoas(op=0, ioas_id=0xFFFF)  # GET does not look at it
    iommufd.call(asked)
    assert asked.ioas_id == ioas


def test_it_is_destroyed_as_any_other(iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    iommufd.set_vfio_ioas(ioas)
    iommufd.destroy(ioas)
    fails(errno.ENODEV, iommufd.vfio_ioas)
    assert iommufd.ioas() == ioas  # another one has the id
    fails(errno.ENODEV, iommufd.vfio_ioas)


def test_container_ioctls_are_for_it(machine: MountedLab) -> None:
    memory = Memory(PAGE)
    with IommufdContainer(machine.path) as container:
        context = Iommufd(container.fd)
        first, second = context.ioas(), context.ioas()
        context.set_vfio_ioas(first)
        container.map(BASE, memory.address, PAGE)
        context.set_vfio_ioas(second)
        assert container.unmap(BASE, PAGE) == 0
        container.map(BASE, memory.address, PAGE)
        context.clear_vfio_ioas()
        fails(errno.ENODEV, container.unmap, BASE, PAGE)
        for ioas in (first, second):
            context.set_vfio_ioas(ioas)
            assert container.unmap(BASE, PAGE) == PAGE
    memory.close()


def test_a_group_makes_one_unless_there_is_one(machine: MountedLab) -> None:
    with (
        machine.create("mtty-2", "mtty") as one,
        machine.create("mtty-2", "mtty") as two,
        Iommufd(machine.path) as context,
    ):
        with Group(machine.path, one.group) as first, Group(machine.path, two.group) as second:
            first.set_container(context)
            made = context.vfio_ioas()
            second.set_container(context)
            assert context.vfio_ioas() == made == 1
        assert context.vfio_ioas() == made  # it outlives the groups
        with Group(machine.path, one.group) as first:
            first.set_container(context)
            assert context.vfio_ioas() == made
        with Iommufd(machine.path) as other, Group(machine.path, one.group) as first:
            own = [other.ioas(), other.ioas()][1]
            other.set_vfio_ioas(own)
            first.set_container(other)
            assert other.vfio_ioas() == own
