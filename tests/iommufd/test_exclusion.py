# SPDX-License-Identifier: Apache-2.0
"""A device that is bound by its own character device, and its group, against a real mount: who keeps whom
out, and what a hot reset resets."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.iommufd.client import Cdev, Iommufd
from tests.iommufd.devices import LAB, NEIGHBOUR, Copier, cdev_of
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import (
    DEVICE_PCI_HOT_RESET,
    DEVICE_PCI_HOT_RESET_INFO,
    Container,
    Group,
    fails,
)
from tests.vfio.copiers import GPU
from tests.vfio.devices import bound, function_dir, opened
from tests.vfio.test_lifetimes import child, reap

DEV_ID, DEV_ID_OWNED = 1, 2
OWNED, NOT_OWNED = 0, 2**32 - 1


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("exclusion"), LAB) as mounted:
        yield mounted


def test_an_open_group_keeps_its_devices_from_being_bound(
    machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd
) -> None:
    with Cdev(vgpu.cdev) as cdev, Group(machine.path, vgpu.group) as group:
        fails(errno.EBUSY, cdev.bind, iommufd)
        group.close()
        cdev.bind(iommufd)


def test_a_device_of_a_group_keeps_the_group(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    with opened(machine, vgpu.group, vgpu.name) as found, Cdev(vgpu.cdev) as cdev:
        found.group.close()
        found.container.close()
        fails(errno.EBUSY, cdev.bind, iommufd)
        found.device.close()
        cdev.bind(iommufd)


def test_a_bound_device_keeps_its_group(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    with Cdev(vgpu.cdev) as cdev:
        Group(machine.path, vgpu.group).close()
        cdev.bind(iommufd)
        fails(errno.EBUSY, Group, machine.path, vgpu.group)
        with Cdev(vgpu.cdev) as beside:
            cdev.close()
            Group(machine.path, vgpu.group).close()
            beside.bind(iommufd)
            fails(errno.EBUSY, Group, machine.path, vgpu.group)
    Group(machine.path, vgpu.group).close()


def test_a_group_is_used_beside_an_unbound_file(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    with Cdev(vgpu.cdev) as cdev:
        with opened(machine, vgpu.group, vgpu.name) as found:
            assert found.device.config(0) == 0x1234
            fails(errno.EINVAL, os.pread, cdev.fd, 2, 7 << 40)
            fails(errno.EBUSY, cdev.bind, iommufd)
        cdev.bind(iommufd)


def test_an_unbound_file_does_not_enable_the_function(machine: MountedLab, iommufd: Iommufd) -> None:
    with bound(machine, GPU):
        enabled = function_dir(machine, GPU) / "enable"
        with Copier(cdev_of(machine, GPU)) as gpu:
            assert enabled.read_text() == "0\n"
            gpu.ready(iommufd)
            with Cdev(cdev_of(machine, GPU)):
                assert enabled.read_text() == "1\n"
            assert enabled.read_text() == "1\n"
        assert enabled.read_text() == "0\n"


def test_a_bind_that_fails_keeps_nobody_out(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    with Cdev(vgpu.cdev) as cdev:
        for number, descriptor in ((errno.EBADFD, cdev.fd), (errno.EBADF, 2**31 - 1), (errno.EINVAL, -1)):
            fails(number, cdev.bind, descriptor)
            Group(machine.path, vgpu.group).close()
        cdev.bind(iommufd)


def test_opens_and_binds_race(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    """However they come, never do both have it."""
    held: list[str] = []
    both: list[str] = []
    won: set[str] = set()
    end = time.monotonic() + 1

    def by_group() -> None:
        while len(won) < 2 or time.monotonic() < end:
            try:
                with Group(machine.path, vgpu.group):
                    held.append("group")
                    won.add("group")
                    both.extend(held[:] if "bound" in held else [])
                    held.remove("group")
            except OSError as error:
                assert error.errno == errno.EBUSY

    def by_cdev() -> None:
        while len(won) < 2 or time.monotonic() < end:
            with Cdev(vgpu.cdev) as cdev:
                try:
                    cdev.bind(iommufd)
                except OSError as error:
                    assert error.errno == errno.EBUSY
                    continue
                held.append("bound")
                won.add("bound")
                both.extend(held[:] if "group" in held else [])
                held.remove("bound")

    threads = [threading.Thread(target=each) for each in (by_group, by_cdev)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both


def bind_and_wait(machine: MountedLab, vgpu: Vgpu) -> Callable[[], None]:
    def run() -> None:
        with Cdev(vgpu.cdev) as cdev, Iommufd(machine.path) as iommufd:
            cdev.bind(iommufd)
            os.kill(os.getpid(), signal.SIGSTOP)

    return run


def open_and_wait(machine: MountedLab, vgpu: Vgpu) -> Callable[[], None]:
    def run() -> None:
        with opened(machine, vgpu.group, vgpu.name):
            os.kill(os.getpid(), signal.SIGSTOP)

    return run


def test_who_is_killed_keeps_nobody_out(machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd) -> None:
    def bind() -> None:
        with Cdev(vgpu.cdev) as cdev:
            cdev.bind(iommufd)

    for what in (bind_and_wait, open_and_wait):
        for attempt in (bind, lambda: Group(machine.path, vgpu.group).close()):
            pid = child(what(machine, vgpu))
            assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
            reap(pid, signal.SIGKILL)
            attempt()


def test_a_container_and_an_iommufd_do_not_share_a_device(
    machine: MountedLab, vgpu: Vgpu, iommufd: Iommufd
) -> None:
    with Container(machine.path) as container, Group(machine.path, vgpu.group) as group:
        group.set_container(container)
        with Cdev(vgpu.cdev) as cdev:
            fails(errno.EBUSY, cdev.bind, iommufd)
            group.unset_container()
            fails(errno.EBUSY, cdev.bind, iommufd)


# ---- hot reset ----


def hot_reset_info(device: Cdev, room: int = 8) -> tuple[int, dict[str, int]]:
    """The flags, and the owner of each function by its address."""
    data = bytearray(struct.pack("=III", 12 + 8 * room, 0, 0) + bytes(8 * room))
    fcntl.ioctl(device.fd, DEVICE_PCI_HOT_RESET_INFO, data)
    _, flags, count = struct.unpack_from("=III", data)
    found = {}
    for index in range(count):
        owner, segment, bus, devfn = struct.unpack_from("=IHBB", data, 12 + 8 * index)
        found[f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"] = owner
    return flags, found


def hot_reset(device: Cdev, *groups: int) -> None:
    fcntl.ioctl(
        device.fd,
        DEVICE_PCI_HOT_RESET,
        struct.pack(f"=III{len(groups)}i", 12 + 4 * len(groups), 0, len(groups), *groups),
    )


def test_a_hot_reset_goes_by_the_context(machine: MountedLab, iommufd: Iommufd) -> None:
    with ExitStack() as stack:
        stack.enter_context(bound(machine, GPU))
        gpu = stack.enter_context(Copier(cdev_of(machine, GPU)))
        gpu.ready(iommufd)
        assert hot_reset_info(gpu) == (DEV_ID, {GPU: 1, NEIGHBOUR: NOT_OWNED})
        short = ctypes.create_string_buffer(struct.pack("=III", 12 + 8, 0xFF, 0), 12 + 8)
        fails(errno.ENOSPC, gpu.ioctl, DEVICE_PCI_HOT_RESET_INFO, short)
        assert struct.unpack_from("=III", short.raw) == (12 + 8, 0, 2)
        fails(errno.EINVAL, hot_reset, gpu)
        stack.enter_context(bound(machine, NEIGHBOUR))
        assert hot_reset_info(gpu) == (DEV_ID, {GPU: 1, NEIGHBOUR: NOT_OWNED})
        fails(errno.EINVAL, hot_reset, gpu)
        neighbour = stack.enter_context(Copier(cdev_of(machine, NEIGHBOUR)))
        with Iommufd(machine.path) as other, Copier(cdev_of(machine, NEIGHBOUR)) as theirs:
            theirs.ready(other)
            assert hot_reset_info(gpu) == (DEV_ID, {GPU: 1, NEIGHBOUR: NOT_OWNED})
            assert hot_reset_info(theirs) == (DEV_ID, {GPU: NOT_OWNED, NEIGHBOUR: 1})
            fails(errno.EINVAL, hot_reset, gpu)
        assert neighbour.ready(iommufd) == 2
        assert hot_reset_info(gpu) == (DEV_ID | DEV_ID_OWNED, {GPU: 1, NEIGHBOUR: 2})
        assert hot_reset_info(neighbour) == (DEV_ID | DEV_ID_OWNED, {GPU: 1, NEIGHBOUR: 2})
        os.pwrite(neighbour.fd, b"\1" * 8, 0)
        hot_reset(gpu)
        assert os.pread(neighbour.fd, 8, 0) == bytes(8)
        fails(errno.EINVAL, hot_reset, gpu, 0)
        neighbour.close()
        fails(errno.EINVAL, hot_reset, gpu)


def test_the_group_of_a_bound_function_keeps_its_domain(machine: MountedLab, iommufd: Iommufd) -> None:
    used = machine.path / "sys/class/iommu/dmar0/intel-iommu/domains_used"
    with bound(machine, GPU), Copier(cdev_of(machine, GPU)) as gpu:
        kind = function_dir(machine, GPU) / "iommu_group/type"
        before = int(used.read_text())
        gpu.ready(iommufd)
        fails(errno.EPERM, kind.write_text, "identity")
        assert int(used.read_text()) == before - 1
        ioas = iommufd.ioas()
        gpu.attach(ioas)
        assert int(used.read_text()) == before
        gpu.close()
        kind.write_text("identity")
        kind.write_text("auto")
