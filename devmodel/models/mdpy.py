# SPDX-License-Identifier: Apache-2.0
"""mdpy: the kernel's sample framebuffer. A vendor capability declares the format and size of its picture.

State: in each device, under its lock. The capability's payload begins at byte 4, after id, next, length and a
type byte: fourcc, width and height, 32 bits each. Source: QEMU's docs/devel/vfio-mdpy, DRM fourcc codes.
"""

import mmap
import struct
from collections.abc import Mapping, Sequence
from typing import ClassVar

from devmodel.device.display import Display, Fourcc, Plane
from devmodel.device.options import Option
from devmodel.device.pci import PciDevice, PciRegion
from devmodel.pci.capability import Capability, vendor
from devmodel.pci.fields import Bar, Identity
from devmodel.region.region import Memory


class Mdpy(Display, PciDevice):
    """BAR 0 is the framebuffer, rounded up to a power of two; ``width`` and ``height`` are in pixels.

    It shows its only mode from power-on.
    """

    __slots__ = ()
    identity = Identity(0x1B36, 0x000F, 0x1AF4, 0x1100, class_code=0x038000)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "width": Option(640, 16, 8192),
        "height": Option(480, 16, 8192),
    }

    def bars(self) -> Mapping[int, Bar]:
        decoded = max(1 << (self.plane().size - 1).bit_length(), mmap.PAGESIZE)
        return {0: Bar(Memory(decoded), prefetch=True)}

    def capabilities(self) -> Sequence[Capability]:
        mode = struct.pack("<III", Fourcc.XRGB8888, self.options["width"], self.options["height"])
        return (vendor(b"\0" + mode),)

    def plane(self) -> Plane:
        width, height = self.options["width"], self.options["height"]
        return Plane(width, height, width * Fourcc.XRGB8888.pixel_size, Fourcc.XRGB8888, PciRegion.BAR0, 0)
