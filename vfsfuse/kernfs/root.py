# SPDX-License-Identifier: Apache-2.0
"""The root of a mount: what all directories of the mount find there by going up.

Settings are what programs have stored in attributes of a directory that nothing else keeps.  They change on
the trio thread.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType

from devmodel.lifecycle.uevents import Uevents
from vfsfuse.kernfs.kobject import Kobject, UnlistedFiles

_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class Root(UnlistedFiles):
    """It has the uevents of the mount's devices, the settings of directories by the number of the directory,
    and unlisted files."""

    __slots__ = ("settings", "uevents")

    def __init__(self) -> None:
        super().__init__("")
        self.uevents = Uevents()
        self.settings: dict[int, dict[str, str]] = {}


def root_of(directory: Kobject) -> Root:
    """The root of the mount that a directory is in.  Raises OSError(ENODEV) when it is in none."""
    here = directory
    while here.parent is not None:
        here = here.parent
    if not isinstance(here, Root):
        raise OSError(errno.ENODEV, f"{directory.name} is in no mount")
    return here


def settings_of(directory: Kobject) -> Mapping[str, str]:
    """What `set_for` has kept for a directory and the attribute groups in it.  Raises OSError(ENODEV)."""
    return root_of(directory).settings.get(directory.number, _NO_SETTINGS)


def set_for(directory: Kobject, key: str, value: str) -> None:
    """Keep a setting of a directory until the directory is removed.  Raises OSError(ENODEV)."""
    root_of(directory).settings.setdefault(directory.number, {})[key] = value
