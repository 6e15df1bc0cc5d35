# SPDX-License-Identifier: Apache-2.0
"""What a mounted lab shows, as a value to compare: nothing may be left of what came and went.

Called by tests, in their own process; reads through the mount.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

PAGE_SIZE = 4096


def walk(top: Path) -> Iterator[os.DirEntry[str]]:
    """Every name below `top`; a directory comes before what is in it."""
    with os.scandir(top) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from walk(Path(entry.path))


def is_attribute(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a text attribute: binary ones have names of their own, devices are not in sys/."""
    number = entry.name.removeprefix("resource").removesuffix("_wc")
    binary = entry.name in ("config", "rom", "screen.png") or number.isdigit()
    return entry.is_file(follow_symlinks=False) and "/sys/" in entry.path and not binary


def show(entry: os.DirEntry[str]) -> str:
    """A line for `entry`: mode, owner, size, links, and where a symlink goes or what an attribute says."""
    found = entry.stat(follow_symlinks=False)
    line = f"{stat.filemode(found.st_mode)} {found.st_nlink} {found.st_uid} {found.st_gid} {found.st_size}"
    if entry.is_symlink():
        return f"{line} -> {os.readlink(entry.path)}"
    if is_attribute(entry) and found.st_mode & 0o444:
        return f"{line}: {text_of(Path(entry.path))}"
    return line


def text_of(path: Path) -> str:
    """What an attribute says, the errno of an attribute that cannot be read, or nothing for one that changes
    by itself."""
    if path.name == "runtime_active_time":
        return ""
    try:
        return path.read_text()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def snapshot(top: Path) -> dict[str, str]:
    """Every path below `top`, relative to it, with what `show` tells of it."""
    return {os.path.relpath(entry.path, top): show(entry) for entry in walk(top)}
