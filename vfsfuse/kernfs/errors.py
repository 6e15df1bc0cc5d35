# SPDX-License-Identifier: Apache-2.0
"""The errnos that pyfuse3's handlers answer: for failures, and for system calls that sysfs refuses.

No state; trio thread.  Source: Documentation/filesystems/sysfs.rst, and the behaviour of kernfs.
"""

from __future__ import annotations

import errno
import logging
from types import TracebackType

from ioctl_shim.fuse import pyfuse3
from ioctl_shim.lanefile import answer_of

log = logging.getLogger(__name__)


class errors:
    """A context that turns exceptions into errnos: an OSError into its own, any other exception into EIO,
    with a traceback in the log.  A model's sys.exit() is one of these."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            log.debug("%s: %s", self._what, error)
            raise pyfuse3.FUSEError(answer_of(error)) from error
        if isinstance(error, Exception | SystemExit) and not isinstance(error, pyfuse3.FUSEError):
            log.exception("%s failed", self._what)
            raise pyfuse3.FUSEError(errno.EIO) from error


class Refusals(pyfuse3.Operations):
    """Handlers that refuse: entries come and go by writes to attributes, not by system calls of a client."""

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        raise pyfuse3.FUSEError(errno.EACCES)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.EPERM)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.EPERM)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.EPERM)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.EPERM)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        raise pyfuse3.FUSEError(errno.EPERM)

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        raise pyfuse3.FUSEError(errno.EPERM)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        raise pyfuse3.FUSEError(errno.EPERM)
