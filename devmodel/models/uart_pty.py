# SPDX-License-Identifier: Apache-2.0
"""A serial port on a pseudo-terminal of the host: a terminal with hardware handshake, at the port's plug.

The line sends to the port only while RTS is on, so nothing is lost in a FIFO that the driver has yet to
clear. The port sees CTS, DSR and DCD. A pseudo-terminal has no breaks and no line errors. Only the trio
thread refills the input, with at most one FIFO of bytes. So a driver that reads as long as there is data
leaves its interrupt handler now and then.

State: under the lock of the device that has the port, except the events, which belong to the trio thread;
:meth:`PtyLine.serve` runs there. The master is non-blocking, so register hooks may write to it.
Source: pty(7), termios(3).
"""

import contextlib
import os
import tty
from collections.abc import Sequence

import trio

from devmodel.device.pci import PciDevice
from devmodel.models.uart import Uart
from devmodel.models.uart_line import Character, SerialLine
from devmodel.models.uart_regs import FIFO_SIZE, MCR_RTS, MSR_CTS, MSR_DCD, MSR_DSR

CLOSED = -1


class PtyLine(SerialLine):
    """The master of a pseudo-terminal in raw mode, for ``port`` of ``device``."""

    __slots__ = (
        "_device",
        "_master",
        "_name",
        "_port",
        "_received",
        "_room",
        "_slave",
        "_stalled",
        "_willing",
    )
    kind = "pty"

    def __init__(self, device: PciDevice, port: Uart) -> None:
        """Raises ``OSError`` when no pseudo-terminal can be opened."""
        self._device, self._port = device, port
        self._master, self._slave = os.openpty()
        self._name = os.ttyname(self._slave)
        tty.setraw(self._slave)  # stays open, or the master would hang up when the last user leaves
        os.set_blocking(self._master, False)
        self._received = bytearray()
        self._willing = False
        self._room: trio.Event | None = None
        self._stalled: trio.Event | None = None

    @property
    def name(self) -> str:
        return self._name

    def send(self, data: bytes) -> int:
        try:
            taken = os.write(self._master, data)
        except BlockingIOError:
            taken = 0
        if taken < len(data):
            self._wake(self._stalled)
            self._stalled = None
        return taken

    def receive(self, room: int) -> Sequence[Character]:
        if not self._willing or not self._received:
            return ()
        taken = bytes(self._received[:room])
        del self._received[:room]
        self._wake(self._room)
        self._room = None
        return [(byte, 0) for byte in taken]

    def set_outputs(self, outputs: int) -> int:
        self._willing = bool(outputs & MCR_RTS)
        return MSR_CTS | MSR_DSR | MSR_DCD

    def close(self) -> None:
        master, self._master = self._master, CLOSED
        for fd in (master, self._slave):
            with contextlib.suppress(RuntimeError):  # no trio on this thread, as at the end of a lab
                trio.lowlevel.notify_closing(fd)
            os.close(fd)

    async def serve(self) -> None:
        """Carry bytes both ways, until cancelled or closed. Trio thread."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_input)
            nursery.start_soon(self._serve_output)

    async def _serve_input(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                await self._has_room()
                await trio.lowlevel.wait_readable(self._fd)
                with self._device.locked():
                    self._take()
                    self._port.exchange()

    async def _serve_output(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                with self._device.locked():
                    stalled = self._stalled = trio.Event()
                    self._port.exchange()
                await stalled.wait()
                await trio.lowlevel.wait_writable(self._fd)

    async def _has_room(self) -> None:
        with self._device.locked():
            if len(self._received) < FIFO_SIZE:
                return
            room = self._room = trio.Event()
        await room.wait()

    @property
    def _fd(self) -> int:
        """The master's descriptor. Another task may have closed it before a task that was woken runs, and the
        number may then belong to another file."""
        if self._master == CLOSED:
            raise trio.ClosedResourceError(f"{self._name} is closed")
        return self._master

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._received += os.read(self._fd, FIFO_SIZE - len(self._received))

    def _wake(self, event: trio.Event | None) -> None:
        """Wake the task that waits for ``event``. Any thread. No task waits while the lab is not served."""
        if event is not None:
            with contextlib.suppress(RuntimeError):
                self._device.start(_set, event)


async def _set(event: trio.Event) -> None:
    event.set()
