# SPDX-License-Identifier: Apache-2.0
"""Newer QEMUs, which take devices by iommufd, on the bare mount: without `vfsfuse run`.

A guest has a serial card and a display, each mediated and physical. Its stock drivers use them, they are
unplugged and plugged in again while it runs, and the machine is reset. The QEMU of Debian 13 has ordinary
memory, which it maps by IOAS_MAP. The next one has shared memory, which it maps by IOAS_MAP_FILE.
Source: QEMU's docs/devel/vfio-iommufd.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, one_write
from tests.labs import MountedLab, Vgpu, described
from tests.qemu import drivers, programs
from tests.qemu.guest import Guest
from tests.qemu.iommufd import OBJECT, Opened, cdev, mdev, with_sys
from tests.qemu.machine import Machine, in_lab
from tests.vfio.devices import bound, function_dir, give_back, vfio_pci

pytestmark = pytest.mark.qemu

LAB = f"""
[models]
serial = "{ROOT}/devmodel/models/mtty.py:Mtty"
display = "{ROOT}/devmodel/models/mbochs.py:Mbochs"

[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
types.vgpu-8 = {{ memory = "32M", description = "mediated display" }}

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 1
types.mtty-1 = {{ description = "mediated serial card" }}
""" + "".join(
    f"""
[parents."{name}"]
kind = "gpu"
driver = "host"
model = "{model}"
memory = "16M"
types.none = {{ memory = "1M", model = "vgpu", description = "not used" }}
"""
    for name, model in (("0000:87:00.0", "serial"), ("0000:88:00.0", "display"))
)
SERIAL, DISPLAY = "0000:87:00.0", "0000:88:00.0"
"""The physical functions."""
MEDIATED_SERIAL, MEDIATED_DISPLAY, PHYSICAL_SERIAL, PHYSICAL_DISPLAY = 4, 5, 6, 7
"""PCI slots."""
SOME_BYTES = 4096
SMALL = "video=640x480"
SHARED = "memory-backend-memfd,id=ram,size=256M,share=on"
MEMORY = {"trixie": [], "forky": ["-object", SHARED, "-machine", "memory-backend=ram"]}
"""QEMU's options for the guest's memory, by suite."""
MAPPED = {"trixie": "iommufd_backend_map_dma", "forky": "iommufd_backend_map_file_dma"}
"""What QEMU traces when it maps that memory."""
CAN_PIN = needs.has_capability("CAP_IPC_LOCK")
physical = pytest.mark.skipif(
    not CAN_PIN, reason="a physical function pins all of the guest's memory, which takes CAP_IPC_LOCK"
)


@dataclass
class Running:
    """A booted guest and its devices. Without CAP_IPC_LOCK it has no physical ones."""

    suite: str
    lab: MountedLab
    machine: Machine
    serial: Vgpu
    display: Vgpu


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("iommufd"), LAB) as mounted:
        yield mounted


@pytest.fixture(scope="module", params=programs.NEWER)
def running(request: pytest.FixtureRequest, lab: MountedLab, guest: Guest) -> Iterator[Running]:
    """In the end QEMU is killed. Then no device is in use: vGPUs can be removed, and functions unbound."""
    suite, program = request.param, programs.of_suite(request.param)
    with ExitStack() as stack:
        stack.callback(remove_vgpus, lab)
        serial, display = lab.create("mtty-1", "mtty"), lab.create()
        opened = Opened(lab)
        options = opened.iommu() + MEMORY[suite] + ["-trace", MAPPED[suite]]
        options += opened.mediated(serial, MEDIATED_SERIAL) + opened.mediated(display, MEDIATED_DISPLAY)
        if CAN_PIN:
            stack.enter_context(bound(lab, SERIAL, DISPLAY))
            options += opened.physical(SERIAL, PHYSICAL_SERIAL)
            options += opened.physical(DISPLAY, PHYSICAL_DISPLAY)
        machine = stack.enter_context(
            Machine(with_sys(lab), options, guest, SMALL, program=program, descriptors=opened.descriptors)
        )
        machine.console.wait_up()
        yield Running(suite, lab, machine, serial, display)
        drivers.assert_healthy(machine.console)
        machine.kill()


def remove_vgpus(lab: MountedLab) -> None:
    """Those that the tests have left."""
    for vgpu in lab.mdevs.iterdir():
        (vgpu / "remove").write_text("1")


def test_stock_drivers_use_every_device(running: Running) -> None:
    assert f"{MAPPED[running.suite]} " in running.machine.explain()
    assert_devices_work(running, seed=1)


def test_a_mediated_device_is_taken_away_and_plugged_in_again(running: Running) -> None:
    """It is in use, so the removal fails. But it signals REQ, and QEMU has the guest let go of the device."""
    machine = running.machine
    with pytest.raises(OSError, match="busy"):
        one_write(running.serial.path / "remove", "1")
    machine.qmp.wait("DEVICE_DELETED", device=f"dev{MEDIATED_SERIAL}")
    running.serial.remove()
    running.serial = running.lab.create("mtty-1", "mtty")
    plug_in(machine, MEDIATED_SERIAL, running.serial.cdev, sysfsdev=mdev(running.serial))
    assert drivers.interrupts_of_transfer(machine.console, MEDIATED_SERIAL, SOME_BYTES) > 0


@physical
def test_a_function_is_unplugged_and_plugged_in_again(running: Running) -> None:
    """Its driver on the host has it meanwhile."""
    running.machine.qmp.execute("device_del", id=f"dev{PHYSICAL_SERIAL}")
    running.machine.qmp.wait("DEVICE_DELETED", device=f"dev{PHYSICAL_SERIAL}")
    give_back(running.lab, SERIAL)
    vfio_pci(running.lab, SERIAL)
    plug_in(running.machine, PHYSICAL_SERIAL, cdev(running.lab, SERIAL))
    assert drivers.interrupts_of_transfer(running.machine.console, PHYSICAL_SERIAL, SOME_BYTES) > 0


def test_the_machine_is_reset(running: Running) -> None:
    running.machine.qmp.execute("set-action", reboot="reset")
    running.machine.qmp.execute("system_reset")
    running.machine.console.wait_up()
    assert_devices_work(running, seed=2)


@pytest.mark.parametrize("suite", programs.NEWER)
def test_qemu_opens_dev_iommu_by_itself(lab: MountedLab, suite: str) -> None:
    """Under `vfsfuse run`, where it is at its usual place."""
    program = programs.of_suite(suite)
    with lab.create() as vgpu:
        opened = Opened(lab)
        options = ["-object", f"iommufd,id={OBJECT}", *opened.mediated(vgpu, MEDIATED_DISPLAY)]
        machine = Machine(in_lab(lab), options, program=program, descriptors=opened.descriptors)
        with machine:
            shown = (vgpu.path / "config").read_bytes()[:4]
            assert machine.qtest.config(MEDIATED_DISPLAY, 0, 4) == int.from_bytes(shown, "little")


def assert_devices_work(running: Running, seed: int) -> None:
    """The guest's drivers make each device do something that only a working one does."""
    console = running.machine.console
    name = drivers.framebuffer(console, MEDIATED_DISPLAY)
    drivers.assert_shows(running.display, drivers.draw_pattern(console, name, seed))
    if CAN_PIN:
        name = drivers.framebuffer(console, PHYSICAL_DISPLAY)
        picture = drivers.draw_pattern(console, name, seed + 100)
        drivers.assert_in_memory(function_dir(running.lab, DISPLAY), picture)
    for slot in (MEDIATED_SERIAL, PHYSICAL_SERIAL) if CAN_PIN else (MEDIATED_SERIAL,):
        assert drivers.interrupts_of_transfer(console, slot, SOME_BYTES) > 0


def plug_in(machine: Machine, slot: int, path: Path, **options: str) -> None:
    """Add a device by a descriptor that goes through QEMU's monitor, and wait for the guest's driver."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        machine.qmp.hand("cdev", fd)
    finally:
        os.close(fd)
    options = {"driver": "vfio-pci", "id": f"dev{slot}", "addr": f"{slot:#x}", "fd": "cdev", **options}
    machine.qmp.execute("device_add", iommufd=OBJECT, **options)
    found = f"/sys/bus/pci/devices/0000:00:{slot:02x}.0/driver"
    machine.console.check(f"until [ -e {found} ]; do sleep 0.1; done")
