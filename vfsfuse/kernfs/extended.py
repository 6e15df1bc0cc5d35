# SPDX-License-Identifier: Apache-2.0
"""Extended attributes of directories and files: trusted.* and security.*, as in sysfs and in devtmpfs.

libvirt notes in trusted.* whose a file of /dev/vfio was before a domain got it.  They belong to the inode, as
its mode and owner do, and are gone with it.  The kernel has checked who may read and set them: CAP_SYS_ADMIN
is needed for both kinds.

The state is Tree.iattrs, which the trio thread owns.  Source: xattr(7), setxattr(2).
"""

from __future__ import annotations

import errno

from ioctl_shim import procfs
from vfsfuse.kernfs.inodes import DECLARED
from vfsfuse.kernfs.tree import BASE_MASK, IAttrs, Tree

TRUSTED = b"trusted."
_KINDS = (TRUSTED, b"security.")
_CAP_SYS_ADMIN = 21


class ExtendedAttributes:
    """The extended attributes in a tree, by inode number.  Every method raises OSError; trio thread."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def get(self, inode: int, name: bytes) -> bytes:
        """The value.  Raises ENODATA when there is none, whatever the name is.

        The kernel asks for security.capability before each write(2) to a file, so this asks no entry."""
        try:
            return self._of(inode)[name]
        except KeyError:
            raise OSError(errno.ENODATA, "no such extended attribute") from None

    def set(self, inode: int, name: bytes, value: bytes) -> None:
        """Set or replace one.  Raises EOPNOTSUPP for another kind, as user.*, ENOENT when the file is
        gone."""
        _check(name)
        self._tree.named(inode)
        self._tree.iattrs.setdefault(inode & BASE_MASK, IAttrs()).xattrs[name] = value

    def names(self, inode: int, tid: int) -> list[bytes]:
        """The names that thread `tid` may see: trusted.* is for CAP_SYS_ADMIN."""
        names = list(self._of(inode))
        if any(name.startswith(TRUSTED) for name in names) and not procfs.capable(tid, _CAP_SYS_ADMIN):
            names = [name for name in names if not name.startswith(TRUSTED)]
        return names

    def remove(self, inode: int, name: bytes) -> None:
        """Remove one.  Raises EOPNOTSUPP for another kind, ENODATA when there is none."""
        _check(name)
        self.get(inode, name)
        del self._of(inode)[name]

    def _of(self, inode: int) -> dict[bytes, bytes]:
        return self._tree.iattrs.get(inode & BASE_MASK, DECLARED).xattrs


def _check(name: bytes) -> None:
    if not name.startswith(_KINDS):
        raise OSError(errno.EOPNOTSUPP, "files of a lab have trusted.* and security.* only")
