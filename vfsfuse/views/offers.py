# SPDX-License-Identifier: Apache-2.0
"""The unlisted files at the root that ioctls give, on their way to clients (vfsfuse.vfio.handover).

Any thread, mostly the device lane, makes, opens and forgets them.  State: the tree's.
"""

from __future__ import annotations

from collections.abc import Callable

from devmodel.device.pci import PciRegion
from devmodel.region.backing import REGION_SHIFT
from ioctl_shim.lane import Opened, OpenRequest
from vfsfuse.kernfs.kobject import AnonymousNode
from vfsfuse.kernfs.tree import Tree
from vfsfuse.vfio.fops import Open

DEVICE_SIZE = PciRegion.COUNT << REGION_SHIFT
"""st_size of a device file.  A character device has none, but this is a regular file, and the mmap module of
Python refuses to map a regular file beyond its end."""


class OfferedFiles:
    """Those of one mount."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def offer(self, name: str, open_: Open, device: str) -> Callable[[], None]:
        """As vfsfuse.vfio.fops.Offer.  Anybody may open the file as far as its mode says: `open_` knows who
        may."""
        tree, unlisted = self._tree, self._tree.root.unlisted

        def closed() -> None:
            tree.forget(node)

        def opener(request: OpenRequest) -> Opened:
            opened = open_(request, closed)
            unlisted.pop(name, None)
            return opened

        def withdraw() -> None:
            unlisted.pop(name, None)
            tree.forget(node)

        node = AnonymousNode(name, 0o666, opener, DEVICE_SIZE if device else 0, device)
        tree.adopt(node)
        unlisted[name] = node.inode
        return withdraw
