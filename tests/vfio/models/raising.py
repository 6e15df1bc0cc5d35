# SPDX-License-Identifier: Apache-2.0
"""A device whose hooks raise what ends threads and interpreters, or return what is no number."""

from collections.abc import Callable
from typing import Any, NoReturn

import trio

from devmodel.sdk import Bar, DeviceAttribute, Identity, Layout, PciDevice, Region, Register, Registers


class Odd:
    """No number, and an error to look at."""

    def __index__(self) -> int:
        raise KeyboardInterrupt

    def __repr__(self) -> str:
        raise SystemExit(5)

    def __del__(self) -> None:
        raise GeneratorExit


def deeper() -> Any:
    return deeper()


def recurse(*_: object) -> Any:
    return deeper()  # before Python 3.13.8 functions with *args have no limit (gh-132744)


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def hook(*_: object) -> NoReturn:
        raise error("a bug")

    return hook


def unlock(device: "Raising", *_: object) -> NoReturn:
    """Both the hook and the release of the lock fail."""
    device.lock.release()
    raise LookupError("a bug")


HOOKS: list[Callable[..., Any]] = [
    raising(SystemExit),
    raising(KeyboardInterrupt),
    raising(GeneratorExit),
    raising(StopIteration),
    raising(MemoryError),
    recurse,
    unlock,
]
ANSWERS: list[Callable[..., Any]] = [*HOOKS, lambda _: Odd(), lambda _: "1", lambda _: 1.5, lambda _: b"\1"]
GOOD = 4 * len(ANSWERS)
"""Offset of a register without a bug."""
TASK = GOOD + 4
"""A write starts a task that raises."""
LAYOUT = Layout(
    4096,
    [
        *(
            Register(4 * i, 4, f"R{i}", on_read=ANSWERS[i], on_write=HOOKS[i % len(HOOKS)])
            for i in range(len(ANSWERS))
        ),
        Register(GOOD, 4, "GOOD", on_read=lambda device: device.registers["GOOD"]),
        Register(TASK, 4, "TASK", on_write=lambda device, value: device.start(device.task, value)),
    ],
)


class Own(Region):
    """The hook `offset // 4`, for reads and writes of any size."""

    def read(self, offset: int, size: int) -> bytes:
        answer: bytes = ANSWERS[offset // 4](self.device)
        return answer

    def write(self, offset: int, data: bytes) -> None:
        HOOKS[offset // 4 % len(HOOKS)](self.device)

    def __init__(self, device: "Raising") -> None:
        super().__init__(4096)
        self.device = device


class Raising(PciDevice):
    ATTRIBUTES = (DeviceAttribute("wrong", raising(SystemExit), raising(SystemExit)),)
    identity = Identity(0x1234, 0xC0F4, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers), 1: Bar(Own(self))}

    async def task(self, inside: int) -> None:
        if inside:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise SystemExit("a bug")
        raise SystemExit("a bug")

    def after_reset(self) -> None:
        raise SystemExit("a bug")
