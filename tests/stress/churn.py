# SPDX-License-Identifier: Apache-2.0
"""Campaign `churn`: 16 processes create, remove, pull out, rebind and open vGPUs and VFs by all interfaces,
and quarrel with drivers about a group of two functions.

Between two rounds nobody changes the lab, and all counts must be right. At the end the lab is as it was.
"""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from uuid import UUID

from tests.iommufd.bound import open_bound
from tests.snapshot import snapshot
from tests.stress.campaign import Campaign, Run
from tests.stress.lab import APART, GPUS, POPULATION, SHARED
from tests.vfio.client import GROUP_SET_CONTAINER

DOCUMENTED_CHANGES = 50_000
PROCESSES = 16
ROUND = 1600
"""Changes of a round, by all processes."""
ROUND_SECONDS = 120
EXPECTED = {
    getattr(errno, name)
    for name in ("ENOENT", "ENODEV", "EBUSY", "ENOSPC", "EEXIST", "EINVAL", "EAGAIN", "ENXIO")
}
"""What two that get in each other's way may be told."""
VFS = 4
LEAVES_IN = 16
"""Of so many changes of a driver, one is of a GPU."""


class Churner:
    """One process."""

    def __init__(self, top: Path, seed: str, apart: str) -> None:
        self._top, self._random, self._apart = top, Random(seed), apart
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def work(self, changes: int) -> None:
        """Make that many changes, each by an interface of its own choice."""
        actions: list[Callable[[], None]] = [
            *(self._create_mdev, self._create_mdev, self._create_rfc, self._create_rfc),
            *(
                self._remove,
                self._destroy,
                self._pull_out,
                self._reprobe,
                self._hold,
                self._numvfs,
                self._power,
                self._drive,
                self._join,
            ),
        ]
        for _ in range(changes):
            action = self._random.choice(actions)
            try:
                action()
                self.counts["good"] += 1
            except OSError as error:
                self.counts["refused"] += 1
                if error.errno not in EXPECTED:
                    name = errno.errorcode.get(error.errno or 0, "?")
                    self.faults.append(f"{action.__name__.strip('_')}: {name} {error.filename or ''}")

    def _write(self, place: str, text: str) -> None:
        fd = os.open(
            self._top / place, os.O_WRONLY | os.O_CLOEXEC
        )  # O_CREAT would be EACCES where it is gone
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def _present(self) -> str:
        """A vGPU that was there a moment ago, of whichever process."""
        names = [name for name in os.listdir(self._top / "sys/bus/mdev/devices") if name != self._apart]
        if not names:
            raise FileNotFoundError(errno.ENOENT, "no vGPU is left")
        return self._random.choice(names)

    def _create_mdev(self) -> None:
        parent = self._random.choice(list(POPULATION))
        types = f"sys/class/mdev_bus/{parent}/mdev_supported_types/{POPULATION[parent][0]}"
        self._write(f"{types}/create", self._uuid())

    def _create_rfc(self) -> None:
        options = self._random.choice(["", ",weight=2", ",vram=1M", ",vram=3M,weight=5"])
        gpu = self._random.choice(GPUS)
        line = f"{self._uuid()}:{self._random.randrange(3)}:small{options}"
        self._write(f"sys/bus/pci/devices/{gpu}/vgpu_create", line)

    def _remove(self) -> None:
        self._write(f"sys/bus/mdev/devices/{self._present()}/remove", "1")

    def _destroy(self) -> None:
        name = self._present()
        number = name[36:].lstrip("-") or "0"
        gpu = self._random.choice(GPUS)
        self._write(f"sys/bus/pci/devices/{gpu}/vgpu_destroy", f"{name[:36]}:{number}")

    def _pull_out(self) -> None:
        self._write(f"sys/bus/mdev/devices/{self._present()}/surprise_remove", "1")

    def _rebind(self) -> None:
        name = self._present()
        driver = "sys/bus/mdev/drivers/vfio_mdev"
        self._write(f"{driver}/unbind", name)
        self._write(f"{driver}/bind", name)

    def _reprobe(self) -> None:
        """Now and then a GPU loses its driver for a moment, or is gone itself, and its vGPUs and virtual
        functions for good."""
        if self._random.randrange(LEAVES_IN):
            self._rebind()
            return
        gpu = self._random.choice(GPUS)
        if self._random.randrange(2):
            self._replug(gpu)
            return
        self._write("sys/bus/pci/drivers/vgpu/unbind", gpu)
        self._write("sys/bus/pci/drivers_probe", gpu)

    def _replug(self, gpu: str) -> None:
        """Remove the GPU, or the root port above it, and have it found again."""
        path = Path(os.path.realpath(self._top / "sys/bus/pci/devices" / gpu))
        self._write(f"{self._random.choice([path, path.parent])}/remove", "1")
        self._write("sys/bus/pci/rescan", "1")

    def _hold(self) -> None:
        """Have it bound while others remove it; all ones is what is read of one that was pulled out."""
        names = os.listdir(self._top / "sys/bus/mdev/devices" / self._present() / "vfio-dev")
        if not names:
            raise FileNotFoundError(errno.ENOENT, "its file is gone")
        fd = open_bound(self._top / "dev/vfio/devices" / names[0])
        try:
            for _ in range(self._random.randrange(4)):
                os.pread(fd, 4, 7 << 40)
                os.pwrite(fd, b"abcd", 0)
        finally:
            os.close(fd)

    def _numvfs(self) -> None:
        count = self._random.choice([0, 0, 1, VFS])
        self._write(f"sys/bus/pci/devices/{GPUS[0]}/sriov_numvfs", str(count))

    def _drive(self) -> None:
        """Give a function of the shared group to vfio-pci, or to its host driver."""
        name, driver = self._random.choice(SHARED), self._random.choice(["vfio-pci", "host"])
        function = f"sys/bus/pci/devices/{name}"
        self._write(f"{function}/driver_override", driver)
        with suppress(OSError):
            self._write(f"{function}/driver/unbind", name)
        self._write(f"sys/bus/pci/drivers/{driver}/bind", name)

    def _join(self) -> None:
        """Put the shared group into a container: no host driver has a member of it then."""
        functions = self._top / "sys/bus/pci/devices"
        number = os.path.basename(os.readlink(functions / SHARED[0] / "iommu_group"))
        with (
            open(self._top / "dev/vfio" / number, "r+b", buffering=0) as group,
            open(self._top / "dev/vfio/vfio", "r+b", buffering=0) as container,
        ):
            try:
                fcntl.ioctl(group, GROUP_SET_CONTAINER, struct.pack("=i", container.fileno()))
            except PermissionError:  # the group is not viable
                return
            self.counts["joined"] += 1
            for name in SHARED:
                with suppress(FileNotFoundError):
                    if os.readlink(functions / name / "driver").endswith("/host"):
                        self.faults.append(f"a client and the driver of {name} have their group")

    def _power(self) -> None:
        verb = self._random.choice(["start", "shutdown"])
        self._write(f"sys/class/vgpu/vgpu_{verb}", self._present()[:36])


def _process(top: Path, seed: str, apart: str, changes: int, answer: Connection) -> None:
    churner = Churner(top, seed, apart)
    try:
        churner.work(changes)
    except Exception as error:
        churner.faults.append(f"{type(error).__name__}: {error}")
    answer.send((churner.counts, churner.faults))
    answer.close()


def churn_once(run: Run, part: str, changes: int, processes: int = PROCESSES) -> Counter[str]:
    """One round; what was done. The processes that do not end are a fault, and are killed."""
    context = multiprocessing.get_context("fork")
    started = []
    for number in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        seed = f"{run.setting.seed}/{run.name}/{part}/{number}"
        arguments = (run.lab.path, seed, run.protected, -(-changes // processes), theirs)
        process = context.Process(target=_process, args=arguments, daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    counts: Counter[str] = Counter()
    for process, answer in started:
        if not answer.poll(ROUND_SECONDS):
            run.fault(f"a process of round {part} does not come to its end")
            process.kill()
        else:
            try:
                done, faults = answer.recv()
            except EOFError:
                done, faults = Counter[str](), [f"a process of round {part} has died"]
            counts += done
            for text in faults:
                run.fault(text)
        process.join()
        answer.close()
    return counts


def _number(path: Path) -> int:
    return int(path.read_text())


def check_counts(run: Run) -> None:
    """With nobody at work, what the parents say is what is there."""
    for parent in POPULATION:
        directory = run.lab.parent(parent)
        vgpus = list(directory.glob("*-*-*-*-*"))
        if _number(directory / "vgpus") != len(vgpus):
            run.fault(f"{parent} has {len(vgpus)} vGPUs and counts {_number(directory / 'vgpus')}")
        if not (directory / "vram_total").exists():
            continue
        total = _number(directory / "vram_total")
        used = sum(_number(vgpu / "vram_size") for vgpu in vgpus)
        if (directory / "sriov_numvfs").exists():
            used += _number(directory / "sriov_numvfs") * total // VFS
        if (free := _number(directory / "vram_free")) != total - used:
            run.fault(f"{parent} has {free} bytes free; {used} of {total} are in use")


def churn(run: Run) -> None:
    changes = run.setting.share(DOCUMENTED_CHANGES, ROUND)
    run.lab.replug()
    before = snapshot(run.lab.path)
    counts: Counter[str] = Counter()
    rounds = -(-changes // ROUND)
    for number in range(rounds):
        counts += churn_once(run, str(number), ROUND)
        check_counts(run)
        for text in run.lab.complaints():
            run.fault(text)
        if not run.lab.alive:
            return
    run.lab.clear()
    run.lab.replug()
    for text in run.lab.left():
        run.fault(text)
    after = snapshot(run.lab.path)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        run.fault(f"the lab is not what it was: {', '.join(changed[:5])}")
    done = f"{counts['good'] + counts['refused']:,} changes by {PROCESSES} processes in {rounds} rounds"
    run.figures = f"{done}, {counts['good']:,} of them carried out"
    if not counts["joined"]:
        run.fault("nobody has had the group of two functions")
    if f"/{APART}/" not in os.path.realpath(run.lab.path / "sys/bus/mdev/devices" / run.protected):
        run.fault("the bystander's vGPU is gone")


CAMPAIGN = Campaign("churn", churn, "creation and removal by 16 processes through all interfaces")
