# SPDX-License-Identifier: Apache-2.0
"""The engine's registers, behind those of the display in BAR 2.

State: under the device's lock; hooks run on the device lane. Source: docs/vgpu.md, "The engine".
"""

from collections.abc import Sequence
from enum import IntFlag
from typing import Protocol

from devmodel.gpu.gtt import ENTRIES, SYSTEM_BASE
from devmodel.region.registers import Register

ENGINE_BASE = 0x1000
REGISTERS_SIZE = 0x2000
MAGIC = int.from_bytes(b"ENG1", "little")


class Control(IntFlag):
    """Bits of CONTROL."""

    ENABLE = 1
    RESET = 2
    """This bit reads as 0."""


class Status(IntFlag):
    """Bits of STATUS."""

    IDLE = 1
    """The engine has nothing to do, or is not enabled. A write does not change this bit."""
    DONE = 2
    """The engine reached a fence with an interrupt."""
    ERROR = 4
    """A command failed. ERROR_CODE and ERROR_ADDRESS say why. The ring stops until this bit is cleared."""
    HANG = 8
    """The lab stopped the engine. It is not enabled any more."""


ACKNOWLEDGED = Status.DONE | Status.ERROR | Status.HANG


class RegisterSide(Protocol):
    """The calls that the registers make on an engine."""

    def status(self) -> int:
        """The value of STATUS."""

    def control(self, value: int) -> None:
        """CONTROL was written."""

    def acknowledged(self, status: int) -> None:
        """STATUS was written; ``status`` is its value after that."""

    def doorbell(self, tail: int) -> None:
        """RING_TAIL was written."""


class HasEngine(Protocol):
    """The device."""

    @property
    def engine(self) -> RegisterSide:
        """Its engine."""


def _status(device: HasEngine) -> int:
    return device.engine.status()


def _control(device: HasEngine, value: int) -> None:
    device.engine.control(value)


def _acknowledged(device: HasEngine, value: int) -> None:
    device.engine.acknowledged(value)


def _doorbell(device: HasEngine, value: int) -> None:
    device.engine.doorbell(value)


ENGINE: Sequence[Register] = (
    Register(ENGINE_BASE + 0x00, 4, "ENGINE_MAGIC", MAGIC, rw_mask=0),
    Register(ENGINE_BASE + 0x04, 4, "CONTROL", rw_mask=sum(Control), on_write=_control),
    Register(
        ENGINE_BASE + 0x08,
        4,
        "STATUS",
        rw_mask=0,
        w1c_mask=ACKNOWLEDGED,
        on_read=_status,
        on_write=_acknowledged,
    ),
    Register(ENGINE_BASE + 0x0C, 4, "ERROR_CODE", rw_mask=0),
    Register(ENGINE_BASE + 0x10, 8, "ERROR_ADDRESS", rw_mask=0),
    Register(ENGINE_BASE + 0x18, 8, "FENCE", rw_mask=0),
    Register(ENGINE_BASE + 0x20, 8, "RING_BASE"),
    Register(ENGINE_BASE + 0x28, 4, "RING_SIZE"),
    Register(ENGINE_BASE + 0x2C, 4, "RING_HEAD", rw_mask=0),
    Register(ENGINE_BASE + 0x30, 4, "RING_TAIL", on_write=_doorbell),
    Register(ENGINE_BASE + 0x34, 4, "GTT_ENTRIES", ENTRIES, rw_mask=0),
    Register(ENGINE_BASE + 0x38, 8, "SYSTEM_BASE", SYSTEM_BASE, rw_mask=0),
)
