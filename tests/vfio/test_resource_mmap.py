# SPDX-License-Identifier: Apache-2.0
"""mmap of resource<N>: whoever looks at a memory region sees the same bytes, wherever the region is.

The kernel maps a file at the client's own offset, so a region is in the device's memfd or in one of its own
(vfsfuse.vfio.ownfiles). These tests map it, open the device through VFIO before, during and after that, and
look at the content, at what can be mapped, and at the memory that the server has.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from devmodel.region.moving import PIECE
from tests import needs
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import DEVICE_GET_REGION_INFO, PAGE, File, RegionInfo, fails, with_caps
from tests.vfio.devices import bound, function_dir, opened, opener
from tests.vfio.gpu_client import copy, fill, gpu
from tests.vfio.models.banks import LARGE, OTHER, SMALL

BANKS = Path(__file__).parent / "models/banks.py"
LAB = f"""\
[models]
banks = "{BANKS}:Banks"

[parents.cards]
kind = "virtual"
driver = "cards"
model = "banks"
slots = 8
types.card = {{ description = "banks of memory", slots = 1 }}

[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
options = {{ vectors = 8 }}
types.own = {{ memory = "1M", description = "a GPU", options = {{ vectors = 8 }} }}

[parents."0000:90:00.0"]
kind = "gpu"
model = "banks"
memory = "1M"
driver = "host"
types.mute = {{ memory = "1M", description = "of the card" }}
"""
FUNCTION = "0000:90:00.0"
OFTEN = 500
"""A tenth of the reads that a thread makes while 128 MiB move, and more than it makes around a move."""
T = TypeVar("T")
MMAP = 4
MIB, GIB = 1 << 20, 1 << 30
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
pytestmark = needs.passthrough


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("banks"), LAB) as mounted:
        yield mounted


@pytest.fixture
def card(machine: MountedLab) -> Iterator[Vgpu]:
    with machine.create("card", "cards") as vgpu:
        yield vgpu


@pytest.fixture
def use(card: Vgpu) -> Iterator[Callable[[], File]]:
    """What opens the card through its group, as often as it is called."""
    with opener(card.lab, card.group, card.name) as opening:
        yield opening


@contextlib.contextmanager
def mapped(path: Path, size: int, flags: int = os.O_RDWR) -> Iterator[mmap.mmap]:
    """A mapping of the file, which is open as long. (mmap.mmap() has a descriptor of its own.)"""
    fd = os.open(path, flags)
    try:
        memory = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if flags & os.O_RDWR else 0))
    finally:
        os.close(fd)
    with memory:
        yield memory


@contextlib.contextmanager
def only_mapped(fd: int, size: int, offset: int = 0) -> Iterator[int]:
    """The address of a mapping without any descriptor: this closes `fd`."""
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, offset)
    assert address != 2**64 - 1
    os.close(fd)
    try:
        yield address
    finally:
        assert not _libc.munmap(address, size)


def can_map(device: File, index: int) -> bool:
    """What GET_REGION_INFO says."""
    return bool(with_caps(device.fd, DEVICE_GET_REGION_INFO, RegionInfo, index=index)[0].flags & MMAP)


def cannot_be_mapped(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        fails(errno.ENODEV, mmap.mmap, file.fileno(), PAGE)


def peek(device: File, offset: int) -> bytes:
    """8 bytes of region 2, as the model sees them."""
    os.pwrite(device.fd, offset.to_bytes(8, "little"), 0)
    return os.pread(device.fd, 8, 8)


def poke(device: File, offset: int, data: bytes) -> None:
    os.pwrite(device.fd, offset.to_bytes(8, "little"), 0)
    os.pwrite(device.fd, data, 8)


def memfds(lab: MountedLab) -> dict[str, int]:
    """The bytes that the server has in memfds of devices and of regions, by the memfd's number and name."""
    found = {}
    for link in Path(f"/proc/{lab.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(link)
            if target.startswith("/memfd:vfio-"):
                found[f"{link.name} {target}"] = os.stat(link).st_blocks * 512
    return found


def allocated(lab: MountedLab) -> int:
    return sum(memfds(lab).values())


# ---- one memory, whoever looks ----


@pytest.mark.parametrize(("index", "size"), [(1, SMALL), (2, LARGE), (4, OTHER)])
def test_a_mapping_is_the_region(card: Vgpu, index: int, size: int) -> None:
    path = card.path / f"resource{index}"
    with mapped(path, size) as memory, path.open("r+b", buffering=0) as file:
        memory[:6] = b"mapped"
        memory[size - 4 :] = b"last"
        assert os.pread(file.fileno(), 6, 0) == b"mapped"
        assert os.pread(file.fileno(), 9, size - 4) == b"last"
        assert os.pwrite(file.fileno(), b"written", 1000) == 7
        assert memory[1000:1007] == b"written"
    assert path.stat().st_size == size


def test_a_region_that_is_mapped_is_the_same_through_vfio(card: Vgpu) -> None:
    with mapped(card.path / "resource2", LARGE) as memory, File(card.open()) as device:
        memory[40 * GIB : 40 * GIB + 8] = b"by store"
        assert peek(device, 40 * GIB) == b"by store"
        assert os.pread(device.fd, 8, (2 << 40) + 40 * GIB) == b"by store"
        poke(device, 8, b"by model")
        assert memory[8:16] == b"by model"
        os.pwrite(device.fd, b"by VFIO!", (2 << 40) + 16)
        assert memory[16:24] == b"by VFIO!" and peek(device, 16) == b"by VFIO!"


def test_processes_share_a_mapping(card: Vgpu) -> None:
    path = card.path / "resource4"
    with mapped(path, OTHER) as memory:
        memory[:4] = b"ping"
        script = (
            "import mmap, sys; file = open(sys.argv[1], 'r+b', buffering=0);"
            "memory = mmap.mmap(file.fileno(), 0); assert memory[:4] == b'ping'; memory[-4:] = b'pong'"
        )
        subprocess.run([sys.executable, "-c", script, path], check=True)
        assert memory[-4:] == b"pong"


def test_a_file_that_is_open_for_reading_maps_for_reading(card: Vgpu) -> None:
    path = card.path / "resource1"
    with mapped(path, SMALL) as memory, mapped(path, SMALL, os.O_RDONLY) as seen:
        memory[5:8] = b"new"
        assert seen[5:8] == b"new"


@pytest.mark.parametrize("of_vgpu", [True, False])
def test_the_memory_behind_msix_is_mapped(machine: MountedLab, of_vgpu: bool) -> None:
    with machine.create("own") as vgpu:
        folder = vgpu.path if of_vgpu else machine.path / "sys/bus/pci/devices/0000:86:00.0"
        path = folder / "resource4"
        size = path.stat().st_size
        with mapped(path, size) as memory, path.open("r+b", buffering=0) as file:
            memory[PAGE : PAGE + 4] = b"mine"
            assert os.pread(file.fileno(), 4, PAGE) == b"mine"
            assert os.pread(file.fileno(), 8, 0) == b"\xff" * 8, "the table is not the memory"


def test_registers_are_not_mapped(card: Vgpu) -> None:
    cannot_be_mapped(card.path / "resource0")
    cannot_be_mapped(card.path / "config")


# ---- there and back ----


def test_content_moves_there_and_back(card: Vgpu) -> None:
    pages = [0, 5, 6, LARGE // PAGE - 1, 3 * GIB // PAGE]
    resource = card.path / "resource2"

    def filled(by: bytes) -> list[bytes]:
        return [by + page.to_bytes(6, "little") for page in pages]

    with File(card.open()) as device:
        assert can_map(device, 2)
        with only_mapped(os.dup(device.fd), PAGE, 2 << 40) as address:
            ctypes.memmove(address, b"first", 5)
            assert os.pread(device.fd, 5, 2 << 40) == b"first"
        for page, data in zip(pages, filled(b"vv"), strict=True):
            os.pwrite(device.fd, data, (2 << 40) + page * PAGE)
    for _ in range(2):
        with mapped(resource, LARGE) as memory:
            assert [memory[page * PAGE : page * PAGE + 8] for page in pages] == filled(b"vv")
            for page, data in zip(pages, filled(b"rr"), strict=True):
                memory[page * PAGE : page * PAGE + 8] = data
        with File(card.open()) as device:
            assert can_map(device, 2)
            assert [os.pread(device.fd, 8, (2 << 40) + page * PAGE) for page in pages] == filled(b"rr")
            assert [peek(device, page * PAGE) for page in pages] == filled(b"rr")
            with mmap.mmap(device.fd, PAGE, offset=(2 << 40) + 5 * PAGE) as memory:
                assert memory[:8] == filled(b"rr")[1]
            for page, data in zip(pages, filled(b"vv"), strict=True):
                os.pwrite(device.fd, data, (2 << 40) + page * PAGE)


def test_holes_stay_holes_and_no_memory_is_used_twice(machine: MountedLab, card: Vgpu) -> None:
    before = allocated(machine)
    with File(card.open()) as device:
        for place in (0, 7 * GIB, LARGE - MIB):
            assert os.pwrite(device.fd, bytes(MIB), (2 << 40) + place) == MIB
        assert allocated(machine) == before + 3 * MIB
    for _ in range(2):
        with mapped(card.path / "resource2", LARGE) as memory:
            assert allocated(machine) == before + 3 * MIB
            assert memory[2 * GIB] == 0  # a load takes a page
            assert allocated(machine) == before + 3 * MIB + PAGE
            memory.madvise(mmap.MADV_REMOVE, 2 * GIB, PAGE)
        with File(card.open()):
            assert allocated(machine) == before + 3 * MIB


def test_a_region_needs_no_file_of_its_own_in_the_end(machine: MountedLab, card: Vgpu) -> None:
    with File(card.open()):
        before = sorted(memfds(machine))
    for name in ("resource1", "resource2", "resource4"):
        with mapped(card.path / name, SMALL):
            pass
    with File(card.open()):
        assert sorted(memfds(machine)) == before


def test_the_memory_goes_with_the_device(machine: MountedLab) -> None:
    before = sorted(memfds(machine))
    with machine.create("card", "cards") as vgpu, mapped(vgpu.path / "resource4", OTHER) as memory:
        memory[:4] = b"mine"
        vgpu_files = len(memfds(machine))
    assert vgpu_files == len(before) + 2
    assert sorted(memfds(machine)) == before


# ---- who is first decides ----


def test_vfio_does_not_map_what_somebody_has_mapped(card: Vgpu, use: Callable[[], File]) -> None:
    with mapped(card.path / "resource2", LARGE) as memory, use() as device:
        assert [can_map(device, index) for index in (0, 1, 2, 4)] == [False, True, False, True]
        memory[:4] = b"both"
        assert os.pread(device.fd, 4, 2 << 40) == b"both"
        with use() as second:
            assert not can_map(second, 2)
    with use() as device:
        assert can_map(device, 2)
        assert os.pread(device.fd, 4, 2 << 40) == b"both"


def test_region_info_does_not_change_while_the_device_is_open(card: Vgpu, use: Callable[[], File]) -> None:
    with mapped(card.path / "resource2", LARGE), use() as device:
        flags = [can_map(device, index) for index in range(9) if index not in (7, 8)]
        os.close(os.open(card.path / "resource4", os.O_RDWR))
        with use() as second:
            assert [can_map(second, index) for index in range(9) if index not in (7, 8)] == flags
    with use() as device, (card.path / "resource2").open("rb"), use() as second:
        assert can_map(device, 2) and can_map(second, 2)


def test_resource_is_not_mapped_while_vfio_has_the_device(card: Vgpu) -> None:
    path = card.path / "resource2"
    with File(card.open()) as device, path.open("r+b", buffering=0) as file:
        fails(errno.ENODEV, mmap.mmap, file.fileno(), PAGE)
        os.pwrite(file.fileno(), b"written", 64)
        assert os.pread(device.fd, 7, (2 << 40) + 64) == b"written"
        device.close()
        # an open file keeps what it is, and so does each that is opened beside it
        fails(errno.ENODEV, mmap.mmap, file.fileno(), PAGE)
        cannot_be_mapped(path)
        assert os.pread(file.fileno(), 7, 64) == b"written"
    with mapped(path, LARGE) as memory:
        assert memory[64:71] == b"written"


def test_a_mapping_of_vfio_that_outlives_its_descriptor_stays_coherent(card: Vgpu) -> None:
    path = card.path / "resource2"
    with only_mapped(card.open(), PAGE, 2 << 40) as address:
        cannot_be_mapped(path)
        ctypes.memmove(address, b"stored", 6)
        with path.open("rb") as file:
            assert file.read(6) == b"stored"
    with mapped(path, LARGE) as memory:
        assert memory[:6] == b"stored"


def test_a_mapping_of_resource_that_outlives_its_descriptor_stays_coherent(card: Vgpu) -> None:
    path = card.path / "resource2"
    with only_mapped(os.open(path, os.O_RDWR), PAGE) as address:
        with File(card.open()) as device:
            assert not can_map(device, 2)
            ctypes.memmove(address, b"stored", 6)
            assert os.pread(device.fd, 6, 2 << 40) == b"stored"
        with mapped(path, LARGE) as memory:
            assert memory[:6] == b"stored"
    with File(card.open()) as device:
        assert can_map(device, 2) and os.pread(device.fd, 6, 2 << 40) == b"stored"


def test_resource0_may_be_mapped_before_the_others(machine: MountedLab) -> None:
    """hwloc, DPDK and others map all BARs, one after the other."""
    with machine.create("own") as vgpu:
        size = (vgpu.path / "resource4").stat().st_size
        for _ in range(2):
            with (
                mapped(vgpu.path / "resource0", PAGE) as first,
                mapped(vgpu.path / "resource4", size) as last,
            ):
                first[:4], last[-4:] = b"zero", b"four"
                with File(vgpu.open()) as device:
                    assert can_map(device, 0) and not can_map(device, 4)
                    assert os.pread(device.fd, 4, 0) == b"zero"
                    assert os.pread(device.fd, 4, (4 << 40) + size - 4) == b"four"
                    with mmap.mmap(device.fd, PAGE) as both:
                        assert both[:4] == b"zero"


def test_the_engine_draws_in_what_is_mapped(machine: MountedLab) -> None:
    with (
        machine.create("own") as vgpu,
        mapped(vgpu.path / "resource0", MIB) as video,
        mapped(vgpu.path / "resource4", 2 * PAGE) as behind_msix,
        gpu(machine, vgpu) as engine,
    ):
        behind_msix[PAGE : PAGE + 4] = b"mine"
        engine.finish(fill(0, PAGE, 0x01020304))
        assert video[:PAGE] == b"\4\3\2\1" * (PAGE // 4)
        video[:PAGE] = b"abcd" * (PAGE // 4)
        engine.finish(copy(MIB // 2, 0, PAGE))
        assert video[MIB // 2 : MIB // 2 + PAGE] == b"abcd" * (PAGE // 4)
        assert os.pread(engine.fd, 4, (4 << 40) + PAGE) == b"mine"


def test_a_client_that_is_killed_leaves_nothing_behind(card: Vgpu) -> None:
    path = card.path / "resource2"
    script = (
        "import mmap, sys, time; file = open(sys.argv[1], 'r+b', buffering=0);"
        "memory = mmap.mmap(file.fileno(), 1 << 20); memory[:4] = b'left'; print(flush=True); time.sleep(60)"
    )
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as client:
            assert client.stdout is not None and client.stdout.readline()
            client.send_signal(signal.SIGKILL)
        with File(card.open()) as device:
            assert can_map(device, 2)
            assert os.pread(device.fd, 4, 2 << 40) == b"left"
            os.pwrite(device.fd, bytes(4), 2 << 40)


def test_vfio_by_its_group_moves_the_region_back_too(machine: MountedLab, card: Vgpu) -> None:
    with mapped(card.path / "resource2", LARGE) as memory:
        memory[:4] = b"here"
    with opened(machine, card.group, card.name) as found:
        assert can_map(found.device, 2)
        assert os.pread(found.device.fd, 4, 2 << 40) == b"here"


# ---- while it moves ----


def test_a_move_holds_nobody_up(machine: MountedLab, card: Vgpu) -> None:
    """128 MiB of data move while another device and the same one are used."""
    block = os.urandom(MIB)
    with File(card.open()) as device:
        for place in range(128):
            os.pwrite(device.fd, block, (2 << 40) + place * 64 * MIB)
    uses, ended = [0, 0], threading.Event()

    def use(number: int, path: Path) -> None:
        with path.open("r+b", buffering=0) as file:
            while not ended.is_set():
                os.pread(file.fileno(), 8, 8)
                uses[number] += 1

    def meanwhile(opening: Callable[[], AbstractContextManager[T]]) -> T:
        """Open something. Both devices are used often before it is open."""
        before = uses.copy()
        result = stack.enter_context(opening())
        assert all(after - first > OFTEN for first, after in zip(before, uses, strict=True)), (before, uses)
        return result

    with machine.create("card", "cards") as other:
        paths = enumerate(each.path / "resource0" for each in (card, other))
        users = [threading.Thread(target=use, args=each) for each in paths]
        for user in users:
            user.start()
        try:
            for _ in range(2):
                with ExitStack() as stack:
                    memory = meanwhile(lambda: mapped(card.path / "resource2", LARGE))
                    assert all(memory[at : at + MIB] == block for at in range(0, 128 * 64 * MIB, 64 * MIB))
                with ExitStack() as stack:
                    device = meanwhile(lambda: File(card.open()))
                    assert can_map(device, 2)
                    assert os.pread(device.fd, MIB, (2 << 40) + 127 * 64 * MIB) == block
        finally:
            ended.set()
            for user in users:
                user.join()


def test_accesses_of_the_pump_beside_a_move_lose_nothing(machine: MountedLab) -> None:
    """Threads count, each in a place of its own, by an open file that is no reason for the region to stay."""
    folder, ended, counts = function_dir(machine, FUNCTION), threading.Event(), [0, 0]

    def count(file: int, number: int) -> None:
        place = (number + 1) * PIECE - 4  # across the edge of two pieces
        while not ended.is_set():
            value = int.from_bytes(os.pread(file, 8, place), "little")
            assert value == counts[number]
            assert os.pwrite(file, (value + 1).to_bytes(8, "little"), place) == 8
            counts[number] += 1

    with bound(machine, FUNCTION) as (group,), ExitStack() as files:
        with opened(machine, group, FUNCTION):
            # it is opened while VFIO has the device: so it is not mapped, and does not have the region stay
            file = files.enter_context((folder / "resource2_wc").open("r+b", buffering=0))
        fails(errno.ENODEV, mmap.mmap, file.fileno(), PAGE)
        threads = [threading.Thread(target=count, args=(file.fileno(), number)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(30):
                with mapped(folder / "resource2", LARGE) as memory:
                    memory[PIECE // 2] += 1
                with opened(machine, group, FUNCTION) as found:
                    assert can_map(found.device, 2)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert os.pread(file.fileno(), 1, PIECE // 2) == bytes([30])
        for number, value in enumerate(counts):
            assert value > 30
            assert os.pread(file.fileno(), 8, (number + 1) * PIECE - 4) == value.to_bytes(8, "little")


def test_both_files_of_a_bar_map_the_same(machine: MountedLab) -> None:
    folder = function_dir(machine, FUNCTION)
    with mapped(folder / "resource2_wc", LARGE) as combining, mapped(folder / "resource2", LARGE) as plain:
        combining[5 * GIB : 5 * GIB + 4] = b"both"
        assert plain[5 * GIB : 5 * GIB + 4] == b"both"


def test_many_open_and_map_at_once(card: Vgpu, use: Callable[[], File]) -> None:
    """Each adds to a counter of its own, through whatever way it gets; none is lost."""
    rounds, errors = 40, list[BaseException]()

    def add(number: int) -> None:
        place = 8 * number
        for turn in range(rounds):
            by_vfio = (turn + number) % 3 == 0
            base = 2 << 40 if by_vfio else 0
            with use() if by_vfio else File(card.path / "resource2") as file:
                data = os.pread(file.fd, 8, base + place)
                assert data == turn.to_bytes(8, "little"), (number, turn, data)
                data = (turn + 1).to_bytes(8, "little")
                try:
                    start = base + 0
                    if by_vfio and not can_map(file, 2):
                        raise OSError(errno.ENODEV, "not mapped")
                    with mmap.mmap(file.fd, PAGE, offset=start) as memory:
                        memory[place : place + 8] = data
                except OSError as error:
                    assert error.errno == errno.ENODEV
                    os.pwrite(file.fd, data, base + place)

    def run(number: int) -> None:
        try:
            add(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_the_device_may_go_while_a_region_moves(machine: MountedLab) -> None:
    for _ in range(3):
        vgpu = machine.create("card", "cards")
        with File(vgpu.open()) as device:
            for place in range(64):
                os.pwrite(device.fd, bytes([1]) * MIB, (2 << 40) + place * MIB)
        opener = threading.Thread(target=try_open, args=(vgpu.path / "resource2",))
        opener.start()
        time.sleep(0.02)
        vgpu.remove()
        opener.join()
    assert (machine.path / "sys/class/mdev_bus").exists()


def try_open(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDWR))
