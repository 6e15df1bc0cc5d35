# SPDX-License-Identifier: Apache-2.0
"""QUERY_GFX_PLANE: whether a client can show a display by mapping a region, and the present picture.

Threads: the device lane, which takes the device's lock for the query.
Source: <linux/vfio.h> (VFIO_DEVICE_QUERY_GFX_PLANE).
"""

import errno

from devmodel.device.base import Device
from devmodel.device.display import Display, Plane
from devmodel.vfio.flags import GfxPlane

SHOWN_AS = (0, 1)
"""DRM_PLANE_TYPE_OVERLAY and _PRIMARY have a picture, a cursor has none.  QEMU leaves the type 0."""


def display_of(device: Device) -> Display:
    """The device as a display.  Raises ``OSError(ENOTTY)``, before anything else, when it has none."""
    if not isinstance(device, Display):
        raise OSError(errno.ENOTTY, f"{device.name} has no display")
    return device


def is_probe(flags: int, mappable: bool) -> bool:
    """Whether this asks if a display can be shown by region, and the answer is yes.

    ``mappable`` is whether the client can map the region of the planes.  Raises ``OSError(EINVAL)`` for flags
    other than those of regions.
    """
    if flags == GfxPlane.TYPE_PROBE | GfxPlane.TYPE_REGION and mappable:
        return True
    if flags != GfxPlane.TYPE_REGION:
        raise OSError(errno.EINVAL, f"QUERY_GFX_PLANE flags {flags:#x}")
    return False


def shown_plane(device: Device, plane_type: int) -> Plane | None:
    """What the device's display shows as a plane of this type, None for nothing.  Raises as `display_of`."""
    display = display_of(device)
    if plane_type not in SHOWN_AS:
        return None
    with device.lock:
        return display.plane()
