# SPDX-License-Identifier: Apache-2.0
"""Reads of a lab's files, which may go at any moment, and whose server may be another user's.  No state.

A file that is gone reads as nothing.  Other errors, such as that the server is gone, are raised.  Sizes and
counts are bounded.  All of it asks the lab's server.
"""

from __future__ import annotations

import errno
import os
import re

from vfsfuse.asking import Refusal

MOST_NAMES = 200_000
"""Entries of a directory.  A lab has at most about 70,000 in one."""
MOST_BYTES = 4096
"""Bytes of an attribute, as in sysfs."""
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.ESTALE)
"""Errors for what was removed meanwhile."""
_UNREADABLE = (*_GONE, errno.EACCES, errno.EPERM, errno.EINVAL, errno.EIO, errno.ENXIO, errno.ELOOP)
"""Errors for a value that cannot be had."""
_NUMBER = re.compile(r"(?:0x[0-9a-fA-F]{1,16}|\d{1,20})", re.ASCII)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def names(path: str) -> list[str]:
    """The names in a directory, in the order of their text; none if there is no such directory.  Raises
    Refusal when there are too many."""
    found: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) > MOST_NAMES:
                    raise Refusal(f"{path}: it has more than {MOST_NAMES} names (this is no lab of vfsfuse)")
    except OSError as error:
        if error.errno not in _GONE:
            raise
    return sorted(found, key=in_order)


def in_order(name: str) -> tuple[str, int, str]:
    """A key that sorts vgpu2 before vgpu10."""
    digits = re.search(r"\d{1,18}$", name, re.ASCII)
    return (name, 0, "") if digits is None else (name[: digits.start()], int(digits[0]), name)


def text(path: str, directory: int | None = None) -> str | None:
    """The text of an attribute without the newline, None if it cannot be read.  A relative path is in the
    open `directory`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
        try:
            return os.read(fd, MOST_BYTES).decode("utf-8", "replace").strip("\n")
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        return None


def number(path: str, directory: int | None = None) -> int | None:
    """The number in an attribute, decimal or hexadecimal, None if there is none."""
    return as_number(text(path, directory))


def as_number(said: str | None) -> int | None:
    return int(said, 0 if said.startswith("0x") else 10) if said and _NUMBER.fullmatch(said) else None


def target(path: str, directory: int | None = None) -> str | None:
    """What a symlink leads to, None without one."""
    try:
        return os.readlink(path, dir_fd=directory)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        return None


def target_name(path: str, directory: int | None = None) -> str | None:
    """The last name in the target of a symlink, None without one."""
    found = target(path, directory)
    return None if found is None else os.path.basename(found)


def open_directory(path: str) -> int | None:
    """A descriptor by which the files in a directory are found, None without one.  The caller closes it."""
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        return None


def printable(said: str) -> str:
    """Text of others for a terminal: every character but printable ASCII as an escape, also backslashes that
    would look like one."""
    return _UNPRINTABLE.sub(_escaped, said.replace("\\", "\\\\"))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
