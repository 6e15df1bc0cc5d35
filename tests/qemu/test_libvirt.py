# SPDX-License-Identifier: Apache-2.0
"""A guest in a domain of libvirt's: its stock driver uses a device of the lab, which libvirt plugs out and in
while the guest runs."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import domains
from tests.domains import Libvirt, mdev
from tests.labs import MountedLab
from tests.qemu import drivers
from tests.qemu.channel import Stream
from tests.qemu.console import Console
from tests.qemu.guest import Guest
from tests.qemu.machine import KERNEL_ARGUMENTS

pytestmark = pytest.mark.qemu

NAME, SLOT, MEMORY, SOME_BYTES = "guest", 6, 256, 4096
CONNECT_SECONDS = 300


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that QEMU's user may enter."""
    path = Path(tempfile.mkdtemp(prefix="domain", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def listening(path: Path) -> socket.socket:
    """A socket that QEMU connects to."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(1)
    made.settimeout(CONNECT_SECONDS)
    return made


def system(folder: Path, guest: Guest) -> str:
    """What the domain boots: copies, which libvirt gives to QEMU's user."""
    for name, path in (("kernel", guest.kernel), ("initrd", guest.initramfs)):
        shutil.copy(path, folder / name)
    files = f"<kernel>{folder}/kernel</kernel><initrd>{folder}/initrd</initrd>"
    return f"{files}<cmdline>{KERNEL_ARGUMENTS}</cmdline>"


def test_a_guest_uses_a_device_that_is_plugged_out_and_in(guest: Guest, folder: Path, tmp_path: Path) -> None:
    domains.need()
    serial = f"<serial type='unix'><source mode='connect' path='{folder}/serial'/></serial>"
    with (
        MountedLab(tmp_path) as lab,
        lab.create("mtty-1", "mtty") as port,
        Libvirt(lab, tmp_path) as libvirt,
        listening(folder / "serial") as server,
    ):
        device = mdev(port.name, slot=SLOT)
        libvirt.define(NAME, serial, device, memory=MEMORY, system=system(folder, guest))
        libvirt.virsh("start", NAME)
        stream = Stream(server.accept()[0], lambda: libvirt.shell.run(f"cat {log()}").output)
        console = Console(stream)
        console.wait_up()
        assert drivers.interrupts_of_transfer(console, SLOT, SOME_BYTES) > 0

        xml = libvirt.file("device", device)
        libvirt.virsh("detach-device", NAME, xml, "--live")
        libvirt.shell.check(f"while virsh dumpxml {NAME} | grep -q {port.name}; do sleep 0.1; done")
        console.check(f"test ! -e /sys/bus/pci/devices/0000:00:{SLOT:02x}.0")
        assert os.stat(lab.path / "dev/vfio" / port.group).st_uid == 0

        libvirt.virsh("attach-device", NAME, xml, "--live")
        tty = f"/sys/bus/pci/devices/0000:00:{SLOT:02x}.0/ -path '*/tty/ttyS*'"
        console.check(f"until find {tty} 2>/dev/null | grep -q .; do sleep 0.1; done")
        assert drivers.interrupts_of_transfer(console, SLOT, SOME_BYTES) > 0
        drivers.assert_healthy(console)
        libvirt.drop(NAME)
        stream.close()


def log() -> str:
    """What QEMU has said, in the run."""
    return f"/var/log/libvirt/qemu/{NAME}.log"
