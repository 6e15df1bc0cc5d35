# SPDX-License-Identifier: Apache-2.0
"""Which regions of a device answer, and who is told so.

State: under the device's lock. Source: PCI 3.0, 6.2.2 (Memory Space and I/O Space of the command register).
"""

import threading
from collections.abc import Callable

Hide = Callable[[frozenset[int]], None]
_NONE: frozenset[int] = frozenset()


class AddressDecode:
    """Base of a device. Regions in :attr:`undecoded` do not answer: they read all ones, and drop writes."""

    __slots__ = ("_hide", "lock", "undecoded")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.undecoded = _NONE
        self._hide: Hide | None = None

    def hide_by(self, hide: Hide) -> None:
        """Call ``hide`` with :attr:`undecoded`, now and whenever it changes, under :attr:`lock`; for whoever
        answers reads and writes of regions in our place."""
        with self.lock:
            self._hide = hide
            hide(self.undecoded)

    def decode(self, undecoded: frozenset[int]) -> None:
        """These regions, and no others, do not answer. Under :attr:`lock`."""
        if undecoded != self.undecoded:
            self.undecoded = undecoded
            if self._hide is not None:
                self._hide(undecoded)

    def decode_nothing(self, regions: int) -> None:
        """None of so many regions answers. Under :attr:`lock`."""
        self.decode(frozenset(range(regions)))

    def unhide(self) -> None:
        """Nobody is told any more. Under :attr:`lock`."""
        self._hide = None
