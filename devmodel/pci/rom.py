# SPDX-License-Identifier: Apache-2.0
"""Expansion ROMs: how long the images in one are.

State: none. Source: PCI Firmware 3.0 chapter 5.1 (the headers of a ROM and of its data structure).
"""

from collections.abc import Callable

SIGNATURE, DATA_SIGNATURE = 0xAA55, b"PCIR"
DATA_POINTER, IMAGE_LENGTH, INDICATOR = 0x18, 0x10, 0x15
"""Offsets: of the pointer in the header; of length and indicator in the data structure."""
LAST_IMAGE = 0x80
LENGTH_UNIT = 512
HEADER_SIZE, DATA_SIZE = 0x1A, 0x18


def image_size(read: Callable[[int, int], bytes], size: int) -> int:
    """The bytes of all images of a ROM of ``size`` bytes, which ``read(offset, count)`` reads. 0 without an
    image."""
    start = 0
    while start + HEADER_SIZE <= size:
        header = read(start, HEADER_SIZE)
        signature, pointer = _word(header, 0), _word(header, DATA_POINTER)
        data = start + pointer
        if signature != SIGNATURE or data + DATA_SIZE > size:
            break
        found = read(data, DATA_SIZE)
        if not found.startswith(DATA_SIGNATURE):
            break
        length = _word(found, IMAGE_LENGTH) * LENGTH_UNIT
        start += length
        if found[INDICATOR] & LAST_IMAGE or not length:
            break
    return min(start, size)


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")
