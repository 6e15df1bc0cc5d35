# SPDX-License-Identifier: Apache-2.0
"""Attributes that a device model adds to the directory of its device in sysfs.

State: none, they are declarations. Source: Documentation/filesystems/sysfs.rst.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceAttribute:
    """A file ``name`` in the device's directory. It can be read, and written if there is a ``store``.

    ``show`` and ``store`` are called with the device, on the trio thread, without the device's lock. ``show``
    returns the value, and a newline is added. ``store`` gets the text that was written, without its newline,
    and raises ValueError for an invalid one (EINVAL). An ``OSError`` of either is the client's errno.
    ``when`` tells from the device's options whether the file is there; without it the file always is.
    ``doc`` says what reading gives, ``store_doc`` what writing does: docs/sysfs.md shows those of the models
    that ship with vfsfuse.
    """

    name: str
    show: Callable[[Any], object]
    store: Callable[[Any, str], object] | None = None
    when: Callable[[Mapping[str, int]], bool] | None = None
    doc: str = ""
    store_doc: str = ""
