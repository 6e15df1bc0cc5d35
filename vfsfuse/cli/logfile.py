# SPDX-License-Identifier: Apache-2.0
"""The log of a server in the background: which file it is, and how lines get there; and a folder beside it.

`LogFile` is used by any thread of the server.  It never raises: a full disk must not end a lab.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import sys
from typing import TYPE_CHECKING

from vfsfuse.asking import Refusal
from vfsfuse.cli.output import complain
from vfsfuse.sticky import open_file, refuse_foreign

if TYPE_CHECKING:
    from vfsfuse.ownfolder import OwnFolder

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NAME_MAX = 255
_MEND = "the log goes there; name another with --log-file, or set XDG_STATE_HOME"


class LogFile(logging.Handler):
    """Appends to the open file `fd`.  When that fails, one line on stderr says so, once."""

    def __init__(self, fd: int, path: str) -> None:
        super().__init__()
        self._fd, self._path, self._told = fd, path, False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._fd, f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except OSError as error:
            if not self._told:
                self._told = True
                complain("mount", f"{self._path}: {error.strerror}; lines are missing in this log")
        except Exception:
            self.handleError(record)


def open_log(named: str | None, mountpoint: str) -> tuple[int, str]:
    """Open the log of a background server: `named`, or a file for the mountpoint in the user's state
    directory.  Returns the descriptor and the path.

    Raises OSError when it cannot be written, and Refusal when there is no state directory.
    """
    if named:
        return _open(named), os.path.join(os.getcwd(), named)
    path = os.path.join(_state_directory(), _file_name(mountpoint))
    try:
        return _open(path), path
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror} ({_MEND})") from None


def own_folder(mountpoint: str) -> OwnFolder:
    """The folder for files of the lab at `mountpoint`, in the user's state directory."""
    from vfsfuse.ownfolder import OwnFolder

    def state() -> str:
        try:
            return _state_directory()
        except Refusal as error:
            raise FileNotFoundError(errno.ENOENT, str(error)) from None

    return OwnFolder(state, os.fsdecode(os.fsencode(_file_name(mountpoint).removesuffix(".log"))[:200]))


def _open(path: str) -> int:
    return open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _state_directory() -> str:
    """The directory of logs, which is made.  Raises Refusal."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(_home(), ".local", "state")
    if not os.path.isabs(base):
        raise Refusal(f"{base}: not an absolute path ({_MEND})")
    state = os.path.join(base, "vfsfuse")
    try:
        os.makedirs(state, exist_ok=True)
        for folder in (base, state):
            refuse_foreign(folder, os.lstat(folder))
    except OSError as error:
        raise Refusal(f"{error.filename or state}: {error.strerror} ({_MEND})") from None
    return state


def _home() -> str:
    """The home directory of the user.  Raises Refusal."""
    if home := os.environ.get("HOME"):
        return home
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise Refusal(f"there is no home directory of user {os.geteuid()} ({_MEND})") from None


def _file_name(mountpoint: str) -> str:
    name = mountpoint.strip("/").replace("/", "-") + ".log"
    whole = os.fsencode(name)
    if len(whole) <= NAME_MAX:
        return name
    import hashlib

    return f"{hashlib.sha256(whole).hexdigest()[:16]}-{os.fsdecode(whole[-200:])}"


def log_to_stderr(level: str) -> None:
    """Have this process log to stderr, for a server in the foreground."""
    _log_by(level, logging.StreamHandler(sys.stderr))


def log_to_file(level: str, fd: int, path: str) -> None:
    """Have this process log to the file that `open_log` has opened."""
    _log_by(level, LogFile(fd, path))


def _log_by(level: str, handler: logging.Handler) -> None:
    from vfsfuse.failures import Described

    handler.setFormatter(Described(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
