# SPDX-License-Identifier: Apache-2.0
"""The ioctls of a group on a real mount: every precondition with its errno, VF tokens, and noiommu groups."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import run
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import (
    DEVICE_GET_INFO,
    GROUP_GET_DEVICE_FD,
    GROUP_GET_STATUS,
    GROUP_SET_CONTAINER,
    GROUP_UNSET_CONTAINER,
    IOMMU_GET_INFO,
    NOIOMMU,
    PAGE,
    TYPE1,
    TYPE1V2,
    Container,
    DeviceInfo,
    Group,
    GroupStatus,
    Memory,
    fails,
    ioctl,
    request,
    unmapped_address,
)
from tests.vfio.devices import GPU, UNPROTECTED, Device, bound, eventfd, function_dir, group_device, opened
from tests.vfio.test_device import hot_reset

VIABLE, CONTAINER_SET = 1, 2
PARAMETER = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
UUID = "83d8f4f2-509f-382f-3c1e-e6bfe0fa1001"


@pytest.fixture
def vgpu(machine: MountedLab) -> Iterator[Vgpu]:
    with machine.create("mtty-2", "mtty") as made:
        yield made


@pytest.fixture
def group(machine: MountedLab, vgpu: Vgpu) -> Iterator[Group]:
    with Group(machine.path, vgpu.group) as opened_one:
        yield opened_one


@pytest.fixture
def container(machine: MountedLab) -> Iterator[Container]:
    with Container(machine.path) as opened_one:
        yield opened_one


def device_fd(group: Group, name: str) -> int:
    """GROUP_GET_DEVICE_FD with any text."""
    return group.ioctl(GROUP_GET_DEVICE_FD, ctypes.create_string_buffer(name.encode()))


def test_status(group: Group, container: Container) -> None:
    assert group.flags == VIABLE
    group.set_container(container)
    assert group.flags == VIABLE | CONTAINER_SET
    group.unset_container()
    assert group.flags == VIABLE


@pytest.mark.parametrize(("argsz", "number"), [(0, errno.EINVAL), (7, errno.EINVAL), (8, 0), (4096, 0)])
def test_status_argsz(group: Group, argsz: int, number: int) -> None:
    status = GroupStatus(argsz=argsz)
    if number:
        fails(number, group.ioctl, GROUP_GET_STATUS, status)
    else:
        group.ioctl(GROUP_GET_STATUS, status)
        assert (status.flags, status.argsz) == (VIABLE, argsz)


@pytest.mark.parametrize("cmd", [GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD])
def test_bad_pointers(group: Group, cmd: int) -> None:
    for address in (0, unmapped_address(), 2**63):
        fails(errno.EFAULT, ioctl, group.fd, cmd, address)


def test_unknown_ioctls(group: Group, container: Container) -> None:
    for nr in (0, 1, 2, *range(7, 30), 155):
        fails(errno.ENOTTY, group.ioctl, request(nr))
    for nr in range(3, 7):
        fails(errno.EINVAL, container.ioctl, request(nr))  # without an IOMMU, whatever it is


def test_a_group_is_one_processs(machine: MountedLab, vgpu: Vgpu, group: Group) -> None:
    fails(errno.EBUSY, Group, machine.path, vgpu.group)
    code = f"open({str(machine.path / 'dev/vfio' / vgpu.group)!r}, 'r+b', buffering=0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "OSError: [Errno 16]" in done.stderr
    group.close()
    Group(machine.path, vgpu.group).close()


def test_set_container_preconditions(machine: MountedLab, group: Group, container: Container) -> None:
    fails(errno.EBADF, group.set_container, -1)
    fails(errno.EBADF, group.set_container, 9999)
    with eventfd() as stranger, open(machine.path / PARAMETER, "rb") as attribute:
        for fd in (stranger, attribute.fileno(), group.fd, 0):
            fails(errno.EBADFD, group.set_container, fd)
        group.set_container(container)
        fails(errno.EINVAL, group.set_container, container)
        fails(errno.EINVAL, group.set_container, stranger)
        fails(errno.EBADF, group.set_container, 9999)


def test_unset_container_preconditions(
    machine: MountedLab, vgpu: Vgpu, group: Group, container: Container
) -> None:
    fails(errno.EINVAL, group.unset_container)
    group.set_container(container)
    container.set_iommu()
    with Device(group_device(machine.path, group, vgpu.name)):
        fails(errno.EBUSY, group.unset_container)
    group.ioctl(GROUP_UNSET_CONTAINER)
    fails(errno.EINVAL, group.unset_container)


def test_device_fd_preconditions(machine: MountedLab, vgpu: Vgpu, group: Group, container: Container) -> None:
    fails(errno.ENODEV, device_fd, group, "no-such-device")
    fails(errno.ENODEV, device_fd, group, "")
    fails(errno.ENODEV, device_fd, group, vgpu.name + "x")
    fails(errno.ENODEV, device_fd, group, f"{vgpu.name} vf_token={UUID}")  # only vfio-pci knows of tokens
    fails(errno.EINVAL, device_fd, group, "x" * 5000)
    fails(errno.EINVAL, device_fd, group, vgpu.name)
    group.set_container(container)
    fails(errno.EINVAL, device_fd, group, vgpu.name)
    container.set_iommu()
    fails(errno.EOPNOTSUPP, device_fd, group, vgpu.name)  # on the bare mount; `vfsfuse run` makes it work
    fails(errno.ENODEV, group_device, machine.path, group, "no-such-device")
    first, second = (Device(group_device(machine.path, group, vgpu.name)) for _ in range(2))
    first.close()
    second.ioctl(DEVICE_GET_INFO, DeviceInfo())
    second.close()


NAMES = {
    GPU + " ": 0,
    f"{GPU}   ": 0,
    f"{GPU}x": errno.ENODEV,
    f"{GPU[:-1]}": errno.ENODEV,
    f" {GPU}": errno.ENODEV,
    f"{GPU} x": errno.EINVAL,
    f"{GPU}\tvf_token={UUID}": errno.ENODEV,
    f"{GPU} vf_token=": errno.EINVAL,
    f"{GPU} vf_token={UUID[:-1]}": errno.EINVAL,
    f"{GPU} vf_token={UUID[:-1]}g": errno.EINVAL,
    f"{GPU} vf_token={UUID}x": errno.EINVAL,
    f"{GPU} vf_token={UUID} vf_token={UUID}": errno.EINVAL,
    f"{GPU} vf_token={UUID} ": errno.EINVAL,
    f"{GPU} vf_token={UUID}": errno.EINVAL,  # a right one, but the function has no SR-IOV
}


def test_names_with_vf_tokens(machine: MountedLab) -> None:
    with bound(machine, GPU) as groups, opened(machine, groups[0], GPU) as found:
        for name, number in NAMES.items():
            if number:
                fails(number, group_device, machine.path, found.group, name)
            else:
                Device(group_device(machine.path, found.group, name)).close()


def is_revoked(machine: MountedLab, group: Group, container: Container, name: str) -> None:
    """The device of the group's open file has gone: what its ioctls answer."""
    fails(errno.ENODEV, lambda: group.flags)
    fails(errno.ENODEV, group.set_container, container)
    fails(errno.ENODEV, group.set_container, group)  # before it looks what it is
    fails(errno.EBADF, group.set_container, -1)
    fails(errno.EINVAL, group.unset_container)
    fails(errno.ENODEV, group_device, machine.path, group, name)
    fails(errno.EINVAL, group.ioctl, GROUP_GET_STATUS, GroupStatus(argsz=7))
    fails(errno.ENOTTY, group.ioctl, request(7))


def test_an_open_group_keeps_no_vgpu(machine: MountedLab, container: Container) -> None:
    """Only an open device does. The container loses the group, and with it the mappings."""
    vgpu = machine.create("mtty-2", "mtty")
    page = Memory(PAGE)
    with Group(machine.path, vgpu.group) as group:
        group.set_container(container)
        container.set_iommu()
        container.map(0, page.address, PAGE)
        vgpu.remove()
        is_revoked(machine, group, container, vgpu.name)
        fails(errno.EINVAL, container.info)
        with (
            machine.create("mtty-2", "mtty") as next_one,
            opened(machine, next_one.group, next_one.name) as found,
        ):
            assert next_one.group == vgpu.group
            is_revoked(machine, group, container, next_one.name)
            group.close()
            assert found.device.config(0) == 0x4348
            fails(errno.EBUSY, Group, machine.path, next_one.group)
    page.close()


def test_an_open_group_keeps_no_function(machine: MountedLab, container: Container) -> None:
    """vfio-pci gives the function up, and takes it again, in a group with the same number."""
    unbind = machine.path / "sys/bus/pci/drivers/vfio-pci/unbind"
    with bound(machine, GPU) as groups:
        number = groups[0]
        with Group(machine.path, number) as group:
            group.set_container(container)
            container.set_iommu()
            unbind.write_text(GPU)
            is_revoked(machine, group, container, GPU)
            fails(errno.ENOENT, Group, machine.path, number)
            (machine.path / "sys/bus/pci/drivers_probe").write_text(GPU)
            with opened(machine, number, GPU) as found:
                is_revoked(machine, group, container, GPU)
                fails(errno.EINVAL, hot_reset, found.device, group.fd)
                assert found.device.config(0) == 0x1234


def test_a_function_with_its_host_driver_has_no_group_file(machine: MountedLab) -> None:
    with bound(machine, GPU) as groups:
        path = machine.path / "dev/vfio" / groups[0]
        assert path.exists()
    assert not path.exists()


# ---- noiommu ----


@pytest.fixture
def noiommu(machine: MountedLab) -> Iterator[Path]:
    """The parameter, set to Y."""
    parameter = machine.path / PARAMETER
    parameter.write_text("Y")
    yield parameter
    parameter.write_text("N")


def test_the_parameter(machine: MountedLab) -> None:
    parameter = machine.path / PARAMETER
    assert parameter.read_text() == "N\n"
    for text, shown in (
        ("y", "Y"),
        ("0", "N"),
        ("1\n", "Y"),
        ("off", "N"),
        ("on", "Y"),
        ("No", "N"),
        ("t", "Y"),
    ):
        parameter.write_text(text)
        assert parameter.read_text() == f"{shown}\n"
    for text in ("", "x", "o", "2"):
        fd = os.open(parameter, os.O_WRONLY)
        if text:
            fails(errno.EINVAL, os.write, fd, text.encode())
        os.close(fd)
    parameter.write_text("N")


def test_vfio_pci_does_not_take_a_function_without_iommu(machine: MountedLab) -> None:
    function = function_dir(machine, UNPROTECTED)
    assert not (function / "iommu_group").is_symlink()
    with pytest.raises(OSError, match="Invalid argument"), bound(machine, UNPROTECTED):
        pass
    assert (function / "driver").resolve().name == "vgpu"


@needs.capability("CAP_SYS_RAWIO")
def test_a_noiommu_group(machine: MountedLab, noiommu: Path) -> None:
    before = set(os.listdir(machine.path / "dev/vfio"))
    with bound(machine, UNPROTECTED) as groups:
        name = f"noiommu-{groups[0]}"
        assert set(os.listdir(machine.path / "dev/vfio")) - before == {name}
        assert os.listdir(machine.path / "sys/kernel/iommu_groups" / groups[0] / "devices") == [UNPROTECTED]
        with Container(machine.path) as container, Group(machine.path, name) as group:
            assert container.check_extension(NOIOMMU) == 1
            assert group.flags == VIABLE
            group.set_container(container)
            for kind in (TYPE1, TYPE1V2, 0, 99):
                fails(errno.ENODEV, container.set_iommu, kind)
            container.set_iommu(NOIOMMU)
            assert [container.check_extension(each) for each in (TYPE1, TYPE1V2, NOIOMMU)] == [0, 0, 1]
            fails(errno.ENOTTY, container.info)
            fails(errno.ENOTTY, container.ioctl, IOMMU_GET_INFO)
            fails(errno.ENOTTY, container.map, 0, 0, 4096)
            with Device(group_device(machine.path, group, UNPROTECTED)) as device:
                assert device.config(0) == 0x1234
                noiommu.write_text("N")  # no matter to who has it
                assert device.config(0) == 0x1234
    assert set(os.listdir(machine.path / "dev/vfio")) == before
    assert not (machine.path / "sys/kernel/iommu_groups" / groups[0]).exists()


def test_noiommu_is_not_there_unless_enabled(machine: MountedLab, vgpu: Vgpu, group: Group) -> None:
    with Container(machine.path) as container:
        assert container.check_extension(NOIOMMU) == 0
        group.set_container(container)
        fails(errno.ENODEV, container.set_iommu, NOIOMMU)


@needs.capability("CAP_SYS_RAWIO")
def test_real_and_noiommu_groups_do_not_mix(
    machine: MountedLab, noiommu: Path, vgpu: Vgpu, group: Group
) -> None:
    with (
        bound(machine, UNPROTECTED) as groups,
        Container(machine.path) as container,
        Group(machine.path, f"noiommu-{groups[0]}") as unprotected,
    ):
        group.set_container(container)
        fails(errno.EPERM, unprotected.set_container, container)
        group.unset_container()
        unprotected.set_container(container)
        fails(errno.EPERM, group.set_container, container)


def test_noiommu_takes_cap_sys_rawio(machine: MountedLab, noiommu: Path) -> None:
    with bound(machine, UNPROTECTED) as groups:
        path = machine.path / "dev/vfio" / f"noiommu-{groups[0]}"
        if not needs.has_capability("CAP_SYS_RAWIO"):
            fails(errno.EPERM, Group, machine.path, path.name)
            return
        without = ["setpriv", "--bounding-set", "-sys_rawio", "--inh-caps", "-sys_rawio"]
        done = run([*without, "sh", "-c", f"exec 3<>{path}"])
        assert "Operation not permitted" in done.stderr
        Group(machine.path, path.name).close()
