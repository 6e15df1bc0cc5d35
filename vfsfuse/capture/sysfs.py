# SPDX-License-Identifier: Apache-2.0
"""Reading a machine from a live sysfs, that of this machine or of a mounted lab.

Files that are missing are normal: kernels differ in what they show. What cannot be read is noted.

State: none. Source: Documentation/ABI/testing/sysfs-bus-pci, sysfs-class-iommu, sysfs-devices-node,
Documentation/PCI/sysfs-pci.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from devmodel.pci.barkind import BarKind
from devmodel.pci.regs import IoResource
from vfsfuse.capture.machine import (
    ADDRESS,
    BARS,
    EXPRESS_SIZE,
    HEADER_SIZE,
    IOV_ROW,
    ROM_ROW,
    CaptureError,
    FoundBar,
    FoundFunction,
    FoundNet,
    FoundNode,
    FoundVfs,
    Machine,
    node_of_root,
    roots_of,
    some,
)

MAX_TEXT, MAX_ROM, MAX_VPD = 1 << 16, 16 << 20, 1 << 15
"""Most bytes that are read of an attribute, of a ROM, of vital product data."""
MAX_CPUS = 8192
_ROM_SHADOW = 0x2
_MAC_SIZE = 6
VFIO_PCI = "vfio-pci"


def read_sysfs(root: Path, roms: bool = False) -> Iterator[Machine | None]:
    """The machine whose sysfs is at ``root``, after a None for each function that has been read: the one who
    waits knows then that files answer. With ``roms`` option ROMs are enabled for a moment and read, which
    takes root and which some devices do not like.

    Raises :class:`CaptureError` when there is no sysfs, or no PCI function in it.
    """
    return _Reader(root, roms).steps()


class _Reader:
    """Reads one sysfs. ``notes`` grow as it goes."""

    def __init__(self, root: Path, roms: bool) -> None:
        self.root, self.roms = root, roms
        self.notes: list[str] = []
        self.short: list[str] = []

    def steps(self) -> Iterator[Machine | None]:
        folder = self.root / "bus/pci/devices"
        try:
            names = sorted(name for name in os.listdir(folder) if ADDRESS.fullmatch(name))
        except OSError as error:
            raise CaptureError(
                f"{folder}: cannot be read: {error.strerror} (give the place of a sysfs, such as --sys /sys)"
            ) from error
        if not names:
            raise CaptureError(f"{folder}: has no PCI function (there is nothing to capture)")
        slots = self.slots()
        functions = []
        for name in names:
            found = self.function(folder / name, slots)
            functions += [] if found is None else [found]
            yield None
        used = {each.bus for each in functions}
        functions = [_with_empty_slot(each, slots, used) for each in functions]
        functions.sort(key=lambda each: each.place)
        self.tell_short()
        if not any(each.group is not None for each in functions):
            self.notes.append(
                "there are no IOMMU groups, so the lab has none either (take the lines `iommu = false` out "
                "for a lab with an IOMMU)"
            )
        nodes = tuple(self.nodes())
        roots = {bus: node_of_root(bus, functions) for bus in roots_of(functions)}
        by_address = {each.address: each for each in functions}
        yield Machine(str(self.root), by_address, nodes, tuple(self.notes), roots)

    def tell_short(self) -> None:
        if self.short:
            self.notes.append(
                f"{some(self.short)}: only the first {HEADER_SIZE} bytes of configuration space may be "
                "read, so capabilities are missing (capture as root)"
            )

    def function(self, folder: Path, slots: dict[str, str]) -> FoundFunction | None:
        name = folder.name
        config, size = self.config(folder)
        ids = [self.number(folder / each) for each in ("vendor", "device", "class")]
        vendor, device, class_code = ids
        if vendor is None or device is None or class_code is None:
            self.notes.append(f"{name}: its vendor, device or class cannot be read; it is left out")
            return None
        rows = self.resource(folder)
        bars = tuple(_bars(rows[:BARS], 0))
        rom, rom_size = self.rom(folder, rows)
        driver = _link(folder / "driver")
        secondary, subordinate = self.buses(folder, config)
        return FoundFunction(
            name,
            vendor,
            device,
            class_code,
            revision=self.number(folder / "revision") or 0,
            subsystem_vendor=self.number(folder / "subsystem_vendor") or 0,
            subsystem_device=self.number(folder / "subsystem_device") or 0,
            interrupt_pin=config[0x3D] if len(config) >= HEADER_SIZE and config[0x3D] <= 4 else 0,
            config=config,
            config_size=size,
            bars=bars,
            rom_size=rom_size,
            rom=rom,
            vpd=self.bytes(folder / "vpd", MAX_VPD),
            driver=driver,
            group=_number(_link(folder / "iommu_group")),
            numa_node=self.number(folder / "numa_node"),
            slot=slots.get(name.rsplit(".", 1)[0]),
            secondary=secondary,
            subordinate=subordinate,
            above=_above(folder),
            physical=_link(folder / "physfn"),
            vfs=self.vfs(folder, rows),
            net=tuple(self.nets(folder, driver)),
            unit=_link(folder / "iommu"),
            words=self.words(folder) if len(config) <= HEADER_SIZE else (),
        )

    def config(self, folder: Path) -> tuple[bytes, int]:
        """What can be read of configuration space, 64 bytes or all of it, and how much there is."""
        data = self.bytes(folder / "config", EXPRESS_SIZE)
        try:
            size = (folder / "config").stat().st_size
        except OSError:
            size = len(data)
        if len(data) < HEADER_SIZE:
            self.notes.append(f"{folder.name}: its configuration space cannot be read")
            return b"", size
        if len(data) < min(size, EXPRESS_SIZE):
            self.short.append(folder.name)
            return data[:HEADER_SIZE], size
        return data, size

    def buses(self, folder: Path, config: bytes) -> tuple[int | None, int | None]:
        """The bus numbers of a bridge, from the files that only bridges have, or else from its registers."""
        secondary = self.decimal(folder / "secondary_bus_number")
        subordinate = self.decimal(folder / "subordinate_bus_number")
        if secondary is None and len(config) >= HEADER_SIZE and config[0x0E] & 0x7F == 1 and config[0x19]:
            secondary, subordinate = config[0x19], config[0x1A]
        if secondary is None:
            return None, None
        return secondary, max(subordinate or 0, secondary)

    def rom(self, folder: Path, rows: Sequence[tuple[int, int, int]]) -> tuple[bytes, int]:
        """The content of the ROM if it is asked for, and its size."""
        if len(rows) <= ROM_ROW or not rows[ROM_ROW][2] & IoResource.MEM:
            return b"", 0
        start, end, flags = rows[ROM_ROW]
        if flags & _ROM_SHADOW and start == 0xC0000:
            self.notes.append(
                f"{folder.name}: its ROM is a copy in the memory below 1 MiB, which a lab does not have"
            )
            return b"", 0
        size = end - start + 1
        return (self.enabled_rom(folder / "rom"), size) if self.roms else (b"", size)

    def enabled_rom(self, path: Path) -> bytes:
        try:
            path.write_bytes(b"1")
            try:
                return self.bytes(path, MAX_ROM)
            finally:
                path.write_bytes(b"0\n")
        except OSError as error:
            self.notes.append(f"{path.parent.name}: its ROM cannot be read: {error.strerror}")
            return b""

    def vfs(self, folder: Path, rows: Sequence[tuple[int, int, int]]) -> FoundVfs | None:
        total = self.decimal(folder / "sriov_totalvfs")
        if not total:
            return None
        return FoundVfs(
            total,
            self.decimal(folder / "sriov_numvfs") or 0,
            self.decimal(folder / "sriov_offset"),
            self.decimal(folder / "sriov_stride"),
            self.hexadecimal(folder / "sriov_vf_device"),
            tuple(_bars(rows[IOV_ROW : IOV_ROW + BARS], total)),
        )

    def nets(self, folder: Path, driver: str | None) -> Iterator[FoundNet]:
        """The network interfaces of the function, also those of a virtio device on it."""
        virtio = sorted(folder.glob("virtio*/net")) if (driver or "").startswith("virtio") else []
        places = [folder / "net", *virtio]
        for place in places:
            for name in _names(place):
                text = self.text(place / name / "address") or ""
                try:
                    mac = bytes.fromhex(text.replace(":", ""))
                except ValueError:
                    mac = b""
                yield FoundNet(name, mac if len(mac) == _MAC_SIZE and any(mac) else None)

    def words(self, folder: Path) -> tuple[str, ...]:
        """What the other files say of the capabilities of a function whose configuration space is hidden."""
        words = []
        if (folder / "max_link_speed").exists():
            speed, width = self.text(folder / "max_link_speed") or "", self.decimal(folder / "max_link_width")
            known = {
                "2.5": "2.5GT",
                "5.0": "5GT",
                "8.0": "8GT",
                "16.0": "16GT",
                "32.0": "32GT",
                "64.0": "64GT",
            }
            arguments = [known[speed.split(" ")[0]]] if speed.split(" ")[0] in known else []
            if width in (1, 2, 4, 8, 12, 16, 32):
                arguments.append(f"x{width}")
            reset = (self.text(folder / "reset_method") or "").split()
            arguments += [] if "flr" in reset else ["no-flr"]
            words.append(f"express:{','.join(arguments)}")
        return tuple(words)

    def slots(self) -> dict[str, str]:
        """The names of slots by domain, bus and device."""
        folder = self.root / "bus/pci/slots"
        found = {}
        for name in _names(folder):
            address = self.text(folder / name / "address")
            if address:
                found[address] = name
        return found

    def nodes(self) -> Iterator[FoundNode]:
        folder = self.root / "devices/system/node"
        numbers = sorted(
            int(name[4:]) for name in _names(folder) if name[:4] == "node" and name[4:].isdecimal()
        )
        for number in numbers:
            place = folder / f"node{number}"
            memory = [line.split() for line in (self.text(place / "meminfo") or "").splitlines()]
            total = [int(words[-2]) for words in memory if "MemTotal:" in words and words[-2].isdecimal()]
            distances = (self.text(place / "distance") or "").split()
            cpus = self.text(place / "cpulist") or ""
            yield FoundNode(
                number,
                cpus,
                total[0] if total else 0,
                tuple(int(each) for each in distances if each.isdecimal()),
                self.threads(cpus_of(cpus)),
            )

    def threads(self, cpus: Sequence[int]) -> int:
        """The threads of each core of a node, 0 if the CPUs of its cores do not follow one another."""
        folder = self.root / "devices/system/cpu"
        names = {cpu: self.text(folder / f"cpu{cpu}/topology/thread_siblings_list") or "" for cpu in cpus}
        count = len(cpus_of(names[cpus[0]])) if cpus else 0
        if not count or len(cpus) % count:
            return 0
        cores = len(cpus) // count
        siblings = {cpu: [*cpus[place % cores :: cores]] for place, cpu in enumerate(cpus)}
        return count if all(cpus_of(names[cpu]) == siblings[cpu] for cpu in cpus) else 0

    # ---- files ----

    def resource(self, folder: Path) -> list[tuple[int, int, int]]:
        rows = []
        for line in (self.text(folder / "resource") or "").splitlines():
            try:
                start, end, flags = (int(word, 16) for word in line.split())
            except ValueError:
                break
            rows.append((start, end, flags))
        return rows

    def text(self, path: Path) -> str | None:
        data = self.bytes(path, MAX_TEXT)
        text = data.decode("utf-8", "replace").strip()
        return text if text.isprintable() or "\n" in text or "\t" in text else None

    def bytes(self, path: Path, most: int) -> bytes:
        """The content of a file, up to ``most`` bytes; nothing if it cannot be read."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                self.notes.append(f"{path.parent.name}/{path.name}: cannot be opened: {error.strerror}")
            return b""
        try:
            data = b""
            while len(data) < most and (more := os.read(fd, most - len(data))):
                data += more
            return data
        except OSError as error:
            if path.name not in ("address", "vpd", "rom"):
                self.notes.append(f"{path.parent.name}/{path.name}: cannot be read: {error.strerror}")
            return b""
        finally:
            os.close(fd)

    def number(self, path: Path) -> int | None:
        """A number as C writes it: 0x10de, 16, -1."""
        return _number(self.text(path), 0)

    def decimal(self, path: Path) -> int | None:
        return _number(self.text(path), 10)

    def hexadecimal(self, path: Path) -> int | None:
        return _number(self.text(path), 16)


def _with_empty_slot(function: FoundFunction, slots: dict[str, str], used: set[str]) -> FoundFunction:
    """A port with the name of its slot, if no card is in it."""
    if function.secondary is None:
        return function
    bus = f"{function.domain}:{function.secondary:02x}"
    name = None if bus in used else slots.get(f"{bus}:00", slots.get(bus))
    return replace(function, empty_slot=name) if name else function


def cpus_of(text: str) -> list[int]:
    """The numbers in a list of CPUs, such as 0-3,8; none for another text or too many."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(first + last) > 10:
            return []
        found += range(int(first), min(int(last or first), int(first) + MAX_CPUS) + 1)
    return found if len(found) <= MAX_CPUS else []


def _bars(rows: Sequence[tuple[int, int, int]], shared: int) -> Iterator[FoundBar]:
    """The BARs in rows of ``resource``. ``shared`` is among how many functions each is divided, 0 for
    none."""
    for index, (start, end, flags) in enumerate(rows):
        size = end - start + 1
        if not flags & (IoResource.MEM | IoResource.IO) or end < start:
            continue
        is_io, wide, prefetch = (
            bool(flags & bit) for bit in (IoResource.IO, IoResource.MEM_64, IoResource.PREFETCH)
        )
        kind = BarKind.made_of(is_io, wide, prefetch).value
        placed = start if not flags & IoResource.UNSET else 0
        yield FoundBar(index, size // (shared or 1), kind, placed)


def _link(path: Path) -> str | None:
    """The last part of what a link points to, None without one."""
    try:
        return os.path.basename(os.readlink(path)) or None
    except OSError:
        return None


def _above(folder: Path) -> str | None:
    """The function that the device of the link ``folder`` is below, None for a root bus."""
    try:
        above = os.path.basename(os.path.dirname(os.readlink(folder)))
    except OSError:
        return None
    return above if ADDRESS.fullmatch(above) else None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _number(text: str | None, base: int = 10) -> int | None:
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None
