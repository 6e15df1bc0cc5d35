# SPDX-License-Identifier: Apache-2.0
"""A listener that comes and goes while clients make one access after the other: each access is made once, and
has the right answer."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.commands import ROOT
from tests.hostile.test_steered import Faults
from tests.iommufd.bound import open_bound
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import DEVICE_IOEVENTFD
from tests.vfio.devices import bound, function_dir
from tests.waiting import wait_for

LAB = f"""\
[models]
counting = "{ROOT}/tests/hostile/counting.py:Counting"

[parents.counters]
kind = "virtual"
driver = "counting"
model = "counting"
slots = 8
types.one = {{ description = "counts" }}

[functions."0000:05:00.0"]
model = "counting"
driver = "counting"

[functions."0000:06:00.0"]
model = "counting"
driver = "counting"
"""
FUNCTIONS = "0000:05:00.0", "0000:06:00.0"
ADD, SUM, NEXT, PLAIN, COMMAND = 0, 4, 8, 12, 7 << 40 | 4
MEMORY = b"\2\0"
SECONDS, MOST_SECONDS, FEW = 3, 60, 10
RULES = (
    "device={name} region=BAR0 delay=0.001",
    "device={name} register=ADD delay=0.0001",
    "device={name} register=NEXT delay=0.0001 probability=0.5",
    "device={name} call=region delay=0.0005 every=3",
    "device={name} ioctl=* delay=0.01",
    "device=nobody region=BAR0 errno=EIO",
)


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("counting"), LAB) as mounted:
        yield mounted


def number(data: bytes) -> int:
    return int(struct.unpack("<I", data)[0])


def hammer(vgpu: Vgpu, made: list[int], ended: threading.Event) -> None:
    """Make accesses, one after the other, until `ended`.  A number in `made` for each round."""
    fd, rounds = vgpu.open(), 0
    try:
        os.pwrite(fd, MEMORY, COMMAND)
        while not ended.is_set():
            rounds += 1
            made.append(rounds)
            assert os.pwrite(fd, struct.pack("<I", rounds), ADD) == 4
            assert number(os.pread(fd, 4, NEXT)) == rounds
            assert os.pwrite(fd, struct.pack("<I", rounds ^ 0xFFFF), PLAIN) == 4
            assert number(os.pread(fd, 4, PLAIN)) == rounds ^ 0xFFFF
            assert number(os.pread(fd, 4, SUM)) == rounds * (rounds + 1) // 2 & 0xFFFFFFFF
            assert os.pread(fd, 2, COMMAND) == MEMORY
    finally:
        os.close(fd)


@pytest.mark.parametrize("observed", [False, True], ids=["alone", "with a trace"])
def test_no_access_is_lost_made_twice_or_answered_wrongly(counters: MountedLab, observed: bool) -> None:
    faults, ended, chance = Faults(counters), threading.Event(), random.Random(7)
    vgpus = [counters.create("one", "counters") for _ in range(3)]
    trace = os.open(counters.path / "trace", os.O_RDONLY) if observed else -1
    with ThreadPoolExecutor(len(vgpus)) as threads:
        rounds: list[list[int]] = [[] for _ in vgpus]
        hammering = [threads.submit(hammer, *each, ended) for each in zip(vgpus, rounds, strict=True)]
        try:
            least, most = time.monotonic() + SECONDS, time.monotonic() + MOST_SECONDS
            while not any(each.done() for each in hammering):
                now, few = time.monotonic(), min(map(len, rounds)) <= FEW
                if now > least and not few:
                    break
                assert now < most, [len(each) for each in rounds]
                rule = chance.choice(RULES).format(name=chance.choice(vgpus).name)
                faults.write(f"add name=now {rule}")
                time.sleep(chance.uniform(0, 0.02))
                faults.write("clear now")
                time.sleep(chance.uniform(0, 0.005))
        finally:
            ended.set()
    for each in hammering:
        each.result()
    for vgpu in vgpus:
        vgpu.remove()
    if observed:
        os.close(trace)


def sum_of(fd: int) -> int:
    return number(os.pread(fd, 4, SUM))


def signalling(fd: int, event: int) -> None:
    """The eventfd writes 7 to ADD."""
    call = struct.pack("=IIQQiI", 40, 4, ADD, 7, event, 0)
    fcntl.ioctl(fd, DEVICE_IOEVENTFD, ctypes.create_string_buffer(call))


def open_function(lab: MountedLab, name: str) -> int:
    """A function that vfio-pci has, opened and bound."""
    vfio = os.listdir(function_dir(lab, name) / "vfio-dev")[0]
    fd = open_bound(lab.path / "dev/vfio/devices" / vfio)
    os.pwrite(fd, MEMORY, COMMAND)
    return fd


def test_writes_by_ioeventfds_that_hang_hold_up_no_other_device(counters: MountedLab) -> None:
    faults, events = Faults(counters), [os.eventfd(0) for _ in FUNCTIONS]

    def signal_held(count: int) -> None:
        os.eventfd_write(events[0], 1)
        wait_for(lambda: faults.held == count)

    with bound(counters, *FUNCTIONS):
        held, other = (open_function(counters, name) for name in FUNCTIONS)
        signalling(held, events[0])
        signalling(other, events[1])
        with faults.rule(f"device={FUNCTIONS[0]} register=ADD"):
            for count in range(1, 4):
                signal_held(count)
            os.eventfd_write(events[1], 1)
            wait_for(lambda: sum_of(other) == 7)
            assert sum_of(held) == 0
        wait_for(lambda: sum_of(held) == 21)
        with faults.rule(f"device={FUNCTIONS[0]} register=ADD"):
            signal_held(1)
            os.close(held)  # nobody wants the write any more
            again = open_function(counters, FUNCTIONS[0])
            before = sum_of(again)
        faults.write(f"add name=now device={FUNCTIONS[0]} register=PLAIN delay=0.05")
        os.pwrite(again, MEMORY, PLAIN)  # later than a write that the release has let go
        faults.write("clear now")
        assert sum_of(again) == before
        for fd in (again, other, *events):
            os.close(fd)
