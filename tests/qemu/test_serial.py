# SPDX-License-Identifier: Apache-2.0
"""The guest's stock 8250_pci driver and the serial card."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

import pytest

from tests.commands import VFSFUSE
from tests.qemu import drivers
from tests.qemu.conftest import SERIAL, Everything
from tests.qemu.guest import Guest
from tests.qemu.machine import Machine, vfio

pytestmark = pytest.mark.qemu

FIFO_SIZE, PASSES = 16, 512
"""What the driver sends at most in a pass of its interrupt handler, and passes that it makes at most."""
WITH_PORT = 'echo {} >/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create; exec "$@"'


def test_64_kib_come_back_by_interrupts(everything: Everything) -> None:
    console = everything.machine.console
    driver = console.check(f"readlink /sys/bus/pci/devices/0000:00:{SERIAL:02x}.0/driver")
    assert driver.strip().endswith("/drivers/serial")  # the name that 8250_pci has there
    assert_interrupt_driven(drivers.interrupts_of_transfer(console, SERIAL))


def test_the_same_as_an_ordinary_user(guest: Guest, tmp_path: Path) -> None:
    """In a lab of their own, where nothing is mapped."""
    name = str(uuid.uuid4())
    as_user = [sys.executable, "-m", "tests.ordinary_user"] if os.geteuid() == 0 else []
    prefix = [*as_user, *VFSFUSE, "run", "--", "sh", "-ec", WITH_PORT.format(name), "sh"]
    with Machine(prefix, vfio(name, SERIAL), guest) as machine:
        machine.console.wait_up()
        assert_interrupt_driven(drivers.interrupts_of_transfer(machine.console, SERIAL))
        assert "Uid:\t0" not in Path(f"/proc/{machine.pid}/status").read_text()
        drivers.assert_healthy(machine.console)


def assert_interrupt_driven(count: int) -> None:
    """There were enough interrupts for all bytes, even if the driver finds the port ready in each pass of its
    handler. A driver that polls counts none."""
    assert count >= drivers.SERIAL_BYTES / FIFO_SIZE / PASSES, count
