# SPDX-License-Identifier: Apache-2.0
"""DMA as a model does it, in a process of its own against the memory of a child.

    python -m bench.dma {shared|private} {read|into|write} CALLS SIZE

The command prints nanoseconds as bench/client.c does. `read` returns bytes, as DmaPort.read does. `into`
fills a page-aligned buffer of the model, as DmaPort.read_into does.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from functools import partial

from bench.samples import timed
from devmodel.iommu.api import Prot
from devmodel.iommu.type1 import Type1
from ioctl_shim._native import lib
from ioctl_shim.process import Process

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
PROT_RW, MAP_SHARED, MAP_PRIVATE_ANONYMOUS = 3, 1, 0x22
PR_SET_PDEATHSIG = 1


def memory(kind: str, size: int) -> int:
    """The address of `size` bytes of memory that a child also has."""
    fd, flags = -1, MAP_PRIVATE_ANONYMOUS
    if kind == "shared":
        fd, flags = os.memfd_create("bench"), MAP_SHARED
        os.ftruncate(fd, size)
    address = LIBC.mmap(None, ctypes.c_size_t(size), PROT_RW, flags, fd, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def owner(address: int, size: int) -> int:
    """Start a child that touches its memory there and sleeps. Returns its pid."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        ctypes.memset(address, 1, size)
        os.write(writer, b"r")
        signal.pause()
        os._exit(0)
    os.read(reader, 1)
    return pid


def main() -> None:
    kind, direction, calls, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    lib.shim_keep_memory()  # as the server does
    address = memory(kind, size)
    child = owner(address, size)
    iommu = Type1()
    iommu.map(Process(child, child, -1), 0, address, size, int(Prot.READ | Prot.WRITE))
    if direction == "write":
        timed(partial(iommu.space.dma_write, 0, bytes(bytearray(b"\1") * size)), calls)
    elif direction == "into":
        timed(partial(iommu.space.dma_rw, 0, memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE)), False), calls)
    else:
        timed(partial(iommu.space.dma_read, 0, size), calls)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
