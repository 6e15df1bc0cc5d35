# SPDX-License-Identifier: Apache-2.0
"""DMA into a child of this process, whatever its memory is made of and whatever the device's buffer is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devmodel.iommu.api import DmaFault
from devmodel.iommu.type1 import Type1
from ioctl_shim.process import Process
from tests.commands import ROOT
from tests.vfio.client import PAGE
from tests.vfio.test_container_dma import KINDS, MEMFD, PAGES, RW, Child, Real, child, iommu, kind, pattern

__all__ = ["child", "iommu", "kind"]

READERS: dict[str, Callable[[Type1, int, int], bytes]] = {
    "bytes": lambda iommu, iova, size: iommu.space.dma_read(iova, size),
    "bytearray": lambda iommu, iova, size: read_into(iommu, iova, bytearray(size)),
    "memoryview": lambda iommu, iova, size: read_into(iommu, iova, memoryview(bytearray(size))),
    "words": lambda iommu, iova, size: read_into(iommu, iova, memoryview(bytearray(size)).cast("I")),
}
WRITERS: dict[str, Callable[[Type1, int, bytes], None]] = {
    "bytes": lambda iommu, iova, data: iommu.space.dma_write(iova, data),
    "bytearray": lambda iommu, iova, data: iommu.space.dma_rw(iova, bytearray(data), write=True),
    "memoryview": lambda iommu, iova, data: iommu.space.dma_rw(iova, memoryview(data), write=True),
    "words": lambda iommu, iova, data: iommu.space.dma_rw(iova, memoryview(data).cast("I"), write=True),
}


def read_into(iommu: Type1, iova: int, buffer: bytearray | memoryview) -> bytes:
    iommu.space.dma_rw(iova, buffer, write=False)
    return bytes(buffer)


@pytest.mark.parametrize("way", READERS)
def test_every_buffer_is_filled_and_stored(child: Child, iommu: Type1, kind: str, way: str) -> None:
    iommu.map(child.process, 0, child.memory("m", KINDS[kind]), PAGES * PAGE, RW)
    for size in (4, PAGE, 5 * PAGE + 12):
        data = pattern(size)
        WRITERS[way](iommu, PAGE - 3, data)
        assert child(f"memory['m'].read(PAGE - 3, {size})") == data
        assert READERS[way](iommu, PAGE - 3, size) == data


@pytest.mark.parametrize("way", READERS)
def test_one_dma_over_memory_of_every_kind(child: Child, iommu: Type1, way: str) -> None:
    address = child.memory("m", KINDS["private"])
    for number, name in enumerate(("anonymous shared", "memfd")):
        place = address + (10 + 20 * number) * PAGE
        pages = KINDS[name].replace(str(PAGES), "7")
        child.memory(name, f"{pages}, address={place}")
    iommu.map(child.process, 0, address, PAGES * PAGE, RW)
    data = pattern(PAGES * PAGE - 16)
    WRITERS[way](iommu, 8, data)
    assert child(f"memory['m'].read(8, {len(data)})") == data
    assert READERS[way](iommu, 8, len(data)) == data


def test_shared_memory_that_is_mapped_anew_in_the_same_place(child: Child) -> None:
    """Each mapping takes the place of the one before, of whatever size: none is mistaken for another."""
    address = child.memory("whole", KINDS["private"])
    iommu = Type1()
    iommu.map(child.process, 0, address, PAGES * PAGE, RW)
    for turn in range(4):
        for pages, first in ((8, 0), (4, 2), (2, 3), (PAGES, 0)):
            name = f"turn{turn}"
            size = pages * PAGE
            child.memory("m", f"{size}, {MEMFD.format(name, size)}, address={address + first * PAGE}")
            data = pattern(size)[turn + pages :] + bytes(turn + pages)
            iommu.space.dma_write(first * PAGE, data)
            assert child(f"memory['m'].read(0, {size})") == data
            assert iommu.space.dma_read(first * PAGE, size) == data
    maps = Path("/proc/self/maps").read_text()
    assert "memfd:turn3" in maps and "memfd:turn0" not in maps


def test_many_windows_by_turns(child: Child) -> None:
    iommu = Type1()
    for number in range(12):
        address = child.memory(f"m{number}", KINDS["memfd"])
        iommu.map(child.process, number << 32, address, PAGES * PAGE, RW)
    for turn in range(3):
        for number in range(12):
            iommu.space.dma_write((number << 32) + turn * PAGE, bytes([turn, number]))
    for number in range(12):
        found = [child(f"memory['m{number}'].read({turn} * PAGE, 2)") for turn in range(3)]
        assert found == [bytes([turn, number]) for turn in range(3)]


def test_files_of_our_own_mount(child: Child, tmp_path: Path) -> None:
    """A private copy of one would have us wait for ourselves; what is shared gets no window."""
    file = tmp_path / "file"
    file.write_bytes(pattern(PAGE))
    process = Process(child.pid, child.pid, file.stat().st_dev)
    opened = f"spare.append(os.open({str(file)!r}, os.O_RDWR)) or spare[-1]"
    iommu = Type1()
    iommu.map(process, 0, child.memory("private", f"PAGE, {opened}, private=True"), PAGE, RW)
    iommu.map(process, PAGE, child.memory("shared", f"PAGE, {opened}"), PAGE, RW)
    for refused in (lambda: iommu.space.dma_read(0, 4), lambda: iommu.space.dma_write(0, b"copy")):
        with pytest.raises(DmaFault, match="a private copy of a lab file"):
            refused()
    iommu.space.dma_write(PAGE, b"shared")
    assert file.read_bytes()[:6] == iommu.space.dma_read(PAGE, 6) == b"shared"
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_what_is_pinned_is_read_as_bytes_too(child: Child, kind: str) -> None:
    iommu = Type1()
    iommu.attach(Real())
    address = child.memory("m", KINDS[kind])
    for page in range(0, PAGES, 2):  # of two pages each, the second before the first
        iommu.map(child.process, page * PAGE, address + (page + 1) * PAGE, PAGE, RW)
        iommu.map(child.process, (page + 1) * PAGE, address + page * PAGE, PAGE, RW)
    data = pattern(PAGES * PAGE)
    iommu.space.dma_write(0, data)
    assert iommu.space.dma_read(0, len(data)) == data
    assert child("memory['m'].read(0, PAGE)") == data[PAGE : 2 * PAGE]


FRESH_PAGES = """
import resource
from ioctl_shim._native import lib
lib.shim_keep_memory()
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(16 << 20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


def test_large_buffers_are_made_of_memory_that_was_used_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < (16 << 20) // os.sysconf("SC_PAGE_SIZE") // 8
