# SPDX-License-Identifier: Apache-2.0
"""mbochs: the kernel's sample display, for a bochs driver in a guest. A client chooses its monitor.

State: in each device, under its lock. Source: the sample's Kconfig help (SAMPLE_VFIO_MDEV_MBOCHS), QEMU's
docs/specs/standard-vga, <linux/vfio.h> (struct vfio_region_gfx_edid).
"""

import errno
import struct
from collections.abc import Sequence
from typing import ClassVar

from devmodel.device.pci import DeviceRegion
from devmodel.models.bochs import EDID_SIZE, BochsDisplay
from devmodel.models.edid import Mode
from devmodel.region.region import Region

REGION_TYPE_GFX, REGION_SUBTYPE_EDID = 1, 1
LINK_UP, LINK_DOWN = 1, 2
BLOB_OFFSET = 0x400

_HEADER = struct.Struct("<6I")
_SIZE, _LINK = slice(8, 12), slice(20, 24)
"""edid_size and link_state, the two fields that can be written."""


class EdidRegion(Region):
    """struct vfio_region_gfx_edid, and the EDID behind it. A reset does not change it, as it does not change
    a monitor.

    A client sets the link down, writes the EDID and its size, and sets the link up. The guest sees the new
    EDID only then. While the link is down there is no monitor.
    """

    __slots__ = ("_blob", "_header", "shown")

    def __init__(self, own: bytes, most: Mode) -> None:
        """``own`` is the EDID until a client writes another one, ``most`` the largest resolution."""
        super().__init__(BLOB_OFFSET + EDID_SIZE)
        self._header = _HEADER.pack(BLOB_OFFSET, EDID_SIZE, len(own), *most, LINK_UP)
        self._blob = own.ljust(EDID_SIZE, b"\0")
        self.shown = own
        """The EDID that the guest sees, empty without a monitor."""

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._image()[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Raises ``OSError(EINVAL)`` for an invalid edid_size or link_state. Read-only bytes do not
        change."""
        image = self._image()
        image[offset : offset + len(data)] = data
        edid_size, link = (int.from_bytes(image[place], "little") for place in (_SIZE, _LINK))
        if edid_size > EDID_SIZE or link not in (LINK_UP, LINK_DOWN):
            raise OSError(errno.EINVAL, f"an EDID of {edid_size} bytes, link state {link}")
        header = bytearray(self._header)
        header[_SIZE], header[_LINK] = image[_SIZE], image[_LINK]
        self._header, self._blob = bytes(header), bytes(image[BLOB_OFFSET:])
        if offset < _LINK.stop and offset + len(data) > _LINK.start:
            self.shown = self._blob[:edid_size] if link == LINK_UP else b""

    def _image(self) -> bytearray:
        return bytearray(self._header.ljust(BLOB_OFFSET, b"\0") + self._blob)


class Mbochs(BochsDisplay):
    """Memory and DISPI registers, without the legacy parts of a VGA, and the EDID as a region of VFIO."""

    __slots__ = ("_edid_region",)
    MONITOR: ClassVar[str] = "mbochs"

    def device_regions(self) -> Sequence[DeviceRegion]:
        self._edid_region = EdidRegion(self.edid, self.mode)
        return (DeviceRegion(self._edid_region, REGION_TYPE_GFX, REGION_SUBTYPE_EDID),)

    def guest_edid(self) -> bytes:
        return self._edid_region.shown
