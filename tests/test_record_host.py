# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse record --host`: the recorder that sees a program's VFIO calls from the program's side.

A lab plays the real machine: the recorder runs within `vfsfuse run`, or uses the files of a bare mount.  What
the lab's server records of the same dialogue is what the recorder is compared with.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests import needs
from tests.commands import vfsfuse
from tests.copydriver import compiled
from tests.hostrecorders import (
    COPIER,
    GROUP,
    VGPU,
    dialogue,
    host_recorder,
    in_lab,
    interrupts,
    kinds,
    python,
    recorded,
    recorded_by_lab,
    same,
)
from tests.labs import MountedLab
from tests.tracers import UUID
from vfsfuse.recording.reading import read
from vfsfuse.recording.recording import Event

Compile = Callable[..., Path]


# ---- the same dialogue as a lab's server records ----


def test_a_client_of_a_group(tmp_path: Path, compile_client: Compile) -> None:
    command = f"{compile_client('copier_client')} 0 {UUID}"
    done, host = recorded(tmp_path, command, COPIER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "status 1\nok\n", "")
    same(host, recorded_by_lab(tmp_path, command, COPIER))
    assert [event.vector for event in host.events if event.kind == "interrupt"] == [0]
    assert host.source == "host" and not host.shows_mmap


def test_the_driver_of_the_examples(tmp_path: Path) -> None:
    program = compiled(tmp_path)
    done, host = recorded(tmp_path, f"{program} 0 {UUID} 100", COPIER)
    assert (done.returncode, done.stdout) == (0, f"{'*' * 100}\n")
    same(host, recorded_by_lab(tmp_path, f"{program} 0 {UUID} 100", COPIER))


@pytest.mark.parametrize("how", ["", "-t", "-f"], ids=["one thread", "a thread", "a forked child"])
def test_groups_and_who_uses_them(tmp_path: Path, compile_client: Compile, how: str) -> None:
    command = f"{compile_client('vfio_client')} {how} {GROUP} {UUID}"
    done, host = recorded(tmp_path, command, VGPU)
    assert (done.returncode, done.stderr) == (0, "")
    same(host, recorded_by_lab(tmp_path, command, VGPU))


def test_a_character_device_and_iommufd(tmp_path: Path, compile_client: Compile) -> None:
    command = f"{compile_client('iommufd_client')} vfio0"
    done, host = recorded(tmp_path, command, VGPU)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("an interrupt, and 42 by DMA\nok\n")
    same(host, recorded_by_lab(tmp_path, command, VGPU))


def test_a_bare_mount_where_a_filter_chooses_the_calls(
    lab: MountedLab, tmp_path: Path, compile_client: Compile
) -> None:
    out, client = tmp_path / "recording", compile_client("iommufd_client")
    with lab.create() as vgpu:
        dev = lab.path / "dev"
        done = vfsfuse("record", "--host", "-q", "-o", out, "--", client, dev, vgpu.vfio)
        assert (done.returncode, done.stderr) == (0, "")
        host = read(out)
        assert [device.name for device in host.devices] == [vgpu.name]
    assert [event.name for event in host.events if event.kind == "open"] == [
        "/dev/iommu",
        f"/dev/vfio/devices/{vgpu.vfio}",
    ]
    assert {event.kind for event in host.events} == {"open", "close", "ioctl", "read", "write", "interrupt"}


def test_qemu(tmp_path: Path) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)")
    qemu = "qemu-system-x86_64 -M q35 -accel tcg -m 64 -nodefaults -display none -S -monitor stdio"
    command = f"{qemu} -device vfio-pci,sysfsdev=/sys/bus/mdev/devices/{UUID}"
    done, host = recorded(tmp_path, f"sh -c 'echo quit | exec {command}'", COPIER)
    assert done.returncode == 0, done.stderr
    lab = recorded_by_lab(tmp_path, f"echo quit | {command}", COPIER)
    assert [replace(device, names={}) for device in lab.devices] == host.devices
    assert list(map(without_structs, dialogue(host))) == list(map(without_structs, dialogue(lab)))
    assert kinds(host, "read", "write")


def without_structs(event: Event) -> Event:
    """QEMU's structs have addresses, and bytes that nobody has set."""
    return replace(event, before=b"", after=b"")


# ---- descriptors ----


def test_every_way_to_share_a_device_is_seen(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
def put(file, value):
    os.pwrite(file, bytes([value]), 7)  # the scratch register of the port
import array
copy = os.dup(device)
os.close(device)
put(copy, 1)
other = fcntl.fcntl(copy, fcntl.F_DUPFD, 200)
os.dup2(other, 300, inheritable=True)
os.close(copy)
os.closerange(other, other + 1)
put(300, 2)
if not os.fork():
    put(300, 3)
    os.execv(sys.executable, [sys.executable, "-c", "import os; os.pwrite(300, bytes([4]), 7)"])
os.wait()
ours, theirs = socket.socketpair()
begin, go = os.pipe()
if not os.fork():
    os.close(300)
    os.read(begin, 1)
    put(socket.recv_fds(theirs, 10, 1)[1][0], 5)
    os._exit(0)
socket.send_fds(ours, [b"."], [300])
os.close(300)
os.write(go, b".")
os.wait()
""",
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert kinds(host, "write") == [("write", 0, 7, bytes([value])) for value in (1, 2, 3, 4, 5)]
    assert [device.name for device in host.devices] == [UUID]
    assert sum(event.kind == "close" and event.device == 0 for event in host.events) == 1


def test_vectors_and_the_position_of_the_file(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
os.lseek(device, 7, os.SEEK_SET)
os.write(device, b"a")
os.lseek(device, 7, os.SEEK_SET)
assert os.read(device, 1) == b"a"
os.pwritev(device, [b"b"], 7)
os.preadv(device, [bytearray(1)], 7)
"""
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert kinds(host, "read", "write") == [
        *[("write", 0, 7, b"a"), ("read", 0, 7, b"a")],
        *[("write", 0, 7, b"b"), ("read", 0, 7, b"b")],
    ]


def test_calls_of_many_threads_are_all_there(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
def work(value):
    for _ in range(50):
        os.pwrite(device, bytes([value]), 7)
        os.pread(device, 1, 7)
threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    written = [data[0] for kind, _, _, data in kinds(host, "write")]
    assert sorted(written) == sorted(50 * list(range(8)))
    assert len(kinds(host, "read")) == 400


def test_failures_have_their_errno(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
def fail(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return
    raise SystemExit(f"{call} works")
fail(os.open, "/dev/vfio/999", os.O_RDWR)
fail(os.pread, device, 4, 9 << 40)
fail(fcntl.ioctl, device, number(8), struct.pack("4I2Q", 32, 0, 99, 0, 0, 0))
fail(fcntl.ioctl, device, number(8), 16)
fail(fcntl.ioctl, device, number(99))
"""
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    failed = [(event.kind, event.name, os.strerror(event.errno)) for event in host.events if event.errno]
    assert failed == [
        ("open", "/dev/vfio/999", "No such file or directory"),
        ("read", "", "Invalid argument"),
        ("ioctl", "VFIO_DEVICE_GET_REGION_INFO", "Invalid argument"),
        ("ioctl", "VFIO_DEVICE_GET_REGION_INFO", "Bad address"),
        ("ioctl", "0x3bc7", "Inappropriate ioctl for device"),
    ]


# ---- interrupts ----

SIGNALS = """
def irqs(flags, count, data=b"", index=0):
    argument = bytearray(struct.pack("5I", 20 + len(data), flags, index, 0, count) + data)
    return fcntl.ioctl(device, number(10), argument)
DATA_NONE, DATA_EVENTFD, TRIGGER = 1, 4, 32
event = os.eventfd(0)
irqs(DATA_EVENTFD | TRIGGER, 1, struct.pack("i", event))
def signal_and_read():
    irqs(DATA_NONE | TRIGGER, 1)
    return os.eventfd_read(event)
"""
"""The client has its device send an interrupt."""


def test_each_interrupt_is_seen_and_none_is_taken(tmp_path: Path) -> None:
    script = f"{SIGNALS}\nprint(sum(signal_and_read() for _ in range(100)))"
    done, host = recorded(tmp_path, python(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "100\n", "")
    assert interrupts(host) == 100 * [("INTX", 0)]
    same(host, recorded_by_lab(tmp_path, python(script)))


def test_interrupts_are_watched_as_long_as_they_are_set_up(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            f"""{SIGNALS}
os.close(fcntl.ioctl(files[1], number(6), bytearray(b"{UUID}\\0")))  # the same device, opened twice
signal_and_read()
irqs(DATA_NONE | TRIGGER, 0)
os.eventfd_write(event, 1)  # nobody's interrupt any more
os.eventfd_read(event)
os.pread(device, 1, 7)
irqs(DATA_EVENTFD | TRIGGER, 1, struct.pack("i", event))
signal_and_read()
"""
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert interrupts(host) == 2 * [("INTX", 0)]


# ---- what hides from a recorder ----


@needs.passthrough
def test_a_program_is_not_told_that_it_can_map(tmp_path: Path) -> None:
    script = "answer = region(device, 4, 256); print(answer[4], answer[12:16].hex())"
    done, host = recorded(tmp_path, python(script), COPIER)
    assert (done.stdout, done.stderr) == ("3 00000000\n", "")  # READ|WRITE, no capabilities
    assert host.devices[0].regions[4].flags == 15 and host.devices[0].regions[4].capabilities
    done, host = recorded(tmp_path, python(script), COPIER, "--mmap")
    assert (done.stdout, done.stderr) == ("15 20000000\n", "")
    assert host.shows_mmap


def test_a_mapping_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "recording"
    script = """
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
print(libc.mmap(None, ctypes.c_size_t(4096), 1, 1, device, ctypes.c_long((4 << 40) + 4096)) != 2**64 - 1)
"""
    recorder = host_recorder(out).replace(" -q ", " ")
    done = in_lab(f"{recorder} {python(script)}", COPIER)
    if done.stdout == "False\n":
        pytest.skip("this kernel lets no server of FUSE map its files")
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert re.search(rf"BAR4 of {UUID} is mapped: accesses .* are not recorded", done.stderr)
    assert [(event.region, event.size) for event in read(out).events if event.kind == "mmap"] == [(4, 4096)]


def test_a_program_that_uses_ptrace_is_told_about(tmp_path: Path) -> None:
    out = tmp_path / "recording"
    script = "import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))"
    done = vfsfuse("record", "--host", "-o", out, "--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout) == (0, "-1\n")
    assert "cannot use ptrace(2), because the recorder does already" in done.stderr
    assert not read(out).events
