# SPDX-License-Identifier: Apache-2.0
"""Who gets the one physical engine, and who loses it: resets, hangs, weights, clients that are killed."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest

from tests import needs
from tests.commands import ROOT
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import DEVICE_RESET, PAGE
from tests.vfio.devices import MSIX, TRIGGER, eventfd, opened, signals, silent
from tests.vfio.gpu_client import (
    ERROR,
    HANG,
    HUNG,
    IDLE,
    IOVA,
    PACKET,
    RESET,
    SECONDS,
    SYSTEM,
    VALID,
    VIDEO,
    WRITABLE,
    Gpu,
    StoppedMemory,
    attribute,
    client_memory,
    copy,
    fence,
    fill,
    gpu,
    nop,
    wait,
)
from tests.waiting import wait_for

PATIENT_MS = "60000"
"""A timeout that means a hang, however busy the machine is."""


def test_the_engines_reset(engine: Gpu) -> None:
    engine.queue(*(fill(0, 4 << 20, 1) for _ in range(60)))
    engine.write("CONTROL", RESET)
    registers = ("CONTROL", "STATUS", "ERROR_CODE", "FENCE", "RING_HEAD", "RING_TAIL")
    assert [engine.read(name) for name in registers] == [0, IDLE, 0, 0, 0, 0]
    engine.enable()
    engine.finish(fill(0, 4096, 2))
    assert engine.video(4092, 4) == b"\2\0\0\0"


def test_a_reset_of_the_device_in_the_middle(engine: Gpu, vgpu: Vgpu) -> None:
    for number in range(20):
        engine.queue(*(copy(engine.base, 0, 1 << 20) for _ in range(40)))
        engine.opened.device.ioctl(DEVICE_RESET)
        registers = ("CONTROL", "STATUS", "RING_BASE", "RING_HEAD", "RING_TAIL", "FENCE")
        assert [engine.read(name) for name in registers] == [0, IDLE, 0, 0, 0, 0]
        assert os.pread(engine.fd, 64, 1 << 40) == bytes(64)
        assert attribute(vgpu, "queue_depth") == "0"
        engine.start()
        engine.finish(fill(engine.base + (1 << 20), 4, number))
        assert engine.system(1 << 20, 4) == struct.pack("<I", number)


def test_a_wait_that_never_ends_is_a_hang(machine: MountedLab, vgpu: Vgpu) -> None:
    (vgpu.path / "engine_timeout_ms").write_text("50")
    with gpu(machine, vgpu) as engine, eventfd() as done, eventfd() as failed:
        engine.opened.device.eventfds(MSIX, TRIGGER, 0, done, failed)
        engine.queue(nop(), wait(engine.base, 1), fence(engine.fence_at, 1))
        assert signals(failed) == 1 and silent(done)
        assert engine.read("STATUS") == ERROR | HANG | IDLE
        assert engine.error() == (HUNG, engine.base)
        assert (engine.read("CONTROL"), engine.read("RING_HEAD"), engine.fence) == (0, PACKET, 0)
        assert attribute(vgpu, "faults") == "1"
        (vgpu.path / "engine_timeout_ms").write_text(PATIENT_MS)
        engine.enable()
        assert engine.read("STATUS") == IDLE
        engine.finish(nop())
        engine.opened.device.tear_down(MSIX)


@pytest.mark.parametrize("text", ["0", "60001", "-5", "1_0", "x", "", "5 ms"])
def test_timeouts_that_cannot_be(vgpu: Vgpu, text: str) -> None:
    with pytest.raises(OSError) as caught:
        (vgpu.path / "engine_timeout_ms").write_text(text or "\n")
    assert caught.value.errno == errno.EINVAL
    assert attribute(vgpu, "engine_timeout_ms") == "2000"


@needs.userfaultfd
def test_memory_that_stops_is_a_hang_of_that_vgpu_alone(machine: MountedLab, vgpu: Vgpu) -> None:
    """The other one goes on, and what comes back late changes nothing any more."""
    stopped = StoppedMemory(64 * PAGE)
    (vgpu.path / "engine_timeout_ms").write_text("200")
    with machine.create("even") as other, gpu(machine, vgpu) as engine, gpu(machine, other) as neighbour:
        engine.opened.container.map(1 << 40, stopped.address, stopped.size)
        engine.entries(4096, [(1 << 40) + page * PAGE | VALID | WRITABLE for page in range(64)])
        engine.set_video(0, b"\xaa" * stopped.size)
        engine.queue(copy(0, SYSTEM + 4096 * PAGE, stopped.size), fence(engine.fence_at, 1))
        wait_for(lambda: stopped.touched)
        neighbour.queue(*(fill(0, 4 << 20, 1) for _ in range(40)), fence(neighbour.fence_at, 1))
        wait_for(lambda: engine.read("STATUS") & HANG)
        assert engine.error() == (HUNG, SYSTEM + 4096 * PAGE)
        assert neighbour.read("STATUS") in (0, IDLE)
        wait_for(lambda: neighbour.fence == 1)
        assert attribute(other, "faults") == "0" and attribute(vgpu, "faults") == "1"
        (vgpu.path / "engine_timeout_ms").write_text(PATIENT_MS)
        engine.enable()
        engine.finish(fill(4096, 64, 5))
        stopped.let_go()
        engine.opened.container.unmap(1 << 40, stopped.size)  # waits for the late copy
        assert engine.video(0, 4096) == b"\xaa" * 4096
        assert engine.video(4096 + 64, stopped.size - 4160) == b"\xaa" * (stopped.size - 4160)
        engine.finish(fill(0, 64, 5))
    stopped.close()


@needs.userfaultfd
def test_a_reset_does_not_wait_for_memory_that_stops(engine: Gpu) -> None:
    stopped = StoppedMemory(64 * PAGE)
    engine.opened.container.map(1 << 40, stopped.address, stopped.size)
    engine.entries(4096, [(1 << 40) + page * PAGE | VALID | WRITABLE for page in range(64)])
    engine.set_video(0, b"\xaa" * stopped.size)
    engine.queue(copy(0, SYSTEM + 4096 * PAGE, stopped.size))
    wait_for(lambda: stopped.touched)
    engine.opened.device.ioctl(DEVICE_RESET)
    engine.start()
    engine.finish(fill(1 << 20, 4096, 5))
    assert engine.video(1 << 20, 4) == b"\5\0\0\0"
    stopped.let_go()
    engine.opened.container.unmap(1 << 40, stopped.size)
    assert engine.video(0, stopped.size) == b"\xaa" * stopped.size
    stopped.close()


@needs.userfaultfd
def test_a_client_keeps_only_so_many_threads_waiting(engine: Gpu) -> None:
    """One that stops its memory, resets and goes on hangs at once from the fifth time, until it lets go."""
    stopped = StoppedMemory(64 * PAGE)
    engine.opened.container.map(1 << 40, stopped.address, stopped.size)
    for page in range(4):
        engine.entries(4096, [(1 << 40) + page * PAGE | VALID])
        engine.queue(copy(0, SYSTEM + 4096 * PAGE, 8))
        wait_for(lambda: stopped.touched)
        os.read(stopped.uffd, 32)
        engine.opened.device.ioctl(DEVICE_RESET)
        engine.start()
    engine.queue(nop())
    assert engine.read("STATUS") == ERROR | HANG | IDLE
    assert engine.error() == (HUNG, SYSTEM + 4096 * PAGE) and not engine.read("CONTROL")
    stopped.let_go()
    engine.opened.container.unmap(1 << 40, stopped.size)
    wait_for(lambda: works(engine))
    engine.finish(fill(0, 4096, 1))
    stopped.close()


def works(engine: Gpu) -> bool:
    """Whether an engine that is started anew does not hang at once."""
    engine.enable()
    engine.queue(nop())
    return not engine.read("STATUS") & HANG


def used(*vgpus: Vgpu) -> list[int]:
    """Engine times in microseconds at one moment: they are read again until little passed meanwhile."""
    end = time.monotonic() + SECONDS
    while True:
        first, second = ([int(attribute(vgpu, "engine_time_us")) for vgpu in vgpus] for _ in range(2))
        if sum(second) - sum(first) < 10_000:
            return first
        assert time.monotonic() < end, "this machine is too busy to read two files in 10 ms"


@pytest.mark.parametrize(("kinds", "ratio"), [(("even", "heavy"), 3.0), (("even", "even"), 1.0)])
def test_engine_time_goes_by_weight(machine: MountedLab, kinds: tuple[str, str], ratio: float) -> None:
    """Over more than a second in which both always have work: accounted time, not this machine's speed."""
    with machine.create(kinds[0]) as light, machine.create(kinds[1]) as heavy:
        assert attribute(heavy, "engine_weight") == str(int(16 * ratio))
        with gpu(machine, light, ring_size=1 << 19) as one, gpu(machine, heavy, ring_size=1 << 19) as two:
            for engine in (one, two):
                engine.queue(*(fill(0, VIDEO, 1) for _ in range(8000)))
            wait_for(lambda: min(used(light, heavy)) > 0)
            before = used(light, heavy)
            wait_for(lambda: sum(used(light, heavy)) - sum(before) > 1_200_000)
            after = used(light, heavy)
            assert not one.idle and not two.idle
            for engine in (one, two):
                engine.write("CONTROL", 0)
    spent = [end - start for start, end in zip(before, after, strict=True)]
    assert spent[1] / spent[0] == pytest.approx(ratio, rel=0.05)


def test_a_light_vgpu_beside_a_heavy_one_is_served(machine: MountedLab) -> None:
    """Its fence comes while the other still has most of its work before it."""
    with (
        machine.create("even") as light,
        machine.create("heavy") as heavy,
        gpu(machine, light) as one,
        gpu(machine, heavy, ring_size=1 << 19) as two,
    ):
        two.queue(*(fill(0, VIDEO, 1) for _ in range(8000)))
        one.finish(fill(0, 1 << 20, 1))
        assert not two.idle and int(attribute(heavy, "queue_depth")) > 100
        two.write("CONTROL", 0)


def mappings(lab: MountedLab) -> int:
    """How often the server has mapped the video memory of a vGPU."""
    return Path(f"/proc/{lab.pid}/maps").read_text().count("memfd:vfio-device")


def test_an_idle_engine_costs_nothing_and_works_again(machine: MountedLab, vgpu: Vgpu) -> None:
    """Its thread ends, and with it its mapping of the video memory; so it is after resets."""
    with gpu(machine, vgpu) as engine:
        engine.finish(nop())
        wait_for(lambda: mappings(machine) == 1)  # the pump's own, of an open device
        for _ in range(2):
            engine.finish(copy(0, engine.base, 1 << 20))
            assert mappings(machine) == 2
            engine.queue(*(copy(0, engine.base, 1 << 20) for _ in range(30)))
            engine.enable()
            engine.finish(nop())
            assert mappings(machine) == 2
            wait_for(lambda: mappings(machine) == 1)


CHILD = """\
import sys
from pathlib import Path
from tests.engine.test_sharing import doomed
doomed(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


def doomed(root: Path, group: str, name: str) -> None:
    """A client that has work in all its ring, says so, and waits to be killed."""

    class Mount:
        path = root

    memory = client_memory(2048 * PAGE, "private")
    with opened(cast("MountedLab", Mount), group, name) as device:
        device.container.map(IOVA, memory.address, memory.size)
        made = Gpu(device, memory)
        made.start()
        made.queue(*(copy(made.base, 0, 4 << 20) for _ in range(60)))
        print("busy", flush=True)
        time.sleep(SECONDS)


def test_a_client_that_is_killed_in_the_middle(machine: MountedLab, vgpu: Vgpu) -> None:
    for _ in range(5):
        command = [sys.executable, "-c", CHILD, str(machine.path), vgpu.group, vgpu.name]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"busy\n"
            child.kill()
        with gpu(machine, vgpu) as engine:
            assert engine.idle
            engine.finish(fill(0, 4096, 9), copy(engine.base, 0, 4096))
            assert engine.system(0, 4) == b"\t\0\0\0"


def test_two_clients_at_once(machine: MountedLab, vgpu: Vgpu) -> None:
    """On one physical engine, each its own memory under the same addresses."""
    with machine.create("even") as other, gpu(machine, vgpu) as one, gpu(machine, other) as two:
        pictures = [os.urandom(1 << 20) for _ in range(2)]
        for engine, picture in zip((one, two), pictures, strict=True):
            engine.set_system(0, picture)
            engine.queue(*(copy(0, engine.base, 1 << 20), copy(1 << 20, 0, 1 << 20)) * 20)
        for engine, picture in zip((one, two), pictures, strict=True):
            engine.finish()
            assert engine.video(1 << 20, 1 << 20) == picture
