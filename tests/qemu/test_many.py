# SPDX-License-Identifier: Apache-2.0
"""Two guests at once, each with vGPUs of the same parents; one is killed."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.labs import MountedLab, Vgpu
from tests.qemu import drivers
from tests.qemu.guest import Guest
from tests.qemu.machine import Machine, in_lab, vfio

pytestmark = pytest.mark.qemu

SERIAL, DISPLAY = 4, 5
SOME_BYTES = 4096
SMALL = "video=800x600"
"""Instead of the 2560x1600 that the vGPU's EDID prefers; drawing is not what this is about."""


def test_a_killed_guest_leaves_the_other_running_and_its_vgpus_usable(
    shared_lab: MountedLab, guest: Guest
) -> None:
    with ExitStack() as stack:
        pairs = [[stack.enter_context(vgpu) for vgpu in pair(shared_lab)] for _ in range(2)]
        prefix = in_lab(shared_lab)
        machines = [stack.enter_context(Machine(prefix, devices(*vgpus), guest, SMALL)) for vgpus in pairs]
        for machine in machines:
            machine.console.wait_up()
        for seed, (machine, vgpus) in enumerate(zip(machines, pairs, strict=True)):
            assert_devices_work(machine, vgpus[1], seed)
        before = drivers.Picture.load(pairs[1][1].path / "screen.png")

        machines[0].kill()
        assert drivers.Picture.load(pairs[1][1].path / "screen.png") == before
        assert_devices_work(machines[1], pairs[1][1], seed=2)

        again = stack.enter_context(Machine(prefix, devices(*pairs[0]), guest, SMALL))
        again.console.wait_up()
        assert_devices_work(again, pairs[0][1], seed=3)
        assert_devices_work(machines[1], pairs[1][1], seed=4)
        for machine in (machines[1], again):
            drivers.assert_healthy(machine.console)


def pair(lab: MountedLab) -> list[Vgpu]:
    """A port of the serial card's parent and a vGPU of the GPU."""
    return [lab.create("mtty-1", "mtty"), lab.create("vgpu-8")]


def devices(serial: Vgpu, display: Vgpu) -> list[str]:
    return vfio(serial, SERIAL) + vfio(display, DISPLAY)


def assert_devices_work(machine: Machine, display: Vgpu, seed: int) -> None:
    """The guest's drivers make both do something that only a working device does."""
    assert drivers.interrupts_of_transfer(machine.console, SERIAL, SOME_BYTES) > 0
    name = drivers.framebuffer(machine.console, DISPLAY)
    drivers.assert_shows(display, drivers.draw_pattern(machine.console, name, seed))
