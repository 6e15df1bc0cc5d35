# SPDX-License-Identifier: Apache-2.0
"""The `uevent` attribute every device directory has (lib/kobject_uevent.c)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vfsfuse.kobject import Attribute

ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")
SYNTHETIC = re.compile(
    rf"(?:{'|'.join(ACTIONS)})"
    r"(?: [0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?: [A-Za-z0-9]+=[A-Za-z0-9]+)*)?",
    re.ASCII,
)


class Uevent(Attribute):
    """Shows `variables(owner)` a line each; a store must be a synthetic event's action (and is heard by
    nobody while nobody listens, as in the kernel), else EINVAL.  Source:
    Documentation/ABI/testing/sysfs-uevent."""

    __slots__ = ()

    def __init__(self, variables: Callable[[Any], dict[str, str]]) -> None:
        super().__init__("uevent", 0o644)
        self._show = lambda owner: "\n".join(f"{key}={value}" for key, value in variables(owner).items())
        self._store = _check


def _check(owner: object, text: str) -> None:
    if not SYNTHETIC.fullmatch(text):
        raise ValueError(f"{text!r} is no uevent action")
