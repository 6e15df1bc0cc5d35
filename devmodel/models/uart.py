# SPDX-License-Identifier: Apache-2.0
"""A 16550A: registers, FIFOs, interrupts and modem lines. It is connected to a SerialLine.

The model has no timing. A byte in the transmitter goes to the line at once if the line has room, and a byte
on the line goes to the receiver at once if the receiver has room. So two ports lose nothing even if a driver
reads slowly. An overrun is possible only in MCR's loop, which has no line. Word length, parity and divisor
are stored and have no effect: all 8 bits of a byte pass.

State: under the lock of the device that has the port. Source: the PC16550D data sheet, <linux/serial_reg.h>.
"""

from collections.abc import Callable, Mapping, Sequence

from devmodel.models import uart_regs as bits
from devmodel.models.uart_line import SerialLine
from devmodel.models.uart_receiver import Receiver
from devmodel.region.registers import Layout, Register, Registers

LOOP_WIRES: Mapping[int, int] = {
    bits.MCR_RTS: bits.MSR_CTS,
    bits.MCR_DTR: bits.MSR_DSR,
    bits.MCR_OUT1: bits.MSR_RI,
    bits.MCR_OUT2: bits.MSR_DCD,
}
"""The modem input that each output is wired to in MCR's loop."""


class Uart:
    """One 16550A. ``region`` has its 8 registers. ``line`` is the line that it is connected to."""

    __slots__ = (
        "_changed",
        "_control",
        "_deltas",
        "_divisor",
        "_enable",
        "_inputs",
        "_latched",
        "_sending",
        "_spacing",
        "line",
        "receiver",
        "region",
        "sent",
    )

    def __init__(self, line: SerialLine, changed: Callable[[], None]) -> None:
        """``changed`` is called when :attr:`pending` may have changed, except by :meth:`reset`."""
        self.line = line
        self._changed = changed
        self.receiver = Receiver()
        self.region = Registers(LAYOUT, self)
        self.reset()

    def reset(self) -> None:
        """Master reset, except for the stored values of ``region``, which has a reset of its own."""
        self._divisor = 1
        self._enable = 0
        self._control = 0
        self._latched = self._spacing = False
        self._sending = bytearray()
        self.sent = False
        """Whether THR became empty and the driver has not been told yet."""
        self.receiver.reset()
        self.line.discard()
        self._inputs = self.line.set_outputs(0)
        self._deltas = 0

    def plug(self, line: SerialLine) -> None:
        """Connect the port to another line, and close the old one."""
        self.line.close()
        self.line = line
        self._signal()
        self.exchange()

    @property
    def pending(self) -> bool:
        """Whether it interrupts. OUT2 gates the interrupt in a PC's own ports, but not on a PCI card."""
        return self._cause() != bits.IIR_NO_INT

    @property
    def modem_changed(self) -> bool:
        """Whether a modem input changed since MSR was read."""
        return bool(self._deltas)

    def exchange(self) -> None:
        """Send to the line and receive from it, until neither has room or data."""
        while self._transmit() or self._refill():
            pass
        self._changed()

    # ---- registers ----

    def read_data(self) -> int:
        """Read RBR, or DLL while DLAB is set."""
        if self._latched:
            return self._divisor & 0xFF
        byte = self.receiver.get()
        self.exchange()
        return byte

    def write_data(self, value: int) -> None:
        """Write THR, or DLL while DLAB is set. A byte for a full transmitter is lost, as in a real one."""
        if self._latched:
            self._divisor = (self._divisor & 0xFF00) | value
            return
        self.sent = False
        if not self.receiver.fifo:
            self._sending[:] = bytes((value,))
        elif len(self._sending) < bits.FIFO_SIZE:
            self._sending.append(value)
        self.exchange()

    def read_enable(self) -> int:
        """Read IER, or DLM while DLAB is set."""
        return self._divisor >> 8 if self._latched else self._enable

    def write_enable(self, value: int) -> None:
        """Write IER, or DLM while DLAB is set. Enabling the interrupt of an empty THR raises it."""
        if self._latched:
            self._divisor = (self._divisor & 0xFF) | value << 8
            return
        risen = value & ~self._enable
        self._enable = value & bits.IER_MASK
        if risen & bits.IER_THRI and not self._sending:
            self.sent = True
        self._changed()

    def read_identification(self) -> int:
        """Read IIR. A read that reports an empty THR clears that interrupt."""
        cause = self._cause()
        if cause == bits.IIR_THRI:
            self.sent = False
            self._changed()
        return cause | (bits.IIR_FIFO_ENABLED if self.receiver.fifo else 0)

    def write_fifo_control(self, value: int) -> None:
        """Write FCR. Without its enable bit the other bits have no effect."""
        enable = bool(value & bits.FCR_ENABLE_FIFO)
        switched = enable is not self.receiver.fifo
        self.receiver.fifo = enable
        self.receiver.trigger = bits.FCR_TRIGGERS[value & bits.FCR_TRIGGER_MASK] if enable else 1
        if switched or (enable and value & bits.FCR_CLEAR_RCVR):
            self.receiver.clear()
            self.line.discard()
        if switched or (enable and value & bits.FCR_CLEAR_XMIT):
            self.sent = self.sent or bool(self._sending)
            self._sending.clear()
        self.exchange()

    def write_line_control(self, value: int) -> None:
        """Write LCR: the divisor latch and the break."""
        begun = bool(value & bits.LCR_SBC) and not self._spacing
        self._latched = bool(value & bits.LCR_DLAB)
        self._spacing = bool(value & bits.LCR_SBC)
        if begun and not self._looped:
            self.line.send_break()
        self.exchange()

    def write_modem_control(self, value: int) -> None:
        """Write MCR: the modem outputs, and the loop of the transmitter to the receiver."""
        self._control = value
        self._signal()
        self.exchange()

    def read_line_status(self) -> int:
        """Read LSR, which clears the error bits."""
        status = self.receiver.status() | (0 if self._sending else bits.LSR_THRE | bits.LSR_TEMT)
        self._changed()
        return status

    def read_modem_status(self) -> int:
        """Read MSR, which clears the delta bits."""
        deltas, self._deltas = self._deltas, 0
        self._changed()
        return self._inputs | deltas

    # ---- inside ----

    @property
    def _looped(self) -> bool:
        return bool(self._control & bits.MCR_LOOP)

    def _cause(self) -> int:
        for enable, cause, present in SOURCES:
            if self._enable & enable and present(self):
                return cause
        return bits.IIR_NO_INT

    def _transmit(self) -> bool:
        """Send as much as the line has room for. True when at least one byte was sent."""
        if not self._sending:
            return False
        taken = self._emit(bytes(self._sending))
        del self._sending[:taken]
        self.sent = self.sent or not self._sending
        return taken > 0

    def _emit(self, data: bytes) -> int:
        if self._looped:
            for byte in data:
                self.receiver.put((byte, 0))
        elif not self._spacing:  # a break holds the line, and no byte gets through
            return self.line.send(data)
        return len(data)

    def _refill(self) -> bool:
        """Receive as much as there is room for. True when at least one character came."""
        room = self.receiver.room
        if self._looped or not room:
            return False
        received = self.line.receive(room)
        for character in received:
            self.receiver.put(character)
        return bool(received)

    def _signal(self) -> None:
        """Update the modem lines. In the loop the output pins are off."""
        outside = self.line.set_outputs(0 if self._looped else self._control)
        looped = sum(wire for output, wire in LOOP_WIRES.items() if self._control & output)
        before, self._inputs = self._inputs, looped if self._looped else outside
        changed = before ^ self._inputs
        rung = changed & before & bits.MSR_RI  # the ring indicator counts when it ends
        self._deltas |= ((changed & ~bits.MSR_RI) | rung) >> 4


SOURCES: Sequence[tuple[int, int, Callable[[Uart], bool]]] = (
    (bits.IER_RLSI, bits.IIR_RLSI, lambda uart: uart.receiver.failed),
    (bits.IER_RDI, bits.IIR_RDI, lambda uart: uart.receiver.ready),
    (bits.IER_RDI, bits.IIR_RX_TIMEOUT, lambda uart: uart.receiver.timed_out),
    (bits.IER_THRI, bits.IIR_THRI, lambda uart: uart.sent),
    (bits.IER_MSI, bits.IIR_MSI, lambda uart: uart.modem_changed),
)
"""IER bit, IIR value and condition of each interrupt, the most urgent first."""

LAYOUT = Layout(
    8,
    [
        Register(0, 1, "DATA", on_read=Uart.read_data, on_write=Uart.write_data),
        Register(1, 1, "IER", on_read=Uart.read_enable, on_write=Uart.write_enable),
        Register(2, 1, "IIR", on_read=Uart.read_identification, on_write=Uart.write_fifo_control),
        Register(3, 1, "LCR", on_write=Uart.write_line_control),
        Register(4, 1, "MCR", rw_mask=bits.MCR_MASK, on_write=Uart.write_modem_control),
        Register(5, 1, "LSR", rw_mask=0, on_read=Uart.read_line_status),
        Register(6, 1, "MSR", rw_mask=0, on_read=Uart.read_modem_status),
        Register(7, 1, "SCR"),
    ],
)
