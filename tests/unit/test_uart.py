# SPDX-License-Identifier: Apache-2.0
"""The 16550A against its data sheet, as tables, and as properties of what a driver gets back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.models.mtty import Mtty
from devmodel.models.uart import Uart
from devmodel.models.uart_line import LINE_SIZE, Character, LoopbackPlug, SerialLine
from devmodel.pci.regs import Command

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR
NO_INT, THRE, RDA, TIMEOUT, RLS, MODEM = 0x01, 0x02, 0x04, 0x0C, 0x06, 0x00
FIFO, CLEAR_RX, CLEAR_TX = 0x01, 0x02, 0x04
DR, OE, PE, FE, BI, EMPTY, FIFO_ERROR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x60, 0x80
DTR, RTS, OUT1, OUT2, LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
BREAK, DLAB = 0x40, 0x80


class Remote(SerialLine):
    """A line that a test pulls at: it takes `room` bytes, and gives what `incoming` holds."""

    kind = "remote"

    def __init__(self, room: int = 10**9) -> None:
        self.room = room
        self.sent = bytearray()
        self.incoming: deque[Character] = deque()
        self.inputs = 0
        self.outputs = -1
        self.breaks = 0

    @property
    def name(self) -> str:
        return self.kind

    def send(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def receive(self, room: int) -> Sequence[Character]:
        return [self.incoming.popleft() for _ in range(min(room, len(self.incoming)))]

    def set_outputs(self, outputs: int) -> int:
        self.outputs = outputs
        return self.inputs

    def send_break(self) -> None:
        self.breaks += 1


class Port:
    """A UART as its driver sees it."""

    def __init__(self, line: SerialLine | None = None) -> None:
        self.remote = line if isinstance(line, Remote) else Remote()
        self.uart = Uart(line or self.remote, self._changed)
        self.asserted = False

    def _changed(self) -> None:
        self.asserted = self.uart.pending

    def get(self, register: int) -> int:
        return self.uart.region.read(register, 1)[0]

    def put(self, register: int, *values: int) -> None:
        for value in values:
            self.uart.region.write(register, bytes([value]))

    def arrive(self, *characters: int | Character) -> None:
        """Let these come from the line."""
        self.remote.incoming.extend((each, 0) if isinstance(each, int) else each for each in characters)
        self.uart.exchange()

    @property
    def cause(self) -> int:
        """IIR without its FIFO bits, which has to agree with the interrupt."""
        asserted = self.asserted
        value = self.get(IIR) & 0x3F
        assert asserted is (value != NO_INT)
        return value

    def drain(self) -> list[int]:
        """Read as long as there is data."""
        read = []
        while self.get(LSR) & DR:
            read.append(self.get(DATA))
        return read


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def plug() -> Port:
    return Port(LoopbackPlug())


def test_master_reset(port: Port) -> None:
    assert [port.get(register) for register in range(8)] == [0, 0, NO_INT, 0, 0, EMPTY, 0, 0]
    port.put(FCR, FIFO | 0xC0)
    port.put(IER, 0x0F)
    port.put(MCR, LOOP | RTS)
    port.put(DATA, 1)
    port.put(LCR, DLAB | BREAK)
    port.put(SCR, 0x5A)
    port.uart.region.reset()
    port.uart.reset()
    assert [port.get(register) for register in range(8)] == [0, 0, NO_INT, 0, 0, EMPTY, 0, 0]
    port.put(LCR, DLAB)
    assert (port.get(DATA), port.get(IER)) == (1, 0)


def test_each_register_keeps_its_bits(port: Port) -> None:
    for value in (0x00, 0xFF, 0x5A, 0xA5):
        port.put(IER, value)
        port.put(SCR, value)
        port.put(MCR, value)
        port.put(LCR, value)
        expected = [value & 0x0F, value, value & 0x1F, value]
        port.put(LCR, value & 0x7F)
        assert [port.get(IER), port.get(SCR), port.get(MCR), port.get(LCR) | value & 0x80] == expected


@pytest.mark.parametrize("register", [LSR, MSR])
def test_status_registers_cannot_be_written(port: Port, register: int) -> None:
    before = port.get(register)
    port.put(register, 0xFF)
    assert port.get(register) == before


def test_divisor_latch_covers_data_and_enable_without_disturbing_them(port: Port) -> None:
    port.put(IER, 0x05)
    port.arrive(0x41)
    port.put(LCR, DLAB | 0x03)
    port.put(DATA, 0x34)
    port.put(IER, 0x12)
    assert (port.get(DATA), port.get(IER)) == (0x34, 0x12)
    port.put(LCR, 0x03)
    assert (port.get(DATA), port.get(IER)) == (0x41, 0x05)
    assert port.remote.sent == b""


# ---- interrupts ----


def overrun(port: Port) -> None:
    port.put(MCR, LOOP)
    port.put(DATA, *range(17))
    port.put(MCR, 0)


def ring(port: Port) -> None:
    port.put(MCR, LOOP | OUT1)
    port.put(MCR, LOOP)


SOURCES = {
    "overrun": (overrun, 0x04, RLS, LSR),
    "break": (lambda port: port.arrive((0, BI | FE)), 0x04, RLS, LSR),
    "framing": (lambda port: port.arrive((1, FE)), 0x04, RLS, LSR),
    "parity": (lambda port: port.arrive((1, PE)), 0x04, RLS, LSR),
    "data": (lambda port: port.arrive(*range(14)), 0x01, RDA, DATA),
    "time-out": (lambda port: port.arrive(1), 0x01, TIMEOUT, DATA),
    "empty": (lambda port: port.put(DATA, 1), 0x02, THRE, IIR),
    "modem": (ring, 0x08, MODEM, MSR),
}
"""How it comes about, its bit of IER, its IIR, and the register whose reading ends it."""


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_interrupts_when_enabled_and_until_it_is_read(port: Port, source: str) -> None:
    happen, enable, cause, register = SOURCES[source]
    port.put(FCR, FIFO | 0xC0)
    happen(port)
    assert port.cause == NO_INT
    port.put(IER, 0x0F & ~enable)
    assert port.get(IIR) & 0x3F != cause
    port.put(IER, enable)
    assert port.cause == cause
    port.get(register)
    assert port.cause == (TIMEOUT if source == "data" else NO_INT)


def test_the_most_urgent_source_is_named_until_it_is_gone(port: Port) -> None:
    port.put(FCR, FIFO | 0x40)
    overrun(port)
    port.put(IER, 0x0F)
    ring(port)
    port.put(MCR, 0)
    named = [port.cause]
    port.get(LSR)
    named.append(port.cause)
    for _ in range(13):
        port.get(DATA)
    named.append(port.cause)
    for _ in range(3):
        port.get(DATA)
    named += [port.cause, port.cause]
    port.get(MSR)
    assert [*named, port.cause] == [RLS, RDA, TIMEOUT, THRE, MODEM, NO_INT]


def test_a_less_urgent_source_stays_when_a_more_urgent_one_is_read(port: Port) -> None:
    port.put(IER, 0x03)
    port.arrive(1)
    assert [port.cause, port.cause] == [RDA, RDA]  # reading IIR does not tell of THRE
    port.get(DATA)
    assert [port.cause, port.cause] == [THRE, NO_INT]


@pytest.mark.parametrize(("trigger", "level"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_trigger_levels(port: Port, trigger: int, level: int) -> None:
    port.put(IER, 0x01)
    port.put(FCR, FIFO | trigger)
    for count in range(1, 17):
        port.arrive(count)
        assert port.cause == (RDA if count >= level else TIMEOUT)
    for count in range(15, 0, -1):
        port.get(DATA)
        assert port.cause == (RDA if count >= level else TIMEOUT)
    port.get(DATA)
    assert port.cause == NO_INT


def test_a_trigger_level_takes_effect_at_once(port: Port) -> None:
    port.put(IER, 0x01)
    port.put(FCR, FIFO | 0xC0)
    port.arrive(*range(5))
    assert port.cause == TIMEOUT
    port.put(FCR, FIFO | 0x40)
    assert port.cause == RDA


@pytest.mark.parametrize("controls", [[], [FIFO | 0xC0, 0], [0xC0]])
def test_without_fifo_each_byte_interrupts(port: Port, controls: list[int]) -> None:
    port.put(IER, 0x01)
    port.put(FCR, *controls)
    port.arrive(7, 8)
    assert port.get(IIR) == RDA
    assert [port.get(DATA), port.cause, port.get(DATA), port.cause] == [7, RDA, 8, NO_INT]


class TestEmptyTransmitter:
    def test_enabling_its_interrupt_raises_it_and_reading_iir_ends_it(self, port: Port) -> None:
        port.put(IER, 0x02)
        assert [port.cause, port.cause] == [THRE, NO_INT]

    def test_enabling_it_again_raises_it_again(self, port: Port) -> None:
        port.put(IER, 0x02)
        assert port.cause == THRE
        port.put(IER, 0x02)
        assert port.cause == NO_INT
        port.put(IER, 0)
        port.put(IER, 0x02)
        assert port.cause == THRE

    def test_disabling_it_takes_it_away(self, port: Port) -> None:
        port.put(IER, 0x02)
        port.put(IER, 0x00)
        assert port.cause == NO_INT

    @pytest.mark.parametrize("control", [0, FIFO])
    def test_writing_data_ends_it_until_that_is_sent(self, control: int) -> None:
        port = Port(Remote(room=0))
        port.put(FCR, control)
        port.put(IER, 0x02)
        port.put(DATA, 1)
        assert port.cause == NO_INT and port.get(LSR) & EMPTY == 0
        port.remote.room = 1
        port.uart.exchange()
        assert port.get(LSR) & EMPTY == EMPTY and [port.cause, port.cause] == [THRE, NO_INT]

    def test_it_is_not_raised_for_a_transmitter_with_data(self) -> None:
        port = Port(Remote(room=0))
        port.put(DATA, 1)
        port.put(IER, 0x02)
        assert port.cause == NO_INT

    def test_it_waits_for_the_whole_fifo(self) -> None:
        port = Port(Remote(room=15))
        port.put(FCR, FIFO)
        port.put(IER, 0x02)
        port.get(IIR)
        port.put(DATA, *range(16))
        assert port.get(LSR) & EMPTY == 0 and port.cause == NO_INT
        port.remote.room = 1
        port.uart.exchange()
        assert port.cause == THRE and port.remote.sent == bytes(range(16))

    def test_clearing_the_transmitter_raises_it(self) -> None:
        port = Port(Remote(room=0))
        port.put(FCR, FIFO)
        port.put(IER, 0x02)
        port.put(DATA, 1, 2)
        port.put(FCR, FIFO | CLEAR_TX)
        assert port.cause == THRE and port.get(LSR) == EMPTY
        port.remote.room = 9
        port.uart.exchange()
        assert port.remote.sent == b""


# ---- FIFOs ----


def test_iir_shows_the_fifo(port: Port) -> None:
    assert port.get(IIR) == 0x01
    port.put(FCR, FIFO)
    assert port.get(IIR) == 0xC1
    port.put(FCR, CLEAR_RX | CLEAR_TX | 0xC0)
    assert port.get(IIR) == 0x01


@pytest.mark.parametrize(("before", "control"), [(FIFO, FIFO | CLEAR_RX), (FIFO, 0), (0, FIFO)])
def test_clearing_or_switching_the_fifo_empties_it(port: Port, before: int, control: int) -> None:
    port.put(FCR, before)
    port.arrive(1)
    port.put(FCR, before)
    assert port.get(LSR) & DR
    port.put(FCR, control)
    assert port.get(LSR) == EMPTY and port.get(DATA) == 0


def test_clear_bits_mean_nothing_without_the_enable_bit(port: Port) -> None:
    port.arrive(1)
    port.put(FCR, CLEAR_RX | CLEAR_TX)
    assert port.drain() == [1]


def test_clearing_the_receiver_leaves_the_transmitter_and_the_reverse() -> None:
    port = Port(Remote(room=0))
    port.put(FCR, FIFO)
    port.put(DATA, 1)
    port.arrive(2)
    port.put(FCR, FIFO | CLEAR_RX)
    assert port.get(LSR) == 0
    port.arrive(3)
    port.put(FCR, FIFO | CLEAR_TX)
    assert port.get(LSR) == EMPTY | DR


def test_a_full_transmitter_loses_what_is_written(port: Port) -> None:
    port.remote.room = 0
    port.put(DATA, 1, 2)
    assert port.uart.pending is False
    port.remote.room = 99
    port.uart.exchange()
    assert port.remote.sent == b"\2"  # a lone register holds the last
    port.remote.room = 0
    port.put(FCR, FIFO)
    port.put(DATA, *range(20))
    port.remote.room = 99
    port.uart.exchange()
    assert port.remote.sent == b"\2" + bytes(range(16))


def test_what_the_receiver_has_no_room_for_waits_on_the_line(port: Port) -> None:
    port.put(FCR, FIFO)
    port.arrive(*range(40))
    assert len(port.remote.incoming) == 24
    assert port.drain() == list(range(40)) and port.get(LSR) == EMPTY


# ---- errors ----


def test_an_overrun_loses_the_newest_with_a_fifo(port: Port) -> None:
    port.put(FCR, FIFO)
    overrun(port)
    assert [port.get(LSR), port.get(LSR)] == [EMPTY | DR | OE, EMPTY | DR]
    assert port.drain() == list(range(16))


def test_an_overrun_loses_the_oldest_without(port: Port) -> None:
    port.put(MCR, LOOP)
    port.put(DATA, 1, 2)
    assert [port.get(LSR), port.get(DATA), port.get(LSR)] == [EMPTY | DR | OE, 2, EMPTY]


@pytest.mark.parametrize("error", [PE, FE, BI | FE])
def test_an_error_shows_when_its_character_is_on_top(port: Port, error: int) -> None:
    port.put(FCR, FIFO)
    port.put(IER, 0x04)
    port.arrive(1, (2, error), 3)
    assert port.cause == NO_INT and port.get(LSR) == EMPTY | DR | FIFO_ERROR
    assert port.get(DATA) == 1
    assert port.cause == RLS
    assert [port.get(LSR), port.get(LSR)] == [EMPTY | DR | FIFO_ERROR | error, EMPTY | DR]
    assert port.cause == NO_INT and port.drain() == [2, 3]


def test_fifo_error_stays_while_another_is_in_the_fifo(port: Port) -> None:
    port.put(FCR, FIFO)
    port.arrive((1, PE), 2, (3, FE))
    assert [port.get(LSR), port.get(LSR)] == [EMPTY | DR | FIFO_ERROR | PE, EMPTY | DR | FIFO_ERROR]
    assert [port.get(DATA), port.get(DATA)] == [1, 2]
    assert [port.get(LSR), port.get(LSR)] == [EMPTY | DR | FIFO_ERROR | FE, EMPTY | DR]


def test_fifo_error_is_of_the_fifo_only(port: Port) -> None:
    port.arrive((1, PE))
    assert port.get(LSR) == EMPTY | DR | PE


def test_an_unread_error_stays_when_its_character_is_read(port: Port) -> None:
    port.put(FCR, FIFO)
    port.arrive((1, PE), 2)
    assert [port.get(DATA), port.get(DATA)] == [1, 2]
    assert port.get(LSR) & ~FIFO_ERROR == EMPTY | PE


# ---- modem lines and MCR's loop ----

LOOP_WIRES = {DTR: (0x20, 0x02), RTS: (0x10, 0x01), OUT1: (0x40, 0x00), OUT2: (0x80, 0x08)}
"""For each output, the input it is wired to and the delta of its rise."""


@pytest.mark.parametrize("outputs", range(16))
def test_the_loop_wires_outputs_to_inputs(port: Port, outputs: int) -> None:
    port.put(MCR, LOOP)
    port.get(MSR)
    wires = [LOOP_WIRES[1 << bit] for bit in range(4) if outputs & 1 << bit]
    levels, rises = sum(level for level, _ in wires), sum(delta for _, delta in wires)
    port.put(MCR, LOOP | outputs)
    assert [port.get(MSR), port.get(MSR)] == [levels | rises, levels]
    port.put(MCR, LOOP)
    falls = rises | (0x04 if outputs & OUT1 else 0)
    assert [port.get(MSR), port.get(MSR)] == [falls, 0]
    assert port.remote.outputs == 0  # the pins are off


def test_the_loop_disconnects_the_line(port: Port) -> None:
    port.remote.inputs = 0xB0
    port.put(MCR, DTR | RTS)
    assert port.remote.outputs == DTR | RTS and port.get(MSR) == 0xBB
    port.put(MCR, LOOP)
    port.put(DATA, 0x55)
    port.arrive(0x66)
    assert port.get(MSR) == 0x0B and port.get(DATA) == 0x55 and not port.get(LSR) & DR
    port.put(MCR, 0)
    assert port.get(MSR) == 0xBB and port.get(DATA) == 0x66 and port.remote.sent == b""


def test_a_transmitter_that_waits_goes_into_the_loop() -> None:
    port = Port(Remote(room=0))
    port.put(DATA, 0x55)
    port.put(MCR, LOOP)
    assert port.get(LSR) == EMPTY | DR and port.get(DATA) == 0x55


def test_deltas_add_up_until_msr_is_read(port: Port) -> None:
    port.put(MCR, LOOP)
    for outputs in (RTS, 0, OUT1, 0, OUT2):
        port.put(MCR, LOOP | outputs)
    assert [port.get(MSR), port.get(MSR)] == [0x80 | 0x08 | 0x04 | 0x01, 0x80]


@pytest.mark.parametrize(
    ("outputs", "inputs"), [(0, 0), (RTS, 0x10), (DTR, 0xA0), (DTR | RTS, 0xB0), (OUT1 | OUT2, 0)]
)
def test_the_loopback_plug_wires_rts_and_dtr(plug: Port, outputs: int, inputs: int) -> None:
    plug.put(MCR, outputs)
    assert plug.get(MSR) == inputs | inputs >> 4


def test_plugging_changes_the_inputs(plug: Port) -> None:
    plug.put(MCR, RTS | DTR)
    plug.get(MSR)
    plug.put(IER, 0x08)
    plug.uart.plug(Remote())
    assert plug.cause == MODEM and plug.get(MSR) == 0x0B


# ---- the line ----


def test_a_break_comes_back_from_the_plug_once(plug: Port) -> None:
    plug.put(FCR, FIFO)
    plug.put(LCR, 0x43)
    plug.put(LCR, 0x43)
    plug.put(DATA, 1)  # into the break: lost
    assert plug.get(LSR) == EMPTY | DR | FIFO_ERROR | BI | FE
    plug.put(LCR, 0x03)
    plug.put(DATA, 2)
    assert plug.drain() == [0, 2]


def test_a_break_does_not_leave_the_loop(port: Port) -> None:
    port.put(MCR, LOOP)
    port.put(LCR, BREAK)
    port.put(DATA, 1)
    assert port.remote.breaks == 0 and port.drain() == [1]
    port.put(LCR, 0)
    port.put(MCR, 0)
    port.put(LCR, BREAK)
    assert port.remote.breaks == 1


def test_the_plug_holds_a_bounded_number_of_breaks(plug: Port) -> None:
    for _ in range(LINE_SIZE + 100):
        plug.put(LCR, BREAK)
        plug.put(LCR, 0)
    assert plug.drain() == [0] * (LINE_SIZE + 1)


def test_the_transmitter_waits_for_a_full_plug(plug: Port) -> None:
    plug.put(FCR, FIFO)
    plug.put(IER, 0x02)
    written = 0
    while plug.get(LSR) & EMPTY:
        plug.put(DATA, written & 0xFF)
        written += 1
    assert written == LINE_SIZE + 16 + 1
    assert plug.cause == NO_INT
    assert plug.get(DATA) == 0
    assert plug.cause == THRE and plug.get(LSR) == EMPTY | DR
    assert plug.drain() == [number & 0xFF for number in range(1, written)]


def test_clearing_the_receiver_empties_the_plug(plug: Port) -> None:
    plug.put(FCR, FIFO)
    plug.put(DATA, *range(100))
    plug.put(FCR, FIFO | CLEAR_RX)
    assert plug.get(LSR) == EMPTY


# ---- as drivers use it ----


def test_a_driver_finds_a_16550a(plug: Port) -> None:
    """What drivers look at to tell the kinds of UART apart."""
    found = []
    for value in (0x00, 0x0F, 0xFF):
        plug.put(IER, value)
        found.append(plug.get(IER))
    plug.put(IER, 0)
    plug.put(MCR, LOOP | OUT2 | RTS)
    found.append(plug.get(MSR) & 0xF0)
    plug.put(MCR, 0)
    for value in (0xA5, 0x5A):
        plug.put(SCR, value)
        found.append(plug.get(SCR))
    for value in (FIFO, FIFO | 0x20):  # 0x20 would be a 16750's 64 bytes
        plug.put(FCR, value)
        found.append(plug.get(IIR))
    plug.put(LCR, 0xBF)  # would be a 16650's and later ones' extended registers
    found.append(plug.get(IIR))
    assert found == [0x00, 0x0F, 0x0F, 0x90, 0xA5, 0x5A, 0xC1, 0xC1, 0xC1]


def test_a_driver_finds_no_fault_with_thre(plug: Port) -> None:
    """THRE is raised again by enabling it again, and shows in LSR and IIR alike."""
    for _ in range(2):
        plug.put(IER, 0x02)
        assert plug.get(LSR) & EMPTY == EMPTY and plug.get(IIR) == THRE
        plug.put(IER, 0)
        assert plug.get(IIR) == NO_INT


def service(port: Port, pending: deque[int], received: list[int]) -> None:
    """An interrupt-driven driver: reads what there is, and writes 16 bytes whenever THR is empty."""
    while port.asserted:
        cause = port.cause
        status = port.get(LSR)
        assert not status & (OE | PE | FE | BI)
        if cause in (RDA, TIMEOUT):
            while port.get(LSR) & DR:
                received.append(port.get(DATA))
        elif cause == THRE:
            port.put(DATA, *(pending.popleft() for _ in range(min(16, len(pending)))))


def test_64_kib_come_back_to_an_interrupt_driven_driver(plug: Port) -> None:
    data = bytes(value * 7 + (value >> 8) & 0xFF for value in range(65536))
    pending, received = deque(data), list[int]()
    plug.put(FCR, FIFO | 0x80)
    plug.put(IER, 0x03)
    service(plug, pending, received)
    assert bytes(received) == data and not pending


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 16)),
        st.tuples(st.just("read"), st.integers(1, 40)),
        st.tuples(st.just("room"), st.integers(1, 20)),
        st.tuples(st.just("trigger"), st.sampled_from([0x00, 0x40, 0x80, 0xC0])),
        st.tuples(st.just("enable"), st.integers(0, 15)),
        st.tuples(st.just("look"), st.sampled_from([IIR, LSR, MSR, MCR, LCR])),
    ),
    max_size=60,
)


class Narrow(LoopbackPlug):
    """A plug that takes bytes only as a test lets it."""

    __slots__ = ("room",)

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def send(self, data: bytes) -> int:
        taken = super().send(data[: self.room])
        self.room -= taken
        return taken


@given(steps, st.booleans(), st.booleans())
def test_all_bytes_come_back_in_order_whatever_the_timing(
    script: list[tuple[str, int]], fifo: bool, narrow: bool
) -> None:
    line = Narrow(0 if narrow else 10**9)
    port, written, received = Port(line), list[int](), list[int]()
    port.put(FCR, FIFO if fifo else 0)
    for what, number in script:
        if what == "write" and port.get(LSR) & EMPTY:
            burst = [len(written) + index & 0xFF for index in range(number if fifo else 1)]
            port.put(DATA, *burst)
            written += burst
        elif what == "read":
            received += [port.get(DATA) for _ in range(number) if port.get(LSR) & DR]
        elif what == "room":
            line.room += number
            port.uart.exchange()
        elif what == "trigger" and fifo:
            port.put(FCR, FIFO | number)
        elif what == "enable":
            port.put(IER, number)
        elif what == "look":
            port.get(number)
        assert received == written[: len(received)]
        assert port.asserted is port.uart.pending
    line.room = 10**9
    port.uart.exchange()
    assert received + port.drain() == written


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7), st.integers(0, 8), st.binary(max_size=8))))
def test_no_access_fails_and_the_line_is_what_iir_says(
    accesses: list[tuple[int, int, int, bytes]],
) -> None:
    card = Mtty("serial", 0, {"ports": 2})
    for index, offset, size, data in accesses:
        if data:
            card.write(index, offset, data)
        else:
            assert len(card.read(index, offset, size)) == min(size, 8 - offset)
        assert card.irq.intx.asserted is any(port.pending for port in card.ports)
    causes = [card.read(index, IIR, 1)[0] & 1 for index in range(2) if card.irq.intx.asserted]
    assert not causes or 0 in causes
    card.close()


def asserted(card: Mtty) -> bool:
    return card.irq.intx.asserted


def test_the_ports_share_the_line() -> None:
    card = Mtty("serial", 0, {"ports": 2})
    for index in (0, 1):
        card.write(index, IER, b"\1")
        card.write(index, DATA, b"x")
    line = [asserted(card)]
    for index in (1, 0):
        card.read(index, DATA, 1)
        line.append(asserted(card))
    assert line == [True, True, False]


def test_reset_and_close_leave_nothing_pending() -> None:
    card = Mtty("serial")
    card.write(0, IER, b"\3")
    card.write(0, DATA, b"x")
    assert asserted(card)
    card.reset()
    assert not asserted(card)
    assert card.read(0, 0, 8) == bytes([0, 0, NO_INT, 0, 0, EMPTY, 0, 0])
    card.write(0, IER, b"\2")
    assert asserted(card)
    card.close()


def test_a_port_answers_only_while_io_is_decoded() -> None:
    card = Mtty("serial")
    card.write(0, SCR, b"\x5a")
    card.write(7, 4, bytes(2))
    assert card.read(0, 0, 8) == b"\xff" * 8
    card.write(0, SCR, b"\0")
    card.write(7, 4, Command.IO.to_bytes(2, "little"))
    assert card.read(0, SCR, 1) == b"\x5a"
