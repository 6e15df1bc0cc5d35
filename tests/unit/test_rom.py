# SPDX-License-Identifier: Apache-2.0
"""How long the images in an expansion ROM are."""

from __future__ import annotations

import struct

import pytest

from devmodel.pci.rom import image_size

UNIT = 512


def image(units: int, last: bool, data: int = 0x1C, length: int | None = None) -> bytes:
    """An image of `units` of 512 bytes with its data structure at `data`."""
    made = bytearray(units * UNIT)
    struct.pack_into("<H22xH", made, 0, 0xAA55, data)
    fields = (b"PCIR", units if length is None else length, 0x80 * last)
    struct.pack_into("<4s12xHxxxB", made, data, *fields)
    return bytes(made)


@pytest.mark.parametrize(
    ("rom", "expected"),
    [
        (image(2, True), 1024),
        (image(2, True) + bytes(UNIT), 1024),
        (image(1, False) + image(3, True, 0x40) + image(1, True), 2048),
        (image(1, False) + bytes(UNIT), 512),  # the next one has no signature
        (image(4, True, length=100), 2048),  # never more than the ROM
        (image(2, False, length=0), 0),
        (bytes(4096), 0),
        (b"\xff" * 4096, 0),
        (image(1, True, 0x1C)[:0x19], 0),
        (image(1, True).replace(b"PCIR", b"PCIX"), 0),
        (struct.pack("<H22xH", 0xAA55, 0xFFF0) + bytes(UNIT), 0),  # the pointer leads out of it
        (b"\x55\xaa\x02".ljust(4096, b"\0"), 1024),  # a header alone
        (image(1, False) + b"\x55\xaa\x01".ljust(1024, b"\0"), 1024),
        (b"\x55\xaa\xff".ljust(4096, b"\0"), 4096),
        (b"", 0),
    ],
)
def test_image_size(rom: bytes, expected: int) -> None:
    def read(offset: int, count: int) -> bytes:
        assert offset >= 0 and offset + count <= len(rom)
        return rom[offset : offset + count]

    assert image_size(read, len(rom)) == expected
