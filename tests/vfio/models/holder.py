# SPDX-License-Identifier: Apache-2.0
"""A device that holds pages of its client, as a GPU does with its tables: pins TARGET, writes later."""

from typing import Any

from devmodel.sdk import Bar, DmaFault, Identity, Layout, PciDevice, Pin, Prot, Register, Registers

PIN, UNPIN, STORE = 1, 2, 3
PAGE = 4096


class Holder(PciDevice):
    identity = Identity(0x1234, 0xC0F2, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.held: list[Pin] = []

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers)}

    def commanded(self, value: int) -> None:
        commands = {PIN: self.hold, UNPIN: self.let_go, STORE: self.store}
        self.start(commands[value], self.registers["TARGET"], self.registers["PAGES"])

    async def hold(self, iova: int, pages: int) -> None:
        error = 0
        try:
            self.held.append(await self.dma.pin(iova, pages, Prot.READ | Prot.WRITE))
        except OSError as refused:
            error = refused.errno or 0
        self.finish(error)

    async def let_go(self, iova: int, pages: int) -> None:
        self.dma_unmap(iova, pages * PAGE)
        self.finish(0)

    async def store(self, iova: int, pages: int) -> None:
        error = 0
        try:
            await self.tasks.in_thread(self.held[-1].write, 0, b"held" * (pages * PAGE // 4))
        except DmaFault as fault:
            error = fault.errno or 0
        self.finish(error)

    def finish(self, error: int) -> None:
        with self.locked():
            self.registers["ERROR"] = error
            self.registers["DONE"] += 1

    def dma_unmap(self, iova: int, size: int) -> None:
        for pin in [pin for pin in self.held if pin.iova < iova + size and iova < pin.iova + pin.size]:
            self.held.remove(pin)
            pin.release()
            with self.lock:
                self.registers["LET_GO"] += 1


LAYOUT = Layout(
    4096,
    [
        Register(0x00, 8, "TARGET"),
        Register(0x08, 4, "PAGES"),
        Register(0x0C, 4, "COMMAND", on_write=Holder.commanded),
        Register(0x10, 4, "DONE", rw_mask=0),
        Register(0x14, 4, "ERROR", rw_mask=0),
        Register(0x18, 4, "LET_GO", rw_mask=0),
    ],
)
