# SPDX-License-Identifier: Apache-2.0
"""QEMU and a vGPU of NVIDIA's framework, by the directory of its virtual function.

tests/machines/test_vendor_host.py has the other ways.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests import needs
from tests.commands import ROOT
from tests.labs import MountedLab
from tests.nvidia.host import Host, Vf, wait_until_free
from tests.qemu import drivers
from tests.qemu.guest import Guest
from tests.qemu.machine import Machine, in_lab
from tests.vfio.client import fails

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        not needs.has_capability("CAP_IPC_LOCK"),
        reason="a virtual function pins all of the guest's memory, which takes CAP_IPC_LOCK",
    ),
]
SLOT, TYPE = 5, 1304


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The lab of examples/vendor_host.toml."""
    config = str(ROOT / "examples/vendor_host.toml")
    with MountedLab(tmp_path_factory.mktemp("vendor"), "--config", config) as lab:
        found = Host(lab)
        found.enable(4)
        yield found


def check_guest(machine: Machine, vf: Vf) -> None:
    """The guest knows the type by its subsystem, its stock driver draws, and the host sees the picture."""
    console = machine.console
    console.wait_up()
    path = f"/sys/bus/pci/devices/0000:00:{SLOT:02x}.0"
    shown = console.check(f"cd {path}; cat vendor device subsystem_vendor subsystem_device").split()
    assert shown == ["0x1234", "0x1111", "0x10de", f"{TYPE:#06x}"]
    name = drivers.framebuffer(console, SLOT)
    pattern = drivers.draw_pattern(console, name, seed=1)
    drivers.assert_picture(vf.path / "screen.png", pattern)
    fails(errno.EBUSY, vf.set, 0)
    drivers.assert_healthy(console)


def test_a_guest_boots_with_it_by_its_directory(host: Host, guest: Guest) -> None:
    vf = host.vf(0)
    where = f"sysfsdev=/sys/bus/pci/devices/{vf.name}"
    mode = "" if not needs.NO_PASSTHROUGH else "video=640x480"
    with vf.typed(TYPE):
        options = ["-device", f"vfio-pci,{where},addr={SLOT:#x},id=dev{SLOT}"]
        with Machine(in_lab(host.lab), options, guest, mode) as machine:
            check_guest(machine, vf)
        wait_until_free(vf)


def test_without_a_type_qemu_does_not_start(host: Host, guest: Guest) -> None:
    vf = host.vf(1)
    machine = Machine(in_lab(host.lab), ["-device", f"vfio-pci,host={vf.name},addr={SLOT:#x}"], guest)
    with pytest.raises(Exception, match="No such device"), machine:
        pass
    assert vf.type == 0
