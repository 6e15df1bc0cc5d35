# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse record --host` on a machine with real VFIO: a guest with an IOMMU, and with the device "edu" of
QEMU, which its kernel's vfio-pci has.  What is recorded there is replayed here.

The guest sees the files of this machine by 9P, and can write none of them.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT, vfsfuse
from tests.qemu import guest
from tests.qemu.console import Console
from tests.qemu.machine import Machine
from vfsfuse.recording.reading import parse
from vfsfuse.recording.recording import Event, Recording

pytestmark = pytest.mark.qemu

MODULES = ("vfio-pci", "vfio_iommu_type1", "9p", "9pnet_virtio", "virtio_pci")
ADDRESS = "0000:00:05.0"
OPTIONS = [
    *("-machine", "q35,kernel-irqchip=split", "-m", "512", "-device", "intel-iommu,intremap=on"),
    *("-device", f"edu,addr={ADDRESS[-4:]}"),
    *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
]
HOST = "/tmp/host"
SET_UP = f"""(
set -e
for module in $(cat /modules); do insmod /lib/$module; done
mkdir {HOST}
mount -t 9p -o trans=virtio,version=9p2000.L,ro root {HOST}
for folder in proc sys dev; do mount --bind /$folder {HOST}/$folder; done
mount -t tmpfs tmpfs {HOST}/run
echo 1234 11e8 > /sys/bus/pci/drivers/vfio-pci/new_id
basename $(readlink /sys/bus/pci/devices/{ADDRESS}/iommu_group)
)"""
SHARED = """
import fcntl, os, socket, struct, sys
def number(nr):
    return ord(";") << 8 | 100 + nr
container, group = (os.open("/dev/vfio/" + name, os.O_RDWR) for name in ("vfio", sys.argv[1]))
fcntl.ioctl(group, number(4), struct.pack("i", container))
fcntl.ioctl(container, number(2), 1)
device = fcntl.ioctl(group, number(6), bytearray(sys.argv[2].encode() + bytes(1)))
def put(file, value):
    os.pwrite(file, struct.pack("I", value), 4)  # the register that shows its complement
    assert struct.unpack("I", os.pread(file, 4, 4))[0] == value ^ 0xFFFFFFFF
copy = os.dup(device)
os.close(device)
put(copy, 1)
ours, theirs = socket.socketpair()
begin, go = os.pipe()
if not os.fork():
    os.close(copy)
    os.read(begin, 1)
    put(socket.recv_fds(theirs, 10, 1)[1][0], 2)
    os._exit(0)
socket.send_fds(ours, [b"."], [copy])
os.close(copy)
os.write(go, b".")
os.wait()
"""
"""A client whose device moves between descriptors and processes."""
SAID = """\
region 0: 1048576 bytes, flags 3
region 7: 256 bytes, flags 3
identity 0x10000ed
5! = 120
1 interrupt
1 interrupt
1 interrupt
reset: Invalid argument
ok
"""


@pytest.fixture(scope="module")
def console() -> Iterator[Console]:
    """A guest whose VFIO can be used."""
    with Machine([], OPTIONS, guest.build(MODULES), "intel_iommu=on") as machine:
        machine.console.wait_up()
        yield machine.console


@pytest.fixture(scope="module")
def group(console: Console) -> str:
    """The IOMMU group of the device."""
    return console.check(SET_UP).split()[-1]


def recorded(console: Console, *command: str) -> tuple[str, Recording]:
    """What a command says in the guest, and its recording."""
    words = [
        sys.executable,
        "-m",
        "vfsfuse",
        "record",
        "--host",
        "-q",
        "-o",
        "/run/recording",
        "--",
        *command,
    ]
    said = console.check(f"PYTHONDONTWRITEBYTECODE=1 chroot {HOST} sh -c {in_checkout(words)}", 600)
    return said, parse(console.check(f"cat {HOST}/run/recording").splitlines(keepends=True))


def in_checkout(words: list[str]) -> str:
    """A shell's word: a script that runs a command in the checkout, as `python -m vfsfuse` wants it."""
    return shlex.quote(f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(words)}")


def kinds(recording: Recording, *wanted: str) -> list[Event]:
    return [event for event in recording.events if event.kind in wanted]


def test_a_real_device_is_recorded_and_replayed(
    console: Console, group: str, compile_client: Callable[..., Path], tmp_path: Path
) -> None:
    client = compile_client("edu_client", "-static")
    said, recording = recorded(console, str(client), group, ADDRESS)
    assert said == SAID
    (device,) = recording.devices
    assert (device.name, device.group, device.config[:4]) == (ADDRESS, int(group), bytes.fromhex("3412e811"))
    assert device.regions[0].flags == 7  # the program was not told that it can map the region
    assert [(event.name, event.vector) for event in kinds(recording, "interrupt")] == 3 * [("MSI", 0)]
    assert [(event.offset, event.data[0]) for event in kinds(recording, "write")][-6:] == 3 * [
        (0x60, 7),
        (0x64, 7),
    ]
    file = tmp_path / "edu.recording"
    file.write_text(console.check(f"cat {HOST}/run/recording"))
    done = vfsfuse("replay", "--strict", file, "--", client, group, ADDRESS)
    assert (done.returncode, done.stdout) == (0, SAID), done.stderr


def test_descriptors_of_a_real_device(console: Console, group: str) -> None:
    """All of them have the same name in /proc, and the device is free at the end."""
    _, recording = recorded(console, sys.executable, "-c", SHARED, group, ADDRESS)
    assert [event.data[0] for event in kinds(recording, "write")] == [1, 2]
    assert [device.name for device in recording.devices] == [ADDRESS]
    assert [event.device for event in kinds(recording, "close")].count(0) == 1
