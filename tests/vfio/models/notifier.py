# SPDX-License-Identifier: Apache-2.0
"""A function that raises interrupts when its client asks: INTx by its level, or one of eight messages."""

from collections.abc import Sequence

from devmodel.sdk import (
    Bar,
    Capability,
    Identity,
    Layout,
    PciDevice,
    Register,
    Registers,
    express,
    msi,
    power_management,
)


class Notifier(PciDevice):
    identity = Identity(0x1234, 0xC0F7, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        return {0: Bar(Registers(LAYOUT, self))}

    def capabilities(self) -> Sequence[Capability]:
        return (power_management(), msi(8), express())

    def level(self, value: int) -> None:
        self.set_intx(bool(value & 1))

    def message(self, value: int) -> None:
        self.interrupt(vector=value)


LAYOUT = Layout(
    4096,
    [
        Register(0x00, 4, "LEVEL", on_write=Notifier.level),
        Register(0x04, 4, "MESSAGE", on_write=Notifier.message),
    ],
)
