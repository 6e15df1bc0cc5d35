# SPDX-License-Identifier: Apache-2.0
"""The cost of type1 and of iommufd: map, look up and unmap 65,535 mappings (the kernel's default limit for
type1), and DMA by size.

    python bench/iommu.py [MOUNTPOINT]

The command prints a table. With the mountpoint of a lab it also measures MAP_DMA and UNMAP_DMA, and IOAS_MAP
and IOAS_UNMAP, through the mount, compared with an ioctl there that does nothing, with a vGPU (mdpy-vga) that
it creates. Run it in the project's root directory.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from devmodel.iommu.api import DMA_ENTRY_LIMIT, PAGE_SIZE, Prot
from devmodel.iommu.type1 import Type1
from devmodel.iommufd.ioas import Ioas
from ioctl_shim.process import Process
from tests.iommufd.client import MAP_FIXED_IOVA, READ_WRITE, IoasMap, IoasUnmap, Iommufd
from tests.vfio import client as vfio
from tests.vfio.client import Container, DmaMap, DmaUnmap, File, Group, Memory, ioctl

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


def address_space(process: Process, vaddr: int) -> None:
    """The same of an IOAS, where the iova may be left to the lab."""
    for name, iovas in orders().items():
        ioas = Ioas()
        fixed = MAP_FIXED_IOVA | READ_WRITE
        each(f"IOAS, map, {name}", iovas, lambda iova: ioas.map(process, fixed, vaddr, PAGE_SIZE, iova))  # noqa: B023
        each(f"  unmap, {name}", iovas, lambda iova: ioas.unmap(iova, PAGE_SIZE))  # noqa: B023
    ioas = Ioas()
    found = [ioas.map(process, READ_WRITE, vaddr, PAGE_SIZE, 0) for _ in range(DMA_ENTRY_LIMIT - HITS)]
    each("IOAS, map at an iova of its choice", range(HITS), lambda _: choose(ioas, process, vaddr))
    random.Random(4).shuffle(found)
    for iova in found[:HITS]:
        ioas.unmap(iova, PAGE_SIZE)
    each("  in holes between others", range(HITS), lambda _: choose(ioas, process, vaddr))


def choose(ioas: Ioas, process: Process, vaddr: int) -> int:
    return ioas.map(process, READ_WRITE, vaddr, PAGE_SIZE, 0)


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
            add = DmaMap(flags=vfio.READ | vfio.WRITE, vaddr=memory.address, size=PAGE_SIZE)
            take = DmaUnmap(size=PAGE_SIZE)
            through(
                container, ("MAP_DMA", vfio.IOMMU_MAP_DMA, add), ("UNMAP_DMA", vfio.IOMMU_UNMAP_DMA, take)
            )
    finally:
        (device / "remove").write_text("1")
    with Iommufd(mountpoint) as iommufd:
        ioas = iommufd.ioas()
        flags, va = READ_WRITE | MAP_FIXED_IOVA, memory.address
        mapped = IoasMap(flags=flags, ioas_id=ioas, user_va=va, length=PAGE_SIZE)
        gone = IoasUnmap(ioas_id=ioas, length=PAGE_SIZE)
        through(iommufd, ("IOAS_MAP", IoasMap.cmd(), mapped), ("IOAS_UNMAP", IoasUnmap.cmd(), gone))


def through(file: File, *calls: tuple[str, int, Any]) -> None:
    """Time the ioctls of ``calls`` (name, number, struct) with all iovas."""
    fd, upwards = file.fd, orders()["upwards"]
    bare = each("ioctl that does nothing, through the mount", upwards, lambda _: ioctl(fd, vfio.API_VERSION))

    def call(number: int, argument: Any, iova: int) -> None:
        argument.iova = iova
        ioctl(fd, number, argument)

    for what, number, argument in calls:
        spent = each(f"{what}, through the mount", upwards, partial(call, number, argument))
        print(f"{'  beyond the one that does nothing':<52} {spent - bare:>17.2f} us")


def main() -> None:
    process = Process(os.getpid(), os.getpid(), -1)
    small = Memory(PAGE_SIZE)
    print(f"{'':<52} {'calls':>7} {'each':>12}")
    database(process, small.address)
    address_space(process, small.address)
    fd = os.memfd_create("bench")
    os.ftruncate(fd, 1 << 26)
    for kind, memory in (("shared", Memory(1 << 26, fd)), ("private", Memory(1 << 26, private=True))):
        dma(process, kind, memory)
    if len(sys.argv) > 1:
        mounted(Path(sys.argv[1]), small)


if __name__ == "__main__":
    main()
