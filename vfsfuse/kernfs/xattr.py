# SPDX-License-Identifier: Apache-2.0
"""What a mount says about its server: an extended attribute of its root, and its source.  No state.

A module of its own, because the command line asks for it without a need for anything else of the server.
Source: pid_namespaces(7), namespaces(7) on /proc/PID/ns.
"""

import os

XATTR_PID = "user.vfsfuse.pid"
"""The process id of the server, in decimal digits."""

SOURCE = "vfsfuse@"
"""The source of a mount, as /proc/self/mountinfo shows it, begins with this.  The kernel tells it even when
the server does not answer."""


def source() -> str:
    """The source of a mount that this process serves: `vfsfuse@PID:NAMESPACE`.  Any thread."""
    return f"{SOURCE}{os.getpid()}:{pid_namespace()}"


def pid_namespace() -> int:
    """The inode number of this process's pid namespace, 0 where /proc does not tell it.  Any thread."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
