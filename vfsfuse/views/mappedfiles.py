# SPDX-License-Identifier: Apache-2.0
"""The files of a mount as mappings show them: by the inode number.

No state of its own.  For threads that may wait, because the tree is under the lock of the lab.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from vfsfuse.kernfs.kobject import DeviceNode
from vfsfuse.kernfs.members import BinaryMember
from vfsfuse.kernfs.tree import Tree

_RESOURCE = re.compile(r"resource(\d+)(?:_wc)?")


class TreeFiles:
    """Those of one tree (vfsfuse.observe.mappings.MappedFiles)."""

    def __init__(self, tree: Tree, lock: AbstractContextManager[bool], st_dev: Callable[[], int]) -> None:
        self._tree, self._lock, self.st_dev = tree, lock, st_dev

    def region_of(self, inode: int) -> tuple[str, int | None] | None:
        try:
            with self._lock:
                entry, member = self._tree.locate(inode)
        except OSError:
            return None
        if isinstance(entry, DeviceNode):
            return (entry.device, None) if entry.device else None
        found = _RESOURCE.fullmatch(member.name) if isinstance(member, BinaryMember) else None
        return None if found is None else (entry.name, int(found[1]))
