# SPDX-License-Identifier: Apache-2.0
"""A model that migrates: VALUE is the client's, and COUNT counts up by itself while the device runs."""

import struct

import trio

from devmodel.sdk import Bar, Identity, Layout, Migrates, PciDevice, Register, Registers

STATE = struct.Struct("<4sII")
MAGIC = b"cnt1"


class Counter(Migrates, PciDevice):
    identity = Identity(0x1234, 0xC047, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers)}

    async def run(self) -> None:
        while True:
            await trio.sleep(0.001)
            with self.locked():
                self.registers["COUNT"] += 1

    def save_state(self) -> bytes:
        return STATE.pack(MAGIC, self.registers["VALUE"], self.registers["COUNT"])

    def load_state(self, state: bytes) -> None:
        if len(state) != STATE.size or not state.startswith(MAGIC):
            raise ValueError(f"{len(state)} bytes are no state of a counter")
        _, self.registers["VALUE"], self.registers["COUNT"] = STATE.unpack(state)


LAYOUT = Layout(4096, [Register(0, 4, "VALUE"), Register(4, 4, "COUNT", rw_mask=0)])
