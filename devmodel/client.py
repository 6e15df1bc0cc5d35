# SPDX-License-Identifier: Apache-2.0
"""What the emulation asks of the process that opened the lab: its memory, and how much of it may be locked.

State: none here. Implementations are called from the device lane and from DMA threads, so they must be
thread safe.
"""

from collections.abc import Hashable, Sequence
from typing import Protocol


class Pages(Protocol):
    """Memory of a client that a device holds. It ends with the last reference.

    Offsets and sizes are bytes from the start of what was pinned. All calls raise ``OSError(EFAULT)`` for
    memory that is gone and ``OSError(ESRCH)`` when the process is.
    """

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes at ``offset``."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what is at ``offset``."""

    def write_from(self, offset: int, view: memoryview) -> None:
        """Store ``view`` at ``offset``."""


class Memory(Protocol):
    """Memory that a device may reach through the IOMMU.

    Addresses are virtual addresses of a process, or offsets of a file, and sizes are bytes. A ``parts``
    sequence is of (address, size), whose sizes add up to that of the buffer. Accesses raise
    ``OSError(EFAULT)`` for memory that is not there (or not accessible that way) and ``OSError(ESRCH)`` when
    the process is gone.
    """

    def read(self, vaddr: int, size: int) -> bytes:
        """Return exactly ``size`` bytes at ``vaddr``."""

    def write(self, vaddr: int, data: bytes) -> None:
        """Store the whole of ``data`` at ``vaddr``."""

    def gather(self, parts: Sequence[tuple[int, int]]) -> bytes:
        """Return what is in the parts, one after the other, whatever they cross."""

    def read_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        """Fill ``view`` with the parts, one after the other, whatever they cross."""

    def write_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        """Store ``view`` in the parts, one after the other."""

    def pin(self, vaddr: int, size: int, write: bool) -> Pages:
        """Hold on to memory, to read and if ``write`` to write it. Of the memory of a file it touches one
        page, so it waits for the client.

        Shared memory stays the same pages whatever the client maps there later; private memory is what the
        client has at that address when it is used. ``OSError(EFAULT)`` where the kernel pins nothing: nothing
        is mapped there, or not accessible as wanted, beyond a file's end, secret memory, and memory to write
        to that is a shared file of a file system which writes it back to a disk.
        """


class Payer(Protocol):
    """Who pays for memory that is locked: a process."""

    @property
    def tgid(self) -> int:
        """The process (thread group) id."""

    @property
    def identity(self) -> Hashable:
        """The same for all clients that are the same process, and never again for another one."""

    @property
    def user(self) -> int:
        """The real user id of the process, as it is now. Raises ``OSError(ESRCH)``."""

    def memlock_limit(self) -> int:
        """RLIMIT_MEMLOCK of the process in bytes, as it is now."""

    def locked(self) -> int:
        """Bytes of its memory that the process has locked by itself (mlock(2)), which count too."""

    def may_lock_any(self) -> bool:
        """Whether that limit does not count for it (CAP_IPC_LOCK)."""


class Client(Memory, Payer, Protocol):
    """A process, and its memory."""
