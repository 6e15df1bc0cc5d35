# SPDX-License-Identifier: Apache-2.0
"""A model whose register SUM adds up what is written to ADD, and whose register NEXT counts its reads: an
access that is lost, or made twice, shows in both."""

from devmodel.sdk import Bar, Identity, Layout, PciDevice, Register, Registers


def _add(device: "Counting", value: int) -> None:
    device.registers["SUM"] = (device.registers["SUM"] + value) & 0xFFFFFFFF


def _next(device: "Counting") -> int:
    device.reads += 1
    return device.reads & 0xFFFFFFFF


class Counting(PciDevice):
    identity = Identity(0x1234, 0xC048, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        self.reads = 0
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers)}


LAYOUT = Layout(
    4096,
    [
        Register(0, 4, "ADD", on_write=_add),
        Register(4, 4, "SUM", rw_mask=0),
        Register(8, 4, "NEXT", rw_mask=0, on_read=_next),
        Register(12, 4, "PLAIN"),
    ],
)
