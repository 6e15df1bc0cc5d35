# SPDX-License-Identifier: Apache-2.0
"""The gain of the shadow GTT over a walk of both tables, and the speed of the engine.

    python bench/gtt.py [MOUNTPOINT]

The command prints a table. It has DMA of some sizes through GTT and IOMMU: with a walk by entry and by
mapping each time, and with the shadow, which knows the pages. The two take turns. With the mountpoint of a
lab it also measures the engine of a vGPU (vgpu-8) that it creates there: bandwidth, and the time from the
doorbell to the fence. Run it in the project's root directory.
"""

from __future__ import annotations

import os
import random
import statistics
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from devmodel.gpu.gtt import PAGE_SHIFT, PAGE_SIZE, SYSTEM_BASE, VALID, WRITABLE, Gtt
from devmodel.gpu.memory import SLICE_BYTES
from devmodel.gpu.shadow import Shadow
from devmodel.gpu.video import VideoMemory
from devmodel.iommu.api import Prot
from devmodel.iommu.dmaspace import DmaSpace, Piece
from devmodel.iommu.type1 import Type1
from devmodel.region.backing import Backing
from ioctl_shim.process import Process
from tests.labs import MountedLab
from tests.vfio import gpu_client as driver
from tests.vfio.client import Memory
from tests.vfio.devices import MSIX, TRIGGER, eventfd, signals

RW = Prot.READ | Prot.WRITE
PAGES = 4096
MEMORY = PAGES * PAGE_SIZE
IOVA = 1 << 32
ROUNDS = 300


class TwoStages:
    """Translation without the shadow: each page by its entry, and each iova by the database of mappings."""

    def __init__(self, gtt: Gtt) -> None:
        self._gtt = gtt

    def transfer(
        self, space: DmaSpace, ranges: Sequence[tuple[int, int]], buffer: bytearray | memoryview, write: bool
    ) -> None:
        pieces: list[Piece] = []
        for address, size in ranges:
            position, end = address - SYSTEM_BASE, address - SYSTEM_BASE + size
            while position < end:
                with self._gtt.lock:
                    found = self._gtt.look(position >> PAGE_SHIFT, (position >> PAGE_SHIFT) + 1)
                assert found is not None
                within = position & PAGE_SIZE - 1
                length = min(PAGE_SIZE - within, end - position)
                mapping = space.mapping_at(found.iova, write)
                pieces.append(Piece(mapping, found.iova + within - mapping.iova, length))
                position += length
        space.dma_pieces(pieces, buffer, write)


class Case(NamedTuple):
    """A layout of pages: the iova of each entry, and the number of pages of an IOMMU mapping."""

    name: str
    order: list[int]
    mapping_pages: int


def cases() -> list[Case]:
    identity = list(range(PAGES))
    scattered = random.Random(1).sample(identity, PAGES)
    return [
        Case("identity, one mapping", identity, PAGES),
        Case("identity, a mapping a page", identity, 1),
        Case("scattered, one mapping", scattered, PAGES),
        Case("scattered, a mapping a page", scattered, 1),
    ]


def translations(process: Process, memory: Memory, video: VideoMemory) -> None:
    print(f"{'DMA to video memory through':<32} {'bytes':>8} {'two stages':>12} {'shadow':>12} {'gain':>7}")
    for case in cases():
        iommu, gtt = Type1(), Gtt()
        for page in range(0, PAGES, case.mapping_pages):
            offset = page * PAGE_SIZE
            iommu.map(process, IOVA + offset, memory.address + offset, case.mapping_pages * PAGE_SIZE, RW)
        entries = [IOVA + page * PAGE_SIZE | VALID | WRITABLE for page in case.order]
        shadow, plain = Shadow(gtt), TwoStages(gtt)
        gtt.write(0, struct.pack(f"<{PAGES}Q", *entries))
        shadow.transfer(
            iommu.space, [(SYSTEM_BASE, PAGES * PAGE_SIZE)], video.view(0, PAGES * PAGE_SIZE), False
        )
        for size in (64, PAGE_SIZE, 64 << 10, SLICE_BYTES):
            one, other = compare(iommu, plain, shadow, video.view(0, size))
            print(f"{case.name:<32} {size:>8} {one:>9.1f} us {other:>9.1f} us {one / other:>6.1f}x")


def compare(iommu: Type1, plain: TwoStages, shadow: Shadow, view: memoryview) -> tuple[float, float]:
    """Microseconds of one transfer into `view`, without and with the shadow: medians. The two take turns."""
    users: tuple[TwoStages | Shadow, ...] = (plain, shadow)
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        address = SYSTEM_BASE + number * 7 % (PAGES - SLICE_BYTES // PAGE_SIZE) * PAGE_SIZE
        for user, times in zip(users, spent, strict=True):
            start = time.perf_counter()
            user.transfer(iommu.space, [(address, len(view))], view, False)
            times.append(time.perf_counter() - start)
    return statistics.median(spent[0]) * 1e6, statistics.median(spent[1]) * 1e6


# ---- an engine, through a mount ----


def bandwidth(engine: driver.Gpu, name: str, packet: bytes, size: int) -> None:
    """Print the speed at which the engine executes `packet`, of `size` bytes, repeatedly."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        engine.finish(*[packet] * 32)
        times.append(time.perf_counter() - start)
    print(f"{name:<52} {32 * size / statistics.median(times) / 1e9:>9.2f} GB/s")


def latency(engine: driver.Gpu) -> None:
    """Print the time from the doorbell until the fence is in memory, and until its interrupt arrives."""
    polled, signalled = [], []
    with eventfd() as done:
        engine.opened.device.eventfds(MSIX, TRIGGER, 0, done)
        for number in range(1, 501):
            start = time.perf_counter()
            engine.queue(driver.fence(engine.fence_at, number, interrupt=True))
            while engine.fence != number:
                pass
            polled.append(time.perf_counter() - start)
            signals(done)
            signalled.append(time.perf_counter() - start)
        engine.opened.device.tear_down(MSIX)
    engine.seq = 500
    print(f"{'doorbell to fence in memory':<52} {statistics.median(polled) * 1e6:>9.0f} us")
    print(f"{'doorbell to interrupt':<52} {statistics.median(signalled) * 1e6:>9.0f} us")


def through(mountpoint: Path) -> None:
    lab = MountedLab(mountpoint.parent)
    lab.path = mountpoint
    with lab.create("vgpu-8") as vgpu, driver.gpu(lab, vgpu, pages=PAGES) as engine:
        size = 4 << 20
        other = engine.base + (6 << 20)
        print()
        bandwidth(engine, "fill, video memory", driver.fill(0, size, 1), size)
        bandwidth(engine, "copy, video to video memory", driver.copy(size, 0, size), size)
        bandwidth(engine, "copy, system to video memory", driver.copy(0, engine.base, size), size)
        bandwidth(engine, "copy, video to system memory", driver.copy(engine.base, 0, size), size)
        bandwidth(engine, "copy, system to system memory", driver.copy(other, engine.base, size), size)
        lines = driver.blit(0, engine.base, (4096, 2560), 2560, 1024)
        bandwidth(engine, "blit, 1024 lines of 640 pixels, system to video", lines, 2560 * 1024)
        latency(engine)


def free_for_others(video: VideoMemory) -> None:
    """Print how much Python another thread executes while one moves slices in video memory. This shows how
    long the move holds the GIL."""
    half = MEMORY // 2

    def count(seconds: float = 0.5) -> int:
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            done += 1
        return done

    busy = True

    def mover() -> None:
        while busy:
            for offset in range(0, half, SLICE_BYTES):
                video.move(half + offset, video, offset, SLICE_BYTES)

    alone = count()
    thread = threading.Thread(target=mover)
    thread.start()
    beside = count()
    busy = False
    thread.join()
    print(f"\n{'left to another Python thread while slices move':<52} {100 * beside / alone:>9.0f} %")


def main() -> None:
    fd = os.memfd_create("bench")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    memory = Memory(PAGES * PAGE_SIZE, fd)
    memory.write(os.urandom(PAGES * PAGE_SIZE))
    video = VideoMemory(Backing({0: MEMORY}), MEMORY)
    translations(Process(os.getpid(), os.getpid(), -1), memory, video)
    free_for_others(video)
    if len(sys.argv) > 1:
        through(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
