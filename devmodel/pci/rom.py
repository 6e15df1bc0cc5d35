# SPDX-License-Identifier: Apache-2.0
"""Expansion ROMs: how long the images in one are.

Linux knows images by their PCI data structure alone. Here an image without one is as long as its header says,
as firmware takes it, because the ROM of a model of one's own often has no more than a header.

State: none. Source: PCI Firmware 3.0 chapter 5.1 (the headers of a ROM and of its data structure).
"""

from collections.abc import Callable

SIGNATURE, DATA_SIGNATURE = 0xAA55, b"PCIR"
DATA_POINTER, IMAGE_LENGTH, INDICATOR = 0x18, 0x10, 0x15
"""Offsets: of the pointer in the header; of length and indicator in the data structure."""
HEADER_LENGTH = 2
"""Offset in the header of the length that firmware goes by."""
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
        if signature != SIGNATURE:
            break
        found = read(data, DATA_SIZE) if data + DATA_SIZE <= size else b""
        if not found.startswith(DATA_SIGNATURE):
            start += header[HEADER_LENGTH] * LENGTH_UNIT
            break
        length = _word(found, IMAGE_LENGTH) * LENGTH_UNIT
        start += length
        if found[INDICATOR] & LAST_IMAGE or not length:
            break
    return min(start, size)


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")
