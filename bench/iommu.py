# SPDX-License-Identifier: Apache-2.0
"""The cost of type1: map, look up and unmap 65,535 mappings (the kernel's default limit), and DMA by size.

    python bench/iommu.py [MOUNTPOINT]

The command prints a table. With the mountpoint of a lab it also measures MAP_DMA and UNMAP_DMA through the
mount, compared with an ioctl there that does nothing, with a vGPU (mdpy-vga) that it creates. Run it in the
project's root directory.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from devmodel.iommu.api import DMA_ENTRY_LIMIT, PAGE_SIZE, Prot
from devmodel.iommu.type1 import Type1
from ioctl_shim.process import Process
from tests.vfio import client as vfio
from tests.vfio.client import Container, DmaMap, DmaUnmap, Group, Memory, ioctl

RW = Prot.READ | Prot.WRITE
STRIDE = 2 * PAGE_SIZE
HITS = 20000
BATCH = 128


def each(what: str, calls: Iterable[object], call: Callable[..., object]) -> float:
    """Time `call` with each of `calls`. Prints and returns the microseconds of one call, the median of
    batches."""
    values = list(calls)
    batches = []
    for first in range(0, len(values), BATCH):
        batch = values[first : first + BATCH]
        start = time.perf_counter()
        for value in batch:
            call(value)
        batches.append((time.perf_counter() - start) / len(batch) * 1e6)
    spent = statistics.median(batches)
    print(f"{what:<52} {len(values):>7} {spent:>9.2f} us")
    return spent


def orders() -> dict[str, list[int]]:
    """The iovas of all mappings, in orders that clients may use."""
    upwards = [number * STRIDE for number in range(DMA_ENTRY_LIMIT)]
    shuffled = upwards.copy()
    random.Random(1).shuffle(shuffled)
    return {"upwards": upwards, "downwards": upwards[::-1], "shuffled": shuffled}


def map_one(iommu: Type1, process: Process, vaddr: int, iova: int) -> None:
    iommu.map(process, iova, vaddr, PAGE_SIZE, 3)


def look_up(iommu: Type1, iova: int) -> None:
    iommu.space.mapping_at(iova + 8, write=False)


def unmap_one(iommu: Type1, iova: int) -> None:
    iommu.unmap(iova, PAGE_SIZE)


def database(process: Process, vaddr: int) -> None:
    for name, iovas in orders().items():
        iommu = Type1()
        each(f"map, {name}", iovas, partial(map_one, iommu, process, vaddr))
        hits = random.Random(2).sample(iovas, HITS)
        each(f"  look up at random among {len(iovas)}", hits, partial(look_up, iommu))
        each(f"  unmap, {name}", iovas, partial(unmap_one, iommu))
    for count in (1, 256, DMA_ENTRY_LIMIT):
        iommu = Type1()
        for number in range(count):
            map_one(iommu, process, vaddr, number * STRIDE)
        chosen = random.Random(3)
        places = [chosen.randrange(count) * STRIDE for _ in range(HITS)]
        each(f"look up among {count}", places, partial(look_up, iommu))


def dma(process: Process, kind: str, memory: Memory) -> None:
    iommu = Type1()
    iommu.map(process, 0, memory.address, memory.size, RW)
    for size in (4, 4096, 1 << 20, memory.size):
        buffer = bytearray(size)
        repeats = max(3, min(20000, (1 << 28) // size))
        spent = each(
            f"DMA write, {kind}, {size} bytes",
            [buffer] * repeats,
            lambda data: iommu.space.dma_rw(0, data, True),
        )
        if size > 4096:
            print(f"{'':<52} {size / spent / 1e3:>17.2f} GB/s")


def mounted(mountpoint: Path, memory: Memory) -> None:
    name = str(uuid.uuid4())
    parent = (mountpoint / "sys/class/mdev_bus/mdpy").resolve()
    (parent / "mdev_supported_types/mdpy-vga/create").write_text(name)
    device = (mountpoint / "sys/bus/mdev/devices" / name).resolve()
    group_number = os.readlink(device / "iommu_group").rsplit("/", 1)[1]
    try:
        with Container(mountpoint) as container, Group(mountpoint, group_number) as group:
            group.set_container(container)
            container.set_iommu()
            through(container, memory)
    finally:
        (device / "remove").write_text("1")


def through(container: Container, memory: Memory) -> None:
    fd, upwards = container.fd, orders()["upwards"]
    bare = each("ioctl that does nothing, through the mount", upwards, lambda _: ioctl(fd, vfio.API_VERSION))
    add = DmaMap(flags=vfio.READ | vfio.WRITE, vaddr=memory.address, size=PAGE_SIZE)
    take = DmaUnmap(size=PAGE_SIZE)

    def map_at(iova: int) -> None:
        add.iova = iova
        ioctl(fd, vfio.IOMMU_MAP_DMA, add)

    def unmap_at(iova: int) -> None:
        take.iova = iova
        ioctl(fd, vfio.IOMMU_UNMAP_DMA, take)

    for what, call in (("MAP_DMA", map_at), ("UNMAP_DMA", unmap_at)):
        spent = each(f"{what}, through the mount", upwards, call)
        print(f"{'  beyond the one that does nothing':<52} {spent - bare:>17.2f} us")


def main() -> None:
    process = Process(os.getpid(), os.getpid(), -1)
    small = Memory(PAGE_SIZE)
    print(f"{'':<52} {'calls':>7} {'each':>12}")
    database(process, small.address)
    fd = os.memfd_create("bench")
    os.ftruncate(fd, 1 << 26)
    for kind, memory in (("shared", Memory(1 << 26, fd)), ("private", Memory(1 << 26, private=True))):
        dma(process, kind, memory)
    if len(sys.argv) > 1:
        mounted(Path(sys.argv[1]), small)


if __name__ == "__main__":
    main()
