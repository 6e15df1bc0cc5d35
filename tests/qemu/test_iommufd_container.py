# SPDX-License-Identifier: Apache-2.0
"""QEMU with its interface of groups and containers, where dev/vfio/vfio opens an iommufd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import needs
from tests.commands import ROOT
from tests.labs import MountedLab, Vgpu, described
from tests.qemu import drivers
from tests.qemu.guest import Guest
from tests.qemu.machine import Machine, in_lab, vfio
from tests.vfio.devices import bound, function_dir

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        not needs.has_capability("CAP_IPC_LOCK"),
        reason="a physical function pins all of the guest's memory, which takes CAP_IPC_LOCK",
    ),
]
LAB = f"""\
[models]
display = "{ROOT}/devmodel/models/mbochs.py:Mbochs"

[mount]
container = "iommufd"

[parents."0000:86:00.0"]
kind = "gpu"
driver = "host"
model = "display"
memory = "16M"
types.none = {{ memory = "1M", model = "vgpu", description = "not used" }}

[parents.pool]
kind = "virtual"
driver = "pool"
model = "vgpu"
memory = "32M"
types.vgpu = {{ memory = "16M", description = "a vGPU" }}

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 2
types.card = {{ description = "a serial card", options = {{ ports = 1 }} }}
"""
GPU = "0000:86:00.0"
PHYSICAL, SERIAL, VGPU = 4, 5, 6
"""PCI slots in the guest."""


@dataclass
class Running:
    """A booted guest with a device of each kind."""

    lab: MountedLab
    machine: Machine
    vgpu: Vgpu


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, guest: Guest) -> Iterator[Running]:
    with (
        described(tmp_path_factory.mktemp("container"), LAB) as lab,
        lab.create("vgpu", "pool") as vgpu,
        lab.create("card", "mtty") as card,
        bound(lab, GPU),
    ):
        host = ["-device", f"vfio-pci,host={GPU},addr={PHYSICAL:#x}"]
        with Machine(in_lab(lab), host + vfio(card, SERIAL) + vfio(vgpu, VGPU), guest) as machine:
            machine.console.wait_up()
            yield Running(lab, machine, vgpu)
            drivers.assert_healthy(machine.console)


def test_the_guests_drivers_drive_all_devices(running: Running) -> None:
    console = running.machine.console
    assert drivers.interrupts_of_transfer(console, SERIAL, 1 << 12)
    drivers.assert_shows(running.vgpu, drivers.draw_pattern(console, drivers.framebuffer(console, VGPU), 1))
    drawn = drivers.draw_pattern(console, drivers.framebuffer(console, PHYSICAL), 2)
    drivers.assert_in_memory(function_dir(running.lab, GPU), drawn)
