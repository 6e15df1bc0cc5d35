# SPDX-License-Identifier: Apache-2.0
"""mtty: the kernel's sample serial card, one or two 16550A ports.

Each port has a loopback plug, as the sample's ports do, or is a pseudo-terminal of the host. Its attribute
``port<N>`` shows which, and takes ``loopback`` or ``pty``.

State: in each device, under its lock. Source: the sample's README (identity and BARs).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import trio

from devmodel.device.attribute import DeviceAttribute
from devmodel.device.options import Option
from devmodel.device.pci import PciDevice
from devmodel.models.uart import Uart
from devmodel.models.uart_line import LoopbackPlug, SerialLine
from devmodel.models.uart_pty import PtyLine
from devmodel.pci.fields import Bar, Identity

MOST_PORTS = 2
LINES: Mapping[str, Callable[["Mtty", Uart], SerialLine]] = {
    "loopback": lambda mtty, port: LoopbackPlug(),
    "pty": PtyLine,
}
"""The lines that a port can have, by the word that is written to its attribute."""


def _attribute(index: int) -> DeviceAttribute:
    return DeviceAttribute(
        f"port{index}",
        lambda mtty: mtty.show_port(index),
        lambda mtty, text: mtty.store_port(index, text),
        lambda options: options["ports"] > index,
        doc="The line of the port: `loopback`, or the path of a pseudo-terminal; present with the port.",
        store_doc="`loopback` or `pty` connects the port to such a line. EINVAL: another text.",
    )


class Mtty(PciDevice):
    """A serial card with an 8-byte I/O BAR for each of its ``ports``, which share INTA."""

    __slots__ = ("_replugged", "ports")
    identity = Identity(0x4348, 0x3253, 0x4348, 0x3253, class_code=0x070002, revision=0x10, irq_pin=1)
    OPTIONS: ClassVar[Mapping[str, Option]] = {"ports": Option(1, 1, MOST_PORTS)}
    ATTRIBUTES: ClassVar[Sequence[DeviceAttribute]] = [_attribute(index) for index in range(MOST_PORTS)]

    def bars(self) -> Mapping[int, Bar]:
        self._replugged = trio.Event()
        self.ports = [Uart(LoopbackPlug(), self._changed) for _ in range(self.options["ports"])]
        return {index: Bar(port.region, io=True) for index, port in enumerate(self.ports)}

    def after_reset(self) -> None:
        for port in self.ports:
            port.reset()

    def closed(self) -> None:
        for port in self.ports:
            port.line.close()

    def show_port(self, index: int) -> str:
        """``loopback``, or the path of the pseudo-terminal. Trio thread."""
        return self.ports[index].line.name

    def store_port(self, index: int, text: str) -> None:
        """Plug the port into the line that ``text`` names, unless it has that line already. Raises ValueError
        for an unknown name. Trio thread."""
        if text not in LINES:
            raise ValueError(f"a port is connected to {' or '.join(LINES)}")
        with self.lock:
            self.check_present()
            port = self.ports[index]
            if port.line.kind != text:
                port.plug(LINES[text](self, port))
        self._replugged.set()

    async def run(self) -> None:
        """Serve the pseudo-terminals. Ports may change their line meanwhile."""
        while True:
            self._replugged = trio.Event()
            async with trio.open_nursery() as nursery:
                for port in self.ports:
                    if isinstance(port.line, PtyLine):
                        nursery.start_soon(port.line.serve)
                await self._replugged.wait()
                nursery.cancel_scope.cancel()

    def _changed(self) -> None:
        """Update the interrupt after a port has changed."""
        asserted = any(port.pending for port in self.ports)
        if asserted is not self._intx:
            self.set_intx(asserted)
