# SPDX-License-Identifier: Apache-2.0
"""The command engine on a real mount: what commands do, wherever memory is.

A client in plain Python (tests/vfio/gpu_client.py); what is checked is its own memory and the device's files.
"""

from __future__ import annotations

import os
import random
import struct

import pytest

from tests.labs import MountedLab, Vgpu
from tests.vfio.client import PAGE
from tests.vfio.devices import MSIX, TRIGGER, eventfd, signals, silent
from tests.vfio.gpu_client import (
    DONE,
    ENABLE,
    GTT_ENTRIES,
    IDLE,
    PACKET,
    SYSTEM,
    VALID,
    VIDEO,
    WRITABLE,
    Gpu,
    blit,
    copy,
    fence,
    fill,
    gpu,
    nop,
    packet,
    wait,
)
from tests.waiting import wait_for


def test_registers_say_what_it_is(engine: Gpu) -> None:
    assert engine.read("MAGIC") == int.from_bytes(b"ENG1", "little")
    assert engine.read("GTT_ENTRIES") == GTT_ENTRIES
    assert engine.read("SYSTEM_BASE") == SYSTEM
    assert (engine.read("CONTROL"), engine.read("STATUS")) == (ENABLE, IDLE)


def test_fill(engine: Gpu) -> None:
    engine.set_video(0, bytes(64 * 100))
    engine.finish(
        fill(4096, 1 << 20, 0x11223344),
        fill(8, 12, 0xAABBCCDD, height=5, pitch=64),
        fill(engine.base + 4, 2 * PAGE, 0x55667788),
        fill(engine.base + 10 * PAGE, 4, 0x01020304, height=3, pitch=PAGE),
        fill(0, 0, 1, height=2**32 - 1),
        fill(0, 2**32 - 4, 1, height=0),
    )
    assert engine.video(4096, 1 << 20) == struct.pack("<I", 0x11223344) * (1 << 18)
    rows = [engine.video(64 * row, 64) for row in range(6)]
    drawn = bytes(8) + struct.pack("<I", 0xAABBCCDD) * 3 + bytes(44)
    assert rows == [drawn] * 5 + [bytes(64)]
    assert engine.system(0, 2 * PAGE + 8) == bytes(4) + struct.pack("<I", 0x55667788) * (PAGE // 2) + bytes(4)
    lines = [engine.system((10 + row) * PAGE, 8) for row in range(4)]
    assert lines == [b"\4\3\2\1" + bytes(4)] * 3 + [bytes(8)]


@pytest.mark.parametrize("kind", ["memfd", "private"])
def test_copy_in_every_direction(machine: MountedLab, vgpu: Vgpu, kind: str) -> None:
    picture = os.urandom(600_001)
    with gpu(machine, vgpu, kind=kind) as engine:
        engine.set_system(3, picture)
        engine.finish(
            copy(77, engine.base + 3, len(picture)),
            copy(1 << 20, 77, len(picture)),
            copy(engine.base + (1 << 20) + 1, 1 << 20, len(picture)),
            copy(engine.base + 5, engine.base + (1 << 20) + 1, len(picture)),
            copy(0, 2**63, 0),
        )
        assert engine.video(77, len(picture)) == picture
        assert engine.video(1 << 20, len(picture)) == picture
        assert engine.system((1 << 20) + 1, len(picture)) == picture
        assert engine.system(0, len(picture) + 10)[3:] == picture[:2] + picture + bytes(5)


@pytest.mark.parametrize("system", [False, True], ids=["video", "system"])
@pytest.mark.parametrize("distance", [1, 4095, 300_000, 600_000, -1, -5000, -524_288, 0])
def test_a_copy_may_overlap_itself(engine: Gpu, system: bool, distance: int) -> None:
    """As memmove does it, also across slices."""
    picture, start = os.urandom(1 << 20), 600_000
    base = engine.base if system else 0
    (engine.set_system if system else engine.set_video)(start, picture)
    engine.finish(copy(base + start + distance, base + start, len(picture) - 600_000))
    expected = bytearray(picture[: len(picture) - 600_000])
    found = (engine.system if system else engine.video)(start + distance, len(expected))
    assert found == bytes(expected)


def blitted(content: bytes, to: int, at: int, pitches: tuple[int, int], width: int, height: int) -> bytes:
    """What memory is after a blit within it."""
    after = bytearray(content)
    for row in range(height):
        one, other = to + row * pitches[0], at + row * pitches[1]
        after[one : one + width] = content[other : other + width]
    return bytes(after)


@pytest.mark.parametrize(
    ("to", "at", "pitches", "width", "height"),
    [
        (100_000, 0, (640, 123), 123, 100),
        (100_000, 0, (123, 640), 100, 100),
        (200_000, 0, (256, 256), 256, 400),
        (3, 2, (300, 300), 299, 900),  # overlapping, to the right
        (2, 3, (300, 300), 299, 900),
        (3000, 0, (300, 300), 200, 900),  # downwards
        (0, 3001, (300, 300), 200, 900),
        (0, 500_000, (1, 1), 1, 70_000),
        (0, 400_000, (2, 3), 1, 3000),
    ],
)
@pytest.mark.parametrize("target_system", [False, True], ids=["to-video", "to-system"])
@pytest.mark.parametrize("source_system", [False, True], ids=["from-video", "from-system"])
def test_blit(
    engine: Gpu,
    to: int,
    at: int,
    pitches: tuple[int, int],
    width: int,
    height: int,
    target_system: bool,
    source_system: bool,
) -> None:
    size = 600_000
    content = random.Random(to).randbytes(size)
    engine.set_video(0, content)
    engine.set_system(0, content)
    bases = {False: 0, True: engine.base}
    engine.finish(blit(bases[target_system] + to, bases[source_system] + at, pitches, width, height))
    expected = blitted(content, to, at, pitches, width, height)
    assert (engine.system if target_system else engine.video)(0, size) == expected
    if target_system is not source_system:
        assert (engine.system if source_system else engine.video)(0, size) == content


def test_commands_through_scattered_pages(engine: Gpu) -> None:
    """Pages of graphics address in an order that is not the client's."""
    order = list(range(64))
    random.Random(1).shuffle(order)
    first = 2000
    engine.entries(first, [engine.iova + engine.data + page * PAGE | VALID | WRITABLE for page in order])
    picture = os.urandom(64 * PAGE)
    engine.set_video(0, picture)
    engine.finish(copy(SYSTEM + first * PAGE, 0, len(picture)))
    expected = b"".join(picture[order.index(page) * PAGE :][:PAGE] for page in range(64))
    assert engine.system(0, len(picture)) == expected
    engine.finish(copy(1 << 20, SYSTEM + first * PAGE, len(picture)))
    assert engine.video(1 << 20, len(picture)) == picture


def test_fences_come_in_order_and_after_their_work(engine: Gpu) -> None:
    for number in range(1, 30):
        engine.finish(fill(0, 1 << 16, number), copy(engine.base, 0, 1 << 16))
        assert engine.system(0, 4) == engine.system((1 << 16) - 4, 4) == struct.pack("<I", number)
    wait_for(lambda: engine.idle)
    assert engine.read("FENCE") == 29 and engine.read("RING_HEAD") == engine.tail


def test_a_fence_in_video_memory_and_a_wait_for_it(engine: Gpu) -> None:
    engine.finish(fence(1 << 20, 2**63 + 1), wait(1 << 20, 2**63 + 1), wait(1 << 20, 0))
    assert engine.video(1 << 20, 8) == struct.pack("<Q", 2**63 + 1)


def test_a_wait_goes_on_when_the_client_says_so(engine: Gpu) -> None:
    engine.set_system(0, bytes(8))
    engine.queue(wait(engine.base, 5), fence(engine.fence_at, 9))
    engine.set_system(0, struct.pack("<Q", 4))
    assert not engine.idle and engine.fence == 0
    engine.set_system(0, struct.pack("<Q", 6))
    wait_for(lambda: engine.fence == 9)


def test_interrupts(engine: Gpu) -> None:
    with eventfd() as done, eventfd() as failed:
        engine.opened.device.eventfds(MSIX, TRIGGER, 0, done, failed)
        engine.queue(nop(), fence(engine.fence_at, 1), fence(engine.fence_at, 2, interrupt=True))
        assert signals(done) == 1 and engine.fence == engine.read("FENCE") == 2
        assert engine.read("STATUS") & DONE
        engine.acknowledge()
        assert not engine.read("STATUS") & DONE
        assert silent(failed)
        engine.queue(packet(99))
        assert signals(failed) == 1 and silent(done)
        engine.acknowledge()
        engine.opened.device.tear_down(MSIX)


def test_without_interrupts_the_status_tells(machine: MountedLab) -> None:
    with machine.create("mute") as vgpu, gpu(machine, vgpu) as engine:
        engine.queue(fence(engine.fence_at, 1, interrupt=True))
        wait_for(lambda: engine.read("STATUS") & DONE)


def test_a_parent_without_an_engine(machine: MountedLab) -> None:
    with machine.create("own", "pool") as vgpu, gpu(machine, vgpu) as engine:
        engine.finish(fill(0, 4096, 7))
        assert engine.video(0, 4) == b"\7\0\0\0"


def test_a_ring_in_video_memory(engine: Gpu) -> None:
    engine.enable(base=VIDEO - 4096)
    engine.set_video(VIDEO - 4096, fill(0, 8, 3) + fence(1024, 5))
    engine.write("RING_TAIL", 2 * PACKET)
    wait_for(lambda: engine.read("FENCE") == 5)
    assert engine.video(0, 8) == b"\3\0\0\0" * 2


def test_a_ring_that_wraps_around(machine: MountedLab, vgpu: Vgpu) -> None:
    with gpu(machine, vgpu) as engine:
        for number in range(300):
            engine.finish(fill(0, 4, number))
            assert engine.video(0, 4) == struct.pack("<I", number)
        engine.finish(*[fill(4 * number, 4, number) for number in range(62)])
        assert engine.video(0, 248) == struct.pack("<62I", *range(62))
