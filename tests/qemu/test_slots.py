# SPDX-License-Identifier: Apache-2.0
"""A card is unplugged from the host while a guest uses it: QEMU has the guest let go of it. The card can be
plugged in again and given to the same guest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE
from tests.labs import MountedLab, described
from tests.qemu import drivers
from tests.qemu.guest import Guest
from tests.qemu.machine import Machine, in_lab
from tests.vfio.devices import function_dir, vfio_pci

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        not needs.has_capability("CAP_IPC_LOCK"),
        reason="a physical function pins all of the guest's memory, which takes CAP_IPC_LOCK",
    ),
]

CARD, ADDRESS, SOME_BYTES = "0000:87:00.0", 6, 4096
LAB = f"""\
[mount]
remove = "wait"

[models]
serial = "{ROOT}/devmodel/models/mtty.py:Mtty"

[functions."{CARD}"]
model = "serial"
driver = "serial"
slot = "5"
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("slot"), LAB) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def machine(lab: MountedLab, guest: Guest) -> Iterator[Machine]:
    vfio_pci(lab, CARD)
    options = ["-device", f"vfio-pci,host={CARD},id=card,addr={ADDRESS:#x}"]
    with Machine(in_lab(lab), options, guest) as booted:
        booted.console.wait_up()
        yield booted
        drivers.assert_healthy(booted.console)


@pytest.mark.parametrize("how", [[], ["--surprise"]])
def test_a_card_leaves_a_guest_and_comes_back(lab: MountedLab, machine: Machine, how: list[str]) -> None:
    assert drivers.interrupts_of_transfer(machine.console, ADDRESS, SOME_BYTES) > 0
    unplug = subprocess.Popen([*VFSFUSE, "unplug", *how, CARD, "--mount", lab.path], cwd=ROOT)
    machine.qmp.wait("DEVICE_DELETED", device="card")
    assert unplug.wait(300) == 0
    assert not function_dir(lab, CARD).exists()
    machine.console.check(f"test ! -e /sys/bus/pci/devices/0000:00:{ADDRESS:02x}.0")
    plug_in(lab, machine)
    assert drivers.interrupts_of_transfer(machine.console, ADDRESS, SOME_BYTES) > 0


def plug_in(lab: MountedLab, machine: Machine) -> None:
    """The card comes back, and the guest gets it."""
    subprocess.run([*VFSFUSE, "plug", CARD, "--mount", lab.path], cwd=ROOT, check=True)
    assert Path(function_dir(lab, CARD) / "driver").resolve().name == "serial"
    vfio_pci(lab, CARD)
    machine.qmp.execute("device_add", driver="vfio-pci", host=CARD, id="card", addr=f"{ADDRESS:#x}")
    ports = f"/sys/bus/pci/devices/0000:00:{ADDRESS:02x}.0/ -path '*/tty/ttyS*'"
    machine.console.check(f"until find {ports} 2>/dev/null | grep -q .; do sleep 0.1; done")
