# SPDX-License-Identifier: Apache-2.0
"""The kernel's table of mounts: its rows, and which of them are labs.  Looking asks no server.

Any thread; no state.  Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import NamedTuple

FSTYPE = "fuse.vfsfuse"


class Mount(NamedTuple):
    """A row of /proc/PID/mountinfo.  `minor` is that of the device, and the number of a FUSE connection;
    `root` is the directory of the file system that is mounted."""

    minor: int
    root: str
    path: str
    kind: str
    source: str
    options: str

    @property
    def is_of_lab(self) -> bool:
        """Whether this is a lab or a part of one."""
        return self.kind == FSTYPE

    @property
    def is_lab(self) -> bool:
        """Whether this is a whole lab.  `vfsfuse run` mounts parts of one."""
        return self.is_of_lab and self.root == "/"

    @property
    def user(self) -> int:
        """The user who mounted a FUSE file system, -1 for any other.  The kernel tells it."""
        found = re.search(r"\buser_id=(\d+)", self.options)
        return int(found[1]) if found else -1

    @property
    def is_shared(self) -> bool:
        """Whether a FUSE file system is open to other users than the one who mounted it."""
        return "allow_other" in self.options.split(",")

    def is_covered(self, later: Sequence[Mount]) -> bool:
        """Whether one of the mounts `later` lies over this one."""
        return any(f"{self.path}/".startswith(f"{other.path.rstrip('/')}/") for other in later)


def table(process: int | str = "self") -> list[Mount]:
    """Every mount in the namespace of a process, in mount order.  Raises OSError.

    A user may mount on a directory whose name has a carriage return, which the kernel writes as it is.
    """
    path = f"/proc/{process}/mountinfo"
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as rows:
        return [mount for line in rows if (mount := parsed(line)) is not None]


def parsed(line: str) -> Mount | None:
    """The mount of a row of the table, None for one that is not as in proc(5)."""
    with contextlib.suppress(ValueError):
        return _fields(line)
    return None


def _fields(line: str) -> Mount:
    """The mount of a row.  Raises ValueError."""
    where, _, what = line.rstrip("\n").partition(" - ")
    device, root, path = where.split(" ")[2:5]
    kind, source, options = what.split(" ")[:3]
    minor = int(device.partition(":")[2])
    return Mount(minor, _unescape(root), _unescape(path), kind, _unescape(source), options)


def _unescape(field: str) -> str:
    """Undo the octal escapes of proc(5)'s mounts."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
