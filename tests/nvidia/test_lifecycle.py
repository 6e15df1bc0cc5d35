# SPDX-License-Identifier: Apache-2.0
"""How such vGPUs come and go: with drivers, with SR-IOV, with the GPU, and while clients hold them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import one_write
from tests.inotify import watching
from tests.iommufd.bound import open_bound
from tests.nvidia.host import ALL, LAB, SLOT, SLOTS, VFS, Host, Vf, catalogue, host_of, wait_until_free
from tests.test_uevents import hear, listening
from tests.vfio.client import Container, Group, fails
from tests.vfio.devices import REQ, TRIGGER, Opened, eventfd, group_device, opened, signals, vfio_pci
from tests.waiting import settled, wait_for


@contextmanager
def client(vf: Vf) -> Iterator[Opened]:
    """A client that uses the vGPU by its group."""
    with opened(vf.host.lab, vf.group, vf.name) as device:
        yield device


def nodes(host: Host) -> set[str]:
    """The files of groups and of devices."""
    folder = host.lab.path / "dev/vfio"
    return {*os.listdir(folder), *os.listdir(folder / "devices")} - {"vfio", "devices"}


def test_a_virtual_function_of_the_host_driver_is_a_device_of_vfio(host: Host, vfs: list[Vf]) -> None:
    assert nodes(host) == {name for vf in vfs for name in (vf.group, vf.vfio)}
    for vf in vfs:
        assert os.readlink(vf.path / "driver").endswith("/drivers/nvidia")
        assert os.readlink(vf.path / "physfn") == "../0000:86:00.0"
        own = vf.path / "vfio-dev" / vf.vfio
        assert (own / "dev").read_text().startswith("5") and own.is_dir() and not own.is_symlink()
        assert (host.lab.path / "sys/class/vfio-dev" / vf.vfio).resolve() == own
        assert (host.lab.path / "sys/class/vfio" / vf.group).exists()


def test_it_is_one_while_it_is_bound(host: Host, vfs: list[Vf]) -> None:
    vf = vfs[0]
    group, vfio, numbers = vf.group, vf.vfio, nodes(host)
    vf.set(14)
    host.unbind(vf.name)
    assert sorted(os.listdir(vf.path)).count("nvidia") == 0 and not (vf.path / "vfio-dev").exists()
    assert numbers - nodes(host) == {group, vfio} and host.vgpus == 0 and vf.group == group
    assert vfs[1].creatable == ALL
    host.bind(vf.name)
    assert (vf.type, vf.creatable, vf.group) == (0, ALL, group) and nodes(host) == numbers


def test_vfio_pci_takes_the_bare_function(host: Host, vfs: list[Vf]) -> None:
    vf = vfs[0]
    group = vfio_pci(host.lab, vf.name)
    assert not vf.nvidia.exists() and vf.vfio
    with opened(host.lab, group, vf.name) as device:
        assert os.pread(device.device.fd, 4, 7 << 40) == bytes.fromhex("de10b02a")
        os.pwrite(device.device.fd, b"memory", 64)
        assert os.pread(device.device.fd, 6, 64) == b"memory"
    host.unbind(vf.name, "vfio-pci")
    (vf.path / "driver_override").write_text("\n")
    host.bind(vf.name)
    assert vf.type == 0 and vf.creatable == ALL


def test_without_a_type_it_cannot_be_used(vfs: list[Vf]) -> None:
    vf, lab = vfs[0], vfs[0].host.lab
    with Container(lab.path) as container, Group(lab.path, vf.group) as group:
        group.set_container(container)
        container.set_iommu()
        fails(errno.ENODEV, group_device, lab.path, group, vf.name)
        vf.set(14)
        os.close(group_device(lab.path, group, vf.name))
        settled(lambda: vf.read("vgpu_params"))
        vf.set(0)
        fails(errno.ENODEV, group_device, lab.path, group, vf.name)


def test_the_type_stays_while_a_client_uses_the_vgpu(host: Host, vfs: list[Vf]) -> None:
    vf = vfs[0]
    vf.set(14)
    vf.write("vgpu_params", "a=1")
    with client(vf) as device, eventfd() as asked:
        device.device.eventfds(REQ, TRIGGER, 0, asked)
        for number in (0, 14, 24):
            fails(errno.EBUSY, vf.set, number)
        fails(errno.EPERM, vf.write, "vgpu_params", "b=2")
        fails(errno.EBUSY, vf.write, "placement_id", "0")
        assert (vf.type, vf.read("vgpu_params"), signals(asked, 0.2)) == (14, "a=1\n", 0)
        assert (host.vgpus, host.free) == (1, (SLOTS - 4) * SLOT)
    assert vf.type == 14
    vf.set(0)


def test_what_a_client_leaves_behind_is_not_the_next_ones(vfs: list[Vf]) -> None:
    vf = vfs[0]
    vf.set(14)
    with client(vf) as device:
        os.pwrite(device.device.fd, b"secret", 1 << 20)
    vf.set(0)
    vf.set(24)
    with client(vf) as device:
        assert os.pread(device.device.fd, 6, 1 << 20) == bytes(6)


CHANGES: dict[str, Callable[[Host, Vf], None]] = {
    "unbind": lambda host, vf: host.unbind(vf.name),
    "disable": lambda host, vf: one_write(host.pf / "sriov_numvfs", "0"),
    "unbind the GPU": lambda host, vf: host.unbind(host.pf.name),
    "remove the GPU": lambda host, vf: one_write(host.pf / "remove", "1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_held_vgpu_is_not_taken_away(tmp_path: Path, change: str) -> None:
    with host_of(tmp_path) as host:
        vf = host.vf(0)
        vf.set(14)
        with client(vf) as device, eventfd() as asked:
            device.device.eventfds(REQ, TRIGGER, 0, asked)
            fails(errno.EBUSY, CHANGES[change], host, vf)
            assert signals(asked) == 1 and vf.type == 14
            assert [host.vf(index).creatable for index in (1, 7)] == [catalogue(14, 24)] * 2
        CHANGES[change](host, vf)
        assert not vf.nvidia.exists()
        if change == "remove the GPU":
            (host.lab.path / "sys/bus/pci/rescan").write_text("1")
        if change == "unbind the GPU":
            host.bind(host.pf.name)
        if change == "unbind":
            host.bind(vf.name)
        host.enable()
        assert (host.vgpus, host.vf(0).type, host.vf(0).creatable) == (0, 0, ALL)
        assert host.free == SLOTS * SLOT


@pytest.mark.parametrize("change", CHANGES)
def test_with_wait_the_change_waits_for_the_client(tmp_path: Path, change: str) -> None:
    with host_of(tmp_path, '[mount]\nremove = "wait"\n') as host:
        vf = host.vf(0)
        vf.set(14)
        failed: list[OSError] = []

        def work() -> None:
            try:
                CHANGES[change](host, vf)
            except OSError as error:
                failed.append(error)

        with client(vf) as device, eventfd() as asked:
            device.device.eventfds(REQ, TRIGGER, 0, asked)
            changing = threading.Thread(target=work)
            changing.start()
            assert signals(asked) == 1
            fails(errno.ENODEV, vf.set, 0)  # it is about to go
            assert changing.is_alive() and vf.type == 14
        changing.join(60)
        assert not changing.is_alive() and not failed
        wait_for(lambda: not vf.nvidia.exists())


def test_who_has_a_file_open_when_the_driver_leaves(host: Host, vfs: list[Vf]) -> None:
    vf = vfs[0]
    folder = os.open(vf.nvidia, os.O_RDONLY)
    file = os.open("current_vgpu_type", os.O_RDWR, dir_fd=folder)
    os.listdir(folder)
    host.unbind(vf.name)
    fails(errno.ENODEV, os.pread, file, 9, 0)
    fails(errno.ENODEV, os.pwrite, file, b"14", 0)
    fails(errno.ENOENT, os.open, "current_vgpu_type", os.O_RDONLY, dir_fd=folder)
    os.close(file)
    os.close(folder)
    host.bind(vf.name)


def test_all_functions_can_be_made_anew(host: Host, vfs: list[Vf]) -> None:
    groups = [vf.group for vf in vfs]
    for vf in vfs[:4]:
        vf.set(14)
    one_write(host.pf / "sriov_numvfs", "0")
    assert nodes(host) == set() and (host.vgpus, host.free) == (0, SLOTS * SLOT)
    again = host.enable()
    assert [vf.group for vf in again] == groups and {vf.creatable for vf in again} == {ALL}


def test_a_virtual_function_that_is_not_probed(host: Host, vfs: list[Vf]) -> None:
    assert vfs
    one_write(host.pf / "sriov_numvfs", "0")
    one_write(host.pf / "sriov_drivers_autoprobe", "0")
    try:
        vf = host.enable(1)[0]
        assert not (vf.path / "driver").exists() and not vf.nvidia.exists() and nodes(host) == set()
    finally:
        one_write(host.pf / "sriov_numvfs", "0")
        one_write(host.pf / "sriov_drivers_autoprobe", "1")
    assert all(vf.nvidia.exists() for vf in host.enable(VFS))


def test_watchers_and_listeners_hear_of_it(host: Host, vfs: list[Vf]) -> None:
    vf = vfs[0]
    group, vfio, devices = vf.group, vf.vfio, host.lab.path / "dev/vfio/devices"
    with watching(devices) as watch, listening(host.lab, os.O_NONBLOCK) as fd:
        wait_for(watch.silent)  # of what came and went before
        host.unbind(vf.name)
        host.bind(vf.name)
        assert watch.hear(2) == [(str(devices), "IN_DELETE", vfio), (str(devices), "IN_CREATE", vfio)]
        path = "/" + str(vf.path.relative_to(host.lab.path / "sys"))
        leaving = [
            ("remove", f"{path}/vfio-dev/{vfio}"),
            ("remove", f"/devices/virtual/vfio/{group}"),
            ("unbind", path),
        ]
        coming = [("add" if action == "remove" else "bind", place) for action, place in leaving]
        events = [
            (said["ACTION"], said["DEVPATH"])
            for _, said in hear(fd)
            if not said["DEVPATH"].startswith("/module")
        ]
        assert events == [*leaving, coming[1], coming[0], coming[2]]


KERNELS = {
    "no files of devices": ("cdevs = false", False, True),
    "no files of groups": ("groups = false", True, False),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_that_lack_one_kind_of_file(tmp_path: Path, kernel: str) -> None:
    setting, has_cdevs, has_groups = KERNELS[kernel]
    with host_of(tmp_path, f"[mount]\n{setting}\n", count=2) as host:
        vf = host.vf(0)
        vf.set(14)
        assert vf.vfio == "vfio0" and (vf.path / "vfio-dev/vfio0/dev").exists() is has_cdevs
        assert (host.lab.path / "dev/vfio" / vf.group).exists() is has_groups
        assert (host.lab.path / "dev/vfio/devices").exists() is has_cdevs
        if has_groups:
            with client(vf):
                fails(errno.EBUSY, vf.set, 0)
        else:
            os.close(open_bound(vf.cdev))
        wait_until_free(vf)
        vf.set(0)


def test_without_an_iommu_the_driver_registers_nothing(tmp_path: Path) -> None:
    text = LAB.replace("vfs = ", "iommu = false\nvfs = ")
    with host_of(tmp_path, text=text, count=2) as host:
        vf = host.vf(0)
        assert not (vf.path / "driver").exists() and not vf.nvidia.exists()
        (host.lab.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode").write_text("Y")
        host.bind(vf.name)
        vf.set(14)
        assert vf.cdev.name.startswith("noiommu-vfio") and vf.creatable == catalogue()


def test_virtual_functions_that_come_late_or_fail(tmp_path: Path) -> None:
    """The count is ahead of the functions for a while, and one of them never has a directory nvidia."""
    text = LAB.replace("vfs = ", "vf = { delay = 0.5, failing = [1] }\nvfs = ")
    with host_of(tmp_path, text=text, count=0) as host:
        one_write(host.pf / "sriov_numvfs", "3")
        assert (host.pf / "sriov_numvfs").read_text() == "3\n" and not (host.pf / "virtfn0").exists()
        wait_for((host.pf / "virtfn2/nvidia/current_vgpu_type").exists)
        states = [host.vf(index).nvidia.is_dir() for index in range(3)]
        assert states == [True, False, True] and not (host.vf(1).path / "driver").exists()
        fails(errno.EIO, host.bind, host.vf(1).name)
        host.vf(2).set(14)
        assert host.vf(0).creatable == catalogue(14, 24)


def test_threads_that_want_the_last_place(vfs: list[Vf]) -> None:
    """Each place goes to one of those who write at the same time."""
    for vf in vfs[:3]:
        vf.set(14)
    won: list[int] = []

    def work(vf: Vf) -> None:
        with contextlib.suppress(OSError):
            vf.set(14)
            won.append(vf.index)

    threads = [threading.Thread(target=work, args=(vf,)) for vf in vfs[3:]]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [vf.index for vf in vfs[3:] if vf.type] == won and len(won) == 1
