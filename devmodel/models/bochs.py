# SPDX-License-Identifier: Apache-2.0
"""A bochs-compatible display: video memory, and a register BAR with the DISPI registers in memory space.

State: in the device, under its lock. Source: QEMU's docs/specs/standard-vga ("PCI spec" and "MMIO area":
DISPI register n is 16 bits wide at offset 0x500 + 2 * n) and the VBE DISPI interface of Bochs.
"""

import mmap
import zlib
from collections.abc import Callable, Mapping, Sequence
from enum import IntFlag
from typing import ClassVar

from devmodel.device.display import MAX_EXTENT, Display, Fourcc, Plane
from devmodel.device.options import Option
from devmodel.device.pci import PciDevice, PciRegion
from devmodel.models import edid
from devmodel.pci.config import Aperture
from devmodel.pci.fields import Bar, Identity
from devmodel.region.region import Memory
from devmodel.region.registers import Layout, Register, Registers

EDID_SIZE = 0x400
VGA_BASE, VGA_PORTS = 0x400, 0x20
DISPI_BASE = 0x500
EXTENDED_BASE, EXTENDED_SIZE = 0x600, 8
DISPI_ID0, DISPI_ID5 = 0xB0C0, 0xB0C5
LITTLE_ENDIAN, BIG_ENDIAN = 0x1E1E1E1E, 0xBEBEBEBE
MAX_BPP = 32
MIN_VIDEO_MEMORY = 1 << 20
MAX_VIDEO_MEMORY = 1 << 31
"""Largest 32-bit memory BAR."""
VIDEO_MEMORY_UNIT = 1 << 16
"""The unit in which guests count video memory, in bytes."""


class Enable(IntFlag):
    """Bits of the ENABLE register."""

    ENABLED = 0x01
    GETCAPS = 0x02
    """XRES, YRES and BPP read as their largest values."""
    DAC_8BIT = 0x20
    LFB_ENABLED = 0x40
    NOCLEARMEM = 0x80
    """Enabling the display does not clear the memory."""


_ENABLE_BITS = sum(Enable)

FORMATS: Mapping[tuple[int, bool], Fourcc] = {
    (32, False): Fourcc.XRGB8888,
    (32, True): Fourcc.BGRX8888,
    (24, False): Fourcc.RGB888,
    (24, True): Fourcc.RGB888,
    (16, False): Fourcc.RGB565,
    (15, False): Fourcc.XRGB1555,
}
"""The picture formats, by bits per pixel and whether the framebuffer is big-endian.

Pixels of 4 and 8 bits are colours of a palette, which only the ports of a VGA can set, so they show nothing.
Big-endian words of 16 bits show nothing either, because no format here describes them.
"""


class BochsRegisters(Registers):
    """BAR 2: registers, and the EDID of the monitor in its first KiB."""

    __slots__ = ("_device",)

    def __init__(self, device: "BochsDisplay") -> None:
        super().__init__(device.LAYOUT, device)
        self._device = device

    def read(self, offset: int, size: int) -> bytes:
        data = super().read(offset, size)
        said = self._device.guest_edid().ljust(EDID_SIZE, b"\0")[offset : offset + size]
        return said + data[len(said) :]


class BochsDisplay(Display, PciDevice):
    """BAR 0 is ``memory`` bytes of video memory, BAR 2 the registers.

    BAR 0 is rounded up to a power of two; there is no memory behind the rest. ``max_width`` and
    ``max_height`` limit the modes (0: only the memory limits them). ``frame_rate`` is the rate of the monitor
    in Hz.
    """

    __slots__ = ("_big_endian", "_enabled", "_most", "_version", "edid", "mode", "registers")
    identity = Identity(0x1234, 0x1111, 0x1AF4, 0x1100, class_code=0x038000, revision=2)
    LAYOUT: ClassVar[Layout]
    """The registers of BAR 2: :data:`LAYOUT`, or more."""
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "max_width": Option(0, 0, MAX_EXTENT),
        "max_height": Option(0, 0, MAX_EXTENT),
        "frame_rate": Option(edid.REFRESH, edid.REFRESH // 2, edid.REFRESH),
    }
    MONITOR: ClassVar[str] = "bochs display"
    """The name of the monitor in the EDID, up to 13 characters."""

    def __init__(
        self,
        name: str,
        memory: int = 0,
        options: Mapping[str, int] | None = None,
        aperture: Aperture | None = None,
    ) -> None:
        limits = self.with_defaults(options or {})
        self.validate(memory, limits)
        self._most = {"XRES": limits["max_width"] or MAX_EXTENT, "YRES": limits["max_height"] or MAX_EXTENT}
        self.mode = edid.best_mode(memory, self._most["XRES"], self._most["YRES"])
        self.edid = edid.block(self.mode, self.MONITOR, zlib.crc32(name.encode()), limits["frame_rate"])
        self._power_on()
        super().__init__(name, memory, options, aperture)

    @classmethod
    def validate(cls, memory: int, options: Mapping[str, int]) -> None:
        super().validate(memory, options)
        if not MIN_VIDEO_MEMORY <= memory <= MAX_VIDEO_MEMORY or memory % VIDEO_MEMORY_UNIT:
            raise ValueError(f"video memory is {memory} bytes, not from 1M to 2G in units of 64K")
        least = edid.MODES[-1]
        width, height = options.get("max_width", 0), options.get("max_height", 0)
        if (width or height) and (width < least.width or height < least.height):
            raise ValueError(f"max_resolution is {width}x{height}, less than {least.width}x{least.height}")

    def bars(self) -> Mapping[int, Bar]:
        self.registers = BochsRegisters(self)
        decoded = 1 << (self.memory - 1).bit_length()
        return {0: Bar(Memory(decoded, self.memory), prefetch=True), 2: Bar(self.registers)}

    def after_reset(self) -> None:
        super().after_reset()
        self._power_on()

    def guest_edid(self) -> bytes:
        """The EDID that the guest reads, empty when there is no monitor. Under :attr:`lock`."""
        return self.edid

    def plane(self) -> Plane | None:
        fourcc = FORMATS.get((self.registers["BPP"], self._big_endian))
        if not self._enabled or fourcc is None:
            return None
        stride = self._virtual_width() * fourcc.pixel_size
        offset = self.registers["Y_OFFSET"] * stride + self.registers["X_OFFSET"] * fourcc.pixel_size
        plane = Plane(self.registers["XRES"], self.registers["YRES"], stride, fourcc, PciRegion.BAR0, offset)
        return plane if plane.fits(self.memory) else None

    def _power_on(self) -> None:
        self._enabled = False
        self._big_endian = False
        self._version = DISPI_ID5

    def _virtual_width(self) -> int:
        """Pixels from one line to the next, at least as many as a line shows."""
        return max(self.registers["VIRT_WIDTH"], self.registers["XRES"])

    # ---- hooks of registers ----

    def _limited(self, name: str, limit: int) -> int:
        return limit if self.registers["ENABLE"] & Enable.GETCAPS else self.registers[name]

    def _read_virtual_height(self) -> int:
        stride = self._virtual_width() * -(-self.registers["BPP"] // 8)
        return min(self.memory // stride, 0xFFFF) if stride else 0

    def _read_video_memory(self) -> int:
        return min(self.memory // VIDEO_MEMORY_UNIT, 0xFFFF)

    def _write_id(self, value: int) -> None:
        """A guest may ask for an older version of the interface, or for the newest again."""
        if DISPI_ID0 <= value <= DISPI_ID5:
            self._version = value
        self.registers["ID"] = self._version

    def _write_enable(self, value: int) -> None:
        was, self._enabled = self._enabled, bool(value & Enable.ENABLED)
        if not self._enabled or was:
            return
        self.registers["VIRT_WIDTH"] = self.registers["XRES"]
        self.registers["X_OFFSET"] = self.registers["Y_OFFSET"] = 0
        shown = self.plane()
        if shown is not None and not value & Enable.NOCLEARMEM:
            self._clear(shown.size)

    def _write_endian(self, value: int) -> None:
        if value in (LITTLE_ENDIAN, BIG_ENDIAN):
            self._big_endian = value == BIG_ENDIAN
        self.registers["ENDIAN"] = BIG_ENDIAN if self._big_endian else LITTLE_ENDIAN

    def _clear(self, size: int) -> None:
        """Zero the first ``size`` bytes of the memory. Whole pages are given back to the kernel, which takes
        no time."""
        if not self.backing.created:
            return
        whole = size // mmap.PAGESIZE * mmap.PAGESIZE
        if whole:
            with self.backing.map(0, whole) as memory:
                memory.madvise(mmap.MADV_REMOVE)
        self.region(PciRegion.BAR0).write(whole, bytes(size - whole))


def _extent(index: int, name: str) -> Register:
    """The register XRES or YRES. A write above the largest value sets the largest."""

    def clamp(device: BochsDisplay, value: int) -> None:
        device.registers[name] = min(value, device._most[name])

    return _dispi(
        index, name, on_read=lambda device: device._limited(name, device._most[name]), on_write=clamp
    )


def _dispi(
    index: int,
    name: str,
    reset: int = 0,
    rw_mask: int = -1,
    on_read: Callable[[BochsDisplay], int] | None = None,
    on_write: Callable[[BochsDisplay, int], None] | None = None,
) -> Register:
    return Register(DISPI_BASE + 2 * index, 2, name, reset, rw_mask, on_read=on_read, on_write=on_write)


_DISPI: Sequence[Register] = (
    _dispi(0, "ID", DISPI_ID5, on_write=BochsDisplay._write_id),
    _extent(1, "XRES"),
    _extent(2, "YRES"),
    _dispi(3, "BPP", on_read=lambda device: device._limited("BPP", MAX_BPP)),
    _dispi(4, "ENABLE", rw_mask=_ENABLE_BITS, on_write=BochsDisplay._write_enable),
    _dispi(5, "BANK"),
    _dispi(6, "VIRT_WIDTH", on_read=BochsDisplay._virtual_width),
    _dispi(7, "VIRT_HEIGHT", rw_mask=0, on_read=BochsDisplay._read_virtual_height),
    _dispi(8, "X_OFFSET"),
    _dispi(9, "Y_OFFSET"),
    _dispi(10, "VIDEO_MEMORY_64K", rw_mask=0, on_read=BochsDisplay._read_video_memory),
)
_VGA: Sequence[Register] = tuple(
    Register(VGA_BASE + port, 1, f"VGA_{0x3C0 + port:X}") for port in range(VGA_PORTS)
)
"""A driver blanks the screen and sets the attribute flip-flop there. The display does not depend on it."""
_EXTENDED: Sequence[Register] = (
    Register(EXTENDED_BASE, 4, "EXTENDED_SIZE", EXTENDED_SIZE, rw_mask=0),
    Register(EXTENDED_BASE + 4, 4, "ENDIAN", LITTLE_ENDIAN, on_write=BochsDisplay._write_endian),
)
LAYOUT = Layout(4096, [*_VGA, *_DISPI, *_EXTENDED])
BochsDisplay.LAYOUT = LAYOUT
