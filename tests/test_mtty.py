# SPDX-License-Identifier: Apache-2.0
"""The serial card on a real mount: interrupts, the loopback plug, and pseudo-terminals of the host."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import open_files
from tests.labs import MountedLab, Vgpu
from tests.unit.fakes import fails
from tests.vfio.client import DEVICE_RESET
from tests.vfio.devices import (
    EVENTFD,
    INTX,
    NONE,
    TRIGGER,
    UNMASK,
    Device,
    eventfd,
    opened,
    signals,
    silent,
)
from tests.waiting import settled, wait_for

DATA, IER, IIR, LCR, MCR, LSR, MSR = range(7)
FCR = IIR
THRE, RDA, TIMEOUT = 0x02, 0x04, 0x0C
DTR, ON = 0x01, 0x0B
DR, ERRORS, EMPTY = 0x01, 0x9E, 0x20
SECONDS = 30


class Serial:
    """A driver of one port of an open card, which it sets up with FIFOs, RTS and DTR."""

    def __init__(self, device: Device, port: int = 0) -> None:
        self.device, self.base = device, port << 40
        self.interrupts = 0
        self.put(FCR, 0x87)
        self.put(LCR, 0x03)
        self.put(MCR, ON)

    def get(self, register: int) -> int:
        return os.pread(self.device.fd, 1, self.base + register)[0]

    def put(self, register: int, *values: int) -> None:
        for value in values:
            os.pwrite(self.device.fd, bytes([value]), self.base + register)

    def handle(self, sending: bytearray, received: bytearray) -> None:
        """Handle what interrupted, as a driver does."""
        self.interrupts += 1
        cause = self.get(IIR) & 0x3F
        assert cause in (THRE, RDA, TIMEOUT) and not self.get(LSR) & ERRORS
        if cause == THRE:
            self.put(DATA, *sending[:16])
            del sending[:16]
        else:
            while self.get(LSR) & DR:
                received.append(self.get(DATA))

    def fill(self) -> bytes:
        """Send until the transmitter waits; returns all of it."""
        sent = bytearray()
        while self.get(LSR) & EMPTY:
            burst = os.urandom(16)
            self.put(DATA, *burst)
            sent += burst
            assert len(sent) < 1 << 20
        return bytes(sent)

    def poll(self, size: int) -> bytes:
        """Read `size` bytes without interrupts."""
        received = bytearray()

        def complete() -> bool:
            while len(received) < size and self.get(LSR) & DR:
                received.append(self.get(DATA))
            return len(received) == size

        wait_for(complete, SECONDS)
        return bytes(received)


def rest_of(fd: int, size: int) -> bytes:
    """Read `size` bytes of a terminal."""
    read = bytearray()
    while len(read) < size:
        assert select.select([fd], [], [], SECONDS)[0], f"{len(read)} of {size} bytes came"
        read += os.read(fd, size - len(read))
    return bytes(read)


@contextlib.contextmanager
def terminal(vgpu: Vgpu, port: int = 0) -> Iterator[int]:
    """The slave of the port's pseudo-terminal, which this makes."""
    attribute = vgpu.path / f"port{port}"
    attribute.write_text("pty")
    fd = os.open(attribute.read_text().strip(), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def card(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create("mtty-2", "mtty") as vgpu:
        yield vgpu


@pytest.fixture
def device(lab: MountedLab, card: Vgpu) -> Iterator[Device]:
    with opened(lab, card.group, card.name) as found:
        yield found.device


@pytest.fixture
def event() -> Iterator[int]:
    with eventfd() as fd:
        yield fd


# ---- attributes ----


def test_each_port_has_an_attribute(lab: MountedLab) -> None:
    for type_name, ports in (("mtty-1", ["port0"]), ("mtty-2", ["port0", "port1"])):
        with lab.create(type_name, "mtty") as vgpu:
            assert sorted(path.name for path in vgpu.path.glob("port*")) == ports
            for name in ports:
                path = vgpu.path / name
                assert path.read_text() == "loopback\n"
                assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_port_becomes_a_terminal_and_a_plug_again(card: Vgpu) -> None:
    attribute = card.path / "port1"
    attribute.write_text("pty\n")
    path = Path(attribute.read_text().strip())
    assert path.parent == Path("/dev/pts") and path.is_char_device()
    attribute.write_text("pty")
    assert attribute.read_text() == f"{path}\n"  # the one it has
    assert (card.path / "port0").read_text() == "loopback\n"
    attribute.write_text("loopback")
    assert attribute.read_text() == "loopback\n" and not path.exists()


@pytest.mark.parametrize("text", ["", "PTY", "pty 1", "/dev/pts/0", "loop"])
def test_nothing_else_can_be_plugged_in(card: Vgpu, text: str) -> None:
    with (card.path / "port0").open("w") as attribute:
        fails(errno.EINVAL, os.write, attribute.fileno(), f"{text}\n".encode())
    assert (card.path / "port0").read_text() == "loopback\n"


def test_a_terminal_goes_with_its_card(lab: MountedLab) -> None:
    before = settled(lambda: open_files(lab.pid))
    with lab.create("mtty-2", "mtty") as vgpu:
        with terminal(vgpu, 0) as one, terminal(vgpu, 1) as other, opened(lab, vgpu.group, vgpu.name):
            paths = [os.ttyname(one), os.ttyname(other)]
            assert open_files(lab.pid) >= before + 4
        assert all(os.path.exists(path) for path in paths)  # whether or not anybody has it open
    assert not any(os.path.exists(path) for path in paths)
    wait_for(lambda: open_files(lab.pid) <= before, SECONDS)


# ---- interrupts ----


def test_enabling_thre_interrupts_and_unmasking_repeats_it(device: Device, event: int) -> None:
    serial = Serial(device)
    device.eventfds(INTX, TRIGGER, 0, event)
    serial.put(IER, 0x02)
    assert signals(event) == 1
    device.irqs(INTX, NONE | UNMASK, 0, 1)
    assert signals(event) == 1  # the line is still asserted
    assert serial.get(IIR) == 0xC2
    device.irqs(INTX, NONE | UNMASK, 0, 1)
    assert silent(event) and serial.get(IIR) == 0xC1


def test_the_status_register_shows_the_line(device: Device) -> None:
    serial = Serial(device)
    serial.put(IER, 0x02)
    assert device.config(6) & 0x08
    serial.get(IIR)
    assert not device.config(6) & 0x08


@pytest.mark.parametrize("by_eventfd", [False, True])
def test_an_interrupt_driven_transfer(device: Device, event: int, by_eventfd: bool) -> None:
    data, serial = os.urandom(8192), Serial(device)
    sending, received = bytearray(data), bytearray()
    device.eventfds(INTX, TRIGGER, 0, event)
    with eventfd() as unmask:
        if by_eventfd:
            device.eventfds(INTX, UNMASK, 0, unmask)
        serial.put(IER, 0x03)
        while len(received) < len(data):
            assert signals(event, SECONDS) == 1
            serial.handle(sending, received)
            if by_eventfd:
                os.eventfd_write(unmask, 1)
            else:
                device.irqs(INTX, NONE | UNMASK, 0, 1)
    assert received == data and serial.interrupts >= 2 * len(data) // 16


def test_the_ports_share_the_line(device: Device, event: int) -> None:
    ports = [Serial(device, index) for index in range(2)]
    device.eventfds(INTX, TRIGGER, 0, event)
    for serial in ports:
        serial.put(IER, 0x01)
        serial.put(DATA, 0x41)
    assert signals(event) == 1
    assert ports[0].get(DATA) == 0x41
    device.irqs(INTX, NONE | UNMASK, 0, 1)
    assert signals(event) == 1
    assert ports[1].get(DATA) == 0x41
    device.irqs(INTX, NONE | UNMASK, 0, 1)
    assert silent(event)


def test_a_late_eventfd_gets_what_is_pending(device: Device, event: int) -> None:
    Serial(device).put(IER, 0x02)
    device.eventfds(INTX, TRIGGER, 0, event)
    assert signals(event) == 1


def test_bytes_wait_for_a_client_that_reads_late(device: Device) -> None:
    data, serial = os.urandom(16384), Serial(device)
    sending, received = bytearray(data), bytearray()
    while len(received) < len(data):
        while sending and serial.get(LSR) & EMPTY:
            serial.put(DATA, *sending[:16])
            del sending[:16]
        received += serial.poll(min(4096, len(data) - len(received)))
    assert received == data


# ---- pseudo-terminals ----


def test_what_the_host_writes_arrives_with_an_interrupt(card: Vgpu, device: Device, event: int) -> None:
    with terminal(card) as fd:
        serial = Serial(device)
        device.eventfds(INTX, TRIGGER, 0, event)
        serial.put(IER, 0x01)
        assert silent(event) and serial.get(IIR) == 0xC1
        os.write(fd, b"hello\r\n\x03\x04\xff")
        assert signals(event, SECONDS) == 1
        assert serial.poll(10) == b"hello\r\n\x03\x04\xff"
        assert serial.get(IIR) == 0xC1


def test_what_the_client_writes_appears_on_the_terminal(card: Vgpu, device: Device) -> None:
    with terminal(card, 1) as fd:
        serial = Serial(device, 1)
        serial.put(DATA, *b"login:\n\x11\x13")
        assert rest_of(fd, 9) == b"login:\n\x11\x13"
        assert serial.get(LSR) == 0x60 and serial.get(MSR) & 0xF0 == 0xB0


def test_a_terminal_has_the_port_to_itself(card: Vgpu, device: Device) -> None:
    with terminal(card, 0):
        one, other = Serial(device, 0), Serial(device, 1)
        one.put(DATA, 1)
        other.put(DATA, 2)
        assert not one.get(LSR) & DR and other.get(DATA) == 2


def test_bytes_wait_for_the_client_and_for_its_rts(lab: MountedLab, card: Vgpu) -> None:
    with terminal(card) as fd:
        os.write(fd, bytes(range(100)))
        with opened(lab, card.group, card.name) as found:
            serial = Serial(found.device)
            assert serial.poll(50) == bytes(range(50))
            serial.put(MCR, DTR)  # what is in the FIFO comes, and no more
            received = [serial.get(DATA) for _ in range(40) if serial.get(LSR) & DR]
            assert len(received) <= 16
            serial.put(FCR, 0x87)
        with opened(lab, card.group, card.name) as found:
            serial = Serial(found.device)
            rest = bytes(range(50 + len(received), 100))
            assert bytes(received) == bytes(range(50, 50 + len(received))) and serial.poll(len(rest)) == rest


def test_the_transmitter_waits_for_a_terminal_that_nobody_reads(card: Vgpu, device: Device) -> None:
    with terminal(card) as fd:
        serial = Serial(device)
        sent = serial.fill()
        serial.put(IER, 0x02)
        assert serial.get(IIR) == 0xC1
        assert rest_of(fd, len(sent)) == sent
        wait_for(lambda: serial.get(IIR) == 0xC2, SECONDS)
        serial.put(DATA, 0x55)
        assert rest_of(fd, 1) == b"\x55"


def test_both_ways_at_once(card: Vgpu, device: Device, event: int) -> None:
    out, back = os.urandom(20000), os.urandom(20000)
    sending, received, read = bytearray(out), bytearray(), bytearray()
    with terminal(card) as fd:
        serial = Serial(device)
        writer = threading.Thread(target=write_all, args=(fd, back))
        reader = threading.Thread(target=lambda: read.extend(rest_of(fd, len(out))))
        writer.start()
        reader.start()
        device.eventfds(INTX, TRIGGER, 0, event)
        serial.put(IER, 0x03)
        while sending or len(received) < len(back):
            assert signals(event, SECONDS) == 1, (len(sending), len(received))
            serial.handle(sending, received)
            serial.put(IER, 0x03 if sending else 0x01)
            device.irqs(INTX, NONE | UNMASK, 0, 1)
        writer.join(SECONDS)
        reader.join(SECONDS)
    assert received == back and read == out


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def test_a_reset_keeps_the_terminal(card: Vgpu, device: Device) -> None:
    with terminal(card) as fd:
        Serial(device)
        for _ in range(3):
            device.ioctl(DEVICE_RESET)
            assert (device.config(6) & 0x08, os.pread(device.fd, 8, 0)[MCR]) == (0, 0)
            os.write(fd, b"after")
            serial = Serial(device)
            assert serial.poll(5) == b"after"
            serial.put(DATA, 0x2A)
            assert rest_of(fd, 1) == b"*"


def test_a_port_can_be_replugged_while_it_is_used(card: Vgpu, device: Device) -> None:
    serial = Serial(device)
    for _ in range(5):
        with terminal(card) as fd:
            os.write(fd, b"to the client")
            assert serial.poll(13) == b"to the client"
            serial.put(DATA, 0x41)
            assert rest_of(fd, 1) == b"A"
        (card.path / "port0").write_text("loopback")
        serial.put(DATA, 0x42)
        assert serial.poll(1) == b"B"


def test_replugging_lets_a_stalled_transmitter_go(card: Vgpu, device: Device) -> None:
    with terminal(card):
        serial = Serial(device)
        last = serial.fill()[-1:]
        (card.path / "port0").write_text("loopback")
        assert serial.get(LSR) & EMPTY and serial.poll(16)[-1:] == last


def test_a_client_of_a_terminal_may_die_and_another_take_over(lab: MountedLab, card: Vgpu) -> None:
    with terminal(card) as fd:
        for _ in range(3):
            with opened(lab, card.group, card.name) as found, eventfd() as event:
                serial = Serial(found.device)
                found.device.irqs(INTX, EVENTFD | TRIGGER, 0, 1, event.to_bytes(4, "little"))
                serial.put(IER, 0x01)
                os.write(fd, b"x")
                assert signals(event, SECONDS) and serial.poll(1) == b"x"
                serial.put(IER, 0x00)


def test_a_flood_from_the_host_fills_no_memory(card: Vgpu, device: Device) -> None:
    with terminal(card) as fd:
        os.set_blocking(fd, False)
        serial, data, written = Serial(device), os.urandom(1 << 16), 0
        serial.put(MCR, DTR)
        while select.select([], [fd], [], 0.5)[1]:  # as long as the terminal takes anything
            written += os.write(fd, data[written : written + 256])
            assert written < len(data)
        serial.put(MCR, ON)
        assert serial.poll(written) == data[:written]
