# SPDX-License-Identifier: Apache-2.0
"""What ``lspci -nnvvvxxxx -D`` prints, line by line: a block for each function.

A block is a line that begins with the function's address, lines about it, perhaps rows of its configuration
space. Texts are anybody's: every error is one line with the number of the line in the text.

State: a BlockReader belongs to the reading of one text. Source: lspci(8), and the text of lspci 3.9.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from devmodel.pci.barkind import BarKind
from devmodel.pci.dump import row_of
from devmodel.pci.image import SIZES
from vfsfuse.capture.machine import CaptureError, FoundBar
from vfsfuse.capture.vpdtext import VpdText

MAX_LINES, MAX_LINE = 1 << 22, 1 << 16
"""The most lines of a text, and characters of a line."""
_HEAD = re.compile(
    r"(?P<address>(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7])(?:\s+(?P<rest>.*))?"
)
_REGION = re.compile(
    r"Region (?P<index>[0-5]): (?:\[virtual\] )?(?P<what>Memory|I/O ports) at (?P<at>\S+)(?P<rest>.*)"
)
_ROM = re.compile(r"(?:\[virtual\] )?Expansion ROM at (?P<at>\S+)(?P<rest>.*)")
_SIZE = re.compile(r"\[size=([0-9]+)([KMGT]?)\]")
_BUSES = re.compile(r"Bus: primary=[0-9a-f]{2}, secondary=([0-9a-f]{2}), subordinate=([0-9a-f]{2})")
_CAPABILITY = re.compile(r"Capabilities: \[([0-9a-f]{2,3})(?: v([0-9]+))?\] (.*)")
_ENDPOINT = re.compile(r"Express (\(v[0-9]\) )?(Legacy )?Endpoint")
"""The capability of a function that is below a port."""
_IRQ = re.compile(r"Interrupts?: pin ([A-D?])")
_VF_LINE = re.compile(r"VF offset: ([0-9]+), stride: ([0-9]+), Device ID: ([0-9a-f]{4})")
_VF_COUNT = re.compile(r"Initial VFs: [0-9]+, Total VFs: ([0-9]+), Number of VFs: ([0-9]+)")
_SERIAL = re.compile(r"Device Serial Number ((?:[0-9a-fA-F]{2}-){7}[0-9a-fA-F]{2})")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(slots=True)
class Block:
    """The lines of one function, as they are read. ``head`` is what the first has after the address."""

    line: int
    address: str
    head: str
    rows: dict[int, bytes] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    bars: list[FoundBar] = field(default_factory=list)
    rom_size: int = 0
    buses: tuple[int, int] | None = None
    words: list[str] = field(default_factory=list)
    denied: bool = False
    endpoint: bool = False
    vf_place: tuple[int, int, int] | None = None
    vf_count: tuple[int, int] | None = None
    serial: int | None = None
    vpd: VpdText = field(default_factory=VpdText)


class BlockReader:
    """Reads one text. ``source`` names it in errors; ``notes`` are lines for the user."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.notes: list[str] = []

    def blocks(self, text: str) -> Iterator[Block]:
        """The blocks of the text. Raises :class:`CaptureError` for a line that lspci does not print."""
        block: Block | None = None
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
            if number > MAX_LINES or len(line) > MAX_LINE:
                self.fail(number, "the text is too long for one of lspci (is it one?)")
            if not line.strip() or line.startswith(("#", "lspci:", "pcilib:")):
                continue
            row = row_of(line)
            if row is not None:
                self.row(block, number, *row)
            elif head := _HEAD.fullmatch(line):
                if block is not None:
                    yield block
                address = head["address"].lower()
                known = address if address.count(":") > 1 else f"0000:{address}"
                block = Block(number, known, head["rest"] or "")
            elif block is None or not line[:1].isspace():
                self.fail(
                    number, f"{_shown(line)} is no line of lspci (write the text with lspci -nnvvvxxxx -D)"
                )
            else:
                self.detail(block, number, line.strip())
        if block is not None:
            yield block

    def row(self, block: Block | None, number: int, offset: int, data: bytes) -> None:
        if block is None:
            self.fail(number, "bytes come before the first function (is the beginning missing?)")
        if len(data) != 16 or offset % 16 or offset >= SIZES[-1]:
            self.fail(number, f"the row at {offset:#x} does not have 16 bytes of 4096 (is the line cut off?)")
        if offset != 16 * len(block.rows):
            self.fail(
                number, f"the row is at {offset:#x} and not at {16 * len(block.rows):#x} (is one missing?)"
            )
        block.rows[offset] = data

    def detail(self, block: Block, number: int, line: str) -> None:
        key, colon, value = line.partition(": ")
        if line.startswith("Region "):
            self.region(block, number, line)
        elif line.startswith(("Expansion ROM", "[virtual] Expansion ROM")):
            self.rom(block, line)
        elif line.startswith("Bus: primary="):
            buses = _BUSES.match(line)
            if buses is None:
                self.fail(number, f"{_shown(line)} does not have bus numbers in hexadecimal (mend it)")
            block.buses = int(buses[1], 16), int(buses[2], 16)
        elif line.startswith("Capabilities: "):
            self.capability(block, line)
        elif found := _VF_COUNT.search(line):
            block.vf_count = int(found[1][:6]), int(found[2][:6])
        elif found := _VF_LINE.search(line):
            block.vf_place = int(found[1][:6]), int(found[2][:6]), int(found[3], 16)
        elif colon and key in ("NUMA node", "IOMMU group"):
            if not re.fullmatch(r"-?[0-9]{1,9}", value):
                self.fail(number, f"{_shown(value)} is no number (mend it)")
            block.facts[key] = value
        elif colon and key in ("Subsystem", "Physical Slot", "Kernel driver in use", "Kernel modules"):
            block.facts.setdefault(key, value)
        elif found := _IRQ.match(line):
            block.facts["pin"] = found[1]
        else:
            block.vpd.line(line)

    def region(self, block: Block, number: int, line: str) -> None:
        found = _REGION.fullmatch(line)
        if found is None:
            if "Region" in line and " behind" not in line and block.words and "sr-iov" in block.words[-1]:
                return
            self.fail(number, f"{_shown(line)} is no region as lspci prints it (mend it)")
        if block.vf_count is not None:
            return  # those in the SR-IOV capability are where the first virtual function's are
        size = _size(found["rest"])
        if not size:
            return
        wide, prefetch = "64-bit" in found["rest"], ", prefetchable" in found["rest"]
        kind = BarKind.made_of(found["what"] != "Memory", wide, prefetch).value
        index = int(found["index"])
        if any(bar.index == index for bar in block.bars):
            self.fail(number, f"region {index} is there twice (remove one)")
        block.bars.append(FoundBar(index, size, kind, _address(found["at"])))

    def rom(self, block: Block, line: str) -> None:
        found = _ROM.fullmatch(line)
        size = 0 if found is None else _size(found["rest"])
        if found is not None and size and _address(found["at"]) != 0xC0000:
            block.rom_size = size
        elif size:
            self.notes.append(
                f"{block.address}: its ROM is a copy in the memory below 1 MiB, which a lab does not have"
            )

    def capability(self, block: Block, line: str) -> None:
        found = _CAPABILITY.fullmatch(line)
        if found is None:
            block.denied |= "denied" in line
            return
        name = found[3]
        block.vpd.begin(name)
        if serial := _SERIAL.match(name):
            block.serial = int(serial[1].replace("-", ""), 16)
        elif "SR-IOV" in name or "Single Root I/O Virtualization" in name:
            block.vf_count = block.vf_count or (0, 0)
        block.endpoint |= _ENDPOINT.match(name) is not None
        word = _word(name)
        if word and word.split(":")[0] not in {each.split(":")[0] for each in block.words}:
            block.words.append(word)

    def fail(self, number: int, why: str) -> NoReturn:
        """Raise :class:`CaptureError` for a line of the text."""
        raise CaptureError(f"{self.source}: line {number}: {why}")


def _word(name: str) -> str | None:
    """A capability that lspci describes so, as a word of a lab file."""
    if name.startswith("Power Management"):
        return "pm"
    if name.startswith("Vital Product Data"):
        return "vpd"
    if found := re.match(r"MSI: .*Count=[0-9]+/([0-9]+)", name):
        return f"msi:{found[1]}"
    if found := re.match(r"MSI-X: .*Count=([0-9]+)", name):
        return f"msix:{found[1]}"
    if name.startswith("Express"):
        if "Root Complex Integrated" in name:
            return "express:integrated"
        return "express:legacy" if "Legacy Endpoint" in name else "express"
    for text, word in (("Advanced Error", "aer"), ("Access Control", "acs"), ("Alternative Routing", "ari")):
        if name.startswith(text):
            return word
    return None


def _size(text: str) -> int:
    found = _SIZE.search(text)
    return min(int(found[1][:12]) * _UNITS[found[2]], 1 << 63) if found else 0


def _address(text: str) -> int:
    """An address; 0 for "<unassigned>" and the like."""
    return int(text, 16) if re.fullmatch(r"[0-9a-f]{1,16}", text) else 0


def _shown(line: str) -> str:
    return repr(line[:60] + ("..." if len(line) > 60 else ""))
