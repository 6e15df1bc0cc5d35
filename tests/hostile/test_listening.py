# SPDX-License-Identifier: Apache-2.0
"""A listener that comes and goes while clients make one access after the other: each access is made once, and
has the right answer."""

from __future__ import annotations

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
from tests.labs import MountedLab, Vgpu, described

LAB = f"""\
[models]
counting = "{ROOT}/tests/hostile/counting.py:Counting"

[parents.counters]
kind = "virtual"
driver = "counting"
model = "counting"
slots = 8
types.one = {{ description = "counts" }}
"""
ADD, SUM, NEXT, PLAIN, COMMAND = 0, 4, 8, 12, 7 << 40 | 4
MEMORY = b"\2\0"
SECONDS = 3
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


def hammer(vgpu: Vgpu, ended: threading.Event) -> int:
    """Make accesses, one after the other, until `ended`.  Returns how many rounds."""
    fd, rounds = vgpu.open(), 0
    try:
        os.pwrite(fd, MEMORY, COMMAND)
        while not ended.is_set():
            rounds += 1
            assert os.pwrite(fd, struct.pack("<I", rounds), ADD) == 4
            assert number(os.pread(fd, 4, NEXT)) == rounds
            assert os.pwrite(fd, struct.pack("<I", rounds ^ 0xFFFF), PLAIN) == 4
            assert number(os.pread(fd, 4, PLAIN)) == rounds ^ 0xFFFF
            assert number(os.pread(fd, 4, SUM)) == rounds * (rounds + 1) // 2 & 0xFFFFFFFF
            assert os.pread(fd, 2, COMMAND) == MEMORY
    finally:
        os.close(fd)
    return rounds


@pytest.mark.parametrize("observed", [False, True], ids=["alone", "with a trace"])
def test_no_access_is_lost_made_twice_or_answered_wrongly(counters: MountedLab, observed: bool) -> None:
    faults, ended, chance = Faults(counters), threading.Event(), random.Random(7)
    vgpus = [counters.create("one", "counters") for _ in range(3)]
    trace = os.open(counters.path / "trace", os.O_RDONLY) if observed else -1
    with ThreadPoolExecutor(len(vgpus)) as threads:
        hammering = [threads.submit(hammer, vgpu, ended) for vgpu in vgpus]
        try:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and not any(each.done() for each in hammering):
                rule = chance.choice(RULES).format(name=chance.choice(vgpus).name)
                faults.write(f"add name=now {rule}")
                time.sleep(chance.uniform(0, 0.02))
                faults.write("clear now")
                time.sleep(chance.uniform(0, 0.005))
        finally:
            ended.set()
    assert min(each.result() for each in hammering) > 10
    for vgpu in vgpus:
        vgpu.remove()
    if observed:
        os.close(trace)
