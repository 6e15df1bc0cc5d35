# SPDX-License-Identifier: Apache-2.0
"""A small write happens once: each byte is stored once, in rising order, and aligned pieces whole.

tests/clients/dma_watcher.c looks at its own memory while a device writes to it.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devmodel.iommu.api import Prot
from devmodel.iommu.type1 import Type1
from ioctl_shim.process import Process
from tests.vfio.client import PAGE
from tests.vfio.test_container_dma import Real

RW = Prot.READ | Prot.WRITE
SMALL = 64
ASKED, ARMED, SEEN = 1, 2, 3
SECONDS = 2
EDGES = (64, PAGE)
"""Records lie across the end of a cache line and of a page, where stores come apart most."""

CAN_MAP = os.geteuid() == 0
"""Whether another process' anonymous shared memory can be mapped. /proc/PID/map_files takes a capability."""

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a processor writes while another one looks"
)


class Watcher:
    """A process that looks at a record of its memory, which a device writes by `iommu`."""

    def __init__(self, program: Path, kind: str, pinned: bool) -> None:
        fd = os.memfd_create("control")
        os.ftruncate(fd, PAGE)
        self.control = mmap.mmap(fd, PAGE)
        self.process = subprocess.Popen(
            [program, kind, str(fd)], stdout=subprocess.PIPE, text=True, pass_fds=(fd,)
        )
        os.close(fd)
        assert self.process.stdout is not None
        address = int(self.process.stdout.readline())
        self.iommu = Type1()
        if pinned:
            self.iommu.attach(Real())
        client = Process(self.process.pid, self.process.pid, -1)
        self.iommu.map(client, 0, address, 2 * PAGE, RW)

    def close(self) -> None:
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()

    def wait_for(self, turn: int) -> None:
        while struct.unpack_from("I", self.control)[0] != turn:
            os.sched_yield()

    def write(self, offset: int, size: int) -> None:
        struct.pack_into("II", self.control, 4, offset, size)
        struct.pack_into("I", self.control, 0, ASKED)
        self.wait_for(ARMED)
        self.iommu.space.dma_write(offset, b"\xff" * size)
        self.wait_for(SEEN)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Bytes stored twice, bytes stored too early, torn pieces."""
        late, order, torn = struct.unpack_from("III", self.control, 12)
        return late, order, torn


@pytest.fixture(params=[False, True], ids=["mapped", "pinned"])
def pinned(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["shared", "private"])
def watcher(
    request: pytest.FixtureRequest, compile_client: Callable[..., Path], pinned: bool
) -> Iterator[Watcher]:
    watcher = Watcher(compile_client("dma_watcher", "-O2"), request.param, pinned)
    yield watcher
    watcher.close()


def kernel_stores_once() -> bool:
    """Whether the kernel copies by one string instruction.  Its other way stores some bytes twice."""
    return " fsrm " in Path("/proc/cpuinfo").read_text()


def test_a_small_write_happens_once(watcher: Watcher, request: pytest.FixtureRequest) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for edge in EDGES:
            for size in range(1, SMALL + 1):
                for before in range(1, size + 1, 3):
                    watcher.write(edge - before, size)
            if time.monotonic() > end:
                break
    late, order, torn = watcher.counts
    if "private" in request.node.name or not CAN_MAP:  # the kernel copies, maybe a piece byte by byte
        assert order == 0 and not (late and kernel_stores_once())
    else:
        assert (late, order, torn) == (0, 0, 0)
