# SPDX-License-Identifier: Apache-2.0
"""Paths in sticky folders such as /tmp, where every user may make entries and remove only their own.

Another user's entry there may be a trap, such as a symlink that leads to a file of ours, or a hard link to
one.  Linux refuses to follow such a symlink, to open such a file and to make such a hard link when
fs.protected_symlinks, fs.protected_regular and fs.protected_hardlinks are set, and many systems leave one of
them off.  The functions here always do what these settings mean.

No state; any thread.  Source: Documentation/admin-guide/sysctl/fs.rst, may_follow_link() and
may_create_in_sticky() in fs/namei.c.
"""

from __future__ import annotations

import errno
import os
import stat

MAX_LINKS = 40
"""Links on the way to a file before ELOOP, as in the kernel (MAXSYMLINKS)."""

PATH_MAX = 4096
"""Bytes of a path with its final NUL, for a system call."""

EVERYBODYS = stat.S_ISVTX | stat.S_IWOTH
_SHARED = "in a folder that everybody may write to (remove it, or name another path)"


def refuse_foreign(path: str, found: os.stat_result) -> None:
    """Raise OSError(EACCES) if `path` is another user's entry in a sticky folder that everybody may write to.

    So may be each of several hard links, because a link does not tell who made it.  `found` is the lstat(2)
    or fstat(2) of `path`.  The owner of the folder is trusted, as in the kernel.
    """
    folder = os.path.dirname(path) or "."
    above = os.stat(folder)
    if above.st_mode & EVERYBODYS != EVERYBODYS:
        return
    if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EACCES, f"has {found.st_nlink} hard links, {_SHARED}", path)
    if found.st_uid in (os.geteuid(), above.st_uid):
        return
    what = "is a symlink" if stat.S_ISLNK(found.st_mode) else "belongs to user"
    whose = f"of user {found.st_uid}" if stat.S_ISLNK(found.st_mode) else f"{found.st_uid}"
    raise OSError(errno.EACCES, f"{what} {whose}, {_SHARED}", path)


def resolve(path: str) -> str:
    """The absolute path that `path` leads to, which need not exist.  The last component is not looked at
    beyond readlink(2), which asks no server when it is a mountpoint.

    Raises OSError: EACCES for another user's symlink in a sticky folder, ELOOP for a circle of links.
    """
    here = os.path.join(os.getcwd(), path)
    if len(os.fsencode(here)) >= PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    for _ in range(MAX_LINKS):
        above, name = os.path.split(here.rstrip("/"))
        if name in ("", ".", ".."):
            return os.path.realpath(here)
        here = os.path.join(os.path.realpath(above), name)
        try:
            target = os.readlink(here)
        except OSError:  # no link, or nothing is there
            return here
        refuse_foreign(here, os.lstat(here))
        here = os.path.join(os.path.dirname(here), target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def open_file(path: str, flags: int, mode: int = 0o666) -> int:
    """open(2) with O_CLOEXEC for a file that may lie in a sticky folder.  Returns the descriptor.

    It is O_NONBLOCK as well: a FIFO that nobody reads is ENXIO, and one that nobody empties loses what does
    not fit.  Raises OSError, EACCES for another user's symlink or file, or for a file with several hard
    links, in a sticky folder.
    """
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    here = os.path.join(os.getcwd(), path)
    for _ in range(MAX_LINKS):
        try:
            fd = os.open(here, (flags & ~os.O_TRUNC) | os.O_NOFOLLOW, mode)
        except OSError as error:
            if not os.path.lexists(here):
                raise OSError(error.errno, error.strerror, path) from None
            refuse_foreign(here, os.lstat(here))  # says more than the kernel, which may have refused it
            if error.errno != errno.ELOOP:
                raise OSError(error.errno, error.strerror, path) from None
        else:
            return _checked(fd, here, flags & os.O_TRUNC)
        above = os.path.realpath(os.path.dirname(here))
        if above == "/proc" or above.startswith("/proc/"):  # a link to an open file, which has no path
            return os.open(here, flags, mode)
        here = os.path.join(above, os.readlink(here))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _checked(fd: int, path: str, truncate: int) -> int:
    """`fd` if `path`, which it has been opened by, is not foreign; only then is it truncated."""
    try:
        found = os.fstat(fd)
        refuse_foreign(path, found)
        if truncate and stat.S_ISREG(found.st_mode):
            os.ftruncate(fd, 0)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, error.strerror, path) from None
    return fd
