# SPDX-License-Identifier: Apache-2.0
"""The file `.run` at the root of a mount, by which the supervisor of a `vfsfuse run` asks what the files of
the lab stand for.  No listing shows it.

A character device of a FUSE mount would be opened by the kernel itself, so the nodes of dev are regular
files. The supervisor shows its program what they stand for.  Everybody may ask: sysfs has the same answers.

The device lane answers, by one look-up in the tree; nothing waits.  No state.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from ioctl_shim._native import ffi
from ioctl_shim.abi import RUN_LAB, RUN_NODE, LabFlag, NodeKind
from ioctl_shim.lane import Opened, OpenRequest, PlainFile, SizedIoctl
from vfsfuse.kernfs.kobject import DeviceNode
from vfsfuse.kernfs.tree import Tree

NAME = ".run"


class RunFile(PlainFile):
    """One open."""

    __slots__ = ("_flags", "_tree")

    def __init__(self, tree: Tree, flags: LabFlag) -> None:
        self._tree, self._flags = tree, flags

    def sized_ioctl(self, call: SizedIoctl) -> int:
        """RUN_NODE and RUN_LAB.  Raises OSError(ENOTTY) for another ioctl."""
        if call.cmd == RUN_LAB:
            call.reply = self._flags.to_bytes(4, "little")
            return 0
        if call.cmd != RUN_NODE:
            raise OSError(errno.ENOTTY, f"ioctl {call.cmd:#x}")
        asked = ffi.from_buffer("struct vfsfuse_run_node *", call.data)
        call.reply = bytes(ffi.buffer(self._answer(asked.inode)))
        return 0

    def _answer(self, inode: int) -> ffi.CData:
        answer = ffi.new("struct vfsfuse_run_node *", {"inode": inode, "kind": NodeKind.FILE})
        try:
            entry, member = self._tree.locate(inode)
        except OSError:  # it stands for nothing, or for nothing any more
            return answer
        if member is None and isinstance(entry, DeviceNode):
            answer.kind = entry.kind
            if entry.rdev is not None:
                answer.major, answer.minor = entry.rdev
        return answer


def add_run_file(tree: Tree, flags: Callable[[], LabFlag]) -> None:
    """Put the file into the root of `tree`, of a lab that has these `flags` when it is opened."""

    def opener(request: OpenRequest) -> Opened:
        return Opened(RunFile(tree, flags()), stream=True)

    tree.add_unlisted(tree.root, DeviceNode(NAME, 0o666, opener))
