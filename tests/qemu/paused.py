# SPDX-License-Identifier: Apache-2.0
"""A paused machine whose processor is the test, with one of each kind of device: where they are in it, and
what the tests of configuration, BARs, DMA and interrupts have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from tests.labs import MountedLab, Vgpu
from tests.qemu import programs
from tests.qemu.iommufd import Opened, with_sys
from tests.qemu.machine import Machine, in_lab, vfio
from tests.qemu.qtest import SECONDS, Qtest

MTTY, MBOCHS, VGPU, MDPY, COPIER = 4, 5, 6, 7, 9
"""PCI slots; those of mtty and the copier have different interrupt lines."""

TYPES = {
    MTTY: ("mtty-2", "mtty"),
    MBOCHS: ("mbochs-medium", "mbochs"),
    VGPU: ("vgpu-8", "0000:86:00.0"),
    MDPY: ("mdpy-vga", "mdpy"),
    COPIER: ("copier-1", "copiers"),
}
"""Types and parents."""

PIRQ_ROUTES, LINES = 0x60, (5, 9, 10, 11)
"""Registers of the machine's ISA bridge (00:01.0), and the lines we give to PIRQA to PIRQD."""
BRIDGE = 1
LINE = {slot: LINES[(slot - 1) % 4] for slot in (MTTY, COPIER)}
"""PIRQs go round the slots: INTA of slot 1 is PIRQA."""

VENDOR, COMMAND, CLASS, BAR0, SUBSYSTEM, CAPABILITIES = 0x00, 0x04, 0x08, 0x10, 0x2C, 0x34
IO, MEMORY, MASTER, INTX_DISABLE = 1, 2, 4, 0x400
VENDOR_CAP, MSIX_CAP = 0x09, 0x11
MSIX_ENABLE = 1 << 15
APIC = 0xFEE00000
RAM = 0x200000
"""Where the tests keep what devices read and write."""


class Place(NamedTuple):
    """A BAR: the function's slot, the BAR's index, its size, its flags and the address we give it."""

    slot: int
    bar: int
    size: int
    flags: int
    address: int


PREFETCH, IO_FLAG = 8, 1
UART = Place(MTTY, 0, 8, IO_FLAG, 0xC000)
UART_2 = Place(MTTY, 1, 8, IO_FLAG, 0xC008)
MBOCHS_VRAM = Place(MBOCHS, 0, 16 << 20, PREFETCH, 0xE0000000)
MBOCHS_REGISTERS = Place(MBOCHS, 2, 4096, 0, 0xF0000000)
VGPU_VRAM = Place(VGPU, 0, 32 << 20, PREFETCH, 0xE2000000)
VGPU_REGISTERS = Place(VGPU, 2, 8192, 0, 0xF0006000)
VGPU_GTT = Place(VGPU, 1, 128 << 10, 0, 0xF0020000)
PICTURE = Place(MDPY, 0, 2 << 20, PREFETCH, 0xE4000000)
ENGINE = Place(COPIER, 0, 4096, 0, 0xF0002000)
MESSAGES = Place(COPIER, 4, 0, 0, 0xF0004000)
"""Of a size that is the model's business."""
PLACES = (
    UART,
    UART_2,
    MBOCHS_VRAM,
    MBOCHS_REGISTERS,
    VGPU_VRAM,
    VGPU_REGISTERS,
    VGPU_GTT,
    PICTURE,
    ENGINE,
    MESSAGES,
)
NOWHERE = 0xF8000000
"""Where nothing is."""

SOURCE, TARGET, SIZE, ENGINE_COMMAND, STATUS = 0x00, 0x08, 0x10, 0x14, 0x18
COPY, DONE, FAULT = 1, 1, 2
"""Of examples/copier.py."""


@dataclass
class Paused:
    """A machine that does not run, with its devices by slot.

    `mapped`: device memory is mapped into QEMU. `peer`: so other devices reach it by DMA, but not by iommufd.
    """

    machine: Machine
    vgpus: dict[int, Vgpu]
    mapped: bool
    peer: bool

    @property
    def cpu(self) -> Qtest:
        return self.machine.qtest

    def capability(self, slot: int, number: int) -> int:
        """The offset of a capability."""
        offset = self.cpu.config(slot, CAPABILITIES, 1)
        while self.cpu.config(slot, offset, 1) != number:
            offset = self.cpu.config(slot, offset + 1, 1)
            assert offset, f"slot {slot} has no capability {number:#x}"
        return offset

    def copy(self, source: int, target: int, size: int) -> int:
        """Have the copier copy; returns its status and clears it."""
        for register, width, value in ((SOURCE, 8, source), (TARGET, 8, target), (SIZE, 4, size)):
            self.cpu.store(ENGINE.address + register, width, value)
        self.cpu.store(ENGINE.address + ENGINE_COMMAND, 4, COPY)
        deadline = time.monotonic() + SECONDS
        while not (status := self.cpu.load(ENGINE.address + STATUS, 4)):
            assert time.monotonic() < deadline, "the copier does not come to an end"
        self.cpu.store(ENGINE.address + STATUS, 4, status)
        return status

    def wait_memory(self, address: int, value: int) -> None:
        """Wait for a device to write `value`, 32 bits, to memory."""
        deadline = time.monotonic() + SECONDS
        while (found := self.cpu.load(address, 4)) != value:
            assert time.monotonic() < deadline, f"{found:#x} at {address:#x} instead of {value:#x}"


def in_a_group(lab: MountedLab, vgpus: Mapping[int, Vgpu], mapped: bool) -> Machine:
    """The system's QEMU, which opens the devices by their groups under `vfsfuse run`."""
    more = {} if mapped else {"x_no_mmap": "on"}
    return Machine(in_lab(lab), [part for slot, vgpu in vgpus.items() for part in vfio(vgpu, slot, **more)])


def by_iommufd(lab: MountedLab, vgpus: Mapping[int, Vgpu], suite: str) -> Machine:
    """A newer QEMU, which gets descriptors of the mount."""
    program, opened = programs.of_suite(suite), Opened(lab)
    devices = [part for slot, vgpu in vgpus.items() for part in opened.mediated(vgpu, slot)]
    options = [*opened.iommu(), *devices]
    return Machine(with_sys(lab), options, program=program, descriptors=opened.descriptors)


@contextmanager
def paused_machine(lab: MountedLab, mapped: bool, suite: str = "") -> Iterator[Paused]:
    """The machine, its lines routed and its interrupt controller intercepted; BARs are not placed yet.

    `suite` is the Debian whose QEMU takes the devices by iommufd; without it they come by their groups.
    """
    with ExitStack() as stack:
        vgpus = {slot: stack.enter_context(lab.create(*names)) for slot, names in TYPES.items()}
        start = by_iommufd(lab, vgpus, suite) if suite else in_a_group(lab, vgpus, mapped)
        machine = stack.enter_context(start)
        for pirq, line in enumerate(LINES):
            machine.qtest.set_config(BRIDGE, PIRQ_ROUTES + pirq, 1, line)
        machine.qtest.intercept("ioapic")
        yield Paused(machine, vgpus, mapped, peer=mapped and not suite)


def place_all(paused: Paused) -> None:
    """Give all BARs their places, decode them and switch bus mastering on."""
    for place in PLACES:
        paused.cpu.set_config(place.slot, BAR0 + 4 * place.bar, 4, place.address)
    for slot in paused.vgpus:
        paused.cpu.set_config(slot, COMMAND, 2, IO | MEMORY | MASTER)
