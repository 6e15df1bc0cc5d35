# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/devices/vfio<N> before it is bound: it answers BIND alone, and does nothing to the device."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from tests import needs
from tests.iommufd.client import DEVICE_ATTACH, DEVICE_BIND, DEVICE_DETACH, Cdev, Iommufd
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import (
    DEVICE_FEATURE,
    DEVICE_GET_INFO,
    DEVICE_GET_IRQ_INFO,
    DEVICE_GET_REGION_INFO,
    DEVICE_IOEVENTFD,
    DEVICE_PCI_HOT_RESET,
    DEVICE_PCI_HOT_RESET_INFO,
    DEVICE_RESET,
    DEVICE_SET_IRQS,
    PAGE,
    DeviceInfo,
    Group,
    buffer,
    fails,
    request,
    unmapped_address,
)
from tests.vfio.devices import GPU, bound, function_dir

CALLS = {
    "GET_INFO": DEVICE_GET_INFO,
    "GET_REGION_INFO": DEVICE_GET_REGION_INFO,
    "GET_IRQ_INFO": DEVICE_GET_IRQ_INFO,
    "SET_IRQS": DEVICE_SET_IRQS,
    "RESET": DEVICE_RESET,
    "GET_PCI_HOT_RESET_INFO": DEVICE_PCI_HOT_RESET_INFO,
    "PCI_HOT_RESET": DEVICE_PCI_HOT_RESET,
    "QUERY_GFX_PLANE": request(14),
    "IOEVENTFD": DEVICE_IOEVENTFD,
    "FEATURE": DEVICE_FEATURE,
    "ATTACH": DEVICE_ATTACH,
    "DETACH": DEVICE_DETACH,
    "a number of nobody's": request(99),
    "another type": ord("x") << 8 | 3,
    "one with a size": 2 << 30 | 16 << 16 | ord("x") << 8 | 3,
}
REGISTERS, CONFIG = 2 << 40, 7 << 40
PLACES = {
    "memory": (0, 8),
    "much memory": (0, 3 * PAGE),
    "a register": (REGISTERS + 0x1004, 4),
    "a part of one": (REGISTERS + 0x1004, 2),
    "config space": (CONFIG, 4),
    "a part of it": (CONFIG + 1, 1),
    "the end of a region": (CONFIG + 4094, 4),
    "no region": (12 << 40, 4),
    "no byte": (0, 0),
}


@pytest.fixture
def vgpu(machine: MountedLab) -> Iterator[Vgpu]:
    with machine.create("own") as made:
        yield made


@pytest.fixture
def unbound(vgpu: Vgpu) -> Iterator[Cdev]:
    with Cdev(vgpu.cdev) as opened:
        yield opened


@pytest.mark.parametrize("name", CALLS)
def test_no_ioctl_is_answered(unbound: Cdev, name: str) -> None:
    """Not even one that is unknown, and nobody looks at the argument."""
    for argument in (buffer(DeviceInfo(), room=256), 0, unmapped_address()):
        fails(errno.EINVAL, unbound.ioctl, CALLS[name], argument)


@pytest.mark.parametrize("name", PLACES)
def test_no_region_is_there(machine: MountedLab, vgpu: Vgpu, unbound: Cdev, name: str) -> None:
    offset, size = PLACES[name]
    if size:
        fails(errno.EINVAL, os.pread, unbound.fd, size, offset)
        fails(errno.EINVAL, os.pwrite, unbound.fd, bytes(size), offset)
    with Iommufd(machine.path) as iommufd:
        unbound.bind(iommufd)
    assert unbound.config(0) == 0x1234


def test_what_is_written_reaches_nothing(machine: MountedLab, vgpu: Vgpu, unbound: Cdev) -> None:
    fails(errno.EINVAL, os.pwrite, unbound.fd, b"before", 0)
    fails(errno.EINVAL, unbound.set_config, 4, 6)
    with Iommufd(machine.path) as iommufd:
        unbound.bind(iommufd)
    assert os.pread(unbound.fd, 6, 0) == bytes(6)
    assert unbound.config(4) & 4 == 0
    os.pwrite(unbound.fd, b"within", 0)
    assert os.pread(unbound.fd, 6, 0) == b"within"


def test_no_memory_is_mapped(unbound: Cdev) -> None:
    if not needs.NO_PASSTHROUGH:
        pytest.skip("the kernel maps the backing file of an open FUSE file without a question")
    with pytest.raises(OSError) as caught:
        mmap.mmap(unbound.fd, PAGE)
    assert caught.value.errno in (errno.EINVAL, errno.ENODEV)


def test_a_bind_that_fails_changes_nothing(machine: MountedLab, vgpu: Vgpu, unbound: Cdev) -> None:
    with Group(machine.path, vgpu.group), Iommufd(machine.path) as iommufd:
        fails(errno.EBUSY, unbound.bind, iommufd)
    fails(errno.EBADFD, unbound.bind, unbound)
    fails(errno.EFAULT, unbound.ioctl, DEVICE_BIND, unmapped_address())
    for name in ("GET_INFO", "ATTACH", "a number of nobody's"):
        fails(errno.EINVAL, unbound.ioctl, CALLS[name], buffer(DeviceInfo(), room=256))
    fails(errno.EINVAL, os.pread, unbound.fd, 4, CONFIG)


def test_the_others_stay_unbound(machine: MountedLab, vgpu: Vgpu, unbound: Cdev) -> None:
    """While one open is bound, and after it is closed; then another may bind."""
    with Cdev(vgpu.cdev) as first, Iommufd(machine.path) as iommufd:
        first.bind(iommufd)
        assert first.config(0) == 0x1234
        fails(errno.EINVAL, unbound.config, 0)
        fails(errno.EINVAL, unbound.ioctl, DEVICE_GET_INFO, DeviceInfo())
        fails(errno.EINVAL, unbound.bind, iommufd)
        first.close()
        fails(errno.EINVAL, unbound.config, 0)
        unbound.bind(iommufd)
        assert unbound.config(0) == 0x1234


def test_a_function_is_not_reset_by_an_open(machine: MountedLab) -> None:
    """What a client has left in its registers is there until somebody binds it."""
    with bound(machine, GPU):
        path = machine.path / "dev/vfio/devices" / os.listdir(function_dir(machine, GPU) / "vfio-dev")[0]
        resource = function_dir(machine, GPU) / "resource2"
        with resource.open("r+b", buffering=0) as registers, Iommufd(machine.path) as iommufd:
            os.pwrite(registers.fileno(), b"mine", 0x0C)
            with Cdev(path) as device:
                assert os.pread(registers.fileno(), 4, 0x0C) == b"mine"
                device.bind(iommufd)
                assert os.pread(registers.fileno(), 4, 0x0C) == bytes(4)
