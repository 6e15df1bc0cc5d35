# SPDX-License-Identifier: Apache-2.0
"""Who decides where a memory region is: opens of resource<N> and of the device, in every order, and failures.

The kernel's part is a list of ids here. tests/vfio/test_resource_mmap.py has the kernel itself.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from devmodel.device.base import Device
from devmodel.iommu.api import MustWait
from devmodel.region import moving
from devmodel.region.region import Memory
from devmodel.vfio.group import Assignable
from ioctl_shim import lane
from tests.unit.fakes import fails
from vfsfuse.vfio import ownfiles
from vfsfuse.vfio.ownfiles import OwnFiles
from vfsfuse.vfio.port import Port

PAGE = 4096
SIZE = 4 * moving.PIECE
INODE, OTHER_INODE = 7, 8


class Kernel:
    """Registers backing files."""

    def __init__(self) -> None:
        self.last = 0
        self.registered: set[int] = set()
        self.able = True

    def open_backing(self, fd: int) -> int:
        os.fstat(fd)
        if not self.able:
            return 0
        self.last += 1
        self.registered.add(self.last)
        return self.last

    def close_backing(self, backing_id: int) -> None:
        self.registered.remove(backing_id)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(lane, "open_backing", made.open_backing)
    monkeypatch.setattr(lane, "close_backing", made.close_backing)
    monkeypatch.setattr(ownfiles, "PATIENCE", 0.01)
    return made


@pytest.fixture
def device(kernel: Kernel) -> Iterator[Device]:
    made = Device("toy", [Memory(PAGE), None, Memory(SIZE)], [])
    yield made
    made.close()


@pytest.fixture
def port(device: Device) -> Port:
    return Port(cast(Assignable, SimpleNamespace(device=device, access=device)))


@pytest.fixture
def own(port: Port) -> OwnFiles:
    return port.own


def test_a_move_is_for_a_thread_that_may_wait(own: OwnFiles, device: Device) -> None:
    with pytest.raises(MustWait):
        own.open_one(2, INODE, may_wait=False)
    assert device.backing.away == frozenset()
    assert (first := own.open_one(2, INODE, may_wait=True))
    assert device.backing.away == {2}
    assert own.open_one(2, INODE, may_wait=False) == own.open_one(2, OTHER_INODE, may_wait=False) == first


def test_the_device_gets_back_what_nobody_has_open(own: OwnFiles, device: Device, kernel: Kernel) -> None:
    backing_id = own.open_one(2, INODE, may_wait=True)
    own.open_device(may_wait=True)
    assert device.backing.away == {2}
    own.close_device()
    own.close_one(INODE)
    with pytest.raises(MustWait):
        own.open_device(may_wait=False)
    own.open_device(may_wait=True)
    assert device.backing.away == frozenset() and backing_id not in kernel.registered
    own.open_device(may_wait=False)
    assert own.open_one(2, INODE, may_wait=False) == 0, "the device is open"


def test_all_opens_of_an_inode_are_alike(own: OwnFiles) -> None:
    own.open_device(may_wait=False)
    assert own.open_one(2, INODE, may_wait=False) == 0
    own.close_device()
    assert own.open_one(2, INODE, may_wait=False) == 0
    backing_id = own.open_one(2, OTHER_INODE, may_wait=True)
    assert backing_id and own.open_one(2, INODE, may_wait=False) == 0
    for _ in range(3):
        own.close_one(INODE)
    assert own.open_one(2, INODE, may_wait=False) == backing_id


def test_nothing_moves_where_the_kernel_maps_nothing(own: OwnFiles, device: Device, kernel: Kernel) -> None:
    kernel.able = False
    assert own.open_one(2, INODE, may_wait=False) == 0
    own.open_device(may_wait=False)
    assert device.backing.away == frozenset()


def test_a_region_that_its_model_maps_cannot_be_mapped(own: OwnFiles, device: Device) -> None:
    with device.lock:
        device.backing.map(2, PAGE).close()
    assert own.open_one(2, INODE, may_wait=True) == 0
    assert device.backing.away == frozenset()


def test_a_region_that_its_model_maps_where_it_is_now_stays_there(own: OwnFiles, device: Device) -> None:
    backing_id = own.open_one(2, INODE, may_wait=True)
    own.close_one(INODE)
    with device.lock, device.backing.map(2, PAGE) as memory:
        memory[:4] = b"here"
    own.open_device(may_wait=True)
    assert device.backing.away == {2} and device.read(2, 0, 4) == b"here"
    assert own.open_one(2, INODE, may_wait=False) == backing_id


def test_a_mapping_that_vfio_left_keeps_the_region(port: Port, own: OwnFiles, device: Device) -> None:
    own.open_device(may_wait=False)
    mapping = os.open(f"/proc/self/fd/{device.backing.fd}", os.O_RDWR)
    own.close_device()
    assert own.open_one(2, INODE, may_wait=True) == 0
    own.close_one(INODE)
    with pytest.raises(MustWait):
        port.take_resource(0, OTHER_INODE, may_wait=False)
    os.close(mapping)
    backing_id, released = port.take_resource(0, OTHER_INODE, may_wait=False)
    assert backing_id
    mapping = os.open(f"/proc/self/fd/{device.backing.fd}", os.O_RDWR)  # of resource0: it is no matter
    assert own.open_one(2, INODE, may_wait=True)
    released()
    os.close(mapping)


def test_a_host_without_a_page_left(
    own: OwnFiles, device: Device, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open fails, nothing is lost, and the next open finds the region half-way."""
    data = os.urandom(SIZE)
    device.write(2, 0, data)
    copies = iter(range(9))
    real = moving._copy

    def copy(source: moving.Place, target: moving.Place, size: int) -> None:
        if next(copies) >= 2:
            raise OSError(errno.ENOSPC, "no page left")
        real(source, target, size)

    monkeypatch.setattr(moving, "_copy", copy)
    fails(errno.ENOMEM, own.open_one, 2, INODE, may_wait=True)
    assert len(kernel.registered) == 1, "the device's"
    assert device.read(2, 0, SIZE) == data
    own.open_device(may_wait=True)
    assert device.backing.away == {2} and device.read(2, 0, SIZE) == data
    own.close_device()
    monkeypatch.undo()
    monkeypatch.setattr(lane, "close_backing", kernel.close_backing)
    own.open_device(may_wait=True)
    assert device.backing.away == frozenset() and device.read(2, 0, SIZE) == data


def test_an_id_goes_with_the_last_file_of_a_removed_device(port: Port, own: OwnFiles, kernel: Kernel) -> None:
    backing_id = own.open_one(2, INODE, may_wait=True)
    own.open_one(2, INODE, may_wait=False)
    port.close()
    assert kernel.registered == {backing_id}
    fails(errno.ENODEV, own.open_one, 2, INODE, may_wait=False)
    fails(errno.ENODEV, own.open_device, may_wait=False)
    own.close_one(INODE)
    assert kernel.registered == {backing_id}, "the kernel may not have looked at the answer"
    own.close_one(INODE)
    assert not kernel.registered


def test_a_device_that_goes_while_a_region_moves(
    port: Port, own: OwnFiles, device: Device, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.write(2, 0, bytes([1]) * SIZE)

    def gone(seconds: float) -> None:
        port.close()
        device.close()

    monkeypatch.setattr(time, "sleep", gone)
    fails(errno.ENODEV, own.open_one, 2, INODE, may_wait=True)
    assert not kernel.registered
