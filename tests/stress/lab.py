# SPDX-License-Identifier: Apache-2.0
"""The lab of the campaigns: one server process, its figures, its vGPUs, and what its end and its log say.

Used on the main thread only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.descriptors import descriptors
from tests.stress.setting import Setting

VIDEO = 4 << 20
APART = "apart"
"""The parent of the bystander's vGPU, and of others that a campaign wants to be left alone."""
APART_VGPUS = 3
SHARED = ("0000:88:00.0", "0000:88:00.1")
"""Two functions of one IOMMU group."""
LAB = f"""\
[mount]
device_mode = "0666"

[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
vfs = 4
options = {{ vectors = 8 }}
types.small = {{ memory = "{VIDEO}", description = "a vGPU" }}

[parents."0000:87:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
types.small = {{ memory = "{VIDEO}", description = "a vGPU of the other GPU" }}

[functions."{SHARED[0]}"]
driver = "host"

[functions."{SHARED[1]}"]
driver = "host"

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 8
types.two = {{ description = "a serial card", options = {{ ports = 2 }}, slots = 2 }}

[parents.mbochs]
kind = "virtual"
driver = "mbochs"
memory = "16M"
types.display = {{ memory = "{VIDEO}", description = "a display" }}

[parents.{APART}]
kind = "virtual"
driver = "{APART}"
model = "vgpu"
memory = "{APART_VGPUS * VIDEO}"
types.own = {{ memory = "{VIDEO}", description = "of the client that has nothing to do with the campaign" }}
"""
GPUS = ("0000:86:00.0", "0000:87:00.0")
POPULATION = {
    "0000:86:00.0": ("small", 4),
    "0000:87:00.0": ("small", 1),
    "mtty": ("two", 1),
    "mbochs": ("display", 1),
}
READY_SECONDS = 60.0
END_SECONDS = 20.0
SANITIZER = re.compile(
    r"ERROR: AddressSanitizer|runtime error:|SUMMARY: \w+Sanitizer|Fatal Python error|DEADLYSIGNAL"
)


@dataclass(frozen=True)
class Figures:
    """What a server holds at a moment."""

    anonymous: int
    """Private memory that is present, in bytes."""
    files: Counter[str]
    """Descriptors, by what is behind them; numbers in names are left out."""
    threads: int
    mappings: int

    @property
    def descriptors(self) -> int:
        return self.files.total()


@dataclass(frozen=True)
class Vgpu:
    """A vGPU, by its UUID, with the number of its group and the name of its file in dev/vfio/devices."""

    name: str
    group: str
    cdev: str


class Lab:
    """A mounted lab; leaving the context ends it."""

    def __init__(self, setting: Setting, name: str) -> None:
        self.setting = setting
        folder = setting.folder / "labs" / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.path = folder / "mnt"
        self.path.mkdir(exist_ok=True)
        self._config = folder / "lab.toml"
        self._config.write_text(LAB)
        self.log_path = folder / "server.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._read = 0

    def __enter__(self) -> Lab:
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGCONT)
            self.umount("--lazy")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(END_SECONDS)
            self._server.kill()
            self._server.wait()
        self.umount("--lazy")

    # ---- the server ----

    def mount(self) -> None:
        """Start the server; RuntimeError if it does not mount."""
        reader, writer = os.pipe()
        options = ["--foreground", "--ready-fd", str(writer), "--config", str(self._config)]
        with self.log_path.open("ab") as log:
            self._server = subprocess.Popen(
                [*self.setting.vfsfuse, "mount", *options, str(self.path)],
                stderr=log,
                stdout=log,
                pass_fds=(writer,),
                env=self.setting.environment,
                cwd=self.setting.folder,
            )
        os.close(writer)
        with os.fdopen(reader, "rb") as ready:
            if ready.read() != b"ready\n":
                raise RuntimeError(f"the lab was not mounted: {self.log_path.read_text()[-2000:]}")

    def umount(self, *options: str) -> subprocess.CompletedProcess[str]:
        """`vfsfuse umount`."""
        return subprocess.run(
            [*self.setting.vfsfuse, "umount", *options, str(self.path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=self.setting.environment,
            cwd=self.setting.folder,
        )

    @property
    def server(self) -> subprocess.Popen[bytes]:
        assert self._server is not None
        return self._server

    @property
    def alive(self) -> bool:
        return self.server.poll() is None

    def figures(self) -> Figures:
        """What the server holds now."""
        process = Path("/proc") / str(self.server.pid)
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (process / "status").read_text(), re.MULTILINE))
        mappings = (process / "maps").read_text().count("\n")
        files = Counter(re.sub(r"\d+", "N", link) for link in descriptors(self.server.pid))
        return Figures(int(status["RssAnon"]) << 10, files, int(status["Threads"]), mappings)

    def complaints(self) -> Iterator[str]:
        """Faults of the server that were not reported yet: its end, and tracebacks and reports in its log."""
        if not self.alive:
            yield f"the server ended with {self.server.returncode}: {self.tail()}"
        yield from self.new_in_log()

    def new_in_log(self) -> Iterator[str]:
        """Tracebacks and reports of sanitizers since the last time that this was asked."""
        text = self.log_path.read_text(errors="replace")
        fresh, self._read = text[self._read :], len(text)
        for block in re.findall(r"Traceback \(most recent call last\):\n(?:.*\n)*?(?=\S)(.*)", fresh):
            yield f"a traceback in the server's log: {block}"
        for found in SANITIZER.finditer(fresh):
            yield f"in the server's log: {fresh[found.start() : found.start() + 300]}"

    def tail(self) -> str:
        return " / ".join(self.log_path.read_text(errors="replace").splitlines()[-3:])

    # ---- its vGPUs ----

    def parent(self, name: str) -> Path:
        return (self.path / "sys/class/mdev_bus" / name).resolve()

    def create(self, parent: str, type_name: str, name: str = "") -> str:
        """Create a vGPU; returns its UUID."""
        name = name or str(uuid.uuid4())
        (self.parent(parent) / "mdev_supported_types" / type_name / "create").write_text(name)
        return name

    def vgpu(self, name: str) -> Vgpu:
        path = self.path / "sys/bus/mdev/devices" / name
        group = os.readlink(path / "iommu_group").rsplit("/", 1)[1]
        return Vgpu(name, group, f"devices/{os.listdir(path / 'vfio-dev')[0]}")

    def populate(self) -> dict[str, list[Vgpu]]:
        """Create vGPUs of each parent until there are as many as `POPULATION` says; gives those made now."""
        made: dict[str, list[Vgpu]] = {}
        for parent, (type_name, count) in POPULATION.items():
            present = len(list(self.parent(parent).glob("*-*-*-*-*")))
            made[parent] = [self.vgpu(self.create(parent, type_name)) for _ in range(count - present)]
        return made

    def keep_populated(self) -> None:
        """As `populate`, while clients create, remove and rebind at the same time."""
        store(self.path / "sys/bus/pci/rescan", "1")
        for parent in POPULATION:
            with contextlib.suppress(OSError, IndexError):
                self._top_up(parent)
        for gpu in GPUS:
            if not (self.path / "sys/bus/pci/devices" / gpu / "driver").is_symlink():
                store(self.path / "sys/bus/pci/drivers/vgpu/bind", gpu)

    def _top_up(self, parent: str) -> None:
        type_name, count = POPULATION[parent]
        if len(list(self.parent(parent).glob("*-*-*-*-*"))) < count:
            self.create(parent, type_name)

    def clear(self) -> None:
        """Bring the lab back to what it was when it was mounted, but for the bystander's vGPU."""
        bus = self.path / "sys/bus"
        store(bus / "pci/drivers_autoprobe", "1")
        store(bus / "pci/rescan", "1")
        for gpu in GPUS:
            function = bus / "pci/devices" / gpu
            store(function / "sriov_numvfs", "0")
            if os.path.realpath(function / "driver").rsplit("/", 1)[1] != "vgpu":
                store(function / "driver/unbind", gpu)
                store(function / "driver_override", "\n")
                store(bus / "pci/drivers/vgpu/bind", gpu)
            store(function / "driver_override", "\n")
            store(function / "sriov_drivers_autoprobe", "1")
        store(bus / "mdev/drivers_autoprobe", "1")
        for name in os.listdir(bus / "mdev/devices"):
            path = os.path.realpath(bus / "mdev/devices" / name)
            if f"/{APART}/" not in path:
                store(Path(path) / "remove", "1")

    def replug(self) -> None:
        """Remove all that is on the PCI bus, and have it found again: then its IOMMU groups have the numbers
        that they always have after this."""
        bus = self.path / "sys/bus/pci"
        for name in sorted(os.listdir(bus / "devices"), reverse=True):
            store(bus / "devices" / name / "remove", "1")
        store(bus / "rescan", "1")

    def left(self) -> list[str]:
        """What `clear` could not bring back, as faults."""
        faults = []
        for parent, (type_name, _) in POPULATION.items():
            directory = self.path / "sys/class/mdev_bus" / parent
            if not directory.exists():
                faults.append(f"{parent} is no parent any more")
                continue
            available = (directory / "mdev_supported_types" / type_name / "available_instances").read_text()
            vgpus = (directory / "vgpus").read_text()
            if (int(available), int(vgpus)) != (INSTANCES[parent], 0):
                faults.append(f"{parent}: available_instances {available.strip()}, vgpus {vgpus.strip()}")
        return faults


INSTANCES = {"0000:86:00.0": 16, "0000:87:00.0": 4, "mtty": 4, "mbochs": 4}
"""available_instances of each parent without vGPUs."""


def store(path: Path, text: str) -> bool:
    """echo: write the text; whether the write succeeded."""
    try:
        path.write_text(text)
    except OSError:
        return False
    return True
