# SPDX-License-Identifier: Apache-2.0
"""A whole device: it copies SIZE bytes from iova SOURCE to iova TARGET when 1 is written to COMMAND.

It sets STATUS and interrupts: MSI-X vector 0, or INTx until STATUS has been cleared by writing it back.
"""

from devmodel.sdk import Bar, Capability, DmaFault, Identity, Layout, MsixBar, PciDevice, Register, Registers

COPY, DONE, FAULT = 1, 1, 2


class Copier(PciDevice):
    identity = Identity(0x1234, 0xC0F1, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(LAYOUT, self)
        self.msix = MsixBar(vectors=2, excluded=True)
        return {0: Bar(self.registers), 4: Bar(self.msix)}

    def capabilities(self) -> list[Capability]:
        return [self.msix.capability(bar=4)]

    def commanded(self, value: int) -> None:
        if value == COPY:
            self.start(self.copy, *(self.registers[name] for name in ("SOURCE", "TARGET", "SIZE")))

    def acknowledged(self, status: int) -> None:
        self.set_intx(bool(status))

    async def copy(self, source: int, target: int, size: int) -> None:
        try:
            await self.dma.write(target, await self.dma.read(source, size))
            status = DONE
        except DmaFault:
            status = FAULT
        with self.locked():
            self.registers["STATUS"] |= status
            self.interrupt(vector=0)


FIELDS = [("SOURCE", 0x00, 8), ("TARGET", 0x08, 8), ("SIZE", 0x10, 4)]
LAYOUT = Layout(
    4096,
    [
        *(Register(offset, width, name) for name, offset, width in FIELDS),
        Register(0x14, 4, "COMMAND", on_write=Copier.commanded),
        Register(0x18, 4, "STATUS", rw_mask=0, w1c_mask=DONE | FAULT, on_write=Copier.acknowledged),
    ],
)
