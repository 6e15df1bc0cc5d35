# SPDX-License-Identifier: Apache-2.0
"""Runs `vfsfuse record --host` for tests: a lab plays the real machine, and its server records the same."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.commands import VFSFUSE, vfsfuse
from tests.tracers import UUID
from vfsfuse.recording.reading import read
from vfsfuse.recording.recording import Event, Recording

GROUP = f"$(basename $(readlink /sys/bus/mdev/devices/{UUID}/iommu_group))"


class Device(NamedTuple):
    """A device, in a lab of its own."""

    parent: str
    type: str
    config: str = ""

    @property
    def create(self) -> str:
        """The command that makes it."""
        return f"echo {UUID} > /sys/class/mdev_bus/{self.parent}/mdev_supported_types/{self.type}/create"

    @property
    def options(self) -> tuple[str, ...]:
        """What chooses the lab."""
        return ("--config", self.config) if self.config else ()


MTTY, VGPU = Device("mtty", "mtty-1"), Device("0000:86:00.0", "vgpu-1")
COPIER = Device("copiers", "copier-1", "examples/copier.toml")
ADDRESSES = {"VFIO_IOMMU_MAP_DMA": slice(8, 16), "IOMMU_IOAS_MAP": slice(16, 24)}
"""Where an ioctl has an address of the program's memory."""
OPEN = f"""
import ctypes, fcntl, mmap, os, socket, struct, sys, threading
def number(nr):
    return ord(";") << 8 | 100 + nr
files = []
def use():
    group = os.readlink("/sys/bus/mdev/devices/{UUID}/iommu_group").rpartition("/")[2]
    files.extend(os.open("/dev/vfio/" + name, os.O_RDWR) for name in ("vfio", group))
    fcntl.ioctl(files[1], number(4), struct.pack("i", files[0]))
    fcntl.ioctl(files[0], number(2), 3)
    return fcntl.ioctl(files[1], number(6), bytearray(b"{UUID}\\0"))
def region(device, index, size=32):
    answer = bytearray(struct.pack("4I2Q", size, 0, index, 0, 0, 0).ljust(size, b"\\0"))
    fcntl.ioctl(device, number(8), answer)
    return answer
device = use()
"""
"""The beginning of a client in Python."""


def in_lab(script: str, device: Device = MTTY) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a lab of its own, once the device is there."""
    return vfsfuse("run", *device.options, "--", "sh", "-c", f"{device.create}; {script}")


def host_recorder(out: Path, *options: str) -> str:
    """The beginning of a command that records another one."""
    return shlex.join([*VFSFUSE, "record", "--host", "-q", "-o", str(out), *options, "--"])


def recorded(
    tmp_path: Path, command: str, device: Device = MTTY, *options: str
) -> tuple[subprocess.CompletedProcess[str], Recording]:
    """What a command says when it is recorded from its own side, and the recording."""
    out = tmp_path / "host.recording"
    done = in_lab(f"{host_recorder(out, *options)} {command}", device)
    return done, read(out)


def recorded_by_lab(tmp_path: Path, command: str, device: Device = MTTY) -> Recording:
    """The recording of a command that the server of the lab makes."""
    out, script = tmp_path / "lab.recording", f"{device.create}; {command}"
    done = vfsfuse("record", "-q", "-o", out, *device.options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return read(out)


def python(script: str) -> str:
    """A command that runs a client in Python, which begins with OPEN."""
    return shlex.join([sys.executable, "-c", OPEN + script])


def plain(event: Event) -> Event:
    """The event without its time and without addresses."""
    event = replace(event, time=0.0)
    if event.name in ADDRESSES:
        for name in ("before", "after"):
            struct = bytearray(getattr(event, name))
            struct[ADDRESSES[event.name]] = bytes(8)
            setattr(event, name, bytes(struct))
    return event


def dialogue(recording: Recording) -> list[Event]:
    """The events that the program's side can see.  A program's end closes its files in any order."""
    events = [plain(event) for event in recording.events if event.kind != "dma"]
    last = next(at for at in range(len(events), 0, -1) if events[at - 1].kind != "close")
    return events[:last] + sorted(events[last:], key=lambda event: (event.file, event.name))


def kinds(recording: Recording, *wanted: str) -> list[tuple[str, int, int, bytes]]:
    """Accesses of a recording."""
    return [
        (event.kind, event.region, event.offset, event.data)
        for event in recording.events
        if event.kind in wanted
    ]


def same(host: Recording, lab: Recording) -> None:
    """The two recordings have the same devices and the same dialogue."""
    assert [replace(device, names={}) for device in lab.devices] == host.devices
    assert dialogue(host) == dialogue(lab)
    assert len(host.events) > 10


def interrupts(recording: Recording) -> list[tuple[str, int]]:
    return [(event.name, event.vector) for event in recording.events if event.kind == "interrupt"]
