# SPDX-License-Identifier: Apache-2.0
"""A lab mounted for tests: starts the server as a user would, and checks that it ended well."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

VFSFUSE = [sys.executable, "-m", "vfsfuse"]
ROOT = Path(__file__).parent.parent
READY_SECONDS = 20
SETTLE_SECONDS = 0.3
T = TypeVar("T")
BIND_IOMMUFD = ord(";") << 8 | 118


def vfsfuse(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line; output is captured as text."""
    command = [*VFSFUSE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)


class MountedLab:
    """A server in the foreground on `folder`/mnt; leaving the context ends it and checks how it ended."""

    def __init__(self, folder: Path, *options: str, umount: bool = True) -> None:
        self.path = folder / "mnt"
        self.log_path = folder / "server.log"
        self.options = options
        self.umount_at_end = umount
        self.server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MountedLab:
        self.path.mkdir(exist_ok=True)
        reader, writer = os.pipe()
        with self.log_path.open("wb") as log:
            command = [*VFSFUSE, "mount", "--foreground", "--ready-fd", str(writer), "--log-level", "debug"]
            self.server = subprocess.Popen(
                [*command, *self.options, str(self.path)], stderr=log, pass_fds=(writer,), cwd=ROOT
            )
        mounted.add(self)
        os.close(writer)
        with os.fdopen(reader, "rb") as ready:
            if ready.read() != b"ready\n":
                raise AssertionError(f"the server did not start:\n{self.log}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.server is not None
        if self.umount_at_end and self.server.poll() is None:
            vfsfuse("umount", "--lazy", self.path)
        try:
            status = self.server.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
            raise
        finally:
            self.clear_away()
        if kind is None:
            assert status == 0, f"the server ended with {status}:\n{self.log}"
            assert "Traceback" not in self.log, self.log

    def clear_away(self) -> None:
        """Unmount what a server that was killed has left mounted."""
        mounted.discard(self)
        if f" {self.path} fuse" in Path("/proc/self/mounts").read_text():
            subprocess.run(["fusermount3", "-u", "-z", self.path], check=False)

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self.log_path.read_text()

    @property
    def pid(self) -> int:
        assert self.server is not None
        return self.server.pid

    @property
    def gpu(self) -> Path:
        """The physical GPU's directory."""
        return self.path / "sys/bus/pci/devices/0000:86:00.0"

    @property
    def mdevs(self) -> Path:
        return self.path / "sys/bus/mdev/devices"

    def parent(self, name: str) -> Path:
        """The directory of an mdev parent, by its name in sys/class/mdev_bus."""
        return (self.path / "sys/class/mdev_bus" / name).resolve()

    def create(self, type_name: str = "vgpu-8", parent: str = "0000:86:00.0") -> Vgpu:
        """Create a vGPU through mdev's face, with a UUID of its own."""
        name = str(uuid.uuid4())
        (self.parent(parent) / "mdev_supported_types" / type_name / "create").write_text(name)
        return Vgpu(self, name)


def described(folder: Path, text: str) -> MountedLab:
    """The lab of a lab file with this text, which is put in `folder`."""
    config = folder / "lab.toml"
    config.write_text(text)
    return MountedLab(folder, "--config", str(config))


mounted: set[MountedLab] = set()
"""The labs of this process that have a server."""


class Vgpu:
    """A vGPU of a mounted lab, by its name; as a context manager it is removed at the end."""

    def __init__(self, lab: MountedLab, name: str) -> None:
        self.lab, self.name = lab, name
        self.path = (lab.mdevs / name).resolve()
        group = self.path / "iommu_group"
        self.group = os.readlink(group).rsplit("/", 1)[1] if group.is_symlink() else ""
        self.vfio = os.listdir(self.path / "vfio-dev")[0]

    def __enter__(self) -> Vgpu:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        (self.path / "remove").write_text("1")

    @property
    def cdev(self) -> Path:
        return self.lab.path / "dev/vfio/devices" / self.vfio

    def open(self) -> int:
        """Its own file, opened and bound (`open_bound`)."""
        return open_bound(self.cdev)


def open_bound(cdev: Path | str) -> int:
    """Open a device's own file, and bind it to a new iommufd context, which ends when the file is closed.

    Returns the descriptor. One open file at a time binds a device, and none while its group is open."""
    device = os.open(cdev, os.O_RDWR | os.O_CLOEXEC)
    try:
        bind(device, Path(cdev).parents[2])
    except BaseException:
        os.close(device)
        raise
    return device


def bind(device: int, dev: Path) -> None:
    """Bind the open file of a device to a new iommufd context. `dev` is the folder dev of its mount."""
    with open(dev / "iommu", "r+b", buffering=0) as iommufd:
        fcntl.ioctl(device, BIND_IOMMUFD, struct.pack("=IIiIQ", 24, 0, iommufd.fileno(), 0, 0))


def wait_for(true: Callable[[], object], seconds: float = READY_SECONDS) -> None:
    """Wait until `true` returns something true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.001)


def settled(measure: Callable[[], T]) -> T:
    """What `measure` gives when it stays the same for a while: what a test closes, the server releases a
    moment later."""
    last, since = measure(), time.monotonic()
    deadline = since + READY_SECONDS
    while time.monotonic() - since < SETTLE_SECONDS:
        assert time.monotonic() < deadline, f"{last} does not settle"
        time.sleep(0.02)
        if (now := measure()) != last:
            last, since = now, time.monotonic()
    return last


def descriptors(pid: int) -> Iterator[str]:
    """What the descriptors of a process lead to, as /proc/<pid>/fd shows it."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(entry)


def open_files(pid: int) -> int:
    """How many descriptors a server has, without those of its pumps: of these there are more while many
    clients call."""
    return sum(link != "/dev/fuse" for link in descriptors(pid))


def one_write(path: Path, text: str) -> None:
    """One write(2); write_text() tries again what fails when it closes the file."""
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.write(fd, text.encode()) == len(text)
    finally:
        os.close(fd)


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an unmodified program; output is captured as text."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
