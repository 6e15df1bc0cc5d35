# SPDX-License-Identifier: Apache-2.0
"""What `vfsfuse run --udev` gives a program besides: a network namespace, and a /run/udev of its own.

uevents go to a network namespace, so those of a lab need one of their own: no other program may hear them.
Runs in the only thread of the process that becomes the program, after the lab is at /sys.  The sockets are
then the relay's (vfsfuse.run.udev).  Source: network_namespaces(7), unix(7).
"""

from __future__ import annotations

import contextlib
import os
import socket

from vfsfuse.run import namespace, syscalls, ueventsocket
from vfsfuse.run.udev import UdevFiles
from vfsfuse.run.udevdata import FOLDER

PLACE = "/run/udev"
CONTROL = f"{PLACE}/control"
_RUN = ("/run", ("udev",), "mode=755")
_BACKLOG = 16


def enter() -> UdevFiles:
    """Enter the network namespace and cover /run/udev.  Raises namespace.SetupError."""
    with namespace.explained("making a network namespace for --udev", "see sysctl user.max_net_namespaces"):
        syscalls.unshare(syscalls.CLONE_NEWNET)
        ueventsocket.raise_loopback()
        events = ueventsocket.open_socket()
    with namespace.explained(f"making {PLACE} for --udev"):
        folder = _cover()
        os.mkdir(FOLDER, 0o755, dir_fd=folder)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        control.bind(CONTROL)
        os.chmod(CONTROL, 0o600)
        control.listen(_BACKLOG)
        control.setblocking(False)
    return UdevFiles(events, control, folder)


def _cover() -> int:
    """Mount an empty directory at PLACE and open it."""
    if not os.path.isdir(PLACE):
        namespace.rebuild(*_RUN)
        namespace.make_place(PLACE, directory=True)
    syscalls.mount("vfsfuse", PLACE, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755")
    with contextlib.suppress(OSError):
        os.chdir(os.getcwd())  # into the new mount, if the program starts there
    return os.open(PLACE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
