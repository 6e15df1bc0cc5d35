# SPDX-License-Identifier: Apache-2.0
"""The shadow GTT on a real mount: what it remembers, and what it must have forgotten."""

from __future__ import annotations

import os
import struct

import pytest

from tests.labs import MountedLab, Vgpu
from tests.vfio.client import PAGE, Memory
from tests.vfio.devices import opened
from tests.vfio.gpu_client import (
    DMA,
    ERROR,
    IDLE,
    NOT_PRESENT,
    SYSTEM,
    VALID,
    WRITABLE,
    Gpu,
    attribute,
    client_memory,
    copy,
    fence,
    fill,
    gpu,
    nop,
)
from tests.waiting import wait_for


def stats(vgpu: Vgpu) -> dict[str, int]:
    """gtt_stats, by what each number is."""
    words = attribute(vgpu, "gtt_stats").split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def test_contiguous_pages_are_one_range(engine: Gpu, vgpu: Vgpu) -> None:
    engine.finish(copy(0, engine.base, 1 << 20), copy(0, engine.base + PAGE, PAGE))
    before = stats(vgpu)
    assert before["ranges"] == 1 and before["misses"] == 1
    for _ in range(10):
        engine.finish(copy(0, engine.base, 1 << 20))
    after = stats(vgpu)
    assert after["hits"] >= before["hits"] + 10
    assert after == {**before, "hits": after["hits"]}


def test_a_write_to_the_gtt_counts_at_once(engine: Gpu, vgpu: Vgpu) -> None:
    one, other = (engine.iova + engine.data + page * PAGE | VALID | WRITABLE for page in (0, 1))
    for number in range(20):
        engine.entries(2000, [other if number % 2 else one])
        engine.finish(fill(SYSTEM + 2000 * PAGE, PAGE, number))
        assert engine.system(number % 2 * PAGE, 4) == struct.pack("<I", number)
    assert stats(vgpu)["invalidations"] >= 19
    engine.entries(2000, [0])
    assert engine.fails(copy(0, SYSTEM + 2000 * PAGE, 1)) == (NOT_PRESENT, SYSTEM + 2000 * PAGE)


def test_an_entry_in_the_middle_of_a_range_leaves_the_rest(engine: Gpu, vgpu: Vgpu) -> None:
    engine.finish(copy(0, engine.base, 1 << 20))
    engine.entries(100, [engine.iova + 400 * PAGE | VALID | WRITABLE])
    assert stats(vgpu)["ranges"] == 2
    engine.set_system(0, os.urandom(1 << 20))
    engine.finish(copy(0, SYSTEM, 200 * PAGE))
    expected = bytearray(engine.memory.read(0, 200 * PAGE))
    expected[100 * PAGE : 101 * PAGE] = engine.memory.read(400 * PAGE, PAGE)
    assert engine.video(2 * PAGE, 198 * PAGE) == bytes(expected[2 * PAGE :])
    assert stats(vgpu)["ranges"] == 3


def test_what_is_unmapped_is_not_reached_again(engine: Gpu, vgpu: Vgpu) -> None:
    """The shadow forgets before UNMAP_DMA returns, and the mapping that comes to the same iova is another."""
    first, second = client_memory(16 * PAGE), client_memory(16 * PAGE)
    container, page = engine.opened.container, SYSTEM + 1024 * PAGE
    engine.entries(1024, [(1 << 40) + number * PAGE | VALID | WRITABLE for number in range(16)])
    for round_ in range(20):
        container.map(1 << 40, first.address, first.size)
        engine.finish(fill(page, 16 * PAGE, 0x11111111))
        assert first.read() == b"\x11" * first.size
        before = stats(vgpu)
        container.unmap(1 << 40, first.size)
        after = stats(vgpu)
        assert after["invalidations"] > before["invalidations"] and after["ranges"] < before["ranges"]
        first.write(bytes(first.size))
        assert engine.fails(fill(page, 4 * PAGE, 0x22222222)) == (DMA, page)
        container.map(1 << 40, second.address, second.size)
        engine.finish(fill(page, 16 * PAGE, round_))
        assert second.read(0, 4) == struct.pack("<I", round_)
        assert first.read() == bytes(first.size)
        container.unmap(1 << 40, second.size)
    for memory in (first, second):
        memory.close()


@pytest.mark.parametrize("kind", ["memfd", "private"])
def test_pages_unmapped_while_a_command_runs(machine: MountedLab, vgpu: Vgpu, kind: str) -> None:
    """That command fails, the ones beside it do not, and nothing is written once the unmap has returned."""
    pages = 4096
    target = client_memory(pages * PAGE, kind)
    with gpu(machine, vgpu) as engine:
        engine.entries(8192, [(1 << 40) + number * PAGE | VALID | WRITABLE for number in range(pages)])
        faults = sum(interrupted(engine, target, number) for number in range(1, 30))
        assert faults and faults == int(attribute(vgpu, "faults"))
    target.close()


def interrupted(engine: Gpu, target: Memory, number: int) -> int:
    """Fill the target four times, and unmap it meanwhile; how many of the fills failed."""
    page, word, faults = SYSTEM + 8192 * PAGE, struct.pack("<I", number), 0
    engine.opened.container.map(1 << 40, target.address, target.size)
    engine.queue(*(fill(page, target.size, number) for _ in range(4)), fence(engine.fence_at, number))
    wait_for(lambda: target.read(0, 4) == word)
    engine.opened.container.unmap(1 << 40, target.size)
    target.write(bytes(target.size))
    while engine.fence != number:
        wait_for(lambda: engine.read("STATUS") & ERROR or engine.fence == number)
        if engine.read("STATUS") & ERROR:
            faults += 1
            assert engine.error()[0] == DMA and page <= engine.error()[1] < page + target.size
            engine.acknowledge()
    assert target.read() == bytes(target.size)
    engine.finish(fill(0, 4, number))
    return faults


def test_the_next_client_has_nothing_of_the_last_one(machine: MountedLab, vgpu: Vgpu) -> None:
    with gpu(machine, vgpu) as engine:
        engine.finish(copy(0, engine.base, 1 << 20))
        assert stats(vgpu)["ranges"] == 1
    assert stats(vgpu)["ranges"] == 0
    with opened(machine, vgpu.group, vgpu.name) as device:
        second = Gpu(device, Memory(64 * PAGE))
        assert (second.read("CONTROL"), second.read("STATUS")) == (0, IDLE)
        second.start()
        assert second.fails(nop()) == (DMA, SYSTEM)
        second.memory.close()
