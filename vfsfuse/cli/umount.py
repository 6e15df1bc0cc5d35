# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse umount [--lazy] [MOUNTPOINT]`: unmount a lab and wait until its server has ended.

A lab that another mount namespace still has, such as that of a `vfsfuse run`, goes on there.  The command
says so and returns.

Unmounting needs no answer of the server.  So it works also when the server is stopped, unless a program uses
the lab; then --lazy takes the lab out of sight.
"""

from __future__ import annotations

import argparse
import errno
import os

from vfsfuse import viewers
from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import Mountpoint, State, abort, inspect, locate, unmount, wait_for_end
from vfsfuse.cli.output import complain, explained
from vfsfuse.viewers import Viewer

PROBE_SECONDS = 0.5
"""Seconds that a server whose process is gone has for an answer. A process that it made may still serve."""
LAZY_SECONDS = 1.0
"""Seconds to wait after a lazy unmount. The server may go on as long as programs use the mount."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", nargs="?", default="mnt", metavar="MOUNTPOINT", help="default: ./mnt")
    parser.add_argument(
        "-l", "--lazy", action="store_true", help="take it out of sight now, even while programs use it"
    )


def main(args: argparse.Namespace) -> int:
    patience = Patience()
    try:
        found = locate(args.mountpoint, patience)
        if found.state is not State.LIVE:
            return complain("umount", f"{found.path}: no lab is mounted there")
        if found.is_gone:
            _free(found, patience)
        _unmount(found, args.lazy, patience)
    except Refusal as error:
        return complain("umount", str(error))
    except OSError as error:
        return complain("umount", explained(error, args.mountpoint))
    if not found.is_gone and (seen := viewers.look(found.connection, found.source, found.pid).viewers):
        complain("umount", f"{found.path} is unmounted; {_who(seen)}{_until_then(found, len(seen))}")
        return 0
    left = 0.0 if found.is_stopped else patience.left()
    if not found.pid or wait_for_end(found.pid, min(LAZY_SECONDS, left) if args.lazy else left):
        return 0
    complain("umount", f"{found.path} is unmounted; {_server(found, args.lazy)}")
    return 0 if args.lazy else 1


def _free(found: Mountpoint, patience: Patience) -> None:
    """Give an error to all programs that wait for a server that was killed.  Raises as `inspect`.

    A client may hold up a thread of it, even after SIGKILL.  Such a thread keeps the connection open.
    """
    if inspect(found.path, Patience(PROBE_SECONDS)).state is State.SILENT:
        abort(found, patience)


def _who(seen: list[Viewer]) -> str:
    """The part of a line about those who still see a lab."""
    first = min(seen, key=lambda viewer: (not viewer.is_here, not viewer.is_run))
    if first.is_here:
        return f"the lab is also mounted at {first.path}"
    more = f" and {len(seen) - 1} more still see" if len(seen) > 1 else " still sees"
    return f"{first}{more} the lab{'' if first.is_run else f' at {first.path}'}"


def _until_then(found: Mountpoint, count: int) -> str:
    """The part of a line about the end of a server that others keep alive."""
    if not found.pid:
        return ""
    those = "them" if count > 1 else "that"
    return f", and its server (pid {found.pid}) ends with {those} (kill -KILL {found.pid} ends it now)"


def _server(found: Mountpoint, lazy: bool) -> str:
    """What to say about a server that has not ended."""
    if found.is_stopped:
        return found.silence
    when = "ends with the programs that use it" if lazy else "has not ended yet"
    return f"its server (pid {found.pid}) {when} (kill -KILL {found.pid} ends it now)"


def _unmount(found: Mountpoint, lazy: bool, patience: Patience) -> None:
    """Unmount.  Raises Refusal, and OSError with the path."""
    try:
        unmount(found.path, patience, lazy)
    except NoAnswer:
        raise Refusal(f"{found.path}: unmounting it takes too long, and goes on; {found.silence}") from None
    except OSError as error:
        if error.errno == errno.EBUSY and not lazy:
            return _unmount_busy(found, patience)
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), found.path) from None


def _unmount_busy(found: Mountpoint, patience: Patience) -> None:
    """Unmount although programs use the mount, if its server is gone.  Raises as `_unmount`."""
    state = inspect(found.path, patience).state
    if state is State.STALE:
        return _unmount(found, True, patience)
    why = f"{os.strerror(errno.EBUSY)}; end the programs that use it, or add --lazy"
    if state is State.SILENT:
        why += f"; {found.silence}"
    raise OSError(errno.EBUSY, why, found.path)
