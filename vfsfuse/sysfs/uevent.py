# SPDX-License-Identifier: Apache-2.0
"""The `uevent` attribute every device directory has (lib/kobject_uevent.c), and the events it stands for.

Everything here runs on the trio thread.  Source: Documentation/ABI/testing/sysfs-uevent.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from typing import Any

from devmodel.lifecycle.uevents import Uevents
from vfsfuse.kernfs.kobject import Attribute, Entry, Kobject
from vfsfuse.kernfs.tree import Root

ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")
SYNTHETIC = re.compile(
    rf"(?P<action>{'|'.join(ACTIONS)})"
    r"(?: (?P<uuid>[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})"
    r"(?P<arguments>(?: [A-Za-z0-9]+=[A-Za-z0-9]+)*))?",
    re.ASCII,
)
WITHOUT_DRIVER = ("add", "remove", "unbind")
"""Events of a device that has no driver yet, or none any more."""


class Uevent(Attribute):
    """Shows `variables(owner)` a line each; a store is a synthetic event of the owner, a device of
    `subsystem`, else EINVAL."""

    __slots__ = ("_subsystem", "_variables")

    def __init__(
        self,
        variables: Callable[[Any], Mapping[str, str]],
        subsystem: str | Callable[[Any], str],
        mode: int = 0o644,
    ) -> None:
        super().__init__("uevent", mode)
        self._variables, self._subsystem = variables, subsystem
        self._show = lambda owner: "\n".join(f"{key}={value}" for key, value in variables(owner).items())
        self._store = self._synthesise

    def emit(self, owner: Kobject, action: str, extra: Mapping[str, str] | None = None) -> None:
        """Emit what the kernel would, as the device is now or, for one that has been removed, was."""
        variables = dict(self._variables(owner))
        if action in WITHOUT_DRIVER:
            variables.pop("DRIVER", None)
        if action == "unbind":
            variables.pop("MODALIAS", None)
        self._emit(owner, action, variables, extra)

    def _synthesise(self, owner: Kobject, text: str) -> None:
        found = SYNTHETIC.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no uevent action")
        arguments = (argument.split("=") for argument in (found["arguments"] or "").split())
        extra = {"SYNTH_UUID": found["uuid"] or "0"}
        extra |= {f"SYNTH_ARG_{key}": value for key, value in arguments}
        self._emit(owner, found["action"], self._variables(owner), extra)

    def _emit(
        self,
        owner: Kobject,
        action: str,
        variables: Mapping[str, str],
        extra: Mapping[str, str] | None,
    ) -> None:
        subsystem = self._subsystem if isinstance(self._subsystem, str) else self._subsystem(owner)
        hub_of(owner).emit(action, owner.path.removeprefix("sys"), subsystem, variables, extra)


def hub_of(entry: Entry) -> Uevents:
    """The events of the mount that `entry` is in."""
    here = entry
    while here.parent is not None:
        here = here.parent
    if not isinstance(here, Root):
        raise OSError(errno.ENODEV, f"{entry.name} is in no mount")
    return here.uevents


def emit(directory: Kobject, action: str, extra: Mapping[str, str] | None = None) -> None:
    """Emit an event of the device whose directory this is, or was until it was removed."""
    member = directory.by_name["uevent"]
    if isinstance(member, Uevent):
        member.emit(directory, action, extra)
