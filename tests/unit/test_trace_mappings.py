# SPDX-License-Identifier: Apache-2.0
"""Looks at the mappings of processes, and what becomes of those that hold a look up.

Real processes map real files; only what a file of a mount stands for is made up here.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from devmodel.calls.call import Call, CallKind
from tests.waiting import wait_for
from vfsfuse.observe import mappings
from vfsfuse.observe.clients import NOBODY, Client, Clients
from vfsfuse.observe.mappings import MOST_LOST, REGION_INFO, Mappings
from vfsfuse.observe.told import Told

MAPS = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 8192, offset=int(sys.argv[2]))
print("mapped", flush=True)
input()
"""


MAPS_MANY = """
import ctypes, mmap, os, sys
device = os.open(sys.argv[1], os.O_RDWR)
os.chdir(os.path.dirname(sys.argv[1]))
for _ in range(12):
    os.mkdir("x" * 250)
    os.chdir("x" * 250)
fd = os.open("file", os.O_RDWR | os.O_CREAT)
os.truncate(fd, 4096)
map_file = ctypes.CDLL(None).mmap  # Python's keeps a descriptor for each
map_file.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for _ in range(4000):
    map_file(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
memory = mmap.mmap(device, 8192)
print("mapped", flush=True)
input()
"""


class Files:
    """All files stand for the device "it"; a look at one of `held` waits until `go` is set."""

    def __init__(self, path: Path) -> None:
        self.st_dev: Callable[[], int] = lambda: path.stat().st_dev
        self.inodes = {path.stat().st_ino}
        self.held: set[int] = set()
        self.go = threading.Event()
        self.looks = 0

    def region_of(self, inode: int) -> tuple[str, int | None] | None:
        self.looks += 1
        if inode in self.held:
            self.go.wait()
        return ("it", None) if inode in self.inodes else None


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    (tmp_path / "device").write_bytes(bytes(65536))
    found = Files(tmp_path / "device")
    yield found
    found.go.set()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(mappings, "MOST_SECONDS", 0.001)
    monkeypatch.setattr(mappings, "HELD_SECONDS", 0.1)


class Looking:
    """The mappings that have been noticed."""

    def __init__(self, files: Files) -> None:
        self.mappings, self.told = Mappings(files), list[Told]()

    def suspect(self, pid: int, flags: int = 4) -> None:
        after = struct.pack("=IIIIQQ", 32, flags, 0, 0, 8192, 0)
        call = Call(CallKind.IOCTL, "it", REGION_INFO, {}, pid, after=after)
        self.mappings.suspect(call, Client(pid, pid, "client"))

    def look(self) -> bool:
        self.mappings.look(self.told.append, lambda: 7)
        return bool(self.told)


def test_a_mapping_is_noticed_once(files: Files, tmp_path: Path) -> None:
    looking = Looking(files)
    looking.suspect(os.getpid(), flags=3)
    with open(tmp_path / "device", "r+b") as device, mmap.mmap(device.fileno(), 8192):
        assert not looking.look() and not files.looks  # that region cannot be mapped
        looking.suspect(os.getpid())
        wait_for(looking.look)
        before = files.looks
        wait_for(lambda: looking.look() and files.looks > before + 3)
    (told,) = looking.told
    assert (told.number, told.kind, told.subject, told.client.pid) == (7, "mmap", "it", os.getpid())
    assert told.arguments == {"region": 0, "size": 8192}


def test_a_process_that_has_ended_is_looked_at_no_more(files: Files, tmp_path: Path) -> None:
    looking = Looking(files)
    command = [sys.executable, "-c", MAPS, str(tmp_path / "device"), "4096"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"mapped\n"
        looking.suspect(client.pid)
        wait_for(looking.look)
        client.communicate(b"\n")
    wait_for(lambda: looking.mappings.look(looking.told.append, lambda: 7) > 60)
    assert len(looking.told) == 1


def test_many_mappings_are_looked_through_in_pieces(files: Files, tmp_path: Path) -> None:
    """Twelve megabytes of text would keep the GIL from all other threads."""
    looking = Looking(files)
    command = [sys.executable, "-c", MAPS_MANY, str(tmp_path / "device")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"mapped\n"
        tracemalloc.start()
        looking.suspect(client.pid)
        wait_for(looking.look)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        client.communicate(b"\n")
    assert peak < 4 << 20
    assert len(looking.told) == 1


def test_a_process_that_holds_up_a_look_is_left_alone(files: Files, tmp_path: Path) -> None:
    """The others are looked at, until too many have done that."""
    looking = Looking(files)
    clients = []
    for number in range(MOST_LOST + 2):
        path = tmp_path / f"device{number}"
        path.write_bytes(bytes(65536))
        command = [sys.executable, "-c", MAPS, str(path), "0"]
        clients.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        files.inodes.add(path.stat().st_ino)
    try:
        for client in clients:
            assert client.stdout is not None and client.stdout.readline() == b"mapped\n"
        free, *others = clients
        for number, client in enumerate(others, 1):
            files.held.add((tmp_path / f"device{number}").stat().st_ino)
            if number <= MOST_LOST - 1:
                looking.suspect(client.pid)
                wait_for(partial(_looks_until, looking, number))
        looking.suspect(free.pid)
        wait_for(looking.look)
        assert [told.client.pid for told in looking.told] == [free.pid]
        looking.suspect(others[MOST_LOST - 1].pid)
        wait_for(lambda: looking.look() and _lost(looking) == MOST_LOST)
        before = files.looks
        looking.suspect(others[MOST_LOST].pid)
        for _ in range(10):
            looking.look()
        assert files.looks == before
        files.go.set()
        wait_for(lambda: looking.look() and not _lost(looking))
    finally:
        for client in clients:
            client.communicate(b"\n")


def _looks_until(looking: Looking, lost: int) -> bool:
    looking.look()
    return _lost(looking) == lost


def _lost(looking: Looking) -> int:
    return looking.mappings._lost


def test_who_a_thread_is_is_asked_once_until_it_is_forgotten() -> None:
    clients, own = Clients(), threading.get_native_id()
    comm = Path("/proc/self/comm")
    before = comm.read_text().strip()
    assert clients.of(0) is NOBODY
    assert clients.of(own) == (os.getpid(), own, before)
    try:
        comm.write_text("a\tb")
        assert clients.of(own).comm == before
        clients.forget()
        assert clients.of(own).comm == "a\tb"
    finally:
        comm.write_text(before)


def test_a_thread_has_the_name_of_its_process() -> None:
    clients, found = Clients(), list[Client]()

    def other() -> None:
        number = threading.get_native_id()
        Path(f"/proc/self/task/{number}/comm").write_text("worker")
        found.append(clients.of(number))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    (client,) = found
    assert client.pid == os.getpid() != client.tid
    assert client.comm == Path("/proc/self/comm").read_text().strip()
    assert clients.of(client.tid) is client

    def ended() -> bool:
        clients.forget()
        return not clients.of(client.tid).pid

    wait_for(ended)
