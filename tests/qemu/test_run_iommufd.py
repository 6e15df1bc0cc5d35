# SPDX-License-Identifier: Apache-2.0
"""Newer QEMUs under `vfsfuse run`, which open the files of iommufd by themselves: by `sysfsdev=` and `host=`.

They find a device's own file by its `dev` in sysfs, and take it only if fstat(2) says that it is that
character device. Otherwise the guest is that of tests.qemu.test_iommufd.
Source: QEMU's docs/devel/vfio-iommufd and util/chardev_open.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.labs import MountedLab, Vgpu, described
from tests.qemu import drivers, programs
from tests.qemu.guest import Guest
from tests.qemu.iommufd import OBJECT
from tests.qemu.machine import Machine, in_lab
from tests.qemu.test_iommufd import (
    CAN_PIN,
    DISPLAY,
    LAB,
    MEDIATED_DISPLAY,
    MEDIATED_SERIAL,
    MEMORY,
    PHYSICAL_DISPLAY,
    PHYSICAL_SERIAL,
    SERIAL,
    SMALL,
    SOME_BYTES,
    Running,
    assert_devices_work,
    physical,
    remove_vgpus,
)
from tests.vfio.devices import bound, give_back, vfio_pci

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("run-iommufd"), LAB) as mounted:
        yield mounted


@pytest.fixture(scope="module", params=programs.NEWER)
def running(request: pytest.FixtureRequest, lab: MountedLab, guest: Guest) -> Iterator[Running]:
    """A guest whose QEMU was given names of devices, and no descriptor."""
    suite, program = request.param, programs.of_suite(request.param)
    with ExitStack() as stack:
        stack.callback(remove_vgpus, lab)
        serial, display = lab.create("mtty-1", "mtty"), lab.create()
        options = ["-object", f"iommufd,id={OBJECT}", *MEMORY[suite]]
        options += mediated(serial, MEDIATED_SERIAL) + mediated(display, MEDIATED_DISPLAY)
        if CAN_PIN:
            stack.enter_context(bound(lab, SERIAL, DISPLAY))
            options += device(PHYSICAL_SERIAL, host=SERIAL) + device(PHYSICAL_DISPLAY, host=DISPLAY)
        machine = stack.enter_context(Machine(in_lab(lab), options, guest, SMALL, program=program))
        machine.console.wait_up()
        yield Running(suite, lab, machine, serial, display)
        drivers.assert_healthy(machine.console)
        machine.kill()


def device(slot: int, **named: str) -> list[str]:
    """QEMU's options for the device that `named` names, at PCI address 00:`slot`.0; its id there is
    dev<slot>."""
    options = {**named, "iommufd": OBJECT, "id": f"dev{slot}", "addr": f"{slot:#x}"}
    return ["-device", ",".join(["vfio-pci", *(f"{key}={value}" for key, value in options.items())])]


def mediated(vgpu: Vgpu, slot: int) -> list[str]:
    """The same for a vGPU."""
    return device(slot, sysfsdev=f"/sys/bus/mdev/devices/{vgpu.name}")


def test_stock_drivers_use_every_device(running: Running) -> None:
    assert_devices_work(running, seed=1)


def test_a_mediated_device_is_unplugged_and_plugged_in_again(running: Running) -> None:
    name = f"/sys/bus/mdev/devices/{running.serial.name}"
    plug_anew(running.machine, MEDIATED_SERIAL, {"sysfsdev": name})
    assert drivers.interrupts_of_transfer(running.machine.console, MEDIATED_SERIAL, SOME_BYTES) > 0


@physical
def test_a_function_is_unplugged_and_plugged_in_again(running: Running) -> None:
    """Its driver on the host has it meanwhile, and its device file has another number afterwards."""
    machine = running.machine
    machine.qmp.execute("device_del", id=f"dev{PHYSICAL_SERIAL}")
    machine.qmp.wait("DEVICE_DELETED", device=f"dev{PHYSICAL_SERIAL}")
    give_back(running.lab, SERIAL)
    vfio_pci(running.lab, SERIAL)
    plug_in(machine, PHYSICAL_SERIAL, {"host": SERIAL})
    assert drivers.interrupts_of_transfer(machine.console, PHYSICAL_SERIAL, SOME_BYTES) > 0


def plug_anew(machine: Machine, slot: int, named: dict[str, str]) -> None:
    machine.qmp.execute("device_del", id=f"dev{slot}")
    machine.qmp.wait("DEVICE_DELETED", device=f"dev{slot}")
    plug_in(machine, slot, named)


def plug_in(machine: Machine, slot: int, named: dict[str, str]) -> None:
    """Add a device by its name, and wait for the guest's driver."""
    options = {**named, "driver": "vfio-pci", "id": f"dev{slot}", "addr": f"{slot:#x}", "iommufd": OBJECT}
    machine.qmp.execute("device_add", **options)
    found = f"/sys/bus/pci/devices/0000:00:{slot:02x}.0/driver"
    machine.console.check(f"until [ -e {found} ]; do sleep 0.1; done")
