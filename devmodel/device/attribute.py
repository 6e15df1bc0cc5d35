# SPDX-License-Identifier: Apache-2.0
"""Attributes that a device model adds to its device's directory in sysfs.

State: none, they are declarations. Source: Documentation/filesystems/sysfs.rst.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceAttribute:
    """A file ``name`` in the device's directory; readable, and writable if there is a ``store``.

    Both are called with the device, on the trio thread, without the device's lock. ``show`` returns the
    value, to which a newline is added; ``store`` gets the text written, without its newline, and raises
    ValueError for what is invalid (EINVAL). ``OSError`` of either is the client's errno. With ``when``, the
    file is there only if that is true of the device's options.
    """

    name: str
    show: Callable[[Any], object]
    store: Callable[[Any, str], object] | None = None
    when: Callable[[Mapping[str, int]], bool] | None = None
