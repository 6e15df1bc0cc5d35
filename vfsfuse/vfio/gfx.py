# SPDX-License-Identifier: Apache-2.0
"""QUERY_GFX_PLANE: where in which region a display's picture is, for clients that show it.  Device lane.

Source: <linux/vfio.h> (VFIO_DEVICE_QUERY_GFX_PLANE).  The struct has no offset: a client such as QEMU maps
the region from its start, so what it shows of a guest that pans is the start of the memory all the same.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence

from devmodel.device.display import Display, Plane
from ioctl_shim._native import lib
from vfsfuse.vfio.files import Request, answers
from vfsfuse.vfio.opened import OpenDevice

PROBE_REGION: int = lib.VFIO_GFX_PLANE_TYPE_PROBE | lib.VFIO_GFX_PLANE_TYPE_REGION
REGION: int = lib.VFIO_GFX_PLANE_TYPE_REGION
SHOWN_AS = (0, 1)
"""DRM_PLANE_TYPE_OVERLAY and _PRIMARY: QEMU leaves the type 0 when it asks for a region.  No cursor is."""
NO_HOTSPOT = 0xFFFFFFFF
ANSWER: Sequence[str] = (
    *("drm_format", "drm_format_mod", "width", "height", "stride", "size"),
    *("x_pos", "y_pos", "x_hot", "y_hot", "region_index"),
)


class GfxCalls(OpenDevice):
    """The display ioctls of an open device."""

    __slots__ = ()

    @answers("VFIO_DEVICE_QUERY_GFX_PLANE")
    def query_plane(self, request: Request) -> int:
        display = self.device
        if not isinstance(display, Display):
            raise OSError(errno.ENOTTY, f"{display.name} has no display")
        argument = request.argument
        info = argument.value
        if info.flags == PROBE_REGION and self.mappable:
            return 0
        if info.flags != REGION:
            raise OSError(errno.EINVAL, f"QUERY_GFX_PLANE flags {info.flags:#x}")
        with display.lock:
            plane = display.plane() if info.drm_plane_type in SHOWN_AS else None
        for name, value in zip(ANSWER, _answer(plane), strict=True):
            setattr(info, name, value)
        argument.reply()
        return 0


def _answer(plane: Plane | None) -> Sequence[int]:
    """What ANSWER names; a display that shows nothing has no format and no size."""
    if plane is None:
        return (0, 0, 0, 0, 0, 0, 0, 0, NO_HOTSPOT, NO_HOTSPOT, 0)
    size = -(-plane.size // mmap.PAGESIZE) * mmap.PAGESIZE
    shape = (plane.fourcc, 0, plane.width, plane.height, plane.stride, size)
    return (*shape, 0, 0, NO_HOTSPOT, NO_HOTSPOT, plane.region)
