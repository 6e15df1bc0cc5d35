# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.ordinary_user CMD ARG...`, as root: exec CMD as nobody, who can read this checkout.

A checkout or an interpreter may lie where only root may go (/root, a directory of mkdtemp(3)).  In a mount
namespace of its own, each such directory is covered by an open one that holds just what is needed, at the
same path.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

from vfsfuse.run import syscalls

UID = 65534
ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = Path("/sys/fs/fuse/connections")


def closed_directory(path: Path) -> Path | None:
    """The topmost directory on the way to `path`, or `path`, that others may not pass."""
    return next(
        (above for above in [*reversed(path.parents), path] if not above.stat().st_mode & stat.S_IXOTH), None
    )


def needed() -> set[Path]:
    """Where Python and this checkout are, by the paths they are known by and the real ones."""
    known = {Path(name) for name in (sys.prefix, sys.base_prefix, sys.exec_prefix)} | {ROOT}
    return known | {path.resolve() for path in known} | {Path(os.path.realpath(sys.executable)).parent}


def open_the_way() -> None:
    """Make all of `needed` reachable for everybody, in a mount namespace of this process."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    closed = {path: above for path in sorted(needed()) if (above := closed_directory(path))}
    trees = [(path, syscalls.clone_tree(str(path))) for path in closed]
    for above in sorted(set(closed.values())):
        syscalls.mount("tests", str(above), "tmpfs", 0, "mode=755")
    for path, tree in trees:
        path.mkdir(parents=True, exist_ok=True)
        syscalls.attach_tree(tree, str(path))


def mount_fusectl() -> None:
    """Let users abort connections of their own, as on a machine with systemd."""
    if CONNECTIONS.is_dir() and not CONNECTIONS.is_mount():
        with contextlib.suppress(PermissionError):  # in a user namespace
            syscalls.mount("none", str(CONNECTIONS), "fusectl", 0)


def main() -> None:
    os.umask(0o022)
    open_the_way()
    mount_fusectl()
    os.chdir(ROOT)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
