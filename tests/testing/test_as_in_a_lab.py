# SPDX-License-Identifier: Apache-2.0
"""The same driver on a bench and on a mounted lab: both see the same registers, interrupts and memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from devmodel.irq.kinds import PciIrq
from devmodel.models.gpu import PhysicalGpu, Vgpu
from examples.copier import Copier
from tests.commands import ROOT
from tests.labs import MountedLab, described
from tests.vfio.client import DEVICE_RESET, PAGE, Memory
from tests.vfio.devices import (
    INTX,
    MSIX,
    NONE,
    TRIGGER,
    UNMASK,
    Opened,
    bound,
    mdev,
    opened,
    signals,
)
from tests.vfio.gpu_client import ENGINE_LAB, REGISTERS, SYSTEM, VALID, VIDEO, WRITABLE, fence, fill
from tests.waiting import SECONDS
from vfsfuse.testing import Bench, BenchTimeout, Physical

IOVA, UNMAPPED = 0x10000, 0x90000
CONFIG = 7
NOTHING: Any = {"bus_master": False, "interrupts": None}
"""For a bench whose driver does all by itself."""
COMMAND, MASTER = 4, 4
ENGINE, CONTROL = 0x1000, REGISTERS["CONTROL"][0]
RING_BASE, RING_TAIL = REGISTERS["RING_BASE"][0], REGISTERS["RING_TAIL"][0]
SOURCE, TARGET, SIZE, COPY, STATUS = 0x00, 0x08, 0x10, 0x14, 0x18


class Machine(Protocol):
    """What the driver runs on. Numbers of interrupts are VFIO's indexes."""

    def read(self, region: int, offset: int, size: int) -> bytes: ...
    def write(self, region: int, offset: int, data: bytes) -> int: ...
    def map(self, iova: int, size: int, write: bool) -> None: ...
    def memory(self, iova: int, size: int) -> bytes: ...
    def set_memory(self, iova: int, data: bytes) -> None: ...
    def use(self, index: int) -> None: ...
    def interrupts(self, vector: int = 0) -> int: ...
    def unmask(self) -> None: ...
    def reset(self) -> None: ...


class OnBench:
    """By the methods of a bench."""

    def __init__(self, bench: Bench[Any]) -> None:
        self.bench = bench
        self.counts: list[int] = []
        """What `interrupts` has said."""

    def read(self, region: int, offset: int, size: int) -> bytes:
        return self.bench.read(region, offset, size)

    def write(self, region: int, offset: int, data: bytes) -> int:
        return self.bench.write(region, offset, data)

    def map(self, iova: int, size: int, write: bool) -> None:
        self.bench.memory.map(iova, size, write=write)

    def memory(self, iova: int, size: int) -> bytes:
        return self.bench.memory.read(iova, size)

    def set_memory(self, iova: int, data: bytes) -> None:
        self.bench.memory.write(iova, data)

    def use(self, index: int) -> None:
        self.bench.interrupts.use(PciIrq(index))

    def interrupts(self, vector: int = 0) -> int:
        """Those that have come, once the device has nothing more to do."""
        count = 0
        self.bench.settle()
        with contextlib.suppress(BenchTimeout):
            self.bench.wait_interrupt(vector, timeout=0)
            count = 1
            while self.bench.interrupts.take(vector) is not None:
                count += 1
        self.counts.append(count)
        return count

    def unmask(self) -> None:
        self.bench.interrupts.unmask()

    def reset(self) -> None:
        self.bench.reset()


class OnLab:
    """By the files of a mount: a process of its own serves them.  `counts` are those of the bench: what is to
    come may take its time."""

    def __init__(self, client: Opened, counts: list[int]) -> None:
        self.client, self.counts, self.maps = client, counts, dict[int, Memory]()
        self.eventfds = [os.eventfd(0), os.eventfd(0)]

    def read(self, region: int, offset: int, size: int) -> bytes:
        return os.pread(self.client.device.fd, size, (region << 40) + offset)

    def write(self, region: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.client.device.fd, data, (region << 40) + offset)

    def map(self, iova: int, size: int, write: bool) -> None:
        self.maps[iova] = memory = Memory(size)
        self.client.container.map(iova, memory.address, memory.size, 3 if write else 1)

    def memory(self, iova: int, size: int) -> bytes:
        return self.maps[iova & -PAGE].read(iova % PAGE, size)

    def set_memory(self, iova: int, data: bytes) -> None:
        self.maps[iova & -PAGE].write(data, iova % PAGE)

    def use(self, index: int) -> None:
        device = self.client.device
        for each in (INTX, MSIX):
            with contextlib.suppress(OSError):  # it is not set up
                device.tear_down(each)
        device.eventfds(index, TRIGGER, 0, *self.eventfds[: 1 if index == INTX else 2])

    def interrupts(self, vector: int = 0) -> int:
        return signals(self.eventfds[vector], SECONDS if self.counts.pop(0) else 1)

    def unmask(self) -> None:
        self.client.device.irqs(INTX, NONE | UNMASK, 0, 1)

    def reset(self) -> None:
        self.client.device.ioctl(DEVICE_RESET)

    def close(self) -> None:
        for fd in self.eventfds:
            os.close(fd)
        for memory in self.maps.values():
            memory.close()


class Told:
    """What a driver sees, in order."""

    def __init__(self) -> None:
        self.lines: list[object] = []

    def of(self, what: str, call: Callable[[], object]) -> None:
        try:
            self.lines.append((what, call()))
        except OSError as error:
            self.lines.append((what, error.errno))


def drive_copier(machine: Machine) -> list[object]:
    told = Told()

    def registers() -> None:
        told.of("registers", lambda: machine.read(0, 0, 0x20).hex())

    def copy(source: int, target: int, size: int) -> None:
        machine.write(0, SOURCE, source.to_bytes(8, "little") + target.to_bytes(8, "little"))
        machine.write(0, SIZE, size.to_bytes(4, "little"))
        machine.write(0, COPY, b"\1\0\0\0")
        told.of("interrupts", machine.interrupts)
        registers()
        told.of("memory", lambda: machine.memory(IOVA, 64))

    command = int.from_bytes(machine.read(CONFIG, COMMAND, 2), "little") | MASTER
    machine.write(CONFIG, COMMAND, command.to_bytes(2, "little"))
    machine.use(MSIX)
    told.of("config", lambda: machine.read(CONFIG, 0, 256).hex())
    registers()
    for size, offset in ((1, 3), (2, 7), (4, 0x12), (8, 0x0C)):
        told.of("write", lambda: machine.write(0, offset, b"\xa5" * size))  # noqa: B023 # called at once
        registers()
    machine.write(0, COPY, bytes(4))
    machine.map(IOVA, PAGE, True)
    machine.map(IOVA + PAGE, PAGE, False)
    machine.set_memory(IOVA, b"the same bytes on both")
    copy(IOVA, IOVA + 32, 22)
    copy(IOVA, UNMAPPED, 4)
    copy(IOVA, IOVA + PAGE, 4)
    copy(IOVA + PAGE - 8, IOVA + 8, 16)
    machine.write(0, STATUS, b"\1\0\0\0")
    registers()
    machine.write(0, STATUS, b"\2")
    registers()
    machine.use(INTX)
    copy(IOVA + 4, IOVA, 4)
    told.of("status", lambda: machine.read(CONFIG, 6, 2).hex())
    machine.unmask()
    told.of("again", machine.interrupts)
    machine.write(0, STATUS, b"\1\0\0\0")
    machine.unmask()
    told.of("status", lambda: machine.read(CONFIG, 6, 2).hex())
    told.of("never", machine.interrupts)
    machine.use(MSIX)
    machine.write(CONFIG, COMMAND, (command & ~MASTER).to_bytes(2, "little"))
    copy(IOVA, IOVA + 40, 4)
    machine.reset()
    registers()
    told.of("config", lambda: machine.read(CONFIG, 0, 256).hex())
    for region, offset, size in ((0, 4095, 8), (0, 4096, 1), (1, 0, 4), (4, 0, 64), (9, 0, 4)):
        told.of("read", lambda: machine.read(region, offset, size))  # noqa: B023 # called at once
    return told.lines


def drive_gpu(machine: Machine) -> list[object]:
    told = Told()
    told.of("config", lambda: machine.read(CONFIG, 0, 4096).hex())
    told.of("write", lambda: machine.write(2, 0x0C, b"\x12\x34\x56\x78"))
    for offset, value in ((COMMAND, b"\0\0"), (COMMAND, b"\6\0"), (0x10, b"\xff" * 4), (0x44, b"\3\0")):
        told.of("config", lambda: machine.write(CONFIG, offset, value))  # noqa: B023 # called at once
        told.of("is", lambda: machine.read(CONFIG, 0, 256).hex())
        told.of("registers", lambda: machine.read(2, 0, 0x10).hex())
        told.of("memory", lambda: machine.read(0, 0, 4))
    machine.reset()
    told.of("config", lambda: machine.read(CONFIG, 0, 4096).hex())
    told.of("registers", lambda: machine.read(2, 0, 0x10).hex())
    return told.lines


def drive_engine(machine: Machine) -> list[object]:
    """The engine draws, and writes a fence into the client's memory."""
    told = Told()
    told.of("config", lambda: machine.read(CONFIG, 0, 256).hex())
    command = int.from_bytes(machine.read(CONFIG, COMMAND, 2), "little") | MASTER
    machine.write(CONFIG, COMMAND, command.to_bytes(2, "little"))
    machine.use(MSIX)
    machine.map(IOVA, PAGE, True)
    machine.map(IOVA + PAGE, PAGE, True)
    for page in (0, 1):
        machine.write(1, 8 * page, (IOVA + page * PAGE | VALID | WRITABLE).to_bytes(8, "little"))
    machine.write(2, ENGINE + RING_BASE, SYSTEM.to_bytes(8, "little") + PAGE.to_bytes(4, "little"))
    machine.write(2, ENGINE + CONTROL, b"\1\0\0\0")
    packets = fill(0x1000, 16, 0x11223344) + fence(SYSTEM + PAGE, 7, interrupt=True)
    machine.set_memory(IOVA, packets)
    machine.write(2, ENGINE + RING_TAIL, len(packets).to_bytes(4, "little"))
    told.of("fence", machine.interrupts)
    told.of("memory", lambda: machine.memory(IOVA + PAGE, PAGE).hex())
    told.of("video", lambda: machine.read(0, 0xFF0, 0x40).hex())
    told.of("registers", lambda: machine.read(2, ENGINE, 0x40).hex())
    machine.write(2, ENGINE + RING_TAIL, b"\1\0\0\0")
    told.of("error", lambda: machine.interrupts(1))
    told.of("registers", lambda: machine.read(2, ENGINE, 0x40).hex())
    machine.reset()
    told.of("registers", lambda: machine.read(2, ENGINE, 0x40).hex())
    return told.lines


@contextlib.contextmanager
def on_lab(client: Opened, counts: list[int]) -> Iterator[OnLab]:
    machine = OnLab(client, counts)
    try:
        yield machine
    finally:
        machine.close()


def test_the_copier(tmp_path: Path) -> None:
    with Bench(Copier, **NOTHING) as bench:
        on_bench = drive_copier(ideal := OnBench(bench))
    assert ("interrupts", 1) in on_bench and ("again", 1) in on_bench and ("never", 0) in on_bench
    lab = MountedLab(tmp_path, "--config", str(ROOT / "examples/copier.toml"))
    with lab, mdev(lab, "copier-1", "copiers") as client, on_lab(client, ideal.counts) as machine:
        assert drive_copier(machine) == on_bench


FUNCTION = "0000:01:00.0"
GPU = f"""
[functions."{FUNCTION}"]
model = "gpu"
driver = "host"
memory = "16M"
options = {{ vectors = 4 }}
"""


def test_a_physical_function(tmp_path: Path) -> None:
    with Bench(PhysicalGpu, memory=16 << 20, options={"vectors": 4}, kind="function", **NOTHING) as bench:
        on_bench = drive_gpu(ideal := OnBench(bench))
    with (
        described(tmp_path, GPU) as lab,
        bound(lab, FUNCTION) as (group,),
        opened(lab, group, FUNCTION) as client,
        on_lab(client, ideal.counts) as machine,
    ):
        assert drive_gpu(machine) == on_bench


VIRTUAL = f"""
[functions."{FUNCTION}"]
model = "gpu"
driver = "host"
memory = "16M"
vfs = 1
vf = {{ model = "vgpu", memory = "4M" }}
"""


@contextlib.contextmanager
def virtual_function(folder: Path) -> Iterator[Opened]:
    """The virtual function of a GPU in a lab of its own, opened through vfio-pci."""
    with described(folder, VIRTUAL) as lab:
        physical = lab.path / "sys/bus/pci/devices" / FUNCTION
        (physical / "sriov_numvfs").write_text("1")
        function = (physical / "virtfn0").resolve()
        (function / "driver_override").write_text("vfio-pci")
        (lab.path / "sys/bus/pci/drivers/vfio-pci/bind").write_text(function.name)
        with opened(lab, (function / "iommu_group").resolve().name, function.name) as client:
            yield client


def test_a_virtual_function_with_an_engine(tmp_path: Path) -> None:
    parent = Physical(PhysicalGpu, 16 << 20)
    with Bench(Vgpu, memory=4 << 20, kind="vf", parent=parent, **NOTHING) as bench:
        on_bench = drive_engine(ideal := OnBench(bench))
    assert ("fence", 1) in on_bench and ("error", 1) in on_bench
    with virtual_function(tmp_path) as client, on_lab(client, ideal.counts) as machine:
        assert drive_engine(machine) == on_bench


def test_a_vgpu_with_an_engine(tmp_path: Path) -> None:
    with Bench(Vgpu, memory=VIDEO, **NOTHING) as bench:
        on_bench = drive_engine(ideal := OnBench(bench))
    assert ("fence", 1) in on_bench and ("error", 1) in on_bench
    with (
        described(tmp_path, ENGINE_LAB) as lab,
        mdev(lab, "own", "pool") as client,
        on_lab(client, ideal.counts) as machine,
    ):
        assert drive_engine(machine) == on_bench
