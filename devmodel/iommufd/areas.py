# SPDX-License-Identifier: Apache-2.0
"""How many mappings a client may have: a budget of each open of /dev/iommu, from which its IOASes take.

Linux charges each mapping to the memory of the client's control group. Here they take memory of the server,
300 bytes each, and the client has no other limit.
State: under a lock of its own, which is taken last. Any thread.
"""

import errno
import threading

MAX_AREAS = 2**18
"""The most mappings in all IOASes of a context."""
LEAST = 16
"""An IOAS takes so many from the budget at once, or as many as it has."""


class Budget:
    """The mappings that IOASes of a context may still make."""

    __slots__ = ("_left", "_lock")

    def __init__(self, areas: int = MAX_AREAS) -> None:
        self._left, self._lock = areas, threading.Lock()

    def take(self, at_least: int, wanted: int) -> int:
        """Take ``wanted`` mappings, or what there is, but ``at_least`` so many. Returns how many. Raises
        ``OSError(ENOMEM)``."""
        with self._lock:
            if self._left < at_least:
                raise OSError(errno.ENOMEM, f"{MAX_AREAS} mappings in one context are the limit")
            taken = min(self._left, max(wanted, at_least))
            self._left -= taken
            return taken

    def give(self, areas: int) -> None:
        """The opposite of :meth:`take`."""
        with self._lock:
            self._left += areas
