# SPDX-License-Identifier: Apache-2.0
"""A model that asks for pages: on COMMAND it asks for PAGES pages from ADDRESS, to read and write.  When
they are there it adds 1 to the word at ADDRESS.  STATUS is then 1 plus the response, 0xff for a refused DMA.
"""

from devmodel.sdk import (
    Bar,
    Capability,
    DmaFault,
    ExtendedCapability,
    Identity,
    Layout,
    PageResponse,
    PciDevice,
    Prot,
    Register,
    Registers,
    address_translation,
    express,
    page_requests,
)


class Asker(PciDevice):
    identity = Identity(0x1234, 0xA5CE, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self) -> dict[int, Bar]:
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers)}

    def capabilities(self) -> list[Capability]:
        return [express()]

    def extended_capabilities(self) -> list[ExtendedCapability]:
        return [address_translation(), page_requests()]

    def commanded(self, value: int) -> None:
        self.start(self.ask, self.registers["ADDRESS"], self.registers["PAGES"])

    async def ask(self, address: int, pages: int) -> None:
        try:
            response = await self.dma.request_pages(address, pages, Prot.READ | Prot.WRITE)
            status = 1 + response
            if response is PageResponse.SUCCESS:
                word = int.from_bytes(await self.dma.read(address, 4), "little")
                await self.dma.write(address, (word + 1).to_bytes(4, "little"))
        except DmaFault:
            status = 0xFF
        with self.locked():
            self.registers["STATUS"] = status


LAYOUT = Layout(
    4096,
    [
        Register(0x00, 8, "ADDRESS"),
        Register(0x08, 4, "PAGES"),
        Register(0x0C, 4, "COMMAND", on_write=Asker.commanded),
        Register(0x10, 4, "STATUS"),
    ],
)
