# SPDX-License-Identifier: Apache-2.0
"""The memory that a device on a bench reaches by DMA, through the lab's own IOMMU (type1v2).

State: the mappings change on the bench's lane, and the threads that do DMA read the memory at any time.
Source: <linux/vfio.h> (VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA).
"""

import errno
import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from devmodel.device.base import Device
from devmodel.iommu.api import PAGE_SIZE, Fault, Prot
from devmodel.iommu.type1 import Type1
from vfsfuse.testing.errors import BenchError

_FIRST_VADDR = 0x7000_0000_0000
T = TypeVar("T")


class Caller(Protocol):
    """Runs a call on another thread, and gives its result."""

    def __call__(self, call: Callable[[], T]) -> T: ...


class BenchClient:
    """The process whose memory it is, as the IOMMU sees it (:class:`devmodel.client.Client`): this one.

    Its addresses are those that :meth:`allocate` gives, not those of Python's memory."""

    def __init__(self) -> None:
        self.tgid = os.getpid()
        self.identity: Hashable = self
        self.user = os.getuid()
        self._starts: list[int] = []
        self._areas: list[memoryview] = []
        self._next = _FIRST_VADDR

    def allocate(self, size: int) -> tuple[int, memoryview]:
        """New memory of zeros: its address, and the memory."""
        vaddr, view = self._next, memoryview(mmap.mmap(-1, size))
        self._next += size + PAGE_SIZE  # a page with nothing in it
        self._starts.append(vaddr)
        self._areas.append(view)
        return vaddr, view

    def free(self, vaddr: int) -> None:
        """The memory at this address is gone."""
        position = self._starts.index(vaddr)
        del self._starts[position], self._areas[position]

    def read(self, vaddr: int, size: int) -> bytes:
        return bytes(self._part(vaddr, size))

    def write(self, vaddr: int, data: bytes) -> None:
        self._part(vaddr, len(data))[:] = data

    def gather(self, parts: Sequence[tuple[int, int]]) -> bytes:
        return b"".join(self.read(*part) for part in parts)

    def read_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        for vaddr, size in parts:
            view[:size] = self._part(vaddr, size)
            view = view[size:]

    def write_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        for vaddr, size in parts:
            self._part(vaddr, size)[:] = view[:size]
            view = view[size:]

    def pin(self, vaddr: int, size: int, write: bool) -> "BenchPages":
        return BenchPages(self._part(vaddr, size))

    def memlock_limit(self) -> int:
        return 2**64 - 1

    def locked(self) -> int:
        return 0

    def may_lock_any(self) -> bool:
        return True

    def _part(self, vaddr: int, size: int) -> memoryview:
        position = bisect_right(self._starts, vaddr) - 1
        if position >= 0:
            first = vaddr - self._starts[position]
            if first + size <= len(self._areas[position]):
                return self._areas[position][first : first + size]
        raise OSError(errno.EFAULT, f"there is no memory at {vaddr:#x}")


class BenchPages:
    """Memory of a :class:`BenchClient` that a device holds (:class:`devmodel.client.Pages`)."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._view[offset : offset + size])

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self._view[offset : offset + len(view)]

    def write_from(self, offset: int, view: memoryview) -> None:
        self._view[offset : offset + len(view)] = view


class Mapped(NamedTuple):
    """A mapping: ``size`` bytes from ``iova`` on, what the device may do there, and the memory."""

    iova: int
    size: int
    prot: Prot
    view: memoryview


class BenchMemory:
    """``bench.memory``: what the device can reach, by iova. Whatever is not mapped here is a fault.

    :meth:`read` and :meth:`write` are those of the program that the memory belongs to. They need no
    permission, and the device does not notice them.
    """

    def __init__(self, type1: Type1, call: Caller, device: Callable[[], Device]) -> None:
        """For :class:`vfsfuse.testing.bench.Bench`. ``call`` runs a function on the lane."""
        self._type1, self._call, self._device = type1, call, device
        self._client = BenchClient()
        self._mapped: dict[int, tuple[int, Mapped]] = {}

    @property
    def mappings(self) -> tuple[Mapped, ...]:
        """The mappings, in the order of their iovas."""
        return tuple(mapped for _, (_, mapped) in sorted(self._mapped.items()))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The newest 64 DMA that the IOMMU has refused: iova, size, whether it is a write, the reason."""
        return tuple(self._type1.space.inflight.faults)

    @property
    def fault_count(self) -> int:
        """How many DMA of the device were refused, also those that did not come as far as the IOMMU because
        the device is no bus master."""
        return self._device().dma.fault_count

    @property
    def pinned_pages(self) -> int:
        """How many pages the device holds."""
        return self._device().dma.pinned_pages

    def map(self, iova: int, size: int, *, read: bool = True, write: bool = True) -> memoryview:
        """Map new memory of zeros, as VFIO_IOMMU_MAP_DMA does, and return it.

        ``read`` and ``write`` are what the device may do there. Raises ``OSError`` as the ioctl: EINVAL for a
        range that is empty, no whole pages, or not permitted at all; EEXIST where something is mapped.
        """
        prot = Prot(Prot.READ * read | Prot.WRITE * write)
        if not 0 <= iova < 2**64 or not 0 <= size < 2**63:
            raise OSError(errno.EINVAL, f"{size:#x} bytes at {iova:#x} are no range of iovas")
        return self._call(lambda: self._map(iova, size, prot))

    def unmap(self, iova: int, size: int) -> int:
        """Remove the mappings in a range, as VFIO_IOMMU_UNMAP_DMA does: the model releases its pages there.
        Returns the bytes that were mapped.

        Raises ``OSError(EINVAL)`` for a range that cuts a mapping, or is empty or no whole pages.
        """
        if not 0 <= iova < 2**64 or not 0 <= size < 2**64:
            raise OSError(errno.EINVAL, f"{size:#x} bytes at {iova:#x} are no range of iovas")
        return self._call(lambda: self._unmap(iova, size))

    def read(self, iova: int, size: int) -> bytes:
        """What is in memory. Raises :class:`BenchError` where nothing is mapped."""
        return b"".join(bytes(part) for part in self._parts(iova, size))

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` in memory. Raises :class:`BenchError`, with nothing stored, where nothing is
        mapped."""
        rest = memoryview(data).cast("B")
        for part in self._parts(iova, len(rest)):
            part[:] = rest[: len(part)]
            rest = rest[len(part) :]

    # ---- on the lane ----

    def _map(self, iova: int, size: int, prot: Prot) -> memoryview:
        vaddr, view = self._client.allocate(size) if size else (_FIRST_VADDR, memoryview(b""))
        try:
            self._type1.map(self._client, iova, vaddr, size, int(prot))
        except BaseException:
            if size:
                self._client.free(vaddr)
            raise
        self._mapped[iova] = vaddr, Mapped(iova, size, prot, view)
        return view

    def _unmap(self, iova: int, size: int) -> int:
        removed = self._type1.unmap(iova, size)
        for first, (vaddr, _) in list(self._mapped.items()):
            if iova <= first < iova + size:
                del self._mapped[first]
                self._client.free(vaddr)
        return removed

    def _parts(self, iova: int, size: int) -> list[memoryview]:
        found: list[memoryview] = []
        while size:
            mapped = next((each for each in self.mappings if each.iova <= iova < each.iova + each.size), None)
            if mapped is None:
                raise BenchError(f"nothing is mapped at iova {iova:#x} (bench.memory.map maps memory)")
            first = iova - mapped.iova
            taken = min(size, mapped.size - first)
            found.append(mapped.view[first : first + taken])
            iova, size = iova + taken, size - taken
        return found
