# SPDX-License-Identifier: Apache-2.0
"""A device with every kind of register, and hooks that go wrong."""

import errno
from typing import Any

from devmodel.sdk import Bar, DeviceAttribute, Identity, Layout, PciDevice, Region, Register, Registers


class Zoo(PciDevice):
    """Hooks that go right change ``seen``, which SEEN shows."""

    identity = Identity(0x1234, 0xC0F3, 0x1AF4, 0x1100, class_code=0x088000)

    ATTRIBUTES = (DeviceAttribute("wrong", lambda device: device.wrong(), lambda device, _: device.wrong()),)

    def bars(self) -> dict[int, Bar]:
        self.seen = 0
        return {0: Bar(Registers(LAYOUT, self)), 1: Bar(Own(LAYOUT, self)), 2: Bar(Wrong(4096))}

    def show(self) -> int:
        return self.seen

    def count(self) -> int:
        self.seen += 1
        return -self.seen  # a read takes the low bits

    def note(self, value: int) -> None:
        self.seen = (self.seen * 31 + value) & 0xFFFF_FFFF

    def refuse_read(self) -> int:
        raise OSError(errno.ENOSPC, "full")

    def refuse_write(self, value: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    def fail_read(self) -> int:
        raise LookupError("a bug")

    def fail_write(self, value: int) -> None:
        raise LookupError("a bug")

    def forget(self) -> Any:
        return None  # as of somebody who forgot to return

    def wrong(self) -> str:
        raise OSError(600, "no errno")

    def after_reset(self) -> None:
        self.seen = 0


class Own(Registers):
    """Registers with a read and a write of their own."""

    def read(self, offset: int, size: int) -> bytes:
        return bytes([offset & 0xFF]) * size

    def write(self, offset: int, data: bytes) -> None:
        self["PLAIN8"] = int.from_bytes(data, "little")


class Wrong(Region):
    """What a region can do wrong."""

    def read(self, offset: int, size: int) -> Any:
        if offset:
            raise OSError(offset, "an errno of the kernel's own, or none at all")
        return None

    def write(self, offset: int, data: bytes) -> None:
        raise OSError(-offset, "no errno")


_REGISTERS = (
    Register(0x00, 1, "PLAIN1", reset=0x5A),
    Register(0x01, 1, "READONLY1", reset=0xA5, rw_mask=0),
    Register(0x02, 2, "MASKED2", reset=0x1234, rw_mask=0x0FF0),
    Register(0x04, 4, "CLEARED4", reset=0xFFFF_0000, rw_mask=0x0000_FFFF, w1c_mask=0xFF00_0000),
    Register(0x08, 8, "PLAIN8", reset=1 << 63 | 1),
    Register(0x10, 8, "MIXED8", reset=0x0123_4567_89AB_CDEF, rw_mask=0xFFFF << 24, w1c_mask=0xFF),
    Register(0x18, 4, "SEEN", on_read=Zoo.show),
    Register(0x1C, 4, "COUNT", on_read=Zoo.count),
    Register(0x20, 4, "NOTE", rw_mask=0x00FF_FFFF, on_write=Zoo.note),
    Register(0x24, 2, "BOTH", on_read=Zoo.count, on_write=Zoo.note),
    Register(0x26, 1, "COUNT1", on_read=Zoo.count, on_write=Zoo.note),
    Register(0x28, 8, "BOTH8", w1c_mask=0xFFFF, on_read=Zoo.count, on_write=Zoo.note),
    Register(0x30, 4, "REFUSED", on_read=Zoo.refuse_read, on_write=Zoo.refuse_write),
    Register(0x34, 4, "BROKEN", on_read=Zoo.fail_read, on_write=Zoo.fail_write),
    Register(0x38, 4, "FORGETFUL", on_read=Zoo.forget),
    Register(0x3D, 3, "ODD", reset=0x112233, on_write=Zoo.note),
    Register(0x43, 4, "ASKEW", reset=0x44332211, rw_mask=0xFF00FF, on_write=Zoo.note),
    Register(0x50, 16, "LONG", reset=1 << 100, on_write=Zoo.note),
)
LAYOUT = Layout(4096, _REGISTERS)
