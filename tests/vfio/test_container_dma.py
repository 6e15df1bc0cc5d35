# SPDX-License-Identifier: Apache-2.0
"""Device DMA into real processes: type1 over the memory of a child of this process, as the server does it."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import DmaFault, Prot
from devmodel.iommu.backend import PinningBackend
from devmodel.iommu.type1 import Type1
from devmodel.iommufd.compat import Compat
from devmodel.iommufd.context import Context
from devmodel.iommufd.ioas import Ioas
from ioctl_shim.process import Process
from ioctl_shim.processes import MAX_SEATS, Processes
from tests import needs
from tests.commands import ROOT
from tests.labs import MountedLab
from tests.unit.fakes import FakeClient
from tests.vfio.client import PAGE, fails, unmapped_address

RW = Prot.READ | Prot.WRITE
PAGES = 64

CHILD = """
import ctypes, os, sys
from tests.vfio.client import *
memory = {}
spare = []
while line := sys.stdin.readline():
    print(eval(line), flush=True)
"""


class Child:
    """A process that does as it is told, one expression a line."""

    def __init__(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.pid = self.child.pid
        assert self("os.getpid()") == self.pid
        self.known = Processes(lambda: -1)
        self.process = self.known.of(self.pid)

    def __call__(self, expression: str) -> Any:
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(expression + "\n")
        self.child.stdin.flush()
        return eval(self.child.stdout.readline())

    def memory(self, name: str, arguments: str) -> int:
        """Make Memory(<arguments>) under a name; returns its address."""
        return int(self(f"memory.__setitem__({name!r}, Memory({arguments})) or memory[{name!r}].address"))

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def close(self) -> None:
        self.kill()
        for stream in (self.child.stdin, self.child.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()


MEMFD = "spare.append(os.memfd_create({0!r})) or os.ftruncate(spare[-1], {1}) or spare[-1]"
KINDS = {
    "private": f"{PAGES} * PAGE, private=True",
    "anonymous shared": f"{PAGES} * PAGE",
    "memfd": f"{PAGES} * PAGE, {MEMFD.format('x', PAGES * PAGE)}",
}


@pytest.fixture(params=KINDS, ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Real:
    """A group of a physical function."""

    number, emulated = 1, False


class OfIommufd:
    """An iommufd as the container, with what type1 has for these tests."""

    def __init__(self, pinned: bool) -> None:
        self._compat = Compat(Context())
        self._compat.join(noiommu=False)
        ioas = self._compat.context.objects.find(1, Ioas)
        self.space = ioas.space
        self.iova_ranges = tuple(ioas.iova_ranges()) if pinned else ()
        if pinned:
            ioas.add_domain(Real())

    def map(self, client: Process, iova: int, vaddr: int, size: int, prot: Prot) -> None:
        self._compat.map_dma(client, int(prot), iova, vaddr, size)

    def unmap(self, iova: int, size: int) -> int:
        return self._compat.unmap_dma(iova, size)[0]


Iommu = Type1 | OfIommufd


@pytest.fixture(params=["mediated", "pinned", "mediated, iommufd", "pinned, iommufd"])
def iommu(request: pytest.FixtureRequest) -> Iommu:
    pinned = "pinned" in request.param
    if "iommufd" in request.param:
        return OfIommufd(pinned)
    iommu = Type1(locked=LockedMemory())
    if pinned:
        iommu.attach(Real())
    return iommu


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def test_bytes_land_where_the_client_sees_them(child: Child, iommu: Iommu, kind: str) -> None:
    address = child.memory("m", KINDS[kind])
    iommu.map(child.process, 0x10000, address, PAGES * PAGE, RW)
    data = pattern(3 * PAGE + 17)
    iommu.space.dma_write(0x10000 + 100, data)
    assert child("memory['m'].read(100, 3 * PAGE + 17)") == data
    child("memory['m'].write(b'from the client', 5 * PAGE - 4)")
    assert iommu.space.dma_read(0x10000 + 5 * PAGE - 4, 15) == b"from the client"


def test_many_mappings_of_both_kinds_in_one_dma(child: Child, iommu: Iommu) -> None:
    addresses = [child.memory(name, arguments) for name, arguments in KINDS.items()]
    for page in range(3 * PAGES):
        address = addresses[page % 3] + page // 3 * PAGE
        iommu.map(child.process, page * PAGE, address, PAGE, RW)
    data = pattern(3 * PAGES * PAGE)
    iommu.space.dma_write(0, data)
    assert iommu.space.dma_read(0, len(data)) == data
    for number, name in enumerate(KINDS):
        expected = b"".join(data[at : at + PAGE] for at in range(number * PAGE, len(data), 3 * PAGE))
        assert child(f"memory[{name!r}].read()") == expected


def test_a_thousand_and_more_private_parts(child: Child) -> None:
    address = child.memory("m", "2500 * PAGE, private=True")
    iommu = Type1()
    for page in range(2500):
        iommu.map(child.process, page * PAGE, address + (2499 - page) * PAGE, PAGE, RW)
    data = pattern(2500 * PAGE)
    iommu.space.dma_write(0, data)
    assert child("memory['m'].read(0, PAGE)") == data[-PAGE:]
    assert iommu.space.dma_read(0, len(data)) == data


def test_memory_that_is_not_there_is_a_fault(child: Child) -> None:
    iommu = Type1()
    iommu.map(child.process, 0, unmapped_address(), PAGE, RW)
    readonly = child.memory("ro", "PAGE, private=True, prot=1")
    shared_readonly = child.memory("sro", "PAGE, prot=1")
    iommu.map(child.process, PAGE, readonly, PAGE, RW)
    iommu.map(child.process, 2 * PAGE, shared_readonly, PAGE, RW)
    iommu.map(child.process, 3 * PAGE, child.memory("none", "PAGE, prot=0"), PAGE, RW)
    child("memory['ro'].close() or Memory(PAGE, private=True, prot=1, address=memory['ro'].address) and 0")
    with pytest.raises(DmaFault):
        iommu.space.dma_write(PAGE, b"x")
    with pytest.raises(DmaFault):
        iommu.space.dma_write(2 * PAGE, b"x")
    with pytest.raises(DmaFault):
        iommu.space.dma_read(3 * PAGE, 1)
    assert iommu.space.dma_read(2 * PAGE, 2) == bytes(2)
    assert iommu.space.inflight.fault_count == 3 and iommu.space.inflight.faults[0].write


def test_a_dead_client_is_a_fault(child: Child, iommu: Iommu, kind: str) -> None:
    iommu.map(child.process, 0, child.memory("m", KINDS[kind]), PAGE, RW)
    iommu.space.dma_write(0, b"alive")
    child.kill()
    check_what_is_left(iommu, kind)
    assert iommu.unmap(0, PAGE) == PAGE


def has_map_files() -> bool:
    """Whether /proc/PID/map_files gives us files, which takes a capability.  A memfd is found without it."""
    entry = next(Path("/proc/self/map_files").iterdir())
    try:
        return entry.stat().st_size > 0
    except PermissionError:
        return False


def check_what_is_left(iommu: Iommu, kind: str) -> None:
    """Of the memory at iova 0, whose process is gone: nothing, but for shared pages that are pinned."""
    found = kind == "memfd" or (kind == "anonymous shared" and has_map_files())
    if iommu.iova_ranges and found:
        iommu.space.dma_write(0, b"ours")
        assert iommu.space.dma_read(0, 4) == b"ours"
        return
    for _ in range(2):
        with pytest.raises(DmaFault, match="ended"):
            iommu.space.dma_read(0, 4)
        with pytest.raises(DmaFault, match="ended"):
            iommu.space.dma_write(0, b"late")
    assert iommu.space.inflight.fault_count == 4


def test_after_an_exec_the_memory_is_not_the_clients_any_more(child: Child, iommu: Iommu, kind: str) -> None:
    iommu.map(child.process, 0, child.memory("m", KINDS[kind]), PAGE, RW)
    assert child.child.stdin and child.child.stdout
    child.child.stdin.write(
        "os.execv(sys.executable, [sys.executable, '-c', 'print(1, flush=True); input()'])\n"
    )
    child.child.stdin.flush()
    assert child.child.stdout.readline() == "1\n"
    check_what_is_left(iommu, kind)
    assert child.known.of(child.pid) is not child.process


def test_what_is_mapped_in_its_place(child: Child, iommu: Iommu, kind: str) -> None:
    pinned = bool(iommu.iova_ranges)
    if pinned and kind == "anonymous shared" and needs.NO_MAP_FILES:
        pytest.skip(needs.NO_MAP_FILES)
    address = child.memory("m", KINDS[kind])
    iommu.map(child.process, 0, address, PAGES * PAGE, RW)
    iommu.space.dma_write(0, b"before")
    child("memory['m'].close()")
    child.memory("new", f"{PAGES} * PAGE, address={address}")
    if pinned and kind == "private":  # what was pinned cannot be reached
        with pytest.raises(DmaFault):
            iommu.space.dma_write(0, b"after")
    else:
        iommu.space.dma_write(0, b"after")
    seen = child("memory['new'].read(0, 6)")
    assert seen == (bytes(6) if pinned else b"after\0")
    if pinned and kind != "private":  # the pages that were mapped stay
        assert iommu.space.dma_read(0, 6) == b"aftere"


def test_a_file_that_becomes_shorter_is_a_fault_and_no_sigbus(child: Child, iommu: Iommu) -> None:
    iommu.map(child.process, 0, child.memory("m", KINDS["memfd"]), PAGES * PAGE, RW)
    iommu.space.dma_write(10 * PAGE, b"there")
    child("os.ftruncate(spare[-1], PAGE)")
    with pytest.raises(DmaFault):
        iommu.space.dma_write(10 * PAGE, b"gone")
    with pytest.raises(DmaFault):
        iommu.space.dma_read(10 * PAGE, 4)
    iommu.space.dma_write(0, b"still")
    assert child("memory['m'].read(0, 5)") == b"still"


def test_pins_count_against_the_limit_of_the_process(child: Child) -> None:
    child("__import__('resource').setrlimit(__import__('resource').RLIMIT_MEMLOCK, (2 * PAGE, 2 * PAGE))")
    assert child.process.memlock_limit() == 2 * PAGE
    assert child.process.may_lock_any() is needs.has_capability("CAP_IPC_LOCK")


def test_what_a_process_has_locked_itself_counts_too(child: Child) -> None:
    address = child.memory("m", f"{PAGES} * PAGE, private=True")
    assert child.process.locked() == 0
    assert child(f"ctypes.CDLL(None).mlock(ctypes.c_void_p({address}), 3 * PAGE)") == 0
    assert child.process.locked() == 3 * PAGE


def test_before_the_kernel_could_be_asked_for_mappings(child: Child, kind: str, iommu: Iommu) -> None:
    """Linux before 6.11 has no PROCMAP_QUERY: the text of /proc/PID/maps says what is mapped."""
    child.process.native.can_query = False
    iommu.map(child.process, 0, child.memory("m", KINDS[kind]), PAGES * PAGE, RW)
    data = pattern(5 * PAGE + 9)
    iommu.space.dma_write(PAGE - 4, data)
    assert child("memory['m'].read(PAGE - 4, 5 * PAGE + 9)") == data
    assert iommu.space.dma_read(PAGE - 4, len(data)) == data
    iommu.unmap(0, PAGES * PAGE)
    if iommu.iova_ranges:
        fails(errno.EFAULT, iommu.map, child.process, 0, child("unmapped_address()"), PAGE, RW)
        return
    iommu.map(child.process, 0, child("unmapped_address()"), PAGE, RW)
    with pytest.raises(DmaFault):
        iommu.space.dma_write(0, b"nowhere")


def test_a_thread_is_its_process_and_a_stranger_is_not(child: Child) -> None:
    known = Processes(lambda: -1)
    own = known.of(threading.get_native_id())
    other: list[Process] = []
    thread = threading.Thread(target=lambda: other.append(known.of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert other == [own] and own.tgid == os.getpid()
    assert known.of(child.pid) is not own
    fails(errno.ESRCH, known.of, 2**22 - 1)


def test_threads_without_number_leave_few_descriptors() -> None:
    gc.collect()  # processes that earlier tests left in tracebacks
    known = Processes(lambda: -1)
    before = len(os.listdir("/proc/self/fd"))
    found: set[Process] = set()
    for _ in range(3 * MAX_SEATS):
        thread = threading.Thread(target=lambda: found.add(known.of(threading.get_native_id())))
        thread.start()
        thread.join()
    assert len(found) == 1 and len(os.listdir("/proc/self/fd")) == before + 2 + MAX_SEATS


def test_descriptors_go_with_the_last_use(child: Child) -> None:
    gc.collect()  # processes that earlier tests left in tracebacks
    before = len(os.listdir("/proc/self/fd"))
    iommu = Type1()
    iommu.attach(Real())
    process = Process(child.pid, child.pid, -1)
    iommu.map(process, 0, child.memory("m", KINDS["memfd"]), PAGE, RW)
    del process
    assert len(os.listdir("/proc/self/fd")) == before + 2
    iommu.close()
    assert len(os.listdir("/proc/self/fd")) == before


@needs.passthrough
def test_a_bar_of_the_lab_is_dma_memory(lab: MountedLab) -> None:
    """A client that maps a device's memory and gives it to another device."""
    with lab.create("mdpy-vga", "mdpy") as vgpu:
        child = Child()
        process = Process(child.pid, child.pid, lab.path.stat().st_dev)
        bar = child.memory("b", f"PAGE, os.open({str(vgpu.path / 'resource0')!r}, 2)")
        process.write(bar, b"device to device")
        with (vgpu.path / "resource0").open("rb") as resource:
            assert resource.read(16) == b"device to device"
        process.pin(bar, PAGE, True).write_from(0, memoryview(b"DEVICE"))
        assert child("memory['b'].read(0, 16)") == b"DEVICE to device"
        child.close()


class SlowClient(FakeClient):
    """Its memory takes a write only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def write(self, vaddr: int, data: bytes) -> None:
        self.begun.set()
        assert self.go.wait(60)
        super().write(vaddr, data)


def test_an_unmap_waits_for_the_dma_in_its_range() -> None:
    iommu, slow = Type1(), SlowClient()
    iommu.map(slow, 0, 0, PAGE, RW)
    iommu.map(FakeClient(2), 2 * PAGE, 0, PAGE, RW)
    writer = threading.Thread(target=iommu.space.dma_write, args=(0, b"slow"))
    writer.start()
    assert slow.begun.wait(60) and iommu.space.inflight.copying
    assert iommu.unmap(2 * PAGE, PAGE) == PAGE  # another range need not wait
    unmapped: list[int] = []
    unmapper = threading.Thread(target=lambda: unmapped.append(iommu.unmap(0, PAGE)))
    unmapper.start()
    with pytest.raises(DmaFault, match="being unmapped"):
        while True:
            iommu.space.dma_read(0, 4)
    assert not unmapped
    slow.go.set()
    writer.join()
    unmapper.join()
    assert unmapped == [PAGE] and slow.read(0, 4) == b"slow" and not iommu.space.inflight.copying


def test_two_unmaps_that_wait_for_the_same_dma() -> None:
    iommu, slow = Type1(), SlowClient()
    iommu.map(slow, 0, 0, PAGE, RW)
    writer = threading.Thread(target=iommu.space.dma_write, args=(0, b"slow"))
    writer.start()
    assert slow.begun.wait(60)
    unmapped: list[int] = []
    unmappers = [threading.Thread(target=lambda: unmapped.append(iommu.unmap(0, 2 * PAGE))) for _ in range(2)]
    for unmapper in unmappers:
        unmapper.start()
    while len(iommu.space.inflight.draining) < len(unmappers):
        assert writer.is_alive()
    slow.go.set()
    for thread in (writer, *unmappers):
        thread.join()
    assert sorted(unmapped) == [0, PAGE] and iommu.dma_avail == iommu.space.limit


def test_an_unmap_gives_up_when_a_client_stops_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devmodel.iommu.inflight.DRAIN_SECONDS", 0.05)
    iommu, slow = Type1(), SlowClient()
    iommu.map(slow, 0, 0, PAGE, RW)
    writer = threading.Thread(target=iommu.space.dma_write, args=(0, b"slow"))
    writer.start()
    assert slow.begun.wait(60)
    fails(errno.EBUSY, iommu.unmap, 0, PAGE)
    slow.go.set()
    writer.join()
    assert iommu.unmap(0, PAGE) == PAGE


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Huge pages of the machine's, which another run of the tests asks for, too."""
    free = Path("/proc/sys/vm/nr_hugepages")
    with free.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = free.read_text()
        try:
            free.write_text("4")
            if int(free.read_text()) < 1:
                pytest.skip("the kernel has no huge page to give")
        except OSError as error:
            pytest.skip(f"/proc/sys/vm/nr_hugepages: {error.strerror}")
        try:
            yield
        finally:
            free.write_text(before)


@pytest.mark.usefixtures("huge_pages")
def test_hugetlbfs_memory(child: Child) -> None:
    try:
        size = 1 << 21
        address = child.memory(
            "h",
            f"{size}, spare.append(os.memfd_create('h', 4)) or os.ftruncate(spare[-1], {size}) or spare[-1]",
        )
        iommu = Type1()
        iommu.attach(Real())
        iommu.map(child.process, 0, address, size, RW)
        iommu.space.dma_write(size - 4, b"huge")
        assert child(f"memory['h'].read({size} - 4)") == b"huge"
    finally:
        child.kill()


def test_the_pinning_backend_maps_shared_memory_once(child: Child) -> None:
    iommu = Type1()
    iommu.attach(Real())
    address = child.memory("m", f"{PAGES} * PAGE, {MEMFD.format('once', PAGES * PAGE)}")
    for page in range(PAGES):
        iommu.map(child.process, page * PAGE, address + page * PAGE, PAGE, RW)
    iommu.space.dma_write(0, bytes(PAGES * PAGE))
    assert Path("/proc/self/maps").read_text().count("memfd:once") == 1
    assert PinningBackend.iova_ranges == iommu.iova_ranges
    os.kill(child.pid, signal.SIGKILL)
