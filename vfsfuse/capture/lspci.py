# SPDX-License-Identifier: Apache-2.0
"""Reading a machine from what ``lspci -nnvvvxxxx -D`` prints, also by older versions of lspci.

The blocks of the text (vfsfuse.capture.lspciblocks) become functions, and the functions a machine. What the
rows of configuration space say counts more than words do.

State: none. Source: lspci(8), and the text of lspci 3.9.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from devmodel.pci.image import SIZES
from vfsfuse.capture.lspciblocks import Block, BlockReader
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

_CLASS = re.compile(r"(?P<class>.*?)\s*\[(?P<code>[0-9a-fA-F]{4})\]:\s")
_ID = re.compile(r"\[([0-9a-fA-F]{4}):([0-9a-fA-F]{4})\]")
_REVISION, _INTERFACE = re.compile(r"\(rev ([0-9a-fA-F]{2})\)"), re.compile(r"\(prog-if ([0-9a-fA-F]{2})")


def read_lspci(text: str, source: str) -> Machine:
    """The machine that ``text`` describes; ``source`` names it in errors.

    Raises :class:`CaptureError` for a text that lspci does not print.
    """
    return _Reader(source).machine(text)


class _Reader:
    """Reads one text."""

    def __init__(self, source: str) -> None:
        self.source, self.text = source, BlockReader(source)
        self.notes = self.text.notes

    def machine(self, text: str) -> Machine:
        blocks = list(self.text.blocks(text))
        if not blocks:
            raise CaptureError(
                f"{self.source}: describes no PCI function (write it with lspci -nnvvvxxxx -D)"
            )
        functions: dict[str, FoundFunction] = {}
        for block in blocks:
            if block.address in functions:
                first = functions[block.address].line
                self.text.fail(
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

    def tell_of_bridges(self, blocks: Sequence[Block], roots: Collection[str]) -> None:
        """Tell of endpoints whose bridge the text leaves out: an excerpt, as `lspci -s` prints it."""
        beyond = {bus for bus in roots if not bus.endswith(":00")}
        alone = [each.address for each in blocks if each.endpoint and each.address[:-5] in beyond]
        if alone:
            self.notes.append(
                f"{some(alone)}: the text has no bridge above, so the lab has a root bus there (run lspci "
                "without -s)"
            )

    def tell(self, blocks: Sequence[Block], known: bool) -> None:
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

    def function(self, block: Block) -> FoundFunction:
        config = b"".join(block.rows[at] for at in sorted(block.rows))
        if block.rows and len(config) not in SIZES:
            if len(config) != 128:  # a CardBus bridge
                self.text.fail(
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

    def ids(self, block: Block, config: bytes) -> tuple[int, int, int]:
        """Class and subclass, vendor and device: as lspci writes them with -nn, else as the bytes say."""
        code, ids = _CLASS.match(block.head), list(_ID.finditer(block.head))
        if code is not None and ids:
            return int(code["code"], 16), int(ids[-1][1], 16), int(ids[-1][2], 16)
        vendor, device = struct.unpack_from("<HH", config) if config else (0xFFFF, 0xFFFF)
        if vendor == 0xFFFF:  # there are no bytes, or those of a virtual function, which has no ids in them
            self.text.fail(
                block.line,
                "the function has no ids such as [0200] and [8086:1572] (run lspci with -nn)",
            )
        return Space(config).class_code >> 8, vendor, device


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


def _vfs(block: Block, space: Space) -> FoundVfs | None:
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


def _description(head: str) -> str:
    """The names that lspci gives a function, without its ids."""
    code, ids = _CLASS.match(head), list(_ID.finditer(head))
    if code is None or not ids:
        return head.strip()
    return f"{code['class']}: {head[code.end() : ids[-1].start()].strip()}"


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
