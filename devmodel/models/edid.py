# SPDX-License-Identifier: Apache-2.0
"""EDID: the description that a virtual monitor gives of itself, for a mode that it prefers.

State: none. Source: VESA E-EDID 1.4 (base block, detailed timings and display descriptors), VESA CVT 1.2
(reduced blanking, version 1).
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

BLOCK_SIZE = 128
MANUFACTURER = "VFS"
PRODUCT = 1
DPI = 72
REFRESH = 60
"""The default refresh rate, in Hz."""
MAX_CLOCK_MHZ = 600

_H_BLANK, _H_FRONT, _H_SYNC = 160, 48, 32  # pixels of CVT's reduced blanking
_V_FRONT, _V_SYNC, _V_BACK_LEAST = 3, 6, 6  # lines
_V_BLANK_US = 460  # at least
_CLOCK_STEP = 250_000  # Hz
_SRGB = bytes.fromhex("ee91a3544c99260f5054")


class Mode(NamedTuple):
    """A resolution in pixels."""

    width: int
    height: int

    @property
    def picture(self) -> int:
        """Bytes of a picture with 32 bits per pixel."""
        return self.width * self.height * 4


MODES: Sequence[Mode] = (
    Mode(3840, 2160),
    Mode(2560, 1600),
    Mode(2560, 1440),
    Mode(1920, 1200),
    Mode(1920, 1080),
    Mode(1600, 900),
    Mode(1280, 1024),
    Mode(1280, 800),
    Mode(1024, 768),
    Mode(800, 600),
    Mode(640, 480),
    Mode(512, 384),
    Mode(400, 300),
)
"""The modes, the largest first. Two pictures of the smallest fit into a megabyte."""

_ESTABLISHED = {Mode(640, 480): (0, 0x20), Mode(800, 600): (0, 0x01), Mode(1024, 768): (1, 0x08)}
"""Byte and bit of each established timing. Like the standard timings, they mean 60 Hz."""
_ASPECTS = {(16, 10): 0, (4, 3): 1, (5, 4): 2, (16, 9): 3}
_STANDARD_WIDTHS = range(640, 2289, 8)
_STANDARD_COUNT = 8


def best_mode(memory: int, width: int, height: int) -> Mode:
    """The largest mode within ``width`` and ``height`` of which two pictures with 32 bits per pixel fit in
    ``memory`` bytes.

    Drivers draw one picture while they show the other. The bochs driver of Linux 6.1 refuses larger modes.
    """
    shown = (mode for mode in MODES if mode.width <= width and mode.height <= height)
    return next((mode for mode in shown if 2 * mode.picture <= memory), MODES[-1])


def block(preferred: Mode, name: str, serial: int, refresh: int = REFRESH) -> bytes:
    """The 128 bytes of a monitor that prefers a mode of :data:`MODES` and can also show the smaller ones.

    ``name`` is ASCII; its first 13 characters are used. ``serial`` has 32 bits. ``refresh`` is in Hz, 30 to
    60. Below 60 the preferred mode is the only one, because EDID's short forms mean 60 Hz.
    """
    modes = (
        []
        if refresh < REFRESH
        else [mode for mode in MODES if mode.width <= preferred.width and mode.height <= preferred.height]
    )
    head = struct.pack(">8sH", b"\x00" + b"\xff" * 6 + b"\x00", _manufacturer(MANUFACTURER))
    head += struct.pack("<HIBB", PRODUCT, serial, 0, 30)  # of the year 2020
    head += bytes([1, 4])
    # digital, 8 bits a colour; centimetres; gamma 2.2; sRGB, the first timing is the native one
    head += bytes([0xA0, *(_millimetres(pixels) // 10 for pixels in preferred), 120, 0x06])
    descriptors = [
        _detailed(preferred, refresh),
        _text(0xFC, name),
        _limits(refresh),
        _text(0xFF, f"{serial:08x}"),
    ]
    body = head + _SRGB + _established(modes) + _standard(modes) + b"".join(descriptors) + b"\x00"
    return body + bytes([-sum(body) & 0xFF])


def _manufacturer(letters: str) -> int:
    value = 0
    for letter in letters:
        value = value << 5 | ord(letter) - ord("A") + 1
    return value


def _millimetres(pixels: int) -> int:
    return pixels * 254 // (10 * DPI)


def _established(modes: Sequence[Mode]) -> bytes:
    found = bytearray(3)
    for mode in modes:
        byte, bit = _ESTABLISHED.get(mode, (0, 0))
        found[byte] |= bit
    return bytes(found)


def _standard(modes: Sequence[Mode]) -> bytes:
    codes = b"".join(_standard_codes(modes))[: 2 * _STANDARD_COUNT]
    return codes.ljust(2 * _STANDARD_COUNT, b"\x01")


def _standard_codes(modes: Sequence[Mode]) -> Iterator[bytes]:
    for mode in modes:
        for (across, down), code in _ASPECTS.items():
            if mode.width in _STANDARD_WIDTHS and mode.width * down == mode.height * across:
                yield bytes([mode.width // 8 - 31, code << 6 | REFRESH - 60])


def _blanking_lines(height: int, refresh: int) -> int:
    line_us = (1_000_000 / refresh - _V_BLANK_US) / height
    return max(int(_V_BLANK_US / line_us) + 1, _V_FRONT + _V_SYNC + _V_BACK_LEAST)


def _detailed(mode: Mode, refresh: int) -> bytes:
    """The 18 bytes of a detailed timing, with CVT's reduced blanking."""
    v_blank = _blanking_lines(mode.height, refresh)
    clock = (mode.width + _H_BLANK) * (mode.height + v_blank) * refresh // _CLOCK_STEP * _CLOCK_STEP
    size = [_millimetres(pixels) for pixels in mode]
    return struct.pack(
        "<H16B",
        clock // 10_000,
        *(mode.width & 0xFF, _H_BLANK, mode.width >> 8 << 4),
        *(mode.height & 0xFF, v_blank, mode.height >> 8 << 4),
        *(_H_FRONT, _H_SYNC, _V_FRONT << 4 | _V_SYNC, 0),
        *(size[0] & 0xFF, size[1] & 0xFF, size[0] >> 8 << 4 | size[1] >> 8),
        *(0, 0, 0x1A),  # no border; separate syncs, horizontal positive and vertical negative
    )


def _text(tag: int, text: str) -> bytes:
    line = text[:13].encode("ascii", "replace")
    return bytes([0, 0, 0, tag, 0]) + (line if len(line) == 13 else (line + b"\n").ljust(13))


def _limits(refresh: int) -> bytes:
    """Display range limits: 50 to 75 Hz, or up to a ``refresh`` below 60; 9 to 160 kHz."""
    low, high = (50, 75) if refresh == REFRESH else (refresh * 9 // 10, refresh)
    return bytes([0, 0, 0, 0xFD, 0, low, high, 9, 160, MAX_CLOCK_MHZ // 10, 1, 0x0A]) + b" " * 6
