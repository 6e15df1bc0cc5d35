# SPDX-License-Identifier: Apache-2.0
"""A folder on disk for the files of one mounted lab, such as the definitions that programs of `run` save.

The server makes it when it is first asked for, in the user's state directory, and removes it at its end.  It
holds a lock on it: a folder without one is of a server that was killed, and the next one removes it.

Any thread.  Source: flock(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable

XATTR = "user.vfsfuse.folder"
"""The extended attribute of a mount's root with the path of its lab's folder, which is made when it is asked
for.  It is for the lab's user alone: ENODATA for others, and where there can be no folder."""

SUFFIX = ".etc"
_TRIES = 10


class OwnFolder:
    """The folder of a lab.  `state` gives the directory that it is in; `name` is the begin of its name."""

    def __init__(self, state: Callable[[], str], name: str) -> None:
        self._state, self._name = state, name
        self._lock = threading.Lock()
        self._path, self._fd = "", -1

    def path(self) -> str:
        """Its path.  It is made if it is not there yet, for its user alone.  May wait for the disk.

        Raises OSError."""
        with self._lock:
            for _ in range(_TRIES):
                if self._path or self._is_made():
                    return self._path
        raise FileNotFoundError(f"{self._state()}: a folder vanishes as it is made")

    def remove(self) -> None:
        """Remove it with all that is in it, if it was made."""
        with self._lock:
            if self._path:
                _remove(self._path)
                os.close(self._fd)
            self._path, self._fd = "", -1

    def _is_made(self) -> bool:
        """Make it, and lock it.  False when another server has taken it for one that was left."""
        import tempfile  # late: `run` imports this module for the name of the attribute

        state = self._state()
        _sweep(state)
        path = tempfile.mkdtemp(SUFFIX, f"{self._name}.", state)
        fd = -1
        try:
            fd = _locked(path)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                self._path, self._fd = path, fd
                return True
        except (FileNotFoundError, BlockingIOError):
            pass
        if fd >= 0:
            os.close(fd)
        return False


def _sweep(state: str) -> None:
    """Remove the folders of servers that are gone."""
    for name in os.listdir(state):
        path = os.path.join(state, name)
        if name.endswith(SUFFIX) and os.path.isdir(path) and not os.path.islink(path):
            with contextlib.suppress(OSError):
                fd = _locked(path)
                _remove(path)
                os.close(fd)


def _locked(path: str) -> int:
    """Open a folder and lock it.  Raises BlockingIOError when another process has."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _remove(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
