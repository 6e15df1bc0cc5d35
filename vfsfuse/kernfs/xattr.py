# SPDX-License-Identifier: Apache-2.0
"""The extended attribute that the root of a mount has.  No state.

A module of its own, because the command line asks for it without a need for anything else of the server.
"""

XATTR_PID = "user.vfsfuse.pid"
"""The process id of the server, in decimal digits."""
