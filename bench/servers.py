# SPDX-License-Identifier: Apache-2.0
"""The servers of mounts: starts them, puts them on processors and ends them. Also the contents of a lab."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cases import DEVICES
from tests.iommufd.bound import open_bound

ROOT = Path(__file__).parent.parent
LAB, FUNCTIONS = ROOT / "bench/lab.toml", ROOT / "bench/functions.toml"
READY_SECONDS = 30
VFSFUSE = [sys.executable, "-m", "vfsfuse"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Server:
    """A process that serves a mount."""

    def __init__(self, process: subprocess.Popen[bytes], mountpoint: Path) -> None:
        self.process, self.mountpoint = process, mountpoint

    def pin(self, cpus: Collection[int]) -> None:
        """Have all threads of the server run on these processors only."""
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            os.sched_setaffinity(int(thread), cpus)

    @property
    def resident(self) -> int:
        """Bytes of memory that the server has now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def stop(self) -> None:
        """Unmount the server's mount, and wait for its end."""
        unmount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*unmount, self.mountpoint], check=False, stderr=subprocess.DEVNULL)
        try:
            self.process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_lab(mountpoint: Path, *options: str | Path, program: Sequence[str] = VFSFUSE) -> Server:
    """Start vfsfuse. Returns when its tree answers."""
    mountpoint.mkdir(exist_ok=True)
    reader, writer = os.pipe()
    command = [*program, "mount", "--foreground", "--log-level", "warning", "--ready-fd", str(writer)]
    command += [*map(str, options), str(mountpoint)]
    process = subprocess.Popen(command, pass_fds=(writer,), cwd=ROOT)
    os.close(writer)
    with os.fdopen(reader, "rb") as ready:
        if ready.read() != b"ready\n":
            raise SystemExit("bench: the server did not start")
    return Server(process, mountpoint)


def start_mounted(command: Sequence[str | Path], mountpoint: Path) -> Server:
    """Start a server that stays in the foreground. Returns when its mount exists."""
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


def create_idle(server: Server, count: int) -> list[str]:
    """Create idle vGPUs. Returns their names."""
    names = [str(uuid.uuid4()) for _ in range(count)]
    file = (server.mountpoint / "sys/class/mdev_bus/many/mdev_supported_types/idle/create").resolve()
    for name in names:
        file.write_text(name)
    return names


def lab_places(server: Server) -> dict[str, str]:
    """Create the vGPUs of a lab of bench/lab.toml. Returns its places."""
    vgpus = [create(server.mountpoint, "bench", "bench-1") for _ in range(DEVICES)]
    parent = (server.mountpoint / "sys/class/mdev_bus/bench").resolve()
    places = {f"device{number}": str(vgpu.cdev) for number, vgpu in enumerate(vgpus)}
    if _can_map(vgpus[0].cdev):
        places["mappable"] = str(vgpus[0].cdev)
    return places | {
        "lab": str(server.mountpoint),
        "board": str(vgpus[2].cdev),
        "container": str(server.mountpoint / "dev/vfio/vfio"),
        "iommu": str(server.mountpoint / "dev/iommu"),
        "group": str(vgpus[1].group),
        "grouped": vgpus[1].path.name,
        "note": str(vgpus[0].path / "note"),
        "attribute": str(parent / "mdev_supported_types/bench-1/available_instances"),
    }


def _can_map(cdev: Path) -> bool:
    """Whether memory regions can be mapped: as root, from Linux 6.9 on."""
    device = open_bound(cdev)
    try:
        mmap.mmap(device, mmap.PAGESIZE, offset=2 << 40).close()
    except OSError:
        return False
    finally:
        os.close(device)
    return True
