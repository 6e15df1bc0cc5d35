# SPDX-License-Identifier: Apache-2.0
"""The files of a lab for the objects of the API: texts of attributes, stores, links, directories.

A call waits as long as the lab takes, as it would for any program: a store that removes a device may wait for
the device's holder.  Any thread.  State: none of its own; `ending` tells whether the server still runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from vfsfuse.api.errors import LabError

_GONE = (errno.ENOTCONN, errno.ECONNABORTED)
"""Errors of a FUSE mount whose server is gone."""


class Closable(Protocol):
    """What can be closed more than once."""

    def close(self) -> None: ...


class Files:
    """The files of a mounted lab.

    Every method raises LabError once the server has gone, and otherwise the OSError of the file, with its
    path."""

    def __init__(self, root: Path, ending: Callable[[bool], LabError | None]) -> None:
        self.root = root
        self._ending = ending
        self._owner = os.getpid()
        self.opened: weakref.WeakSet[Closable] = weakref.WeakSet()
        """What is open of the lab.  It is closed before the lab ends."""

    @property
    def is_ours(self) -> bool:
        """Whether this process has mounted or joined the lab.  One that it has forked shares its open files,
        and leaving a `with` there must not take from the first process what it has in the lab."""
        return self._owner == os.getpid()

    @contextlib.contextmanager
    def explained(self, path: str | os.PathLike[str] | None = None) -> Iterator[None]:
        """Calls on files of the lab: their OSErrors get `path` if they have none, and become LabError when
        the server has gone."""
        try:
            yield
        except OSError as error:
            gone = error.errno in _GONE
            ending = self._ending(gone)
            if ending is not None:
                raise ending from error
            if gone:
                raise LabError(f"{self.root}: the server of this lab is gone") from error
            if error.filename is None and path is not None:
                raise OSError(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None
            raise

    def text(self, path: Path) -> str:
        """The text of an attribute, without the newline at its end."""
        with self.explained(path), open(path, encoding="utf-8", errors="replace") as file:
            return file.read().removesuffix("\n")

    def content(self, path: Path) -> bytes:
        """The content of a binary file."""
        with self.explained(path), open(path, "rb") as file:
            return file.read()

    def store(self, path: Path, text: str) -> None:
        """Write to an attribute, by one write(2)."""
        with self.explained(path), contextlib.ExitStack() as stack:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            os.write(fd, text.encode())

    def names(self, path: Path) -> list[str]:
        """The names in a directory, sorted; none if there is no such directory."""
        with self.explained(path):
            try:
                return sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError):
                self.check()
                return []

    def check(self) -> None:
        """Raise LabError if the server has ended."""
        ending = self._ending(False)
        if ending is not None:
            raise ending

    def link(self, path: Path) -> str | None:
        """The last component of a link's target, None if there is no link."""
        with self.explained(path):
            try:
                return os.path.basename(os.readlink(path))
            except FileNotFoundError:
                self.check()
                return None

    def has(self, path: Path) -> bool:
        """Whether there is a file or a directory at `path`."""
        with self.explained(path):
            try:
                os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                self.check()
                return False
            return True

    def open(self, path: Path) -> int:
        """A descriptor of the file, open for reading and writing."""
        with self.explained(path):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
