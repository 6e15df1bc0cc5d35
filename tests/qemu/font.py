# SPDX-License-Identifier: Apache-2.0
"""A console font of the tests' own, and the picture that a text makes with it.

Sources: the kernel's Documentation/admin-guide/unicode.rst (straight to font), console_codes(4) for colours,
the PSF1 file format (magic 36 04, mode, character size).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 8, 16
"""Of a glyph, in pixels."""
PRINTABLE = [chr(code) for code in range(0x21, 0x7F)]

RUN = 12
"""Cells in a row that have the same colours: each change of colours is a draw of its own in the guest."""
NORMAL = 7
"""The text colour of a console that was not told another; the background is colour 0."""
DIM, BRIGHT, LOW = 0xAA, 0xFF, 0x55


class Style(NamedTuple):
    """Colours 0 to 7 (bits: red, green, blue) of a character cell, and whether its ink is bright."""

    ink: int = NORMAL
    paper: int = 0
    bright: bool = False

    @property
    def code(self) -> str:
        """The escape sequence that sets it."""
        return f"\x1b[0;{'1;' if self.bright else ''}3{self.ink};4{self.paper}m"


class Run(NamedTuple):
    """Characters of one style."""

    text: str
    style: Style


def glyphs(seed: int) -> list[bytes]:
    """256 glyphs with a byte for each row: blanks for NUL and space, random dots for all others."""
    source = random.Random(seed)
    blank = bytes(HEIGHT)
    return [blank if code in (0, 0x20) else source.randbytes(HEIGHT) for code in range(256)]


def psf(font: Sequence[bytes]) -> bytes:
    """`font` as a PSF1 file without a table of its characters: glyphs are in the order of their codes."""
    return bytes([0x36, 0x04, 0, HEIGHT]) + b"".join(font)


def page(seed: int, columns: int, rows: int) -> list[list[Run]]:
    """A page of random text in random colours, as lines of runs.

    Its last line is blank, so that the console does not scroll.
    """
    source = random.Random(seed)

    def run(length: int) -> Run:
        style = Style(source.randrange(8), source.randrange(8), source.random() < 0.5)
        return Run("".join(source.choices(PRINTABLE, k=length)), style)

    lengths = [min(RUN, columns - start) for start in range(0, columns, RUN)]
    lines = [[run(length) for length in lengths] for _ in range(rows - 1)]
    return [*lines, [Run(" " * columns, Style())]]


def codes(page: Sequence[Sequence[Run]]) -> bytes:
    """What to write to a console to make it show `page`, without a cursor."""
    lines = ("".join(run.style.code + run.text for run in line) for line in page[:-1])
    placed = (f"\x1b[{row};1H{line}" for row, line in enumerate(lines, 1))
    return ("\x1b[0m\x1b[?25l\x1b[2J" + "".join(placed) + "\x1b[0m").encode()


def draw(page: Sequence[Sequence[Run]], font: Sequence[bytes]) -> bytes:
    """The pixels of `page`, 3 bytes each (red, green, blue), line by line."""
    return b"".join(
        _stripe(font[ord(character)][row], run.style)
        for line in page
        for row in range(HEIGHT)
        for run in line
        for character in run.text
    )


@functools.cache
def _stripe(bits: int, style: Style) -> bytes:
    """A row of a cell; the leftmost pixel is the highest bit."""
    ink, paper = _rgb(style.ink, style.bright), _rgb(style.paper, False)
    return b"".join(ink if bits >> WIDTH - 1 - column & 1 else paper for column in range(WIDTH))


def _rgb(colour: int, bright: bool) -> bytes:
    """The kernel's default palette: VGA's, whose colour 3 is brown when it is not bright."""
    if colour == 3 and not bright:
        return bytes([DIM, LOW, 0])
    on, off = (BRIGHT, LOW) if bright else (DIM, 0)
    return bytes(on if colour & 1 << bit else off for bit in range(3))
