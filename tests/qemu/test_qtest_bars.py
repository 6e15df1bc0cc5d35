# SPDX-License-Identifier: Apache-2.0
"""Configuration cycles and BARs through QEMU's vfio-pci, its processor being the test.

Each test runs twice: BARs that are memory mapped into QEMU, and all trapped (x-no-mmap=on).
"""

from __future__ import annotations

import random
import re

import pytest

from tests.qemu.paused import (
    BAR0,
    CLASS,
    COMMAND,
    ENGINE,
    MASTER,
    MBOCHS,
    MBOCHS_REGISTERS,
    MBOCHS_VRAM,
    MDPY,
    MEMORY,
    MTTY,
    NOWHERE,
    PICTURE,
    PLACES,
    PREFETCH,
    SUBSYSTEM,
    UART,
    UART_2,
    VENDOR,
    VENDOR_CAP,
    VGPU,
    VGPU_GTT,
    VGPU_REGISTERS,
    VGPU_VRAM,
    Paused,
    Place,
)

pytestmark = pytest.mark.qemu


def test_configuration_cycles_find_what_sysfs_shows(paused: Paused) -> None:
    for slot, vgpu in paused.vgpus.items():
        shown = (vgpu.path / "config").read_bytes()
        for offset in (VENDOR, CLASS, SUBSYSTEM):
            assert paused.cpu.config(slot, offset, 4) == int.from_bytes(shown[offset : offset + 4], "little")
    assert paused.cpu.config(MTTY, VENDOR, 4) == 0x3253_4348
    assert paused.cpu.config(MBOCHS, VENDOR, 4) == paused.cpu.config(VGPU, VENDOR, 4) == 0x1111_1234
    assert paused.cpu.config(MDPY, VENDOR, 4) == 0x000F_1B36
    assert paused.cpu.config(20, VENDOR, 4) == 0xFFFF_FFFF  # an empty slot


@pytest.mark.parametrize("place", [place for place in PLACES if place.size])
def test_bars_are_sized_and_programmed(paused: Paused, place: Place) -> None:
    register = BAR0 + 4 * place.bar
    paused.cpu.set_config(place.slot, register, 4, 0xFFFF_FFFF)
    assert paused.cpu.config(place.slot, register, 4) == (1 << 32) - place.size | place.flags
    paused.cpu.set_config(place.slot, register, 4, place.address)
    assert paused.cpu.config(place.slot, register, 4) == place.address | place.flags


def test_a_vendor_capability_is_found(paused: Paused) -> None:
    """mdpy's says what its picture is: XRGB8888, 640 by 480."""
    offset = paused.capability(MDPY, VENDOR_CAP)
    fourcc, width, height = (paused.cpu.config(MDPY, offset + at, 4) for at in (4, 8, 12))
    assert (fourcc.to_bytes(4, "little"), width, height) == (b"XR24", 640, 480)


def test_port_registers(placed: Paused) -> None:
    """The scratch registers of both ports of the serial card, by bytes."""
    for place, value in ((UART, 0x5A), (UART_2, 0xA5)):
        placed.cpu.outport(place.address + 7, 1, value)
    assert placed.cpu.inport(UART.address + 7, 1) == 0x5A
    assert placed.cpu.inport(UART_2.address + 7, 1) == 0xA5


@pytest.mark.parametrize("place", [MBOCHS_REGISTERS, VGPU_REGISTERS], ids=["mbochs", "vgpu"])
def test_memory_registers(placed: Paused, place: Place) -> None:
    dispi = place.address + 0x500
    assert 0xB0C0 <= placed.cpu.load(dispi, 2) <= 0xB0C5
    for value in (800, 1024):
        placed.cpu.store(dispi + 2, 2, value)
        assert placed.cpu.load(dispi + 2, 2) == value


def test_entries_of_the_gtt(placed: Paused) -> None:
    """A guest writes an entry as one word or as two; it is one word of the table."""
    entry = VGPU_GTT.address + 8 * 1000
    placed.cpu.store(entry, 8, 0x0000_0012_3456_7003)
    placed.cpu.store(entry + 8, 4, 0x89AB_C003)
    placed.cpu.store(entry + 12, 4, 0x12)
    assert [placed.cpu.load(entry + 8 * number, 8) for number in range(3)] == [
        0x0000_0012_3456_7003,
        0x0000_0012_89AB_C003,
        0,
    ]


@pytest.mark.parametrize("place", [MBOCHS_VRAM, VGPU_VRAM, PICTURE], ids=["mbochs", "vgpu", "mdpy"])
def test_device_memory(placed: Paused, place: Place) -> None:
    """What the processor writes to it is in the vGPU's resource0, and the other way round."""
    written, put = random.Random(place.slot).randbytes(8192)[:8000], b"from the outside"
    path = placed.vgpus[place.slot].path / "resource0"
    placed.cpu.write(place.address + 4000, written)
    with path.open("r+b", buffering=0) as file:
        file.seek(4000)
        assert file.read(len(written)) == written
        file.seek(place.size - len(put))
        file.write(put)
    assert placed.cpu.read(place.address + place.size - len(put), len(put)) == put


def test_qemu_maps_memory_only_where_it_may(placed: Paused) -> None:
    """Register BARs never; the others show as mapped in QEMU's own account of its memory."""
    account = placed.machine.qmp.monitor("info mtree -f")
    for place in (MBOCHS_VRAM, VGPU_VRAM, PICTURE, MBOCHS_REGISTERS, ENGINE):
        is_memory = place.flags == PREFETCH
        found = re.search(rf"^ *0*{place.address:x}-.*", account, re.MULTILINE)
        assert found, f"{place} is not decoded:\n{account}"
        assert ("mmaps[0]" in found[0]) == (is_memory and placed.mapped), found[0]


def test_decoding_off_takes_a_device_off_the_bus(placed: Paused) -> None:
    placed.cpu.store(VGPU_VRAM.address, 4, 0x12345678)
    placed.cpu.set_config(VGPU, COMMAND, 2, MASTER)
    nothing = placed.cpu.load(NOWHERE, 4)
    assert placed.cpu.load(VGPU_VRAM.address, 4) == nothing
    assert placed.cpu.load(VGPU_REGISTERS.address + 0x500, 4) == nothing
    placed.cpu.set_config(VGPU, COMMAND, 2, MASTER | MEMORY)
    assert placed.cpu.load(VGPU_VRAM.address, 4) == 0x12345678
