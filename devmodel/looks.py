# SPDX-License-Identifier: Apache-2.0
"""Looks at the open files of clients in /proc, each of which holds the file for a moment.

A file that its client closes at that moment stays open until the look is over, because the kernel counts the
look as a user. So a call that finds a client's file in use has to try again (``devmodel.vfio.lingering``).

State: of one thread, which does the looks; any thread asks.
Source: proc_fd_link() and fput() of the kernel.
"""

from __future__ import annotations

import math
import time

GRACE = 0.02
"""Seconds after a look in which we may not have heard of such a close yet."""


class Looks:
    """A context in which the thread looks."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = -math.inf

    def __enter__(self) -> None:
        self._until = math.inf

    def __exit__(self, *raised: object) -> None:
        self._until = time.monotonic() + GRACE

    @property
    def may_hold(self) -> bool:
        """Whether a file may be open because of a look alone. Any thread."""
        return time.monotonic() < self._until


looks = Looks()
"""Those of this process."""
