# SPDX-License-Identifier: Apache-2.0
"""What a program of `vfsfuse run` sees when it asks for the state of a descriptor: an open node of the lab is
a character device with the number that sysfs shows, and what an ioctl gave it is an anonymous inode.

The answers are made in C (ioctl_shim.takers).  This asks the lab what an inode stands for, once for each.
Any thread, several at once; no state.  Source: stat(2), statx(2).
"""

from __future__ import annotations

from ioctl_shim.abi import NodeKind
from ioctl_shim.seccomp import TrappedCall
from ioctl_shim.takers import StatAnswers
from vfsfuse.run.labfiles import LeftToKernel
from vfsfuse.run.labinfo import LabInfo, Node

TRIES = 100
"""How often a node may turn out unknown again: another thread has learned one that takes its place in the
table, or the program has put another node under the number."""
_FILE = Node(NodeKind.FILE, 0, 0)


class NodeStats:
    """Answers stat calls on nodes that `stats` does not know, by what the lab says (`info`)."""

    def __init__(self, stats: StatAnswers, info: LabInfo) -> None:
        self._stats, self._info = stats, info

    def answer(self, call: TrappedCall) -> None:
        """Answer a stat of the unknown node `call.inode`.

        Raises LeftToKernel, also when the lab has ended."""
        inode = call.inode
        for _ in range(TRIES):
            try:
                node = self._info.node_of(inode)
            except (OSError, ValueError):  # the lab has ended, or says what it may not say
                raise LeftToKernel from None
            self._stats.learn(inode, *(node or _FILE))
            if not (inode := self._stats.answer(call)):
                return
        raise LeftToKernel
