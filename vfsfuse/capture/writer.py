# SPDX-License-Identifier: Apache-2.0
"""The lab file of a captured machine. It has the keys of docs/lab.md and nothing else.

State: none. Source: docs/lab.md, toml.io.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from devmodel.pci import regs
from devmodel.pci.address import PciAddress
from devmodel.pci.barkind import BarKind
from devmodel.pci.dump import rows
from devmodel.pci.fields import MIN_ROM
from devmodel.pci.image import Image
from devmodel.pci.regs import CapId
from vfsfuse.capture.machine import (
    HEADER_SIZE,
    FoundBar,
    FoundFunction,
    FoundVfs,
    Machine,
)
from vfsfuse.capture.scopes import scopes
from vfsfuse.capture.spaces import Space
from vfsfuse.toml import quoted

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
"""A name that a lab file can have."""
NOT_HOST_DRIVERS = ("vfio-pci", "iommu", "mdev_bus", "net", "pci_bus", "vfio", "vfio-dev")
"""What a lab file cannot have as a host driver."""
PCIEPORT = "pcieport"
PORTS = ("root-port", "switch-downstream")
"""Kinds of bridges that a slot may be below."""
MAX_VFS, MAX_NODES, MAX_SLOT, MAX_BAR, MAX_ROM = 256, 1024, 8191, 1 << 40, 16 << 20
_WIDE = ("mem64", "mem64-prefetch")
_CARDBUS, _NO_IDS = 2, b"\xff" * 4


class Written:
    """The text of a lab file, and ``notes`` about what it does not have."""

    __slots__ = ("notes", "text")

    def __init__(self, machine: Machine, roms: Path | None = None) -> None:
        """``roms`` is the folder, as the lab file names it, with the contents of ROMs."""
        writer = _Writer(machine, roms)
        body = "\n".join(writer.lines())
        self.notes = (*machine.notes, *writer.notes)
        head = [
            "# A lab file, written by `vfsfuse capture`: docs/capture.md. Each function is as it was found."
        ]
        for note in self.notes:
            head += textwrap.wrap(_plain(note, 1000), 100, initial_indent="# - ", subsequent_indent="#   ")
        self.text = "\n".join(head) + "\n\n" + body + "\n"


def rom_name(function: FoundFunction) -> str:
    """The name of the file with the content of a function's ROM."""
    return f"{function.address}.rom"


class _Writer:
    """Writes one machine."""

    def __init__(self, machine: Machine, roms: Path | None) -> None:
        self.machine, self.roms = machine, roms
        self.notes: list[str] = []
        self.cardbus = {
            f"{each.domain}:{bus:02x}"
            for each in machine.functions.values()
            for bus in Space(each.config).cardbus
        }

    def lines(self) -> Iterator[str]:
        functions = [each for each in self.machine.functions.values() if self.can_be(each)]
        yield from self.nodes()
        yield from self.roots()
        yield from self.units(functions)
        for each in functions:
            if each.physical is None or each.physical not in self.machine.functions:
                yield from self.function(each)

    def can_be(self, function: FoundFunction) -> bool:
        """Whether a lab can have it."""
        space = Space(function.config)
        try:
            PciAddress.parse(function.address)
        except ValueError as error:
            self.notes.append(f"{function.address} is left out: {error}")
            return False
        if space.header_type >= _CARDBUS:
            self.notes.append(f"{function.address} is left out: it is a CardBus bridge")
            return False
        if function.bus in self.cardbus:
            self.notes.append(f"{function.address} is left out: it is a CardBus card")
            return False
        return True

    def nodes(self) -> Iterator[str]:
        for node in self.machine.nodes:
            if node.number >= MAX_NODES:
                continue
            yield f"[nodes.{node.number}]"
            if re.fullmatch(r"[0-9,-]+", node.cpus):
                yield f'cpus = "{node.cpus}"'
            if node.threads > 1:
                yield f"threads = {node.threads}"
            if node.memory_kb:
                yield f"memory = {_size(node.memory_kb << 10)}"
            if len(node.distances) == len(self.machine.nodes):
                yield f"distances = [{', '.join(map(str, node.distances))}]"
            yield ""

    def roots(self) -> Iterator[str]:
        for bus, node in self.machine.roots.items():
            known = node is not None and 0 <= node < MAX_NODES
            if bus.endswith(":00") and not known:
                continue
            yield f'[roots."{bus}"]'
            if known:
                yield f"numa_node = {node}"
            yield ""

    def units(self, functions: Sequence[FoundFunction]) -> Iterator[str]:
        """The IOMMU units, each with the fewest names that say which functions are behind it."""
        for name, scope in scopes(functions, self.machine.roots).items():
            if NAME.fullmatch(name) is None:
                self.notes.append(f"IOMMU unit {_plain(name)!r} cannot be named so in a lab; it is left out")
                continue
            yield f"[iommu.units.{name if re.fullmatch('[A-Za-z0-9_-]+', name) else quoted(name)}]"
            yield f"scope = [{', '.join(map(quoted, scope))}]"
            yield ""

    def function(self, function: FoundFunction) -> Iterator[str]:
        config = self.config(function)
        if function.description:
            yield f"# {_plain(function.description)}"
        yield f'[functions."{function.address}"]'
        yield from self.identity(function, config)
        yield from self.bridge(function)
        yield from self.surroundings(function)
        yield from self.bars(function, config)
        if config:
            yield from _rows("config", config)
        if function.vpd and CapId.VPD in _offsets(config):
            yield from _rows("vpd", function.vpd)
        if function.vfs is not None and not function.is_bridge:
            yield from self.vfs(function, function.vfs)
        yield ""

    def config(self, function: FoundFunction) -> bytes:
        """The configuration space that the lab file gets; none if it cannot be used."""
        if not function.config:
            return b""
        try:
            Image.of(function.config)
        except ValueError as error:
            self.notes.append(f"{function.address}: its configuration space is left out: {error}")
            return b""
        return function.config

    def identity(self, function: FoundFunction, config: bytes) -> Iterator[str]:
        """Ids that a configuration space does not say, and capabilities where it is not known. A virtual
        function has no ids in it."""
        if not config or config.startswith(_NO_IDS):
            yield f"vendor = {function.vendor:#06x}"
            yield f"device = {function.device:#06x}"
        if not config:
            if function.subsystem_vendor or function.subsystem_device:
                yield f"subsystem_vendor = {function.subsystem_vendor:#06x}"
                yield f"subsystem_device = {function.subsystem_device:#06x}"
            yield f"class = {function.class_code:#08x}"
            if function.revision:
                yield f"revision = {function.revision:#04x}"
            if function.interrupt_pin:
                yield f"interrupt_pin = {function.interrupt_pin}"
        if len(config) <= HEADER_SIZE and not function.is_bridge:
            words = [word for word in function.words if self.fits(word, function)]
            if words:
                yield f"capabilities = [{', '.join(map(quoted, words))}]"
            if function.serial is not None and any(word.startswith("express") for word in words):
                digits = f"{function.serial:016x}"
                yield f"serial = {quoted('-'.join(digits[at : at + 2] for at in range(0, 16, 2)))}"

    def fits(self, word: str, function: FoundFunction) -> bool:
        """Whether a function can have a capability by word. MSI-X needs a BAR that has room."""
        name, _, count = word.partition(":")
        if name in ("aer", "acs", "ari"):
            return any(each.startswith("express") for each in function.words)
        if name != "msix":
            return True
        room = max((bar.size for bar in function.bars if bar.kind != "io"), default=0)
        return count.isdecimal() and 0 < int(count) <= 2048 and room >= 17 * int(count) + 8

    def bridge(self, function: FoundFunction) -> Iterator[str]:
        if function.secondary is None:
            return
        yield f'bridge = "{self.kind(function)}"'
        yield f"secondary = {function.secondary:#04x}"
        yield f"subordinate = {function.subordinate:#04x}"
        space = Space(function.config)
        isolated = space.isolated if space.is_express else None
        if isolated is not None:
            yield f"acs = {'true' if isolated else 'false'}"

    def kind(self, function: FoundFunction) -> str:
        """The kind of a bridge. Without its capabilities, the place tells: below the root are root ports,
        below those switches."""
        kind = Space(function.config).bridge_kind
        if kind is not None:
            return kind
        if function.words and not any(word.startswith("express") for word in function.words):
            return "pci"
        above = self.machine.functions.get(function.above or "")
        if above is None:
            return "root-port"
        if self.kind(above) == "switch-upstream":
            return "switch-downstream"
        below = [each for each in self.machine.functions.values() if each.above == function.address]
        return "switch-upstream" if below and all(each.is_bridge for each in below) else "pci"

    def surroundings(self, function: FoundFunction) -> Iterator[str]:
        """What is not of the function itself: driver, group, node, slot, interfaces."""
        driver = function.driver
        if driver == "vfio-pci":
            yield "# bound to vfio-pci when it was captured"
        elif driver is not None and self.is_host_driver(driver, function):
            yield f"driver = {quoted(driver)}"
        if function.group is not None:
            yield f"group = {function.group}"
        elif function.groups_known:
            yield "iommu = false"
        node = function.numa_node
        if node is not None and 0 <= node < MAX_NODES and node != self.machine.roots.get(function.bus):
            yield f"numa_node = {node}"
        is_port = function.is_bridge and self.kind(function) in PORTS
        slot = function.empty_slot if is_port else function.slot
        if slot is not None:
            if re.fullmatch(r"0|[1-9][0-9]{0,3}", slot) and int(slot) <= MAX_SLOT:
                yield f"slot = {quoted(slot)}"
            else:
                self.notes.append(f"{function.address}: a lab cannot name its slot {_plain(slot)!r}")
        net = [each for each in function.net if _is_interface(each.name)]
        if net:
            yield f"net = [{', '.join(quoted(each.name) for each in net)}]"
            mac = net[0].mac
            if mac is not None and not mac[0] & 1:
                yield f"mac = {quoted(mac.hex(':'))}"

    def is_host_driver(self, driver: str, function: FoundFunction) -> bool:
        if driver in NOT_HOST_DRIVERS or NAME.fullmatch(driver) is None:
            self.notes.append(f"{function.address}: a lab cannot have its driver {_plain(driver)!r}")
            return False
        return driver != PCIEPORT or function.is_bridge

    def bars(self, function: FoundFunction, config: bytes) -> Iterator[str]:
        image = Image.of(config) if config else None
        count = 2 if image is not None and image.is_bridge else 6
        taken: set[int] = set()
        for each in function.bars:
            bar = _as_registered(each, image)
            wide = bar.kind in _WIDE
            indexes = {bar.index, bar.index + 1} if wide else {bar.index}
            if not _is_possible(bar) or indexes & taken or max(indexes) >= count:
                self.notes.append(f"{function.address}: its BAR {bar.index} of {bar.size} bytes is left out")
                continue
            taken |= indexes
            yield f"bars.{bar.index} = {{ {', '.join(_bar(bar, image))} }}"
        size = function.rom_size
        if size and not function.is_bridge:
            if size & (size - 1) or not MIN_ROM <= size <= MAX_ROM:
                self.notes.append(f"{function.address}: its ROM of {size} bytes is left out")
                return
            if function.rom and self.roms is not None:
                yield f"rom = {quoted(str(self.roms / rom_name(function)))}"
            yield f"rom_size = {_size(size)}"

    def vfs(self, function: FoundFunction, vfs: FoundVfs) -> Iterator[str]:
        """Its virtual functions, described by those that are enabled."""
        bars = [bar for bar in vfs.bars if _is_possible(bar) and bar.kind != "io"]
        if not 0 < vfs.total <= MAX_VFS or len(bars) < len(vfs.bars):
            self.notes.append(f"{function.address}: its {vfs.total} virtual functions are left out")
            return
        yield f"vfs = {vfs.total}"
        virtual = [each for each in self.machine.functions.values() if each.physical == function.address]
        yield f'[functions."{function.address}".vf]'
        sample = virtual[0] if virtual else None
        device = vfs.device if vfs.device is not None else sample.device if sample else None
        if device is not None:
            yield f"device = {device:#06x}"
        config = b"" if sample is None or len(sample.config) <= HEADER_SIZE else self.config(sample)
        if sample is not None and not config:
            yield from _virtual_identity(sample, function)
        placed = Space(function.config).sriov is None
        for bar in bars:
            address = f", address = {bar.address:#x}" if placed and 0 < bar.address < 1 << 63 else ""
            yield f"bars.{bar.index} = {{ size = {_size(bar.size)}, kind = {quoted(bar.kind)}{address} }}"
        if vfs.offset and vfs.stride:
            yield f"offset = {vfs.offset}"
            yield f"stride = {vfs.stride}"
        drivers = {each.driver for each in virtual} - {None, "vfio-pci"}
        if len(drivers) == 1 and self.is_host_driver(driver := str(*drivers), function):
            yield f"driver = {quoted(driver)}"
        if sample is not None and sample.group is not None and sample.group == function.group:
            yield 'group = "physical"'
        elif virtual and all(each.group is not None for each in virtual):
            yield f"groups = [{', '.join(str(each.group) for each in virtual)}]"
        names = [each.net[0].name for each in virtual if each.net and _is_interface(each.net[0].name)]
        if virtual and len(names) == len(virtual):
            yield f"net = [{', '.join(map(quoted, names))}]"
        if config:
            yield from _rows("config", config)
        if vfs.enabled:
            yield f"enabled = {min(vfs.enabled, vfs.total)}"


def _virtual_identity(function: FoundFunction, physical: FoundFunction) -> Iterator[str]:
    """What tells a virtual function from its physical one, if its configuration space is not known."""
    if function.subsystem_device != physical.subsystem_device:
        yield f"subsystem_device = {function.subsystem_device:#06x}"
    if function.class_code != physical.class_code:
        yield f"class = {function.class_code:#08x}"
    if function.revision != physical.revision:
        yield f"revision = {function.revision:#04x}"


def _bar(bar: FoundBar, image: Image | None) -> Iterator[str]:
    """The keys of a BAR; what the configuration space says is left out."""
    yield f"size = {_size(bar.size)}"
    register = 0 if image is None else image.bar(bar.index)
    if not register and bar.kind != "mem32":
        yield f"kind = {quoted(bar.kind)}"
    captured = register & (~3 if register & 1 else ~0xF)
    if bar.address and bar.address != captured and not bar.address % bar.size and bar.address < 1 << 63:
        yield f"address = {bar.address:#x}"


def _as_registered(bar: FoundBar, image: Image | None) -> FoundBar:
    """The BAR of the kind that its register says, if it says one."""
    register = 0 if image is None or not 0 <= bar.index < image.bar_count else image.bar(bar.index)
    return replace(bar, kind=BarKind.of(register).value) if register else bar


def _is_possible(bar: FoundBar) -> bool:
    least, most = (4, 1 << 16) if bar.kind == "io" else (16, MAX_BAR if bar.kind in _WIDE else 1 << 31)
    return least <= bar.size <= most and not bar.size & (bar.size - 1)


def _is_interface(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", name) is not None


def _offsets(config: bytes) -> Mapping[int, int]:
    return Image.of(config).offsets if len(config) > regs.STD_HEADER_SIZEOF else {}


def _rows(key: str, data: bytes) -> Iterator[str]:
    yield f'{key} = """'
    yield from rows(data)
    yield '"""'


def _size(size: int) -> str:
    """Bytes as a lab file writes them: 128, "16M"."""
    for unit, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size and not size % (1 << shift):
            return f'"{size >> shift}{unit}"'
    return str(size)


def _plain(text: str, most: int = 200) -> str:
    """A text from anywhere, for a comment or a message: one line that can be printed."""
    return "".join(each if each.isprintable() else "?" for each in text)[:most]
