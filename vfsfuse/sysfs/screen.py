# SPDX-License-Identifier: Apache-2.0
"""The picture that a display shows, as a PNG.  Runs on worker threads; only the device is shared.

The lock of the device is held while the device says where the picture is, and while a strip of pixels is
read.  A picture that a guest is drawing may be seen half-way, as on a real screen.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator, Mapping

from devmodel.device.base import Device
from devmodel.device.display import Display, Fourcc, Plane

RAW_MODES: Mapping[Fourcc, str] = {
    Fourcc.XRGB8888: "BGRX",
    Fourcc.BGRX8888: "XRGB",
    Fourcc.RGB888: "BGR",
    Fourcc.RGB565: "BGR;16",
    Fourcc.XRGB1555: "BGR;15",
}
"""Pillow's names of the formats."""
STRIP_SIZE = 1 << 18
COMPRESSION = 1
"""The fastest level of zlib: a screenshot is looked at once."""


def picture(device: Device) -> bytes:
    """The PNG of what `device` shows now.

    Raises OSError: ENODATA when it shows nothing, ENODEV when it is gone or has no display, EIO when its
    memory cannot be read.
    """
    if not isinstance(device, Display):
        raise OSError(errno.ENODEV, f"{device.name} has no display")
    with device.lock:
        plane = device.plane()
        if plane is None:
            raise OSError(errno.ENODATA, f"{device.name} shows nothing")
    return _png(device, plane)


def _png(device: Device, plane: Plane) -> bytes:
    from PIL import Image  # here, because a lab whose screens nobody looks at should start without it

    image = Image.new("RGB", (plane.width, plane.height))
    for top, count, data in _strips(device, plane):
        layout = ("raw", RAW_MODES[plane.fourcc], plane.stride)
        image.paste(Image.frombytes("RGB", (plane.width, count), data, *layout), (0, top))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=COMPRESSION)
    return out.getvalue()


def _strips(device: Device, plane: Plane) -> Iterator[tuple[int, int, bytes]]:
    """The picture in strips: the first line, how many lines, and their bytes.

    Nothing is allocated where nothing was drawn.  The device's lock is held while a strip is read, and Pillow
    holds the GIL while it unpacks one.  The device lane needs both: so strips are small.
    """
    memory = device.region(plane.region)
    most = max(STRIP_SIZE // plane.stride, 1)
    for top in range(0, plane.height, most):
        count = min(most, plane.height - top)
        size = plane.stride * (count - 1) + plane.line_size
        with device.lock:
            data = memory.read(plane.offset + top * plane.stride, size)
        yield top, count, data.ljust(plane.stride * count, b"\0")
