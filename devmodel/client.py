# SPDX-License-Identifier: Apache-2.0
"""What the emulation asks of the process that opened the lab: its memory.

State: none here. Implementations are called from the device lane and from DMA threads, so they must be
thread safe.
"""

from typing import Protocol


class Client(Protocol):
    """A process whose memory a device may reach through the IOMMU.

    Addresses are virtual addresses of that process, sizes are bytes. Both calls raise ``OSError(EFAULT)`` for
    memory that is not there (or not accessible that way) and ``OSError(ESRCH)`` when the process is gone.
    """

    @property
    def tgid(self) -> int:
        """The process (thread group) id."""

    def read(self, vaddr: int, size: int) -> bytes:
        """Return exactly ``size`` bytes at ``vaddr``."""

    def write(self, vaddr: int, data: bytes) -> None:
        """Store the whole of ``data`` at ``vaddr``."""
