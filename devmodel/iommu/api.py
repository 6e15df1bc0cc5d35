# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of IOMMUs: protections, limits, faults, and the groups and clients as an IOMMU sees them.

State: none. Source: <linux/vfio.h>, "API for Type1 VFIO IOMMU"; limits as vfio_iommu_type1 documents them.
"""

import errno
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol

PAGE_SIZE = 4096
PGSIZES = 2**64 - PAGE_SIZE
"""Bitmap of page sizes: any power of two from 4 KiB, as a container with only mediated devices reports."""
DMA_ENTRY_LIMIT = 65535
"""The most mappings in a container: the default of vfio_iommu_type1's ``dma_entry_limit``."""
ADDRESSES = 2**64
"""The number of iovas, and of vaddrs. A range that ends here does not wrap around."""
MAX_BITMAP_PAGES = 2**31 - 1
"""The most pages of a mapping whose dirty pages can be tracked."""
MAX_BITMAP_SIZE = (MAX_BITMAP_PAGES + 63) // 64 * 8
"""The most bytes of a dirty bitmap that a client may ask for: 256 MiB."""
MAX_PIN_PAGES = 512
"""The most pages that one call may pin or unpin (VFIO_PIN_PAGES_MAX_ENTRIES)."""


class Extension(IntEnum):
    """Numbers that CHECK_EXTENSION and SET_IOMMU take."""

    TYPE1 = 1
    TYPE1V2 = 3
    DMA_CC = 4
    NOIOMMU = 8
    UNMAP_ALL = 9
    UPDATE_VADDR = 10


class Prot(IntFlag):
    """The accesses that a device may make to mapped memory."""

    READ = 1
    WRITE = 2


class PageResponse(IntEnum):
    """What a function learns of the pages that it has asked for (IOMMUFD_PAGE_RESP_*)."""

    SUCCESS = 0
    """They may be there now: the function tries its access again."""
    INVALID = 1
    """They are not, or nobody could be asked: the function gives its access up."""
    FAILURE = 0xF
    """The IOMMU could not take the request. PCI Express: the function asks no more until it is reset."""


class PageRequest(NamedTuple):
    """A function asks for ``pages`` pages from ``iova``, for accesses of the kind ``prot``."""

    iova: int
    pages: int
    prot: Prot


PageAnswer = Callable[[PageResponse], None]
"""Takes the answer to a page request, once. Any thread; does not wait."""

AskPages = Callable[[PageRequest, PageAnswer], None]
"""Makes a page request. Any thread; does not wait."""


class Fault(NamedTuple):
    """A DMA that was refused: ``size`` bytes at ``iova``, and the reason."""

    iova: int
    size: int
    write: bool
    reason: str


class DmaFault(OSError):
    """A device model's DMA was refused: EFAULT, with the recorded :class:`Fault`."""

    def __init__(self, fault: Fault) -> None:
        what = "write" if fault.write else "read"
        super().__init__(
            errno.EFAULT, f"DMA {what} of {fault.size:#x} bytes at iova {fault.iova:#x}: {fault.reason}"
        )
        self.fault = fault


class MustWait(Exception):
    """A call has to wait, and its thread may not. Nothing has changed; a thread that may wait repeats it.

    It is no ``OSError``, because a client never sees it.
    """


class IommuGroup(Protocol):
    """A group as an IOMMU sees it."""

    @property
    def number(self) -> int:
        """Its number, unique in the lab."""

    @property
    def emulated(self) -> bool:
        """Whether its devices are mediated: they reach memory only through their driver, not by DMA of their
        own."""


class DmaUser(Protocol):
    """An open device that pins pages. The address space tells it which mappings are about to be removed."""

    def dma_unmap(self, iova: int, size: int) -> None:
        """Unpin all pinned pages of the range before returning. Called with no lock held."""


class Bitmap(Protocol):
    """A bitmap in a client's memory.

    Offsets and sizes are bytes of the bitmap. Both calls raise ``OSError(EFAULT)``, and wait for the client's
    memory. So the lock of an address space is never held around them.
    """

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes of the bitmap as it is now."""

    def write(self, offset: int, data: bytes) -> None:
        """Store the whole of ``data``."""


class ClientBitmap(Bitmap, Protocol):
    """A dirty bitmap of a client to fill: one bit for each page of ``pgsize`` bytes."""

    @property
    def pgsize(self) -> int:
        """Bytes that a bit stands for, as the client chose."""

    @property
    def size(self) -> int:
        """Bytes of the client's buffer."""


def check_range(size: int, *addresses: int, alignment: int = PAGE_SIZE) -> None:
    """Check ranges of ``size`` bytes at ``addresses``. Raises ``OSError``: EINVAL when ``size`` is 0 or a
    number is no multiple of ``alignment`` (a power of two), EOVERFLOW when a range wraps around."""
    bits = size
    for address in addresses:
        bits |= address
    if not size or bits & (alignment - 1):
        raise OSError(errno.EINVAL, f"a range of {size:#x} bytes is empty or not aligned to {alignment}")
    for address in addresses:
        if address + size > ADDRESSES:
            raise OSError(errno.EOVERFLOW, "the range wraps around the end of the address space")
