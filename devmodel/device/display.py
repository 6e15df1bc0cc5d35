# SPDX-License-Identifier: Apache-2.0
"""What a device shows: the plane of a display, which is a picture in one of the device's memory regions.

State: none. A plane is a value, and :meth:`Display.plane` is called under the device's lock.
Source: <drm/drm_fourcc.h> (formats), <linux/vfio.h> (struct vfio_device_gfx_plane_info).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

MAX_EXTENT = 16384
"""Most pixels of a picture in either direction."""


class Fourcc(IntEnum):
    """The formats that a plane can have. Their values are DRM's: 4 characters, in memory order."""

    XRGB8888 = int.from_bytes(b"XR24", "little")
    """4 bytes in memory: blue, green, red, nothing."""
    BGRX8888 = int.from_bytes(b"BX24", "little")
    """4 bytes in memory: nothing, red, green, blue. A big-endian guest calls it XRGB8888."""
    RGB888 = int.from_bytes(b"RG24", "little")
    """3 bytes in memory: blue, green, red."""
    RGB565 = int.from_bytes(b"RG16", "little")
    """A little-endian 16-bit word, red in its high bits."""
    XRGB1555 = int.from_bytes(b"XR15", "little")
    """A little-endian 16-bit word, red in bits 14 to 10."""

    @property
    def pixel_size(self) -> int:
        """Bytes of a pixel."""
        return _PIXEL_SIZES[self]


_PIXEL_SIZES = {
    Fourcc.XRGB8888: 4,
    Fourcc.BGRX8888: 4,
    Fourcc.RGB888: 3,
    Fourcc.RGB565: 2,
    Fourcc.XRGB1555: 2,
}


@dataclass(frozen=True, slots=True)
class Plane:
    """A picture in memory: ``width`` and ``height`` in pixels, ``stride`` bytes from each line to the next.

    It begins ``offset`` bytes into the region with index ``region``, and ends ``size`` bytes further.
    """

    width: int
    height: int
    stride: int
    fourcc: Fourcc
    region: int
    offset: int

    @property
    def size(self) -> int:
        """Bytes from the first pixel to the end of the last."""
        return self.stride * (self.height - 1) + self.line_size

    @property
    def line_size(self) -> int:
        """Bytes of the pixels of a line."""
        return self.width * self.fourcc.pixel_size

    def fits(self, memory: int) -> bool:
        """Whether its extents are possible, and all of it lies within a region of ``memory`` bytes."""
        return (
            0 < self.width <= MAX_EXTENT
            and 0 < self.height <= MAX_EXTENT
            and self.line_size <= self.stride
            and 0 <= self.offset <= memory - self.size
        )


class Display(ABC):
    """Mixed into a model of a device that shows something, before the class of the device."""

    __slots__ = ()
    plane_region: ClassVar[int] = 0
    """The index of the region in which every plane is."""

    @abstractmethod
    def plane(self) -> Plane | None:
        """What is shown now, None for nothing. Called under the device's lock.

        All of the plane lies in a region that is a :class:`Memory`, whatever a guest writes to registers: who
        reads the picture must not read anything else.
        """
