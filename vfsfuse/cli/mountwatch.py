# SPDX-License-Identifier: Apache-2.0
"""Notices that a lab has been unmounted, for a command that itself keeps a file of it open.

`umount --lazy` takes a mount away and leaves open files as they are, so they do not tell.  Single-threaded.
Source: proc_pid_mounts(5): a change of the table is an exceptional condition for poll(2).
"""

from __future__ import annotations

import os

TABLE = "/proc/self/mountinfo"


class MountWatch:
    """Watches the file system whose files have `device` as their st_dev.  `fd` has POLLPRI when the table of
    mounts has changed."""

    def __init__(self, device: int) -> None:
        self._device = f"{os.major(device)}:{os.minor(device)}".encode()
        self.fd = os.open(TABLE, os.O_RDONLY | os.O_CLOEXEC)

    def there(self) -> bool:
        """Whether it is mounted, anywhere in this mount namespace."""
        with open(TABLE, "rb") as table:
            return any(line.split(b" ", 3)[2] == self._device for line in table)
