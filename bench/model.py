# SPDX-License-Identifier: Apache-2.0
"""The device that the benchmark measures: a register with hooks in Python, one without, memory, an interrupt.

Its offsets are those of bench/cases.py, which describes the device as clients see it.
"""

from time import monotonic_ns

import trio

from devmodel.sdk import (
    Bar,
    Capability,
    DeviceAttribute,
    Identity,
    Layout,
    Memory,
    MsixBar,
    PciDevice,
    Register,
    Registers,
)

MEMORY = 16 << 20
GAP = 0.0003
"""Seconds between two interrupts, so that each finds its client asleep."""


class BenchDevice(PciDevice):
    identity = Identity(0x1234, 0xBE7C, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)

    ATTRIBUTES = (
        DeviceAttribute("note", lambda device: device.note, lambda device, text: device.take(text)),
    )

    def bars(self) -> dict[int, Bar]:
        self.value = 0
        self.note = ""
        self.raised = 0
        self.board = Memory(MEMORY)
        self.msix = MsixBar(vectors=1, excluded=True)
        return {0: Bar(Registers(LAYOUT, self)), 2: Bar(self.board), 4: Bar(self.msix)}

    def capabilities(self) -> list[Capability]:
        return [self.msix.capability(bar=4)]

    def take(self, note: str) -> None:
        self.note = note

    def hooked_read(self) -> int:
        return self.value

    def hooked_write(self, value: int) -> None:
        self.value = value

    def commanded(self, count: int) -> None:
        self.start(self.raise_all, count)

    async def raise_all(self, count: int) -> None:
        """Interrupt ``count`` times. After each, the record at the start of the memory has the number of
        interrupts and the time."""
        for _ in range(count):
            await trio.sleep(GAP)
            with self.locked():
                when = monotonic_ns()
                self.interrupt(vector=0)
                self.board.write(8, when.to_bytes(8, "little"))
                self.raised += 1
                self.board.write(0, self.raised.to_bytes(8, "little"))


LAYOUT = Layout(
    4096,
    [
        Register(0x00, 4, "HOOKED", on_read=BenchDevice.hooked_read, on_write=BenchDevice.hooked_write),
        Register(0x10, 4, "PLAIN"),
        Register(0x20, 4, "COMMAND", on_write=BenchDevice.commanded),
    ],
)
