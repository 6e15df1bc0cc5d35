# SPDX-License-Identifier: Apache-2.0
"""A traced device is the same otherwise: no access waits that would not wait if nobody looked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.labs import MountedLab, described
from tests.vfio.client import PAGE
from tests.vfio.copiers import COMMAND_REGISTER, DECODE
from tests.waiting import wait_for

MODEL = """
import time
from pathlib import Path

from devmodel.sdk import Bar, Identity, Layout, Memory, PciDevice, Register, Registers

class Slow(PciDevice):
    identity = Identity(0x1234, 0x0001, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self):
        return {0: Bar(Memory(1 << 20)), 2: Bar(Registers(LAYOUT, self))}

    def wait(self, value):
        while not Path(FILE).exists():
            time.sleep(0.01)

LAYOUT = Layout(4096, [Register(0, 4, "WAIT", on_write=Slow.wait), Register(8, 8, "PLAIN", reset=5)])
"""
LAB = """\
[models]
slow = "{}/slow.py:Slow"

[parents.slow]
kind = "virtual"
driver = "slow"
slots = 1
types.slow-1 = {{ description = "is slow" }}
"""
CONFIG, REGISTERS = 7 << 40, 2 << 40


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[MountedLab, int, Path]]:
    """A lab, an open device, and a file: a write to the device's first register waits for that."""
    go = tmp_path / "go"
    (tmp_path / "slow.py").write_text(MODEL.replace("FILE", repr(str(go))))
    with described(tmp_path, LAB.format(tmp_path)) as lab, lab.create("slow-1", "slow") as vgpu:
        device = vgpu.open()
        os.pwrite(device, DECODE.to_bytes(2, "little"), CONFIG + COMMAND_REGISTER)
        try:
            yield lab, device, go
        finally:
            go.touch()
            os.close(device)


@pytest.mark.parametrize("traced", [False, True], ids=["nobody looks", "traced"])
def test_memory_and_plain_registers_wait_for_no_hook(
    slow: tuple[MountedLab, int, Path], traced: bool
) -> None:
    lab, device, go = slow
    os.pwrite(device, b"here", PAGE)
    trace = os.open(lab.path / "trace", os.O_RDONLY | os.O_NONBLOCK) if traced else -1
    with ThreadPoolExecutor(3) as pool:
        try:
            waits = pool.submit(os.pwrite, device, bytes(4), REGISTERS)
            wait_for(waits.running)
            plain = pool.submit(os.pread, device, 8, REGISTERS + 8)
            memory = pool.submit(os.pread, device, 8, PAGE)
            assert plain.result(30) == (5).to_bytes(8, "little")
            assert memory.result(30) == b"here\0\0\0\0"
            assert not waits.done()
        finally:
            go.touch()
        assert waits.result(30) == 4
    if traced:
        told = [json.loads(line) for line in os.read(trace, 1 << 16).splitlines()]
        os.close(trace)
        moved = [
            (each["name"], each["arguments"]["data"], each["result"])
            for each in told
            if each["kind"] == "region" and each["arguments"].get("register") != "WAIT"
        ]
        assert sorted(moved) == [("read", "0500000000000000", 8), ("read", "6865726500000000", 8)]
