# SPDX-License-Identifier: Apache-2.0
"""BIND_IOMMUFD, against a real mount: the good call, every wrong size, flag, descriptor, token and state."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import uuid
from collections.abc import Iterator

import pytest

from tests.iommufd.client import BIND_TOKEN, DEVICE_BIND, BindIommufd, Cdev, Iommufd
from tests.iommufd.devices import cdev_of
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import DEVICE_GET_INFO, DeviceInfo, buffer, fails, ioctl, unmapped_address
from tests.vfio.devices import GPU, NEIGHBOUR, bound, opened


@pytest.fixture
def vgpu(machine: MountedLab) -> Iterator[Vgpu]:
    with machine.create("mtty-2", "mtty") as made:
        yield made


@pytest.fixture
def cdev(vgpu: Vgpu) -> Iterator[Cdev]:
    """The character device of a mediated device, opened and not bound."""
    with Cdev(vgpu.cdev) as opened:
        yield opened


def test_the_id_is_the_lowest_free_one(machine: MountedLab, cdev: Cdev, vgpu: Vgpu, iommufd: Iommufd) -> None:
    assert cdev.bind(iommufd) == 1
    info = DeviceInfo()
    cdev.ioctl(DEVICE_GET_INFO, info)
    assert info.num_irqs
    with machine.create("mtty-2", "mtty") as other, Cdev(other.cdev) as second:
        assert second.bind(iommufd) == 2
        cdev.close()
        with Cdev(vgpu.cdev) as again:
            assert again.bind(iommufd) == 1


def test_only_the_id_is_written(cdev: Cdev, iommufd: Iommufd) -> None:
    asked = BindIommufd(argsz=24, iommufd=iommufd.fd, out_devid=0xFFFFFFFF, token_uuid_ptr=0x1234)
    cdev.ioctl(DEVICE_BIND, asked)
    assert (asked.argsz, asked.flags, asked.out_devid, asked.token_uuid_ptr) == (24, 0, 1, 0x1234)


def test_sizes(cdev: Cdev, iommufd: Iommufd) -> None:
    def bind(argsz: int, data: bytes = b"") -> None:
        head = BindIommufd(argsz=argsz, iommufd=iommufd.fd)
        ioctl(cdev.fd, DEVICE_BIND, buffer(head, data))

    for argsz in (0, 8, 15):
        fails(errno.EINVAL, bind, argsz)
    fails(errno.E2BIG, bind, 32, bytes(7) + b"\1")
    fails(errno.E2BIG, bind, 25, b"\1")
    fails(errno.EFAULT, ioctl, cdev.fd, DEVICE_BIND, 0)
    fails(errno.EFAULT, ioctl, cdev.fd, DEVICE_BIND, unmapped_address())
    bind(32, bytes(8))


def test_the_old_struct_is_enough(cdev: Cdev, iommufd: Iommufd) -> None:
    """A client of a Linux before 6.17 has 16 bytes, and nothing behind them."""
    raw = ctypes.create_string_buffer(bytes(BindIommufd(argsz=16, iommufd=iommufd.fd))[:16], 16)
    ioctl(cdev.fd, DEVICE_BIND, raw)
    assert int.from_bytes(raw.raw[12:], "little") == 1


def test_an_answer_that_cannot_be_written_undoes_it(cdev: Cdev, iommufd: Iommufd) -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    page[:24] = bytes(BindIommufd(iommufd=iommufd.fd))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ)
    fails(errno.EFAULT, ioctl, cdev.fd, DEVICE_BIND, address)
    assert cdev.bind(iommufd) == 1


def test_flags_and_descriptors(cdev: Cdev, iommufd: Iommufd, machine: MountedLab) -> None:
    for flags in (2, 4, 1 << 31, BIND_TOKEN | 2):
        fails(errno.EINVAL, cdev.bind, iommufd, flags=flags)
    fails(errno.EINVAL, cdev.bind, -1)
    fails(errno.EINVAL, cdev.bind, -(2**31))
    fails(errno.EBADF, cdev.bind, 2**31 - 1)
    with open("/dev/null") as null, open(machine.path / "dev/vfio/vfio") as container:
        for other in (null.fileno(), container.fileno(), cdev.fd):
            fails(errno.EBADFD, cdev.bind, other)
    path = os.open(machine.path / "dev/iommu", os.O_PATH)
    fails(errno.EBADF, cdev.bind, path)
    os.close(path)
    fails(errno.EINVAL, cdev.bind, iommufd, token=uuid.uuid4())
    cdev.bind(iommufd)


def test_it_binds_once(cdev: Cdev, vgpu: Vgpu, iommufd: Iommufd, machine: MountedLab) -> None:
    cdev.bind(iommufd)
    fails(errno.EINVAL, cdev.bind, iommufd)
    with Iommufd(machine.path) as another, Cdev(vgpu.cdev) as beside:
        for context in (iommufd, another):
            fails(errno.EINVAL, cdev.bind, context)
            fails(errno.EINVAL, beside.bind, context)
        cdev.close()
        assert beside.bind(another) == 1


def test_a_function(machine: MountedLab, iommufd: Iommufd) -> None:
    with bound(machine, GPU, NEIGHBOUR), Cdev(cdev_of(machine, GPU)) as gpu:
        fails(errno.EINVAL, gpu.bind, iommufd, token=uuid.uuid4())
        fails(errno.EFAULT, gpu.bind, iommufd, flags=BIND_TOKEN, token_uuid_ptr=unmapped_address())
        assert gpu.bind(iommufd) == 1
        with Cdev(cdev_of(machine, NEIGHBOUR)) as neighbour:
            assert neighbour.bind(iommufd) == 2
        fails(errno.EBUSY, iommufd.destroy, 1)
        fails(errno.ENOENT, iommufd.destroy, 2)


def test_a_device_of_a_group_cannot_be_bound(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    with opened(machine, vgpu.group, vgpu.name) as found:
        device = Cdev(os.dup(found.device.fd))
        with device:
            fails(errno.EINVAL, device.bind, iommufd)
            fails(errno.EINVAL, device.bind, iommufd, argsz=8)
            fails(errno.ENOTTY, device.attach, 1)
            fails(errno.ENOTTY, device.detach)
