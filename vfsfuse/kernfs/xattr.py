# SPDX-License-Identifier: Apache-2.0
"""What a mount says about its server: an extended attribute of its root, and its source.  No state.

A module of its own, because the command line asks for it without a need for anything else of the server.
"""

XATTR_PID = "user.vfsfuse.pid"
"""The process id of the server, in decimal digits."""

SOURCE = "vfsfuse@"
"""The source of a mount, as /proc/self/mountinfo shows it, is this and the process id.  The kernel tells it
even when the server does not answer."""
