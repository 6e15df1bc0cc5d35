# SPDX-License-Identifier: Apache-2.0
"""The folders in /etc where tools save what a machine is to have at its next start: mdevctl its vGPUs,
driverctl its drivers.  A program of `run` has the lab's own there, so that no lab changes the machine.

Those of a private lab end with it.  Those of a mounted lab are in its folder on disk (vfsfuse.ownfolder).
The programs of its user share them, and the server removes them.  Another user's program has its own.

Runs in the only thread of a process that is about to exec, in the inner namespace (vfsfuse.run.namespace).
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import NamedTuple

from ioctl_shim.seccomp import file_id
from vfsfuse import mounts, ownfolder
from vfsfuse.run import namespace, syscalls
from vfsfuse.run.namespace import explained


class Folder(NamedTuple):
    """A folder in /etc where `tool` saves.  `kept` is a folder in it that stays the machine's, read-only."""

    path: str
    tool: str
    kept: str = ""


FOLDERS = (Folder("/etc/mdevctl.d", "mdevctl", kept="scripts.d"), Folder("/etc/driverctl.d", "driverctl"))
_ETC = ("/etc", (), "mode=755,size=1m")
_SBIN = "/usr/sbin:/sbin"


def show(lab: str | None, user: int) -> None:
    """Put the folders of the lab that is mounted at `lab`, or of a private one, over the machine's.

    `user` is the user outside the namespaces of the run.  Raises SetupError."""
    own = own_folder(lab, user) if lab else ""
    for folder in FOLDERS:
        if _is_there(folder):
            with explained(f"showing the lab's own {folder.path}"):
                _cover(folder, own and os.path.join(own, os.path.basename(folder.path)))


def _is_there(folder: Folder) -> bool:
    """Whether there is a folder to cover.  It is made for a tool that is there and would make it.

    Who may not make it sees another /etc, which has the folder.  That one is not for those who may, because
    they could not replace a file in it."""
    if os.path.isdir(folder.path):
        return True
    if shutil.which(folder.tool, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}") is None:
        return False
    try:
        os.mkdir(folder.path, 0o755)
    except OSError:
        with explained(f"making {folder.path}"):
            namespace.rebuild(*_ETC)
            os.mkdir(folder.path, 0o755)
    return True


def _cover(folder: Folder, own: str) -> None:
    """Mount the folder `own`, or else a new tmpfs, over a folder."""
    kept = os.path.join(folder.path, folder.kept)
    tree = syscalls.clone_tree(kept) if folder.kept and os.path.isdir(kept) else None
    if own:
        os.makedirs(own, 0o755, exist_ok=True)
        syscalls.attach_tree(syscalls.clone_tree(own), folder.path)
    else:
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("vfsfuse", folder.path, "tmpfs", flags, "mode=755,size=4m")
    if tree is not None:
        os.makedirs(kept, 0o755, exist_ok=True)
        syscalls.make_read_only(tree)
        syscalls.attach_tree(tree, kept)


def own_folder(lab: str, user: int) -> str:
    """The folder on disk of the lab mounted at `lab`, empty if it is not for `user`.

    A server says by itself which folder that is.  So the kernel must tell that `user` has mounted the lab:
    another user's could say /etc."""
    try:
        if _user_of(lab) != user:
            return ""
        path = os.fsdecode(os.getxattr(lab, ownfolder.XATTR))
        found = os.lstat(path)
    except OSError:  # another user's lab, or one in another container
        return ""
    is_folder = stat.S_ISDIR(found.st_mode) and path.endswith(ownfolder.SUFFIX)
    return path if is_folder and found.st_uid == os.geteuid() else ""


def _user_of(lab: str) -> int:
    """The user who has mounted a lab, -1 for anything else.  Raises OSError."""
    minor = os.minor(file_id(lab).device)
    users = [mount.user for mount in mounts.table() if mount.is_of_lab and mount.minor == minor]
    return users[0] if users else -1
