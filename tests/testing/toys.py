# SPDX-License-Identifier: Apache-2.0
"""Models for tests of the bench: one with a clock, one that pins, and some that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ClassVar

import trio

from devmodel.sdk import (
    Bar,
    Capability,
    DeviceAttribute,
    Identity,
    Layout,
    Memory,
    Option,
    PciDevice,
    Pin,
    Prot,
    Register,
    Registers,
    TextOption,
    express,
    msi,
    power_management,
)

TICK = 0.1


class Timer(PciDevice):
    """COUNT rises every 100 ms while the device is open; each 10th time it sends MSI 1. PERIOD_MS starts
    another, which sends MSI 0 so many times as COUNTDOWN says. There are two registers called SCRATCH."""

    identity = Identity(0x1234, 0x7131, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)
    OPTIONS: ClassVar = {"step": Option(1, 1, 9)}
    TEXTS: ClassVar = {"serial": TextOption("00", "[0-9]+", "write 00-11")}
    ATTRIBUTES: ClassVar = (
        DeviceAttribute("stats/count", lambda timer: timer.registers["COUNT"]),
        DeviceAttribute("label", lambda timer: timer.label, lambda timer, text: timer.set_label(text)),
        DeviceAttribute("fast", lambda timer: 1, when=lambda options: options["step"] > 1),
    )

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(TIMER, self)
        self.label = "none"
        self.stops = 0
        return {0: Bar(self.registers), 1: Bar(Registers(OTHER, self)), 3: Bar(Memory(4096))}

    def capabilities(self) -> list[Capability]:
        return [power_management(), msi(4), express()]

    def set_label(self, text: str) -> None:
        if not text:
            raise ValueError("a label has at least one character")
        self.label = text

    def stopped(self) -> None:
        self.stops += 1

    async def run(self) -> None:
        while True:
            await trio.sleep(TICK)
            with self.locked():
                self.registers["COUNT"] += self.options["step"]
                if self.registers["COUNT"] % 10 == 0:
                    self.interrupt(1)

    def started(self, period: int) -> None:
        if period:
            self.start(self.count_down, period / 1000)

    async def count_down(self, period: float) -> None:
        while True:
            await trio.sleep(period)
            with self.locked():
                if not self.registers["COUNTDOWN"]:
                    return
                self.registers["COUNTDOWN"] -= 1
                self.interrupt(0)


TIMER = Layout(
    4096,
    [
        Register(0x0, 4, "COUNT", rw_mask=0),
        Register(0x4, 4, "PERIOD_MS", on_write=Timer.started),
        Register(0x8, 2, "COUNTDOWN"),
        Register(0xC, 4, "SCRATCH", reset=7),
    ],
)
OTHER = Layout(256, [Register(0x10, 8, "SCRATCH"), Register(0x18, 1, "DEVICE_ID")])


class Pinner(PciDevice):
    """PIN pins the page at that address, and holds it until it is unmapped. POKE writes a byte to it. With 1
    in STUBBORN it releases nothing."""

    identity = Identity(0x1234, 0x7132, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(PINNER, self)
        self.pins: list[Pin] = []
        return {0: Bar(self.registers)}

    def pin(self, iova: int) -> None:
        self.start(self._pin, iova)

    def poke(self, value: int) -> None:
        self.start(self._poke, value)

    async def _pin(self, iova: int) -> None:
        self.pins.append(await self.dma.pin(iova, 1, Prot.READ | Prot.WRITE))

    async def _poke(self, value: int) -> None:
        await trio.to_thread.run_sync(self.pins[0].write, 8, bytes([value]))

    def dma_unmap(self, iova: int, size: int) -> None:
        if self.registers["STUBBORN"]:
            return
        for pin in self.pins:
            pin.release()
        self.pins.clear()


PINNER = Layout(
    4096,
    [
        Register(0x0, 8, "PIN", on_write=Pinner.pin),
        Register(0x8, 4, "POKE", on_write=Pinner.poke),
        Register(0xC, 4, "STUBBORN"),
    ],
)


class Bad(PciDevice):
    """A write of a number to FAULT has the fault of that number."""

    identity = Identity(0x1234, 0x7133, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(BAD, self)
        self.fails_at_end = False
        self.let_go = threading.Event()
        return {0: Bar(self.registers)}

    def fault(self, number: int) -> None:
        FAULTS[number](self)

    def read_failure(self) -> int:
        raise ZeroDivisionError("nothing to read")

    def raises(self) -> None:
        raise LookupError("a hook")

    def exits(self) -> None:
        raise SystemExit(3)

    def deadlocks(self) -> None:
        with self.locked():  # a hook has the lock already
            pass

    def loops(self) -> None:
        while not self.let_go.is_set():
            pass

    def task_raises(self) -> None:
        self.start(self.fail, 0.0)

    def task_raises_later(self) -> None:
        self.start(self.fail, 0.25)
        self.start(self.fail, 0.25)

    def task_exits(self) -> None:
        self.start(self.exit)

    def task_blocks(self) -> None:
        self.start(self.block)

    def task_spins(self) -> None:
        self.start(self.spin)

    def task_ticks(self) -> None:
        self.start(self.tick)

    def thread_blocks(self) -> None:
        self.start(self.block_thread)

    def task_ends_all(self) -> None:
        self.start(self.interrupt_all)

    async def fail(self, seconds: float) -> None:
        await trio.sleep(seconds)
        raise LookupError("a task")

    async def exit(self) -> None:
        raise SystemExit(4)

    async def block(self) -> None:
        while not self.let_go.is_set():
            time.sleep(0.001)

    async def spin(self) -> None:
        while not self.let_go.is_set():
            await trio.lowlevel.checkpoint()

    async def tick(self) -> None:
        while not self.let_go.is_set():
            await trio.sleep(1e-7)

    async def block_thread(self) -> None:
        await trio.to_thread.run_sync(self.let_go.wait)

    async def interrupt_all(self) -> None:
        raise KeyboardInterrupt

    def closed(self) -> None:
        if self.fails_at_end:
            raise LookupError("the end")


FAULTS: list[Callable[[Bad], None]] = [
    Bad.raises,
    Bad.exits,
    Bad.deadlocks,
    Bad.loops,
    Bad.task_raises,
    Bad.task_raises_later,
    Bad.task_exits,
    Bad.task_blocks,
    Bad.task_spins,
    Bad.task_ticks,
    Bad.thread_blocks,
    Bad.task_ends_all,
]
BAD = Layout(
    4096, [Register(0x0, 4, "FAULT", on_write=Bad.fault), Register(0x4, 4, "BAD", on_read=Bad.read_failure)]
)


class Threaded(PciDevice):
    """GO has a thread of the device's own set DONE, and interrupt, after some real milliseconds."""

    identity = Identity(0x1234, 0x7134, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(THREADED, self)
        return {0: Bar(self.registers)}

    def capabilities(self) -> list[Capability]:
        return [msi(1)]

    def go(self, milliseconds: int) -> None:
        threading.Thread(target=self.work, args=(milliseconds / 1000,), daemon=True).start()

    def work(self, seconds: float) -> None:
        time.sleep(seconds)
        with self.lock:
            self.registers["DONE"] = 1
            self.interrupt()


class Borrower(PciDevice):
    """ASK has a thread of trio sleep in virtual time, one second for each unit, and then set DONE."""

    identity = Identity(0x1234, 0x7135, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(BORROWER, self)
        return {0: Bar(self.registers)}

    def ask(self, seconds: int) -> None:
        self.start(self.work, seconds)

    async def work(self, seconds: int) -> None:
        await trio.to_thread.run_sync(self.in_thread, seconds)
        with self.locked():
            self.registers["DONE"] += 1

    def in_thread(self, seconds: int) -> None:
        time.sleep(0.01)
        trio.from_thread.run(trio.sleep, seconds)
        time.sleep(0.01)


BORROWER = Layout(4096, [Register(0x0, 4, "ASK", on_write=Borrower.ask), Register(0x4, 4, "DONE")])
THREADED = Layout(4096, [Register(0x0, 4, "GO", on_write=Threaded.go), Register(0x4, 4, "DONE")])
