# SPDX-License-Identifier: Apache-2.0
"""The labs of the project's own tests: `vfsfuse.Lab`, with all checks, and paths in place of objects.

Tests of the tree look at its files themselves, so they want paths, and descriptors of their own.  Nobody
traces these labs: the tests are to run the code that a program's calls run when nobody looks.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path
from types import TracebackType

import vfsfuse
from tests import commands
from tests.iommufd.bound import open_bound


class MountedLab:
    """A lab on `folder`/mnt, whose server logs to `folder`/server.log and gets `options`.

    Leaving the context ends the server, or with `umount=False` waits for its end.  It checks that the server
    has ended well, and has logged no traceback.  `api` has the objects of the lab."""

    def __init__(self, folder: Path, *options: str, umount: bool = True) -> None:
        self.path = folder / "mnt"
        self.log_path = folder / "server.log"
        self.api = vfsfuse.Lab(
            at=self.path,
            folder=commands.ROOT,
            log_path=self.log_path,
            log_level="debug",
            options=options,
            command=commands.VFSFUSE,
            umount=umount,
            strict=True,
        )

    def __enter__(self) -> MountedLab:
        self.path.mkdir(exist_ok=True)
        self.api.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.api.__exit__(kind, error, trace)

    @property
    def server(self) -> subprocess.Popen[bytes] | None:
        return self.api.server

    @property
    def pid(self) -> int:
        return self.api.pid

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self.log_path.read_text()

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
