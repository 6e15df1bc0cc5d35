# SPDX-License-Identifier: Apache-2.0
"""Regions, registers and the backing memfd, without a device around them unless it matters."""

import errno
import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.device.base import Device
from devmodel.region.backing import REGION_SHIFT, Backing
from devmodel.region.region import Memory, Rom, clip
from devmodel.region.registers import Layout, Register, Registers

MIB = 1 << 20


@pytest.fixture
def device() -> Iterator[Device]:
    """A device with memory at 0 and 2 and a ROM at 1."""
    made = Device("toy", [Memory(2 * MIB), Rom(b"\x55\xaa", 2048), Memory(4096)], [])
    yield made
    made.close()


@pytest.mark.parametrize(
    ("limit", "offset", "size", "taken"), [(8, 0, 8, 8), (8, 7, 4, 1), (8, 3, 0, 0), (8, 0, 2**64, 8)]
)
def test_clip_shortens_what_crosses_the_end(limit: int, offset: int, size: int, taken: int) -> None:
    assert clip(limit, offset, size) == taken


@pytest.mark.parametrize(("offset", "size"), [(8, 1), (8, 0), (2**63, 4), (-1, 4), (0, -1)])
def test_clip_refuses_what_starts_outside(offset: int, size: int) -> None:
    with pytest.raises(OSError) as caught:
        clip(8, offset, size)
    assert caught.value.errno == errno.EINVAL


def test_no_memfd_until_memory_is_touched(device: Device) -> None:
    assert not device.backing.created
    assert device.read(1, 0, 2) == b"\x55\xaa"
    assert not device.backing.created
    assert device.read(0, 0, 4) == bytes(4)
    assert device.backing.created


def test_memory_lies_in_the_memfd_at_its_vfio_offset(device: Device) -> None:
    device.write(2, 16, b"small")
    assert os.pread(device.backing.fd, 5, (2 << REGION_SHIFT) + 16) == b"small"
    os.pwrite(device.backing.fd, b"client", 100)
    assert device.read(0, 100, 6) == b"client"


def test_a_client_mapping_sees_small_and_bulk_writes(device: Device) -> None:
    with device.backing.map(0, 2 * MIB) as mapping:
        device.write(0, 3, b"abc")
        device.write(0, MIB, bytes(range(256)) * 64)
        assert mapping[3:6] == b"abc"
        assert mapping[MIB : MIB + 256 * 64] == bytes(range(256)) * 64
        mapping[9000:9003] = b"xyz"
    assert device.read(0, 8192, 8192)[9000 - 8192 :][:3] == b"xyz"


@pytest.mark.parametrize("index", [0, 2])
def test_bulk_and_small_accesses_reach_the_same_bytes(device: Device, index: int) -> None:
    page = bytes(range(256)) * 16
    assert device.write(index, 0, page) == 4096
    assert b"".join(device.read(index, at, 64) for at in range(0, 4096, 64)) == page
    device.write(index, 8, b"small")
    assert device.read(index, 0, 4096) == page[:8] + b"small" + page[13:]


def test_accesses_across_the_end_are_short(device: Device) -> None:
    assert device.write(2, 4094, b"1234") == 2
    assert device.read(2, 4090, 100) == bytes(4) + b"12"
    with pytest.raises(OSError) as caught:
        device.read(2, 4096, 1)
    assert caught.value.errno == errno.EINVAL


def test_reading_a_hole_in_bulk_allocates_nothing(device: Device) -> None:
    assert device.read(0, 0, 2 * MIB) == bytes(2 * MIB)
    assert os.fstat(device.backing.fd).st_blocks == 0


def test_the_backing_cannot_be_shrunk_under_our_mappings(device: Device) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(device.backing.fd, 0)


@pytest.mark.parametrize("index", [3, 99, -1])
def test_unknown_regions_are_einval(device: Device, index: int) -> None:
    with pytest.raises(OSError) as caught:
        device.read(index, 0, 4)
    assert caught.value.errno == errno.EINVAL


def test_a_rom_is_padded_and_cannot_be_written(device: Device) -> None:
    assert device.read(1, 2040, 100) == b"\xff" * 8
    with pytest.raises(OSError) as caught:
        device.write(1, 0, b"x")
    assert caught.value.errno == errno.EINVAL


def test_a_closed_device_is_enodev_and_its_fd_is_closed(device: Device) -> None:
    device.write(0, 0, b"x")
    fd = device.backing.fd
    device.close()
    device.close()
    for access in (lambda: device.read(0, 0, 1), lambda: device.write(0, 0, b"x"), device.reset):
        with pytest.raises(OSError) as caught:
            access()
        assert caught.value.errno == errno.ENODEV
    with pytest.raises(OSError, match="gone"):
        _ = device.backing.fd
    with pytest.raises(OSError):
        os.fstat(fd)


def test_closing_an_untouched_backing_is_fine() -> None:
    backing = Backing({0: 4096})
    backing.close()
    assert not backing.created


@pytest.mark.parametrize("size", [0, 100, mmap.PAGESIZE + 1, -4096])
def test_memory_is_whole_pages(size: int) -> None:
    with pytest.raises(ValueError):
        Memory(size)


LAYOUT = Layout(
    32,
    [
        Register(0, 4, "ID", 0x12345678, rw_mask=0),
        Register(6, 2, "ODD", 0xBEEF),
        Register(8, 8, "WIDE", 1, rw_mask=0x00FF_FFFF_0000_FFFF),
        Register(17, 1, "BYTE"),
    ],
)


def test_registers_power_on_with_their_reset_values() -> None:
    registers = Registers(LAYOUT)
    assert registers.read(0, 10).hex() == "785634120000efbe0100"
    assert registers["WIDE"] == 1


def test_partial_and_unaligned_writes_land_where_a_little_endian_bus_puts_them() -> None:
    registers = Registers(LAYOUT)
    registers.write(5, b"\x11\x22\x33\x44")  # a gap, both bytes of ODD, the first of WIDE
    assert registers.read(4, 6) == b"\0\0\x22\x33\x44\0"
    assert registers["ODD"] == 0x3322


def test_reset_restores_the_reset_values() -> None:
    registers = Registers(LAYOUT)
    registers.write(0, b"\xff" * 32)
    registers.reset()
    assert registers.read(0, 32) == Registers(LAYOUT).read(0, 32)


@given(st.lists(st.tuples(st.integers(0, 31), st.binary(min_size=1, max_size=32)), max_size=20))
def test_registers_behave_as_bytes_with_a_mask(writes: list[tuple[int, bytes]]) -> None:
    mask = bytearray(32)
    for register in LAYOUT.registers:
        bits = register.rw_mask & ((1 << 8 * register.width) - 1)
        mask[register.offset : register.end] = bits.to_bytes(register.width, "little")
    registers, expected = Registers(LAYOUT), bytearray(LAYOUT.image)
    for offset, data in writes:
        data = data[: 32 - offset]
        registers.write(offset, data)
        for place, byte in enumerate(data, offset):
            expected[place] = (expected[place] & ~mask[place]) | (byte & mask[place])
        assert registers.read(0, 32) == bytes(expected)
        assert registers.read(offset, len(data)) == bytes(expected[offset : offset + len(data)])


class Hooked:
    """An owner that records what its hooks see."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.reads = 0

    def status(self) -> int:
        self.reads += 1
        return 0xAABBCCDD

    def control(self, value: int) -> None:
        self.written.append(value)


HOOKED = Layout(
    16,
    [
        Register(0, 4, "STATUS", rw_mask=0, on_read=Hooked.status),
        Register(4, 4, "CONTROL", 0x0102, rw_mask=0xFFFF, on_write=Hooked.control),
    ],
)


def test_a_read_hook_answers_the_bytes_asked_for_and_no_other_access_calls_it() -> None:
    owner = Hooked()
    registers = Registers(HOOKED, owner)
    assert registers.read(1, 2) == b"\xcc\xbb"
    assert registers.read(2, 4) == b"\xbb\xaa\x02\x01"
    assert owner.reads == 2
    registers.read(4, 8)
    registers.read(0, 0)
    registers.write(0, bytes(4))
    assert owner.reads == 2


def test_a_write_hook_gets_the_merged_masked_value_once_for_each_write() -> None:
    owner = Hooked()
    registers = Registers(HOOKED, owner)
    registers.write(5, b"\x77\x88")
    registers.write(0, b"\xff" * 8)
    registers.write(8, b"\xff" * 8)
    assert owner.written == [0x7702, 0xFFFF]


@pytest.mark.parametrize(
    "registers",
    [[Register(0, 4, "A"), Register(3, 1, "B")], [Register(30, 4, "A")]],
    ids=["overlap", "beyond the end"],
)
def test_contradictory_layouts_are_refused(registers: list[Register]) -> None:
    with pytest.raises(ValueError):
        Layout(32, registers)


def test_bits_that_writing_1_clears() -> None:
    told: list[int] = []

    def remember(_: object, value: int) -> None:
        told.append(value)

    layout = Layout(
        8,
        [
            Register(
                0,
                4,
                "STATUS",
                0xFF00FF,
                rw_mask=0xF00000,
                w1c_mask=0xFF,
                on_write=remember,
            ),
            Register(4, 4, "AFTER", 0xA5A5A5A5, rw_mask=0, w1c_mask=0xFFFFFFFF),
        ],
    )
    registers = Registers(layout)
    registers.write(0, b"\x0f\x00\x0f\xff")
    assert registers["STATUS"] == 0x0F00F0 == told[-1]
    registers.write(1, b"\xff\xff")  # the byte with the bits is not touched
    assert registers["STATUS"] == 0xFF00F0
    registers.write(3, b"\x00\xa5")
    assert registers["AFTER"] == 0xA5A5A500 and registers["STATUS"] == 0xFF00F0
    registers.reset()
    assert registers["STATUS"] == 0xFF00FF and registers["AFTER"] == 0xA5A5A5A5
