# SPDX-License-Identifier: Apache-2.0
"""DMA into the guest's memory, INTx and MSI-X through QEMU's vfio-pci, its processor being the test.

Each test runs with BARs that are memory mapped into QEMU, with all trapped (x-no-mmap=on), and in each newer
QEMU, which has the devices by iommufd.
"""

from __future__ import annotations

import random
import re
import time

import pytest

from tests.qemu.machine import Machine
from tests.qemu.paused import (
    APIC,
    COMMAND,
    COPIER,
    COPY,
    DONE,
    ENGINE,
    ENGINE_COMMAND,
    FAULT,
    INTX_DISABLE,
    IO,
    LINE,
    MASTER,
    MEMORY,
    MESSAGES,
    MSIX_CAP,
    MSIX_ENABLE,
    MTTY,
    RAM,
    SIZE,
    STATUS,
    UART,
    UART_2,
    VGPU,
    VGPU_VRAM,
    Paused,
)
from tests.qemu.qtest import SECONDS, Qtest

pytestmark = pytest.mark.qemu


def test_dma_in_guest_memory(placed: Paused) -> None:
    content = random.Random(1).randbytes(3 * 4096 + 5)
    source, target = RAM + 0xFFB, RAM + 0x100001
    placed.cpu.write(source, content)
    placed.cpu.write(target - 8, bytes(len(content) + 16))
    assert placed.copy(source, target, len(content)) == DONE
    assert placed.cpu.read(target - 8, len(content) + 16) == bytes(8) + content + bytes(8)


def test_dma_between_devices_memory(placed: Paused) -> None:
    """Where video memory is mapped into QEMU it is in the guest's address space for devices too, by type1."""
    content = random.Random(2).randbytes(4096)
    placed.cpu.write(RAM, content)
    status = placed.copy(RAM, VGPU_VRAM.address + 8192, len(content))
    assert status == (DONE if placed.peer else FAULT)
    with (placed.vgpus[VGPU].path / "resource0").open("rb") as shown:
        shown.seek(8192)
        assert (shown.read(4096) == content) == placed.peer


def test_dma_outside_memory_is_a_fault(placed: Paused) -> None:
    """Beyond the machine's memory, across its end, and into what is read-only: the firmware."""
    end = 256 << 20
    assert placed.copy(RAM, end, 16) == FAULT
    assert placed.copy(RAM, end - 8, 16) == FAULT
    assert placed.copy(RAM, 0xFFFC0000, 16) == FAULT
    assert placed.copy(RAM, end - 16, 16) == DONE


def test_dma_needs_bus_mastering(placed: Paused) -> None:
    placed.cpu.write(RAM, b"out" + bytes(13))
    placed.cpu.set_config(COPIER, COMMAND, 2, MEMORY)
    assert placed.copy(RAM, RAM + 8, 3) == FAULT
    assert placed.cpu.read(RAM + 8, 3) == bytes(3)
    placed.cpu.set_config(COPIER, COMMAND, 2, MEMORY | MASTER)
    assert placed.copy(RAM, RAM + 8, 3) == DONE
    assert placed.cpu.read(RAM + 8, 3) == b"out"


def test_intx_of_the_serial_card(placed: Paused) -> None:
    """An empty transmitter interrupts once it may; saying which interrupt it was ends it. Twice: QEMU masks
    the line and has to unmask it."""
    cpu, line = placed.cpu, LINE[MTTY]
    for port in (UART, UART_2, UART):
        cpu.outport(port.address + 1, 1, 2)
        cpu.wait_level(line, True)
        assert cpu.inport(port.address + 2, 1) & 0x0F == 2
        cpu.wait_level(line, False)
        cpu.outport(port.address + 1, 1, 0)
    assert not cpu.level(LINE[COPIER])


def test_intx_is_held_back_by_interrupt_disable(placed: Paused) -> None:
    cpu, line = placed.cpu, LINE[MTTY]
    cpu.outport(UART.address + 1, 1, 2)
    cpu.wait_level(line, True)
    cpu.set_config(MTTY, COMMAND, 2, IO | MASTER | INTX_DISABLE)
    cpu.wait_level(line, False)
    cpu.set_config(MTTY, COMMAND, 2, IO | MASTER)
    cpu.wait_level(line, True)
    cpu.outport(UART.address + 1, 1, 0)
    cpu.wait_level(line, False)


def test_intx_of_the_copier(placed: Paused) -> None:
    """Without messages it is the line, until the status is cleared."""
    cpu, line = placed.cpu, LINE[COPIER]
    cpu.store(ENGINE.address + SIZE, 4, 0)
    cpu.store(ENGINE.address + ENGINE_COMMAND, 4, COPY)
    cpu.wait_level(line, True)
    assert not cpu.level(LINE[MTTY])
    cpu.store(ENGINE.address + STATUS, 4, DONE)
    cpu.wait_level(line, False)


def test_msix(placed: Paused) -> None:
    """A message is a write to memory, seen where the table says.

    While its vector is masked it is pending, and it comes when that ends. Sent to the local APIC, where there
    is no line that QEMU could intercept, it is seen in the APIC's request register.
    """
    cpu = placed.cpu
    control = placed.capability(COPIER, MSIX_CAP) + 2
    table = MESSAGES.address + (cpu.config(COPIER, control + 2, 4) & ~7)
    pending = MESSAGES.address + (cpu.config(COPIER, control + 6, 4) & ~7)
    raised = len(cpu.raised)
    message(cpu, table, RAM, 0x4D53_4958, masked=False)
    cpu.store(RAM, 4, 0)
    cpu.set_config(COPIER, control, 2, MSIX_ENABLE)
    assert placed.copy(RAM + 64, RAM + 128, 16) == DONE
    placed.wait_memory(RAM, 0x4D53_4958)

    message(cpu, table, RAM + 4, 0x0BAD_CAFE, masked=True)
    cpu.store(RAM + 4, 4, 0)
    assert placed.copy(RAM + 64, RAM + 128, 16) == DONE
    deadline = time.monotonic() + SECONDS
    while not cpu.load(pending, 4) & 1:
        assert time.monotonic() < deadline, "the message is not pending"
    assert cpu.load(RAM + 4, 4) == 0
    cpu.store(table + 12, 4, 0)
    placed.wait_memory(RAM + 4, 0x0BAD_CAFE)

    message(cpu, table, APIC, 0x51, masked=False)
    assert placed.copy(RAM + 64, RAM + 128, 16) == DONE
    wait_requested(placed.machine, 0x51)
    cpu.set_config(COPIER, control, 2, 0)
    assert cpu.raised[raised:] == []


def message(cpu: Qtest, entry: int, address: int, data: int, masked: bool) -> None:
    """Write an entry of the MSI-X table."""
    for at, value in ((12, 1), (0, address), (4, 0), (8, data), (12, int(masked))):
        cpu.store(entry + at, 4, value)


def wait_requested(machine: Machine, vector: int) -> None:
    """Wait for the local APIC to have `vector` in its request register."""
    deadline = time.monotonic() + SECONDS
    while str(vector) not in re.findall(r"\d+", re.findall("IRR.*", machine.qmp.monitor("info lapic"))[0]):
        assert time.monotonic() < deadline, machine.qmp.monitor("info lapic")
