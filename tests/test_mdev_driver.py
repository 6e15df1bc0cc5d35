# SPDX-License-Identifier: Apache-2.0
"""sys/bus/mdev's driver, vfio_mdev: what unbinding a vGPU takes away, and that binding gives it back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import one_write, run
from tests.labs import MountedLab, Vgpu
from tests.snapshot import snapshot
from tests.vfio.client import Group, fails
from tests.vfio.devices import REQ, TRIGGER, Device, eventfd, opened, signals

BUS = "sys/bus/mdev"
DRIVER = f"{BUS}/drivers/vfio_mdev"
PARENTS = {"vgpu-8": "0000:86:00.0", "mtty-1": "mtty", "mbochs-small": "mbochs"}


@pytest.fixture(params=PARENTS)
def vgpu(lab: MountedLab, request: pytest.FixtureRequest) -> Iterator[Vgpu]:
    """A vGPU of a physical GPU, a serial card, a display: each is removed at the end, bound or not."""
    with lab.create(request.param, PARENTS[request.param]) as made:
        yield made


def store(lab: MountedLab, place: str, text: str) -> None:
    one_write(lab.path / place, text)


def of_driver(vgpu: Vgpu) -> list[Path]:
    """Everything that is there because the vGPU has its driver."""
    top = vgpu.lab.path
    group = top / "sys/kernel/iommu_groups" / vgpu.group
    return [
        *(vgpu.path / "driver", vgpu.path / "iommu_group", vgpu.path / "vfio-dev" / vgpu.vfio),
        *(top / DRIVER / vgpu.name, top / "sys/class/vfio-dev" / vgpu.vfio),
        *(group / "devices" / vgpu.name, top / "dev/vfio" / vgpu.group, vgpu.cdev),
    ]


def of_device(vgpu: Vgpu) -> list[Path]:
    """Everything that is there because the vGPU exists."""
    names = ("remove", "mdev_type", "subsystem", "vgpu_uuid", "uevent", "config")
    return [*(vgpu.path / name for name in names), vgpu.lab.mdevs / vgpu.name]


def there(paths: list[Path]) -> list[bool]:
    """Which are there, for us and for another process."""
    told = run(["stat", "--printf=%n\\n", *paths]).stdout.splitlines()
    found = [os.path.lexists(path) for path in paths]
    assert found == [str(path) in told for path in paths]
    return found


def test_unbinding_takes_away_what_the_driver_gives(lab: MountedLab, vgpu: Vgpu) -> None:
    gone, stays = of_driver(vgpu), of_device(vgpu)
    before = snapshot(lab.path)
    for again in (f"{DRIVER}/bind", f"{BUS}/drivers_probe"):
        assert all(there(gone)) and "DRIVER=vfio_mdev\n" in (vgpu.path / "uevent").read_text()
        store(lab, f"{DRIVER}/unbind", vgpu.name + "\n")
        assert not any(there(gone)) and all(there(stays))
        assert "DRIVER" not in (vgpu.path / "uevent").read_text()
        fails(errno.ENOENT, Group, lab.path, vgpu.group)
        store(lab, again, vgpu.name + "\n")
        assert snapshot(lab.path) == before
    with opened(lab, vgpu.group, vgpu.name):
        pass


def test_unbound_its_memory_and_numbers_stay(lab: MountedLab) -> None:
    with lab.create() as vgpu, lab.create() as other:
        with (vgpu.path / "resource0").open("r+b", buffering=0) as file:
            file.write(b"kept")
        store(lab, f"{DRIVER}/unbind", vgpu.name)
        with lab.create() as third:
            assert len({vgpu.group, other.group, third.group}) == 3
            with (vgpu.path / "resource0").open("r+b", buffering=0) as file:
                assert os.pread(file.fileno(), 4, 0) == b"kept"
                os.pwrite(file.fileno(), b"also", 0)
            store(lab, f"{DRIVER}/bind", vgpu.name)
            assert (vgpu.path / "vgpu_group_id").read_text() == f"{vgpu.group}\n"
            with Device(vgpu.open()) as device:
                assert os.pread(device.fd, 4, 0) == b"also"


def test_a_vgpu_in_use_stays_bound(lab: MountedLab, vgpu: Vgpu) -> None:
    with opened(lab, vgpu.group, vgpu.name) as client, eventfd() as event:
        client.device.eventfds(REQ, TRIGGER, 0, event)
        before = snapshot(lab.path)
        fails(errno.EBUSY, store, lab, f"{DRIVER}/unbind", vgpu.name)
        assert signals(event) == 1
        assert snapshot(lab.path) == before
        client.device.close()
        store(lab, f"{DRIVER}/unbind", vgpu.name)  # its group is open still
        fails(errno.ENODEV, lambda: client.group.flags)
    store(lab, f"{DRIVER}/bind", vgpu.name)


def test_an_unbound_vgpu_is_removed(lab: MountedLab) -> None:
    before = snapshot(lab.path)
    for _ in range(2):
        vgpu = lab.create()
        store(lab, f"{DRIVER}/unbind", vgpu.name)
        with (vgpu.path / "config").open("rb", buffering=0) as config:
            assert config.read(2) == b"\x34\x12"
            vgpu.remove()
            fails(errno.ENODEV, os.pread, config.fileno(), 2, 0)
        assert snapshot(lab.path) == before


@pytest.mark.parametrize("off", ["0", "0\n", "00"])
def test_without_autoprobe_a_vgpu_starts_unbound(lab: MountedLab, off: str) -> None:
    name = "0b6f6a0e-7c3c-4b11-9d8f-4c1a52d7e6a0"
    switch = lab.path / BUS / "drivers_autoprobe"
    assert switch.read_text() == "1\n"
    switch.write_text(off)
    try:
        assert switch.read_text() == "0\n"
        (lab.gpu / "mdev_supported_types/vgpu-8/create").write_text(name)
        assert not (lab.mdevs / name / "driver").exists()
        assert not (lab.mdevs / name / "vfio-dev").exists()
        store(lab, f"{BUS}/drivers_probe", name)
        with Vgpu(lab, name) as vgpu:
            assert all(there(of_driver(vgpu)))
    finally:
        switch.write_text("1")


@pytest.mark.parametrize(
    ("place", "text", "number"),
    [
        (f"{DRIVER}/bind", "bound", errno.EBUSY),
        (f"{DRIVER}/bind", "absent", errno.ENODEV),
        (f"{DRIVER}/unbind", "absent", errno.ENODEV),
        (f"{BUS}/drivers_probe", "absent", errno.ENODEV),
        (f"{BUS}/drivers_probe", "bound", 0),
        (f"{DRIVER}/uevent", "add", 0),
        (f"{DRIVER}/uevent", "nothing", errno.EINVAL),
    ],
)
def test_what_the_driver_refuses(lab: MountedLab, place: str, text: str, number: int) -> None:
    with lab.create("mtty-1", "mtty") as vgpu:
        before = snapshot(lab.path)
        written = vgpu.name if text == "bound" else text
        if number:
            fails(number, store, lab, place, written)
        else:
            store(lab, place, written)
        assert snapshot(lab.path) == before
        store(lab, f"{DRIVER}/unbind", vgpu.name)
        fails(errno.ENODEV, store, lab, f"{DRIVER}/unbind", vgpu.name)


def test_a_mediated_device_has_no_driver_override(lab: MountedLab) -> None:
    with lab.create() as vgpu:
        assert not (vgpu.path / "driver_override").exists()
