# SPDX-License-Identifier: Apache-2.0
"""QEMU's qtest protocol: the test is the processor. Source: QEMU's docs/devel/testing/qtest."""

from __future__ import annotations

import time

from tests.qemu.channel import Channel

SECONDS = 300
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
WORDS = {1: "b", 2: "w", 4: "l", 8: "q"}


class Qtest:
    """Port and memory accesses of a machine that does not run, and the interrupt lines that it drives."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._levels: dict[int, bool] = {}
        self.raised: list[int] = []
        """The lines that went up, in order, since `intercept`."""

    def intercept(self, controller: str) -> None:
        """Watch the input lines of an interrupt controller, by its name in QEMU; they reach it no more."""
        self._command(f"irq_intercept_in {controller}")

    def level(self, line: int) -> bool:
        """The level of an intercepted line."""
        self._command("endianness")  # whatever changed before is told of before the answer
        return self._levels.get(line, False)

    def wait_level(self, line: int, level: bool) -> None:
        """Wait for an intercepted line to be at `level`; raises AssertionError when it does not get there."""
        deadline = time.monotonic() + SECONDS
        while self.level(line) is not level:
            assert time.monotonic() < deadline, f"line {line} is not {level}; {self._levels}"
            time.sleep(0.01)

    def inport(self, port: int, width: int) -> int:
        """The value of an I/O port."""
        return int(self._command(f"in{WORDS[width]} {port:#x}"), 0)

    def outport(self, port: int, width: int, value: int) -> None:
        self._command(f"out{WORDS[width]} {port:#x} {value:#x}")

    def load(self, address: int, width: int) -> int:
        """A little-endian value in physical memory."""
        return int(self._command(f"read{WORDS[width]} {address:#x}"), 0)

    def store(self, address: int, width: int, value: int) -> None:
        self._command(f"write{WORDS[width]} {address:#x} {value:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Physical memory."""
        return bytes.fromhex(self._command(f"read {address:#x} {size:#x}").removeprefix("0x"))

    def write(self, address: int, data: bytes) -> None:
        self._command(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def config(self, slot: int, offset: int, width: int) -> int:
        """A configuration cycle of function 00:`slot`.0 that reads."""
        self._select(slot, offset)
        return self.inport(CONFIG_DATA + offset % 4, width)

    def set_config(self, slot: int, offset: int, width: int, value: int) -> None:
        """A configuration cycle of function 00:`slot`.0 that writes."""
        self._select(slot, offset)
        self.outport(CONFIG_DATA + offset % 4, width, value)

    def _select(self, slot: int, offset: int) -> None:
        self.outport(CONFIG_ADDRESS, 4, 1 << 31 | slot << 11 | offset & ~3)

    def _command(self, line: str) -> str:
        """The value that QEMU answers with; interrupts that it tells of before that are noted."""
        self._channel.send(line.encode() + b"\n", SECONDS)
        while (answer := self._line()).startswith("IRQ "):
            _, direction, number = answer.split()
            self._levels[int(number)] = direction == "raise"
            self.raised += [int(number)] * (direction == "raise")
        word, _, value = answer.partition(" ")
        assert word == "OK", f"{line!r}: {answer}"
        return value

    def _line(self) -> str:
        return self._channel.read_until(b"\n", SECONDS).decode().strip()
