# SPDX-License-Identifier: Apache-2.0
"""A driver of the vGPU's command engine in plain Python, written from docs/vgpu.md.

It shares nothing with the server's declarations, so that a mistake there does not cancel out here.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import struct
from collections.abc import Iterator, Sequence

from tests.labs import MountedLab, Vgpu
from tests.vfio.client import PAGE, Memory
from tests.vfio.devices import Opened, opened
from tests.waiting import wait_for

SECONDS = 60
SYSTEM = 1 << 40
GTT_ENTRIES = 16384
VALID, WRITABLE = 1, 2
ENABLE, RESET = 1, 2
IDLE, DONE, ERROR, HANG = 1, 2, 4, 8
NONE, BAD_COMMAND, BAD_ADDRESS, NOT_PRESENT, READ_ONLY, DMA, BAD_RING, HUNG, NO_MEMORY = range(9)
REGISTERS = {
    "MAGIC": (0x00, 4),
    "CONTROL": (0x04, 4),
    "STATUS": (0x08, 4),
    "ERROR_CODE": (0x0C, 4),
    "ERROR_ADDRESS": (0x10, 8),
    "FENCE": (0x18, 8),
    "RING_BASE": (0x20, 8),
    "RING_SIZE": (0x28, 4),
    "RING_HEAD": (0x2C, 4),
    "RING_TAIL": (0x30, 4),
    "GTT_ENTRIES": (0x34, 4),
    "SYSTEM_BASE": (0x38, 8),
}
PACKET = 64
COMMAND_REGISTER, DECODE, MASTER = 4, 3, 4
IOVA = 0x1_0000_0000
VIDEO = 8 << 20
ENGINE_LAB = f"""\
[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
types.even = {{ memory = "{VIDEO}", description = "a vGPU" }}
types.heavy = {{ memory = "{VIDEO}", description = "three times as much", options = {{ weight = 48 }} }}
types.mute = {{ memory = "{VIDEO}", description = "without interrupts", options = {{ vectors = 0 }} }}

[parents.pool]
kind = "virtual"
driver = "pool"
model = "vgpu"
memory = "64M"
types.own = {{ memory = "{VIDEO}", description = "an engine of its own" }}
"""


def packet(opcode: int, flags: int = 0, fields: bytes = b"") -> bytes:
    return (struct.pack("<II", opcode, flags) + fields).ljust(PACKET, b"\0")


def nop() -> bytes:
    return packet(0)


def fill(target: int, width: int, pattern: int, height: int = 1, pitch: int = 0) -> bytes:
    return packet(1, 0, struct.pack("<QIIII", target, pitch or width, width, height, pattern))


def copy(target: int, source: int, size: int) -> bytes:
    return packet(2, 0, struct.pack("<QQQ", target, source, size))


def blit(target: int, source: int, pitches: tuple[int, int], width: int, height: int) -> bytes:
    """`pitches` are those of the target and of the source."""
    return packet(3, 0, struct.pack("<QQIIII", target, source, *pitches, width, height))


def fence(address: int, value: int, interrupt: bool = False) -> bytes:
    return packet(4, int(interrupt), struct.pack("<QQ", address, value))


def wait(address: int, value: int) -> bytes:
    return packet(5, 0, struct.pack("<QQ", address, value))


class Gpu:
    """An opened vGPU with `memory`, pages of this process that the engine sees from SYSTEM on.

    Its first pages are the ring, the next one has the fence's word; `base` is the graphics address of the
    rest, `data` its offset in the memory.
    """

    def __init__(self, device: Opened, memory: Memory, ring_size: int = PAGE, iova: int = IOVA) -> None:
        self.opened, self.memory, self.ring_size, self.iova = device, memory, ring_size, iova
        self.fd = device.device.fd
        self.fence_at = SYSTEM + ring_size
        self.data = ring_size + PAGE
        self.base = SYSTEM + self.data
        self.tail = self.seq = 0

    def read(self, name: str) -> int:
        offset, width = REGISTERS[name]
        return int.from_bytes(os.pread(self.fd, width, (2 << 40) + 0x1000 + offset), "little")

    def write(self, name: str, value: int) -> None:
        offset, width = REGISTERS[name]
        os.pwrite(self.fd, value.to_bytes(width, "little"), (2 << 40) + 0x1000 + offset)

    def entries(self, first: int, entries: Sequence[int]) -> None:
        """Write entries of the GTT."""
        data = struct.pack(f"<{len(entries)}Q", *entries)
        assert os.pwrite(self.fd, data, (1 << 40) + 8 * first) == len(data)

    def start(self) -> None:
        """Let the engine see the memory, and enable it."""
        pages = self.memory.size // PAGE
        self.entries(0, [self.iova + page * PAGE | VALID | WRITABLE for page in range(pages)])
        self.opened.device.set_config(COMMAND_REGISTER, DECODE | MASTER)
        self.enable()

    def enable(self, base: int = SYSTEM, size: int = 0) -> None:
        self.write("CONTROL", RESET)
        self.write("RING_BASE", base)
        self.write("RING_SIZE", size or self.ring_size)
        self.write("CONTROL", ENABLE)
        self.tail = 0

    def queue(self, *packets: bytes) -> None:
        """Put packets into the ring, and ring the doorbell."""
        for each in packets:
            self.memory.write(each, self.tail)
            self.tail = (self.tail + PACKET) % self.ring_size
        self.write("RING_TAIL", self.tail)

    def finish(self, *packets: bytes) -> None:
        """Execute packets, and wait until they are done without an error."""
        self.seq += 1
        self.queue(*packets, fence(self.fence_at, self.seq))
        wait_for(lambda: self.fence == self.seq or self.read("STATUS") & ERROR)
        assert self.error() == (NONE, 0) and self.fence == self.seq

    def fails(self, *packets: bytes) -> tuple[int, int]:
        """Execute packets of which the last one fails; its error, which is acknowledged."""
        self.queue(*packets)
        wait_for(lambda: self.read("STATUS") & ERROR)
        found = self.error()
        self.acknowledge()
        return found

    def error(self) -> tuple[int, int]:
        """Code and address."""
        return self.read("ERROR_CODE"), self.read("ERROR_ADDRESS")

    def acknowledge(self) -> None:
        """Clear the status; the ring goes on."""
        self.write("STATUS", DONE | ERROR | HANG)

    @property
    def fence(self) -> int:
        return int.from_bytes(self.memory.read(self.ring_size, 8), "little")

    @property
    def idle(self) -> bool:
        return bool(self.read("STATUS") & IDLE)

    def video(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def set_video(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self.fd, data, offset) == len(data)

    def system(self, offset: int, size: int) -> bytes:
        """Bytes behind the graphics address `base` + offset."""
        return self.memory.read(self.data + offset, size)

    def set_system(self, offset: int, data: bytes) -> None:
        self.memory.write(data, self.data + offset)


def client_memory(size: int, kind: str = "memfd") -> Memory:
    if kind == "private":
        return Memory(size, private=True)
    fd = os.memfd_create("client")
    os.ftruncate(fd, size)
    try:
        return Memory(size, fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def gpu(
    lab: MountedLab, vgpu: Vgpu, pages: int = 512, kind: str = "memfd", ring_size: int = PAGE
) -> Iterator[Gpu]:
    """The vGPU opened, its engine enabled, and the memory unmapped again at the end."""
    memory = client_memory(pages * PAGE, kind)
    with opened(lab, vgpu.group, vgpu.name) as device:
        device.container.map(IOVA, memory.address, memory.size)
        made = Gpu(device, memory, ring_size)
        made.start()
        yield made
    memory.close()


def attribute(vgpu: Vgpu, name: str) -> str:
    """What it shows, in one read: the next one may show another value."""
    fd = os.open(vgpu.path / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, PAGE).decode().strip()
    finally:
        os.close(fd)


class StoppedMemory(Memory):
    """Private pages whose first touch, by whomever, waits until `let_go` (userfaultfd(2)), except for the
    first `present` bytes."""

    _UFFDIO_API, _UFFDIO_REGISTER, _MODE_MISSING = 0xC018AA3F, 0xC020AA00, 1
    _SYSCALL = 323 if os.uname().machine == "x86_64" else 282

    def __init__(self, size: int, present: int = 0) -> None:
        super().__init__(size, private=True)
        self.write(bytes(present))
        self.uffd = ctypes.CDLL(None, use_errno=True).syscall(self._SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK)
        assert self.uffd >= 0, os.strerror(ctypes.get_errno())
        fcntl.ioctl(self.uffd, self._UFFDIO_API, struct.pack("<QQQ", 0xAA, 0, 0))
        asked = struct.pack("<QQQQ", self.address, size, self._MODE_MISSING, 0)
        fcntl.ioctl(self.uffd, self._UFFDIO_REGISTER, asked)

    def __enter__(self) -> StoppedMemory:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go also of calls that a failed test has left waiting."""
        self.let_go()

    def forget(self) -> None:
        """From now on the next touch of any page waits."""
        ranged = (ctypes.c_void_p(self.address), ctypes.c_size_t(self.size), mmap.MADV_DONTNEED)
        assert ctypes.CDLL(None).madvise(*ranged) == 0

    def let_go(self) -> None:
        """The other pages are zeros.  May be called twice."""
        if self.uffd >= 0:
            os.close(self.uffd)
        self.uffd = -1

    @property
    def touched(self) -> bool:
        """Whether somebody waits for a page. Without O_NONBLOCK a userfaultfd always says so."""
        return bool(select.select([self.uffd], [], [], 0)[0])
