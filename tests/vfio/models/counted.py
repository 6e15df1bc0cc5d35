# SPDX-License-Identifier: Apache-2.0
"""A device that counts what happens to it, so that a client can see which of its calls were made, and how
often."""

from collections.abc import Awaitable

from devmodel.sdk import (
    Bar,
    Capability,
    DmaFault,
    Identity,
    Layout,
    MsixBar,
    PciDevice,
    Prot,
    Register,
    Registers,
    express,
)

LOAD, STORE, PIN, MSIX, INTX = range(1, 6)
CONSTANT = 0xA1A2A3A4
WORD = 4


class Counted(PciDevice):
    identity = Identity(0x1234, 0xC0F7, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(LAYOUT, self)
        self.msix = MsixBar(vectors=2, excluded=True)
        return {0: Bar(self.registers), 4: Bar(self.msix)}

    def capabilities(self) -> list[Capability]:
        return [self.msix.capability(bar=4), express()]

    def was_set(self, value: int) -> None:
        self.registers["SETS"] += 1

    def was_got(self) -> int:
        self.registers["GETS"] += 1
        return CONSTANT

    def commanded(self, value: int) -> None:
        if value == MSIX:
            self.interrupt(vector=0)
        elif value == INTX:
            self.set_intx(True)
        else:
            works = {LOAD: self.load, STORE: self.store, PIN: self.pin}
            self.start(works[value], self.registers["IOVA"], self.registers["DATA"])

    def let_go(self, value: int) -> None:
        self.set_intx(False)

    async def load(self, iova: int, data: int) -> None:
        await self.work(self.loaded(iova))

    async def loaded(self, iova: int) -> None:
        data = await self.dma.read(iova, WORD)
        with self.locked():
            self.registers["DATA"] = int.from_bytes(data, "little")

    async def store(self, iova: int, data: int) -> None:
        await self.work(self.dma.write(iova, data.to_bytes(WORD, "little")))

    async def pin(self, iova: int, data: int) -> None:
        await self.work(self.pinned(iova))

    async def pinned(self, iova: int) -> None:
        pin = await self.dma.pin(iova, 1, Prot.READ)
        pin.release()

    async def work(self, what: Awaitable[object]) -> None:
        error = 0
        try:
            await what
        except (DmaFault, OSError) as refused:
            error = refused.errno or 0
        with self.locked():
            self.registers["ERROR"] = error
            self.registers["DONE"] += 1


LAYOUT = Layout(
    4096,
    [
        Register(0x00, 4, "SET", on_write=Counted.was_set),
        Register(0x04, 4, "SETS", rw_mask=0),
        Register(0x08, 4, "GET", rw_mask=0, on_read=Counted.was_got),
        Register(0x0C, 4, "GETS", rw_mask=0),
        Register(0x10, 8, "IOVA"),
        Register(0x18, 4, "DATA"),
        Register(0x1C, 4, "START", on_write=Counted.commanded),
        Register(0x20, 4, "DONE", rw_mask=0),
        Register(0x24, 4, "ERROR", rw_mask=0),
        Register(0x28, 4, "LET_GO", on_write=Counted.let_go),
    ],
)
