# SPDX-License-Identifier: Apache-2.0
"""Reading a machine from what ``lspci -nnvvvxxxx -D`` prints, also by older versions of lspci.

A block describes a function: a line that begins with its address, lines about it, perhaps rows of its
configuration space. What the rows say counts more than words do. Texts are anybody's: every error is one
line with the number of the line in the text.

State: none. Source: lspci(8), and the text of lspci 3.9.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from devmodel.pci.barkind import BarKind
from devmodel.pci.dump import row_of
from devmodel.pci.image import SIZES
from vfsfuse.capture.machine import (
    HEADER_SIZE,
    CaptureError,
    FoundBar,
    FoundFunction,
    FoundVfs,
    Machine,
    bridge_above,
    node_of_root,
    roots_of,
    some,
)
from vfsfuse.capture.spaces import Space
from vfsfuse.capture.vpdtext import VpdText

MAX_LINES, MAX_FUNCTIONS, MAX_LINE = 1 << 22, 1 << 16, 1 << 16
"""The most lines and functions of a text, and characters of a line."""
_HEAD = re.compile(
    r"(?P<address>(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7])(?:\s+(?P<rest>.*))?"
)
_CLASS = re.compile(r"(?P<class>.*?)\s*\[(?P<code>[0-9a-fA-F]{4})\]:\s")
_ID = re.compile(r"\[([0-9a-fA-F]{4}):([0-9a-fA-F]{4})\]")
_REVISION, _INTERFACE = re.compile(r"\(rev ([0-9a-fA-F]{2})\)"), re.compile(r"\(prog-if ([0-9a-fA-F]{2})")
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
class _Block:
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


def read_lspci(text: str, source: str) -> Machine:
    """The machine that ``text`` describes; ``source`` names it in errors.

    Raises :class:`CaptureError` for a text that lspci does not print.
    """
    return _Reader(source).machine(text)


class _Reader:
    """Reads one text."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.notes: list[str] = []

    def machine(self, text: str) -> Machine:
        blocks = list(self.blocks(text))
        if not blocks:
            raise CaptureError(
                f"{self.source}: describes no PCI function (write it with lspci -nnvvvxxxx -D)"
            )
        functions: dict[str, FoundFunction] = {}
        for block in blocks:
            if block.address in functions:
                first = functions[block.address].line
                self.fail(
                    block.line, f"{block.address} is described twice, first in line {first} (remove one)"
                )
            functions[block.address] = self.function(block)
        known = any(each.group is not None for each in functions.values())
        ordered = sorted(functions.values(), key=lambda each: each.place)
        above = {bus: bridge_above(bus, ordered) for bus in {each.bus for each in ordered}}
        found = {
            each.address: replace(each, groups_known=known, above=above[each.bus])
            for each in _with_vfs(ordered)
        }
        roots = {bus: node_of_root(bus, ordered) for bus in roots_of(list(found.values()))}
        self.tell(blocks, known)
        self.tell_of_bridges(blocks, roots)
        return Machine(self.source, found, (), tuple(self.notes), roots)

    def tell_of_bridges(self, blocks: Sequence[_Block], roots: Collection[str]) -> None:
        """Tell of endpoints whose bridge the text leaves out: an excerpt, as `lspci -s` prints it."""
        beyond = {bus for bus in roots if not bus.endswith(":00")}
        alone = [each.address for each in blocks if each.endpoint and each.address[:-5] in beyond]
        if alone:
            self.notes.append(
                f"{some(alone)}: the text has no bridge above, so the lab has a root bus there (run lspci "
                "without -s)"
            )

    def tell(self, blocks: Sequence[_Block], known: bool) -> None:
        denied = [block.address for block in blocks if block.denied]
        bare = [block.address for block in blocks if not block.rows]
        if denied:
            self.notes.append(
                f"{some(denied)}: lspci did not run as root, so capabilities are missing (run it as root)"
            )
        if bare:
            self.notes.append(f"{some(bare)}: the text has no bytes of configuration space (run lspci -xxxx)")
        if not known:
            self.notes.append(
                "the text has no IOMMU groups, so the lab's follow from its topology (lspci 3.6 has them)"
            )

    def blocks(self, text: str) -> Iterator[_Block]:
        block: _Block | None = None
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
                block = _Block(number, known, head["rest"] or "")
            elif block is None or not line[:1].isspace():
                self.fail(
                    number, f"{_shown(line)} is no line of lspci (write the text with lspci -nnvvvxxxx -D)"
                )
            else:
                self.detail(block, number, line.strip())
        if block is not None:
            yield block

    def row(self, block: _Block | None, number: int, offset: int, data: bytes) -> None:
        if block is None:
            self.fail(number, "bytes come before the first function (is the beginning missing?)")
        if len(data) != 16 or offset % 16 or offset >= SIZES[-1]:
            self.fail(number, f"the row at {offset:#x} does not have 16 bytes of 4096 (is the line cut off?)")
        if offset != 16 * len(block.rows):
            self.fail(
                number, f"the row is at {offset:#x} and not at {16 * len(block.rows):#x} (is one missing?)"
            )
        block.rows[offset] = data

    def detail(self, block: _Block, number: int, line: str) -> None:
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

    def region(self, block: _Block, number: int, line: str) -> None:
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

    def rom(self, block: _Block, line: str) -> None:
        found = _ROM.fullmatch(line)
        size = 0 if found is None else _size(found["rest"])
        if found is not None and size and _address(found["at"]) != 0xC0000:
            block.rom_size = size
        elif size:
            self.notes.append(
                f"{block.address}: its ROM is a copy in the memory below 1 MiB, which a lab does not have"
            )

    def capability(self, block: _Block, line: str) -> None:
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

    def function(self, block: _Block) -> FoundFunction:
        config = b"".join(block.rows[at] for at in sorted(block.rows))
        if block.rows and len(config) not in SIZES:
            if len(config) != 128:  # a CardBus bridge
                self.fail(
                    block.line,
                    f"{block.address} has {len(config)} bytes and not 64, 256 or 4096 (is it cut off?)",
                )
            config = config[:HEADER_SIZE]
        if config[:HEADER_SIZE] == b"\xff" * HEADER_SIZE:
            self.notes.append(
                f"{block.address}: all its bytes are ff, so it did not answer; they are left out"
            )
            config = b""
        space = Space(config)
        revision, interface = _REVISION.search(block.head), _INTERFACE.search(block.head)
        code, vendor, device = self.ids(block, config)
        class_code = code << 8 | (int(interface[1], 16) if interface else 0)
        subsystem = _ID.search(block.facts.get("Subsystem", ""))
        secondary, subordinate = block.buses or space.buses or (None, None)
        pin = block.facts.get("pin", "?")
        return FoundFunction(
            block.address,
            vendor,
            device,
            space.class_code if config else class_code,
            revision=space.revision if config else int(revision[1], 16) if revision else 0,
            subsystem_vendor=int(subsystem[1], 16) if subsystem else 0,
            subsystem_device=int(subsystem[2], 16) if subsystem else 0,
            interrupt_pin=space.pin if config else " ABCD".index(pin) if pin in "ABCD" else 0,
            description=_description(block.head),
            config=config,
            config_size=len(config),
            bars=tuple(sorted(block.bars, key=lambda bar: bar.index)),
            rom_size=block.rom_size,
            vpd=block.vpd.data(),
            driver=block.facts.get("Kernel driver in use"),
            group=_number(block.facts.get("IOMMU group")),
            numa_node=_number(block.facts.get("NUMA node")),
            slot=block.facts.get("Physical Slot"),
            secondary=secondary,
            subordinate=None if secondary is None else max(subordinate or 0, secondary),
            vfs=_vfs(block, space),
            words=tuple(block.words) if len(config) <= HEADER_SIZE else (),
            serial=block.serial if len(config) <= HEADER_SIZE else None,
            line=block.line,
        )

    def ids(self, block: _Block, config: bytes) -> tuple[int, int, int]:
        """Class and subclass, vendor and device: as lspci writes them with -nn, else as the bytes say."""
        code, ids = _CLASS.match(block.head), list(_ID.finditer(block.head))
        if code is not None and ids:
            return int(code["code"], 16), int(ids[-1][1], 16), int(ids[-1][2], 16)
        vendor, device = struct.unpack_from("<HH", config) if config else (0xFFFF, 0xFFFF)
        if vendor == 0xFFFF:  # there are no bytes, or those of a virtual function, which has no ids in them
            self.fail(
                block.line,
                "the function has no ids such as [0200] and [8086:1572] (run lspci with -nn)",
            )
        return Space(config).class_code >> 8, vendor, device

    def fail(self, number: int, why: str) -> NoReturn:
        raise CaptureError(f"{self.source}: line {number}: {why}")


def _with_vfs(functions: Sequence[FoundFunction]) -> Iterator[FoundFunction]:
    """The functions, virtual ones with their physical function, and physical ones with the BARs of the
    virtual ones."""
    by_place = {each.place: each for each in functions}
    owners: dict[str, str] = {}
    bars: dict[str, tuple[FoundBar, ...]] = {}
    for each in functions:
        vfs = each.vfs
        if vfs is None or vfs.offset is None or not vfs.enabled:
            continue
        domain, bus, devfn = each.place
        for index in range(min(vfs.enabled, 256)):
            rid = (bus << 8 | devfn) + vfs.offset + index * (vfs.stride or 1)
            found = by_place.get((domain, rid >> 8, rid & 0xFF))
            if found is not None and found is not each and found.vfs is None:
                owners[found.address] = each.address
                bars.setdefault(each.address, found.bars)
    for each in functions:
        if each.address in owners:
            yield replace(each, physical=owners[each.address])
        elif each.address in bars and each.vfs is not None:
            yield replace(each, vfs=replace(each.vfs, bars=bars[each.address]))
        else:
            yield each


def _vfs(block: _Block, space: Space) -> FoundVfs | None:
    """What SR-IOV of a function says, by its registers or else by the words."""
    found = space.sriov
    if found is not None:
        return (
            FoundVfs(found.total, found.enabled, found.offset, found.stride, found.device)
            if found.total
            else None
        )
    if block.vf_count is None or not block.vf_count[0]:
        return None
    offset, stride, device = block.vf_place or (None, None, None)
    return FoundVfs(*block.vf_count, offset, stride, device)


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


def _description(head: str) -> str:
    """The names that lspci gives a function, without its ids."""
    code, ids = _CLASS.match(head), list(_ID.finditer(head))
    if code is None or not ids:
        return head.strip()
    return f"{code['class']}: {head[code.end() : ids[-1].start()].strip()}"


def _size(text: str) -> int:
    found = _SIZE.search(text)
    return min(int(found[1][:12]) * _UNITS[found[2]], 1 << 63) if found else 0


def _address(text: str) -> int:
    """An address; 0 for "<unassigned>" and the like."""
    return int(text, 16) if re.fullmatch(r"[0-9a-f]{1,16}", text) else 0


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _shown(line: str) -> str:
    return repr(line[:60] + ("..." if len(line) > 60 else ""))
