# SPDX-License-Identifier: Apache-2.0
"""What commands, entries and rings cannot be: an error of that command alone, whatever a client writes."""

from __future__ import annotations

import os
import random
import struct

import pytest

from tests.labs import MountedLab, Vgpu
from tests.vfio.client import PAGE, READ
from tests.vfio.gpu_client import (
    BAD_ADDRESS,
    BAD_COMMAND,
    BAD_RING,
    COMMAND_REGISTER,
    DECODE,
    DMA,
    ENABLE,
    ERROR,
    GTT_ENTRIES,
    IDLE,
    MASTER,
    NOT_PRESENT,
    PACKET,
    READ_ONLY,
    SYSTEM,
    VALID,
    VIDEO,
    WRITABLE,
    Gpu,
    attribute,
    blit,
    client_memory,
    copy,
    fence,
    fill,
    nop,
    packet,
    wait,
)
from tests.waiting import wait_for

BAD = [
    (packet(6), BAD_COMMAND, None),
    (packet(2**32 - 1), BAD_COMMAND, None),
    (packet(0, 1), BAD_COMMAND, None),
    (packet(4, 2, struct.pack("<QQ", 0, 1)), BAD_COMMAND, None),
    (fill(2, 4, 0), BAD_COMMAND, None),
    (fill(0, 6, 0), BAD_COMMAND, None),
    (fill(0, 8, 0, height=2, pitch=4), BAD_COMMAND, None),
    (blit(0, VIDEO // 2, (8, 4), 8, 2), BAD_COMMAND, None),
    (blit(0, VIDEO // 2, (4, 8), 8, 2), BAD_COMMAND, None),
    (blit(0, 4, (8, 16), 8, 2), BAD_COMMAND, 0),  # overlapping with different pitches
    (fence(4, 1), BAD_COMMAND, None),
    (wait(1, 1), BAD_COMMAND, None),
    (fill(VIDEO - 4, 8, 0), BAD_ADDRESS, VIDEO),
    (fill(VIDEO, 4, 0), BAD_ADDRESS, VIDEO),
    (fill(SYSTEM - 4, 8, 0), BAD_ADDRESS, SYSTEM - 4),
    (fill(2**64 - 4, 2**32 - 4, 0), BAD_ADDRESS, 2**64 - 4),
    (fill(0, 2**32 - 4, 0, height=2**32 - 1), BAD_ADDRESS, VIDEO),
    (copy(0, 0, 2**64 - 1), BAD_ADDRESS, VIDEO),
    (copy(2**64 - 1, 0, 2), BAD_ADDRESS, 2**64 - 1),
    (copy(0, 2**64 - 1, 2**64 - 1), BAD_ADDRESS, VIDEO),
    (copy(0, VIDEO - 1, 2), BAD_ADDRESS, VIDEO),
    (copy(0, SYSTEM + GTT_ENTRIES * PAGE - 1, 2), BAD_ADDRESS, SYSTEM + GTT_ENTRIES * PAGE),
    (blit(0, 0, (2**32 - 1, 1), 1, 2**32 - 1), BAD_ADDRESS, VIDEO),
    (blit(VIDEO - 1, SYSTEM, (1, 1), 1, 2), BAD_ADDRESS, VIDEO),
    (fence(VIDEO, 1), BAD_ADDRESS, VIDEO),
    (wait(2**64 - 8, 1), BAD_ADDRESS, 2**64 - 8),
    (copy(0, SYSTEM + 5000 * PAGE + 7, 1), NOT_PRESENT, SYSTEM + 5000 * PAGE + 7),
    (fence(SYSTEM + 5000 * PAGE, 1), NOT_PRESENT, SYSTEM + 5000 * PAGE),
    (copy(0, SYSTEM + 511 * PAGE, 2 * PAGE), NOT_PRESENT, SYSTEM + 512 * PAGE),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_cannot_be_is_an_error_of_that_command_alone(engine: Gpu, vgpu: Vgpu, number: int) -> None:
    bad, code, address = BAD[number]
    engine.set_video(0, b"\xee" * 4096)
    engine.set_video(VIDEO - 4096, b"\xee" * 4096)
    place = SYSTEM + PACKET
    engine.queue(fence(engine.fence_at, 1), bad, fence(engine.fence_at, 2))
    wait_for(lambda: engine.read("STATUS") & ERROR)
    assert engine.error() == (code, place if address is None else address)
    assert engine.read("STATUS") == ERROR and engine.read("RING_HEAD") == PACKET
    assert (engine.fence, attribute(vgpu, "faults"), attribute(vgpu, "queue_depth")) == (1, "1", "2")
    engine.acknowledge()
    wait_for(lambda: engine.fence == 2)
    assert engine.video(0, 4096) == engine.video(VIDEO - 4096, 4096) == b"\xee" * 4096
    wait_for(lambda: engine.read("STATUS") == IDLE)


def test_entries_that_lead_nowhere(engine: Gpu) -> None:
    """Valid entries whose iova is not mapped, around the end of all addresses too, and read-only ones."""
    page = SYSTEM + 1000 * PAGE
    for entry in (VALID | WRITABLE, 2**64 - PAGE | VALID | WRITABLE, 2**63 | VALID):
        engine.entries(1000, [entry, entry + PAGE & 2**64 - 1])
        assert engine.fails(copy(0, page + 5, 2 * PAGE - 5)) == (DMA, page + 5)
    engine.entries(1000, [engine.iova + engine.data | VALID])
    engine.set_system(0, b"mine")
    engine.finish(copy(0, page, 4))
    assert engine.video(0, 4) == b"mine"
    assert engine.fails(copy(page, 0, 4)) == (READ_ONLY, page)
    assert engine.fails(fill(page, 4, 1)) == (READ_ONLY, page)
    engine.entries(1000, [engine.iova + engine.data | WRITABLE])
    assert engine.fails(copy(0, page, 4)) == (NOT_PRESENT, page)
    assert engine.system(0, 4) == b"mine"


def test_memory_that_the_iommu_has_read_only(engine: Gpu) -> None:
    memory = client_memory(PAGE)
    engine.opened.container.map(1 << 40, memory.address, PAGE, READ)
    engine.entries(3000, [1 << 40 | VALID | WRITABLE])
    memory.write(b"rom")
    engine.finish(copy(0, SYSTEM + 3000 * PAGE, 3))
    assert engine.fails(copy(SYSTEM + 3000 * PAGE, 4, 3)) == (DMA, SYSTEM + 3000 * PAGE)
    assert memory.read(0, 3) == engine.video(0, 3) == b"rom"
    engine.opened.container.unmap(1 << 40, PAGE)
    memory.close()


def test_an_entry_may_be_written_in_parts(engine: Gpu) -> None:
    entry = struct.pack("<Q", engine.iova + engine.data | VALID | WRITABLE)
    place = (1 << 40) + 8 * 1000
    for offset in (4, 0, 6, 2):
        os.pwrite(engine.fd, entry[offset : offset + 2], place + offset)
    assert os.pread(engine.fd, 24, place - 8) == bytes(8) + entry + bytes(8)
    engine.finish(fill(SYSTEM + 1000 * PAGE, 4, 0x01010101))
    assert engine.system(0, 4) == b"\1\1\1\1"


@pytest.mark.parametrize(
    ("base", "size", "refused"),
    [
        (SYSTEM, 0, 0),
        (SYSTEM, 2048, 2048),
        (SYSTEM, 4097, 4097),
        (SYSTEM, 3 << 12, 3 << 12),
        (SYSTEM, 2 << 20, 2 << 20),
        (SYSTEM, 1 << 31, 1 << 31),
        (SYSTEM + 8, 4096, SYSTEM + 8),
        (SYSTEM + (GTT_ENTRIES - 1) * PAGE, 8192, SYSTEM + (GTT_ENTRIES - 1) * PAGE),
        (VIDEO, 4096, VIDEO),
        (2**64 - 64, 4096, 2**64 - 64),
    ],
)
def test_rings_that_cannot_be(engine: Gpu, base: int, size: int, refused: int) -> None:
    engine.write("CONTROL", 0)
    engine.write("RING_BASE", base)
    engine.write("RING_SIZE", size)
    engine.write("CONTROL", ENABLE)
    assert (engine.read("CONTROL"), engine.error()) == (0, (BAD_RING, refused))
    engine.write("RING_TAIL", 64)
    assert engine.read("RING_TAIL") == 0 and engine.idle


@pytest.mark.parametrize("tail", [1, 63, 4096, 4160, 2**32 - 64])
def test_tails_that_cannot_be(engine: Gpu, tail: int) -> None:
    engine.finish(nop())
    engine.write("RING_TAIL", tail)
    assert engine.error() == (BAD_RING, tail) and engine.read("RING_TAIL") == 2 * PACKET
    engine.acknowledge()
    engine.write("CONTROL", ENABLE)
    engine.queue(fence(engine.fence_at, 7))
    wait_for(lambda: engine.fence == 7)


def test_a_ring_that_is_not_there_can_come_later(engine: Gpu) -> None:
    engine.entries(0, [0])
    engine.queue(fence(engine.fence_at, 3))
    wait_for(lambda: engine.read("STATUS") & ERROR)
    assert engine.error() == (NOT_PRESENT, SYSTEM) and engine.read("RING_HEAD") == 0
    engine.entries(0, [engine.iova | VALID])
    engine.acknowledge()
    wait_for(lambda: engine.fence == 3)


def test_a_device_that_is_no_bus_master(engine: Gpu) -> None:
    engine.finish(nop())
    engine.opened.device.set_config(COMMAND_REGISTER, DECODE)
    assert engine.fails(nop())[0] == DMA
    engine.opened.device.set_config(COMMAND_REGISTER, DECODE | MASTER)
    engine.acknowledge()
    engine.finish(nop())


def test_random_packets_do_no_harm(engine: Gpu, machine: MountedLab) -> None:
    """Whatever is in the ring, the engine says an error or not, and the server lives."""
    chosen = random.Random(5)
    interesting = [0, 1, 4, 8, VIDEO - 8, VIDEO, SYSTEM, SYSTEM + 600 * PAGE, 2**32, 2**63, 2**64 - 8]
    engine.opened.container.map(0, engine.memory.address, PAGE)
    for _ in range(300):
        fields = b"".join(
            struct.pack("<Q", chosen.choice([*interesting, chosen.getrandbits(64)])) for _ in range(7)
        )
        engine.queue(packet(chosen.randrange(5), chosen.choice([0, 0, 0, 1, 2]), fields))
        wait_for(lambda: engine.idle or engine.read("STATUS") & ERROR)
        engine.acknowledge()
        if chosen.random() < 0.1:
            engine.enable()
    engine.enable()
    engine.memory.write(bytes(PAGE))
    engine.start()
    engine.finish(fill(0, 4096, 1))
    assert "Traceback" not in machine.log
