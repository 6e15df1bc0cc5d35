# SPDX-License-Identifier: Apache-2.0
"""The ioctls of a device on a real mount, but for its interrupts: good calls, and every refusal with its
errno."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import needs
from tests.iommufd.bound import open_bound
from tests.labs import MountedLab
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
    GROUP_GET_STATUS,
    PAGE,
    TYPE1V2,
    Container,
    DeviceInfo,
    Group,
    IrqInfo,
    RegionInfo,
    fails,
    ioctl,
    unmapped_address,
    with_caps,
)
from tests.vfio.devices import (
    GPU,
    NEIGHBOUR,
    Device,
    Opened,
    bound,
    eventfd,
    function_dir,
    group_device,
    mdev,
    opened,
)
from tests.waiting import wait_for

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
SPARSE_MMAP, TYPE_CAP, MSIX_MAPPABLE = 1, 2, 3
CAPS, MMAP = 8, 4


@pytest.fixture(scope="module")
def gpu(machine: MountedLab) -> Iterator[Opened]:
    """The physical GPU through its group; its neighbour on the bus is with vfio-pci too, not opened."""
    with bound(machine, GPU, NEIGHBOUR) as groups, opened(machine, groups[0], GPU) as found:
        yield found


@pytest.fixture(scope="module")
def vgpu(machine: MountedLab) -> Iterator[Opened]:
    """A mediated device."""
    with mdev(machine, "mtty-2", "mtty") as found:
        yield found


@pytest.fixture(scope="module")
def sparse(machine: MountedLab) -> Iterator[Opened]:
    """A mediated device with 64 vectors of MSI-X."""
    with mdev(machine, "sparse", "pool") as found:
        yield found


def region(device: Device, index: int) -> tuple[RegionInfo, list[tuple[int, int, bytes]]]:
    return with_caps(device.fd, DEVICE_GET_REGION_INFO, RegionInfo, index=index)


# ---- every ioctl with a struct: short and long argsz, bad pointers ----

STRUCTS: dict[str, tuple[int, bytes, int]] = {
    "GET_INFO": (DEVICE_GET_INFO, bytes(DeviceInfo())[4:], 16),
    "GET_REGION_INFO": (DEVICE_GET_REGION_INFO, bytes(RegionInfo(index=7))[4:], 32),
    "GET_IRQ_INFO": (DEVICE_GET_IRQ_INFO, bytes(IrqInfo(index=0))[4:], 16),
    "HOT_RESET_INFO": (DEVICE_PCI_HOT_RESET_INFO, bytes(8 + 2 * 8), 12),
    "FEATURE": (DEVICE_FEATURE, struct.pack("=I", PROBE | 5), 8),
}
"""Number, what follows argsz in a good call, and the least argsz."""
OTHER_STRUCTS = {
    "SET_IRQS": DEVICE_SET_IRQS,
    "HOT_RESET": DEVICE_PCI_HOT_RESET,
    "IOEVENTFD": DEVICE_IOEVENTFD,
}


@pytest.mark.parametrize("name", STRUCTS)
def test_argsz(gpu: Opened, name: str) -> None:
    cmd, rest, least = STRUCTS[name]
    for argsz, number in ((0, errno.EINVAL), (least - 1, errno.EINVAL), (4 + len(rest), 0), (4096, 0)):
        call = ctypes.create_string_buffer(struct.pack("=I", argsz) + rest, 8192)
        if number:
            fails(number, ioctl, gpu.device.fd, cmd, call)
        else:
            assert ioctl(gpu.device.fd, cmd, call) == 0
            assert not any(call.raw[128:])


@pytest.mark.parametrize("name", [*STRUCTS, *OTHER_STRUCTS])
def test_bad_pointers(gpu: Opened, name: str) -> None:
    cmd = OTHER_STRUCTS[name] if name in OTHER_STRUCTS else STRUCTS[name][0]
    for address in (0, unmapped_address(), 2**63):
        fails(errno.EFAULT, ioctl, gpu.device.fd, cmd, address)


@pytest.mark.parametrize("name", [*STRUCTS, *OTHER_STRUCTS])
def test_wrong_kind_of_file(gpu: Opened, name: str) -> None:
    cmd = OTHER_STRUCTS[name] if name in OTHER_STRUCTS else STRUCTS[name][0]
    call = ctypes.create_string_buffer(struct.pack("=I", 64), 64)
    fails(errno.ENOTTY, ioctl, gpu.group.fd, cmd, call)
    fails(errno.ENOTTY, ioctl, gpu.device.fd, GROUP_GET_STATUS, call)


# ---- information ----


def test_info(gpu: Opened, vgpu: Opened) -> None:
    for opened_one in (gpu, vgpu):
        info = DeviceInfo(cap_offset=77)
        opened_one.device.ioctl(DEVICE_GET_INFO, info)
        assert (info.flags, info.num_regions, info.num_irqs, info.cap_offset) == (3, 9, 5, 0)


def test_info_of_an_old_client_is_16_bytes(gpu: Opened) -> None:
    info = DeviceInfo(argsz=16, cap_offset=77)
    gpu.device.ioctl(DEVICE_GET_INFO, info)
    assert (info.num_irqs, info.cap_offset) == (5, 77)


@pytest.mark.parametrize("index", [8, 9, 15, 2**31, 2**32 - 1])
def test_no_such_region(gpu: Opened, index: int) -> None:
    fails(errno.EINVAL, gpu.device.ioctl, DEVICE_GET_REGION_INFO, RegionInfo(index=index))


def test_an_absent_bar_is_a_region_of_no_size(gpu: Opened) -> None:
    info, caps = region(gpu.device, 1)
    assert (info.flags, info.size, info.offset, caps) == (0, 0, 1 << 40, [])


def passthrough(device: Device) -> bool:
    return bool(region(device, 0)[0].flags & MMAP)


@needs.passthrough
def test_the_msix_bar_of_vfio_pci_is_mappable(gpu: Opened) -> None:
    info, caps = region(gpu.device, 4)
    assert info.flags == 3 | MMAP | CAPS and caps == [(MSIX_MAPPABLE, 1, b"")]
    assert region(gpu.device, 0)[1] == []


@needs.passthrough
def test_a_mediated_device_keeps_its_msix_table_out(sparse: Opened) -> None:
    info, caps = region(sparse.device, 4)
    ((identity, version, body),) = caps
    count, _, offset, size = struct.unpack("=IIQQ", body)
    assert (identity, version, count) == (SPARSE_MMAP, 1, 1)
    assert offset % PAGE == 0 and offset + size == info.size
    with mmap.mmap(sparse.device.fd, size, offset=info.offset + offset) as memory:
        memory[:4] = b"mine"
        assert os.pread(sparse.device.fd, 4, info.offset + offset) == b"mine"
    assert os.pread(sparse.device.fd, 8, info.offset + 16) == b"\xff" * 8


@needs.passthrough
def test_a_short_argsz_learns_the_size_of_the_chain(sparse: Opened) -> None:
    info = RegionInfo(index=4)
    sparse.device.ioctl(DEVICE_GET_REGION_INFO, info)
    assert (info.argsz, info.cap_offset, info.flags & CAPS) == (64, 0, CAPS)


def test_the_msix_table_is_nobodys(gpu: Opened) -> None:
    place = 4 << 40
    assert os.pwrite(gpu.device.fd, bytes(16), place) == 16
    assert os.pread(gpu.device.fd, 16, place) == b"\xff" * 16
    assert os.pread(gpu.device.fd, 8, place + 2048 * 16) == bytes(8)


def test_configuration_space_ends_where_it_does(gpu: Opened, vgpu: Opened) -> None:
    for found, size in ((gpu, 4096), (vgpu, 256)):
        file, config = found.device.fd, 7 << 40
        assert len(os.pread(file, size, config)) == size
        for offset, count in ((size, 1), (size - 2, 4), (size + 4096, 4)):
            fails(errno.EFAULT, os.pread, file, count, config + offset)
            fails(errno.EFAULT, os.pwrite, file, bytes(count), config + offset)
        assert len(os.pread(file, 4, config + size - 4)) == 4


def test_memory_that_is_not_decoded_is_eio_or_all_ones(gpu: Opened, sparse: Opened) -> None:
    """vfio-pci says so; the model of a mediated device answers as a bus does."""
    for found, registers in ((gpu, 2 << 40), (sparse, (2 << 40) + 0x500)):
        file, memory = found.device.fd, 8192
        os.pwrite(file, b"kept", memory)
        identity = os.pread(file, 4, registers)
        command = found.device.config(4)
        found.device.set_config(4, command & ~2)
        for place in (memory, registers):
            if found is gpu:
                fails(errno.EIO, os.pread, file, 4, place)
                fails(errno.EIO, os.pwrite, file, b"lost", place)
            else:
                assert os.pread(file, 4, place) == b"\xff" * 4
                os.pwrite(file, b"lost", place)
        found.device.set_config(4, command)
        assert os.pread(file, 4, memory) == b"kept"
        assert os.pread(file, 4, registers) == identity != b"\xff" * 4


def test_ports_that_are_not_decoded_read_all_ones(machine: MountedLab) -> None:
    with mdev(machine, "mtty-2", "mtty") as serial:
        scratch = 7
        os.pwrite(serial.device.fd, b"s", scratch)
        serial.device.set_config(4, 2)  # there is no memory: only I/O ports count
        assert os.pread(serial.device.fd, 1, scratch) == b"\xff"
        serial.device.set_config(4, 1)
        assert os.pread(serial.device.fd, 1, scratch) == b"s"


def test_a_function_given_out_is_no_bus_master(gpu: Opened) -> None:
    assert gpu.device.config(4) & 7 == 2


# ---- reset ----


def test_reset(gpu: Opened) -> None:
    gpu.device.set_config(0x3C, 0x55, 1)
    scratch = (2 << 40) + 0x0C
    os.pwrite(gpu.device.fd, b"mine", scratch)
    gpu.device.ioctl(DEVICE_RESET)
    assert os.pread(gpu.device.fd, 4, scratch) == bytes(4)
    assert gpu.device.config(0x3C, 1) == 0x55  # vfio-pci saves and restores the configuration


def test_every_first_open_finds_a_reset_function(machine: MountedLab, gpu: Opened) -> None:
    group = os.readlink(function_dir(machine, NEIGHBOUR) / "iommu_group").rsplit("/", 1)[1]
    for _ in range(2):
        with opened(machine, group, NEIGHBOUR) as neighbour:
            assert neighbour.device.config(0x3C, 1) == 0
            neighbour.device.set_config(0x3C, 0x55, 1)


def hot_reset_info(device: Device, room: int) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    call = ctypes.create_string_buffer(struct.pack("=III", 12 + 8 * room, 0, 0), 12 + 8 * room)
    device.ioctl(DEVICE_PCI_HOT_RESET_INFO, call)
    _, flags, count = struct.unpack_from("=III", call.raw)
    return flags, count, list(struct.iter_unpack("=IHBB", call.raw[12:]))


def hot_reset(device: Device, *groups: int, flags: int = 0, count: int | None = None) -> None:
    number = len(groups) if count is None else count
    head = struct.pack("=III", 12 + 4 * len(groups), flags, number)
    device.ioctl(
        DEVICE_PCI_HOT_RESET, ctypes.create_string_buffer(head + struct.pack(f"={len(groups)}i", *groups))
    )


def group_number(machine: MountedLab, name: str) -> int:
    return int(os.readlink(function_dir(machine, name) / "iommu_group").rsplit("/", 1)[1])


def test_hot_reset_info(machine: MountedLab, gpu: Opened) -> None:
    expected = [(group_number(machine, name), 0, 0x86, devfn) for name, devfn in ((GPU, 0), (NEIGHBOUR, 8))]
    assert hot_reset_info(gpu.device, 2) == (0, 2, expected)
    call = ctypes.create_string_buffer(struct.pack("=III", 12, 0, 0), 64)  # as QEMU asks first
    fails(errno.ENOSPC, gpu.device.ioctl, DEVICE_PCI_HOT_RESET_INFO, call)
    assert struct.unpack_from("=III", call.raw)[2] == 2
    call = ctypes.create_string_buffer(struct.pack("=III", 12 + 8, 0, 0), 64)
    fails(errno.ENOSPC, gpu.device.ioctl, DEVICE_PCI_HOT_RESET_INFO, call)
    assert struct.unpack_from("=III", call.raw)[2] == 2
    assert list(struct.iter_unpack("=IHBB", call.raw[12:28])) == [expected[0], (0, 0, 0, 0)]


def test_hot_reset_needs_all_groups_of_the_bus(machine: MountedLab, gpu: Opened) -> None:
    with Group(machine.path, group_number(machine, NEIGHBOUR)) as neighbour, eventfd() as other:
        gpu.device.set_config(0x3C, 0x55, 1)
        fails(errno.EINVAL, hot_reset, gpu.device)
        fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd)
        fails(errno.EINVAL, hot_reset, gpu.device, neighbour.fd)
        fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd, neighbour.fd, flags=1)
        fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd, gpu.container.fd)
        fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd, other)
        fails(errno.EBADF, hot_reset, gpu.device, gpu.group.fd, 9999)
        fails(errno.EINVAL, hot_reset, gpu.device, *[gpu.group.fd] * 3)
        fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd, count=2**32 - 1)
        scratch = (2 << 40) + 0x0C
        os.pwrite(gpu.device.fd, b"mine", scratch)
        fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd)
        assert os.pread(gpu.device.fd, 4, scratch) == b"mine"
        hot_reset(gpu.device, gpu.group.fd, neighbour.fd)
        assert os.pread(gpu.device.fd, 4, scratch) == bytes(4)
        assert gpu.device.config(0x3C, 1) == 0x55  # saved and restored


def test_hot_reset_through_the_character_device(machine: MountedLab, gpu: Opened) -> None:
    path = machine.path / "dev/vfio/devices" / os.listdir(function_dir(machine, NEIGHBOUR) / "vfio-dev")[0]
    with Device(open_bound(path)) as device:
        flags, count, devices = hot_reset_info(device, 2)
        assert (flags, count) == (1, 2)  # by device id, not all owned
        assert [each[0] for each in devices] == [
            2**32 - 1,
            1,
        ]  # not owned; the first id of its iommufd
        fails(errno.EINVAL, hot_reset, device)
        fails(errno.EINVAL, hot_reset, device, gpu.group.fd)


def test_hot_reset_is_vfio_pcis_alone(vgpu: Opened) -> None:
    fails(errno.ENOTTY, hot_reset_info, vgpu.device, 2)
    fails(errno.ENOTTY, hot_reset, vgpu.device, vgpu.group.fd)


# ---- ioeventfd ----


def ioeventfd(
    device: Device, region_index: int, offset: int, size: int, data: int, fd: int, **change: int
) -> None:
    place = (region_index << 40) + offset
    fields = {"argsz": 40, "flags": size, **change}
    call = struct.pack("=IIQQiI", fields["argsz"], fields["flags"], place, data, fd, 0)
    device.ioctl(DEVICE_IOEVENTFD, ctypes.create_string_buffer(call))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ioeventfd_writes(gpu: Opened, size: int) -> None:
    device, place = gpu.device, 0x100
    data = 0x1122334455667788
    os.pwrite(device.fd, bytes(8), place)
    with eventfd() as event:
        ioeventfd(device, 0, place, size, data, event)
        fails(errno.EEXIST, ioeventfd, device, 0, place, size, data, event)
        os.eventfd_write(event, 1)
        expected = data.to_bytes(8, "little")[:size].ljust(8, b"\0")
        wait_for(lambda: os.pread(device.fd, 8, place) == expected)
        ioeventfd(device, 0, place, size, data, -1)
        fails(errno.ENODEV, ioeventfd, device, 0, place, size, data, -1)
        os.pwrite(device.fd, bytes(8), place)
        os.eventfd_write(event, 1)
        time.sleep(0.02)
        assert os.pread(device.fd, 8, place) == bytes(8)


def test_ioeventfd_reaches_a_register(gpu: Opened) -> None:
    with eventfd(1) as event:  # signalled already: it counts
        ioeventfd(gpu.device, 2, 0xC, 4, 0xCAFE, event)
        wait_for(lambda: os.pread(gpu.device.fd, 4, (2 << 40) + 0xC) == b"\xfe\xca\0\0")
        ioeventfd(gpu.device, 2, 0xC, 4, 0xCAFE, -1)


IOEVENTFD_REFUSED = {
    "no size": (0, 0, 0, 9, {}, errno.EINVAL),
    "two sizes": (0, 0, 3, 9, {}, errno.EINVAL),
    "unknown flag": (0, 0, 16, 9, {}, errno.EINVAL),
    "fd below -1": (0, 0, 4, -2, {}, errno.EINVAL),
    "beyond the BAR": (2, 4096, 4, 9, {}, errno.EINVAL),
    "across its end": (2, 4094, 4, 9, {}, errno.EINVAL),
    "absent BAR": (1, 0, 4, 9, {}, errno.EINVAL),
    "ROM": (6, 0, 4, 9, {}, errno.EINVAL),
    "config": (7, 0, 4, 9, {}, errno.EINVAL),
    "no region": (2**20, 0, 4, 9, {}, errno.EINVAL),
    "MSI-X table": (4, 2048 * 16 - 4, 4, 9, {}, errno.EINVAL),
    "nothing to remove": (0, 0, 4, -1, {}, errno.ENODEV),
    "bad descriptor": (0, 0, 4, 9999, {}, errno.EBADF),
    "no eventfd": (0, 0, 4, 0, {}, errno.EINVAL),
    "short argsz": (0, 0, 4, 9, {"argsz": 27}, errno.EINVAL),
}


@pytest.mark.parametrize("case", IOEVENTFD_REFUSED)
def test_ioeventfd_refuses(gpu: Opened, case: str) -> None:
    index, offset, size, fd, change, number = IOEVENTFD_REFUSED[case]
    fails(number, ioeventfd, gpu.device, index, offset, size, 1, fd, **change)


def test_ioeventfd_is_vfio_pcis_alone(vgpu: Opened) -> None:
    with eventfd() as event:
        fails(errno.ENOTTY, ioeventfd, vgpu.device, 0, 0, 1, 1, event)


def test_ioeventfds_have_a_limit(gpu: Opened) -> None:
    with eventfd() as event:
        for data in range(1000):
            ioeventfd(gpu.device, 0, 0x200, 4, data, event)
        fails(errno.ENOSPC, ioeventfd, gpu.device, 0, 0x200, 4, 1000, event)
        for data in range(1000):
            ioeventfd(gpu.device, 0, 0x200, 4, data, -1)


# ---- features ----


def feature(device: Device, flags: int, data: bytes = b"", **change: Any) -> None:
    head = struct.pack("=II", change.get("argsz", 8 + len(data)), flags)
    device.ioctl(DEVICE_FEATURE, ctypes.create_string_buffer(head + data))


VF_TOKEN, ENTRY, WAKEUP, EXIT = 0, 3, 4, 5
FEATURE_REFUSED: dict[str, tuple[int, bytes, dict[str, int], int]] = {
    "unknown flag": (1 << 19 | PROBE | EXIT, b"", {}, errno.EINVAL),
    "GET and SET": (GET | SET | EXIT, b"", {}, errno.EINVAL),
    "no method": (EXIT, b"", {}, errno.EINVAL),
    "GET of what only sets": (GET | EXIT, b"", {}, errno.EINVAL),
    "probe GET of what only sets": (PROBE | GET | ENTRY, b"", {}, errno.EINVAL),
    "too little data": (SET | WAKEUP, bytes(4), {}, errno.EINVAL),
    "wake-up below 0": (SET | WAKEUP, struct.pack("=iI", -1, 0), {}, errno.EINVAL),
    "wake-up by no descriptor": (SET | WAKEUP, struct.pack("=iI", 9999, 0), {}, errno.EBADF),
    "VF token without SR-IOV": (SET | VF_TOKEN, bytes(16), {}, errno.ENOTTY),
    **{
        f"feature {number}": (PROBE | number, b"", {}, errno.ENOTTY)
        for number in (0, 1, 2, *range(6, 14), 0xFFFF)
    },
}


@pytest.mark.parametrize("case", FEATURE_REFUSED)
def test_feature_refuses(gpu: Opened, case: str) -> None:
    flags, data, change, number = FEATURE_REFUSED[case]
    fails(number, feature, gpu.device, flags, data, **change)


def test_low_power(gpu: Opened) -> None:
    for number in (ENTRY, WAKEUP, EXIT):
        feature(gpu.device, PROBE | number)
        feature(gpu.device, PROBE | SET | number)
    feature(gpu.device, SET | ENTRY)
    fails(errno.EINVAL, feature, gpu.device, SET | ENTRY)
    feature(gpu.device, SET | EXIT)
    feature(gpu.device, SET | EXIT)
    with eventfd() as event:
        feature(gpu.device, SET | WAKEUP, struct.pack("=iI", event, 0))
        feature(gpu.device, SET | EXIT)


def test_a_mediated_device_has_no_feature(vgpu: Opened) -> None:
    for number in range(14):
        fails(errno.ENOTTY, feature, vgpu.device, PROBE | number)


# ---- through the group, and what is gone ----


def test_many_descriptors_of_one_device(machine: MountedLab, vgpu: Opened) -> None:
    with Device(group_device(machine.path, vgpu.group, vgpu.name)) as second:
        second.set_config(0x3C, 0x66, 1)
        assert vgpu.device.config(0x3C, 1) == 0x66


def test_a_container_is_needed(machine: MountedLab) -> None:
    with machine.create("mtty-2", "mtty") as made, Group(machine.path, made.group) as group:
        fails(errno.EINVAL, group_device, machine.path, group, made.name)
        with Container(machine.path) as container:
            group.set_container(container)
            fails(errno.EINVAL, group_device, machine.path, group, made.name)
            container.set_iommu(TYPE1V2)
            Device(group_device(machine.path, group, made.name)).close()
