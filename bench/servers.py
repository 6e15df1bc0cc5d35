# SPDX-License-Identifier: Apache-2.0
"""The servers that are measured: how each is started, put on a processor, and ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEVICES = 8
CROWD = 10_000
READY_SECONDS = 30
VFSFUSE = [sys.executable, "-m", "vfsfuse"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Server:
    """A process that serves a mount."""

    def __init__(self, process: subprocess.Popen[bytes], mountpoint: Path) -> None:
        self.process, self.mountpoint = process, mountpoint

    def pin(self, cpus: Collection[int]) -> None:
        """Let all its threads run on these processors only."""
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            os.sched_setaffinity(int(thread), cpus)

    @property
    def resident(self) -> int:
        """Bytes of memory that it has now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def stop(self) -> None:
        """Unmount it, and wait for its end."""
        unmount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*unmount, self.mountpoint], check=False, stderr=subprocess.DEVNULL)
        try:
            self.process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_lab(mountpoint: Path, *options: str | Path) -> Server:
    """vfsfuse, once its tree answers."""
    mountpoint.mkdir(exist_ok=True)
    reader, writer = os.pipe()
    command = [*VFSFUSE, "mount", "--foreground", "--log-level", "warning", "--ready-fd", str(writer)]
    command += [*map(str, options), str(mountpoint)]
    process = subprocess.Popen(command, pass_fds=(writer,), cwd=ROOT)
    os.close(writer)
    with os.fdopen(reader, "rb") as ready:
        if ready.read() != b"ready\n":
            raise SystemExit("bench: the server did not start")
    return Server(process, mountpoint)


def start_mounted(command: Sequence[str | Path], mountpoint: Path) -> Server:
    """A server that stays in the foreground, once its mount is there."""
    mountpoint.mkdir(exist_ok=True)
    process = subprocess.Popen([*command, mountpoint], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + READY_SECONDS
    while not os.path.ismount(mountpoint):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"bench: {Path(command[0]).name} did not mount")
        time.sleep(0.02)
    return Server(process, mountpoint)


@dataclass(frozen=True)
class Vgpu:
    """A vGPU of the measured lab: its directory in sysfs, its file, and that of its group."""

    path: Path
    cdev: Path
    group: Path


def create(lab: Path, parent: str, type_name: str) -> Vgpu:
    name = str(uuid.uuid4())
    (lab / "sys/class/mdev_bus" / parent / "mdev_supported_types" / type_name / "create").write_text(name)
    path = (lab / "sys/bus/mdev/devices" / name).resolve()
    group = os.readlink(path / "iommu_group").rsplit("/", 1)[1]
    vfio = os.listdir(path / "vfio-dev")[0]
    return Vgpu(path, lab / "dev/vfio/devices" / vfio, lab / "dev/vfio" / group)


@dataclass
class Machine:
    """All that runs while it is measured, and the words that cases use for it."""

    folder: Path
    stack: ExitStack
    places: dict[str, str] = field(default_factory=dict)
    servers: list[Server] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    def keep(self, server: Server) -> Server:
        self.servers.append(server)
        self.stack.callback(server.stop)
        return server

    def pin(self, cpus: Collection[int]) -> None:
        for server in self.servers:
            server.pin(cpus)

    def has(self, words: str) -> bool:
        """Whether all that a case's words name is here."""
        return all(
            word[1:].partition("}")[0] in self.places for word in words.split() if word.startswith("{")
        )

    def command(self, words: str) -> list[str]:
        """A case's words as a command line."""
        return [part for word in words.split() for part in self._replace(word)]

    def _replace(self, word: str) -> Sequence[str]:
        name, _, rest = word.removeprefix("{").partition("}")
        if not word.startswith("{"):
            return [word]
        value = self.places[name]
        return value.split("\0") if "\0" in value else [value + rest]


def _start_floor(machine: Machine) -> None:
    build = Path(machine.places["build"])
    server = machine.keep(start_mounted([build / "floor"], machine.folder / "floor"))
    machine.places["floor"] = str(server.mountpoint)


def _start_lab(machine: Machine) -> None:
    server = machine.keep(start_lab(machine.folder / "lab", "--config", ROOT / "bench/lab.toml"))
    machine.places["lab"] = str(server.mountpoint)
    vgpus = [create(server.mountpoint, "bench", "bench-1") for _ in range(DEVICES)]
    for number, vgpu in enumerate(vgpus):
        machine.places[f"device{number}"] = str(vgpu.cdev)
    parent = server.mountpoint / "sys/class/mdev_bus/bench"
    machine.places |= {
        "container": str(server.mountpoint / "dev/vfio/vfio"),
        "group": str(vgpus[1].group),
        "note": str(vgpus[0].path / "note"),
        "attribute": str(parent.resolve() / "mdev_supported_types/bench-1/available_instances"),
        "create": str(parent.resolve() / "mdev_supported_types/bench-1/create"),
    }
    if _can_map(vgpus[0].cdev):
        machine.places |= {"mappable": str(vgpus[0].cdev), "board": str(vgpus[2].cdev)}


def _can_map(cdev: Path) -> bool:
    """Whether memory regions can be mapped: as root, from Linux 6.9 on."""
    import mmap

    device = os.open(cdev, os.O_RDWR | os.O_CLOEXEC)
    try:
        mmap.mmap(device, mmap.PAGESIZE, offset=2 << 40).close()
    except OSError:
        return False
    finally:
        os.close(device)
    return True


def _start_crowd(machine: Machine) -> None:
    """A lab with 10,000 idle vGPUs, and what they take."""
    empty = start_lab(machine.folder / "empty")
    machine.facts["resident, empty"] = empty.resident
    empty.stop()
    server = machine.keep(start_lab(machine.folder / "crowd", "--config", ROOT / "bench/lab.toml"))
    before = server.resident
    file = (server.mountpoint / "sys/class/mdev_bus/many/mdev_supported_types/idle/create").resolve()
    for _ in range(CROWD):
        file.write_text(str(uuid.uuid4()))
    machine.facts["resident, 10,000 vGPUs"] = server.resident
    machine.facts["resident, each vGPU"] = (server.resident - before) / CROWD
    machine.places["crowd"] = str(server.mountpoint / "sys/bus/mdev/devices")


def _start_lxcfs(machine: Machine) -> None:
    if shutil.which("lxcfs") is None or os.geteuid():
        say("lxcfs is not here or not ours to start: going on without it")
        return
    server = machine.keep(start_mounted(["lxcfs", "-f"], machine.folder / "lxcfs"))
    machine.places["lxcfs"] = str(server.mountpoint)


UMOCKDEV = """\
P: /devices/pci0000:00/input/event0
N: input/event0
E: SUBSYSTEM=input
E: DEVNAME=/dev/input/event0
A: name=bench\\n
"""
UMOCKDEV_IOCTL = f"EVIOCGABS(0) 0 {'00' * 24}\n"


def _start_umockdev(machine: Machine) -> None:
    if shutil.which("umockdev-run") is None:
        say("umockdev is not here: going on without it")
        return
    device, ioctl = machine.folder / "event0.umockdev", machine.folder / "event0.ioctl"
    device.write_text(UMOCKDEV)
    ioctl.write_text(UMOCKDEV_IOCTL)
    parts = ["umockdev-run", "--device", str(device), "--ioctl", f"/dev/input/event0={ioctl}", "--"]
    machine.places["umockdev"] = "\0".join(parts)


STARTS: Mapping[str, Callable[[Machine], None]] = {
    "the C libfuse server": _start_floor,
    "lxcfs": _start_lxcfs,
    "umockdev": _start_umockdev,
    "vfsfuse": _start_lab,
    "vfsfuse with 10,000 vGPUs": _start_crowd,
}


def start_all(machine: Machine) -> None:
    for what, start in STARTS.items():
        say(f"starting {what}")
        start(machine)
