# SPDX-License-Identifier: Apache-2.0
"""What only endpoints have of the attributes of a PCI function: resets, ROM, resource files, boot_vga.

State is the function's.  show() is called on the trio thread and on the device lane, store() on the trio
thread; the device lane opens the files.  Names, modes, formats and errors:
Documentation/ABI/testing/sysfs-bus-pci, Documentation/PCI/sysfs-pci.rst.
"""

from __future__ import annotations

import errno

from devmodel.device.pci import PciDevice
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.hotplug import CLASS_DISPLAY_VGA
from devmodel.pci.rom import image_size
from ioctl_shim.lane import Opened, OpenRequest, PlainFile
from vfsfuse.kernfs.members import BinaryMember, attribute, binary, store_only
from vfsfuse.sysfs.kstrtox import parse_number
from vfsfuse.sysfs.pci import BARS, ROM, PciAttributes
from vfsfuse.vfio.port import RegionFile, open_region

PORT_SIZES = (1, 2, 4)
VPD_UNIT = 4
WC_DOC = """\
The same as `resource<N>`, for a mapping that combines writes; present for prefetchable memory.

Writes it.
"""


class RomFile(RegionFile):
    """An open `rom` of a function.  It can be read once something was written, as long as the image is."""

    __slots__ = ("_function",)

    def __init__(self, function: PciFunction) -> None:
        super().__init__(function.device, ROM, 0)
        self._function = function

    def read(self, offset: int, size: int) -> bytes:
        device = self._function.device
        if not self._function.core.rom_enabled:
            raise OSError(errno.EINVAL, "not enabled: write 1 first")
        end = image_size(lambda at, count: device.read(ROM, at, count), device.bar_map[ROM].size)
        if not end:
            raise OSError(errno.EIO, "the ROM has no image")
        return device.read(ROM, offset, min(size, end - offset)) if offset < end else b""

    def write(self, offset: int, data: bytes) -> int:
        self._function.device.check_present()
        self._function.core.rom_enabled = offset > 0 or data not in (b"0", b"0\n")
        return len(data)


class VpdFile(PlainFile):
    """An open `vpd` of a function: the vital product data."""

    __slots__ = ("_device",)

    def __init__(self, device: PciDevice) -> None:
        self._device = device

    @property
    def subject(self) -> str:
        return self._device.name

    def read(self, offset: int, size: int) -> bytes:
        data = self._data()
        return data[offset : offset + size]

    def write(self, offset: int, data: bytes) -> int:
        if offset % VPD_UNIT or len(data) % VPD_UNIT or offset + len(data) > len(self._data()):
            raise OSError(errno.EINVAL, "not whole words of the vital product data")
        return len(data)  # the function does not take it

    def _data(self) -> bytes:
        self._device.check_present()
        data = self._device.vpd
        if not data:
            raise OSError(errno.EIO, "the vital product data have no end")
        return data


class PortsFile(RegionFile):
    """An open `resource<N>` of I/O ports: each access is one of 1, 2 or 4 bytes."""

    __slots__ = ()

    def read(self, offset: int, size: int) -> bytes:
        return super().read(offset, size) if self._check(offset, size) else b""

    def write(self, offset: int, data: bytes) -> int:
        return super().write(offset, data) if self._check(offset, len(data)) else 0

    def _check(self, offset: int, size: int) -> bool:
        """Whether there are ports at `offset`.  Raises OSError(EINVAL) for an access that is none."""
        end = self.device.region(self.index).size
        if offset >= end:
            return False
        if size not in PORT_SIZES or offset + size > end:
            raise OSError(errno.EINVAL, f"{size} bytes of I/O ports at {offset:#x} of {end:#x}")
        return True


def _wc_file(index: int) -> BinaryMember:
    """`resource<N>_wc`."""

    def size(self: PciAttributes) -> int | None:
        bar = self.bar(index)
        return bar.size if bar is not None and bar.prefetch and not bar.io else None

    def opener(self: PciAttributes, request: OpenRequest) -> Opened:
        return open_region(self.port, index, request)

    return BinaryMember(f"resource{index}_wc", 0o600, size, opener, WC_DOC)


def _rom_size(self: EndpointAttributes) -> int | None:
    bar = self.bar(ROM)
    return None if bar is None else bar.size


def _vpd_size(self: EndpointAttributes) -> int | None:
    return 0 if self.assignable.traits.has_vpd else None


def _can_be_reset(self: EndpointAttributes) -> bool:
    return bool(self.assignable.supported_resets)


def _is_display(self: EndpointAttributes) -> bool:
    return self.assignable.identity.class_code >> 8 == CLASS_DISPLAY_VGA


class EndpointAttributes(PciAttributes):
    """<function>: an endpoint, which is a PCI function that is no bridge."""

    __slots__ = ()
    assignable: PciFunction

    @store_only(when=_can_be_reset)
    def reset(self, text: str) -> None:
        """1 resets the function by the first of its reset methods; its configuration space stays. EINVAL for
        any other text, ENOTTY without a method that works now."""
        if parse_number(text) != 1:
            raise ValueError(f"{text!r} is not 1")
        self.assignable.reset()

    @attribute(0o644, when=_can_be_reset)
    def reset_method(self) -> str:
        """The reset methods in the order in which they are tried: of `flr` (function level reset) and `bus`
        (of the whole bus). Present for a function that can be reset."""
        return " ".join(self.assignable.reset_methods)

    @reset_method.store
    def _store_reset_method(self, text: str) -> None:
        """Takes methods and their order, `default` for all in the order of the kernel, and an empty line for
        none. EINVAL for a method that the function does not have."""
        names = [name for name in map(str.strip, text.split(" ")) if name]
        self.assignable.choose_resets(None if names == ["default"] else names)

    @attribute(when=_is_display)
    def boot_vga(self) -> int:
        """1 for the display that the machine booted with, the one with the lowest address, else 0; present
        for VGA displays."""
        return int(self.assignable is self.view.lab.hotplug.boot_display)

    @binary(0o600, _rom_size)
    def rom(self, request: OpenRequest) -> Opened:
        """The image of the option ROM, once it is enabled: EINVAL before, EIO without an image in it. An
        image without PCI data structure, which Linux does not know, is as long as its header says. Present
        where the function has a ROM.

        `0` disables reading (on Linux, only with a newline), anything else enables it.
        """
        return Opened(RomFile(self.assignable))

    @binary(0o600, _vpd_size)
    def vpd(self, request: OpenRequest) -> Opened:
        """The vital product data, EIO if there are none. Present where the function has that capability.

        Has no effect: they cannot be written. EINVAL for bytes that are not whole words of the data.
        """
        return Opened(VpdFile(self.assignable.device))

    resource0_wc, resource1_wc, resource2_wc, resource3_wc, resource4_wc, resource5_wc = map(
        _wc_file, range(BARS)
    )

    def open_resource(self, index: int, request: OpenRequest) -> Opened:
        device = self.assignable.device
        if device.bar_map[index].io:
            return Opened(PortsFile(device, index, device.region(index).size))
        return super().open_resource(index, request)
