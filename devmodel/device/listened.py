# SPDX-License-Identifier: Apache-2.0
"""DMA of a device that somebody listens to: each access passes the lab's call point.

Threads: as :class:`devmodel.iommu.dmaspace.DmaSpace`; a delayed access keeps its thread waiting.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TypeVar

from devmodel.callpoint import Call, CallKind, CallPoint
from devmodel.iommu.api import DmaFault, Fault, Prot
from devmodel.iommu.dmaspace import DmaSpace, Piece, Pin
from devmodel.iommu.mappings import Mapping

T = TypeVar("T")


class ListenedDma(DmaSpace):
    """``space``, for the device called ``name``. A refused access is a :class:`DmaFault` for the device."""

    __slots__ = ("_calls", "_name", "_space")

    def __init__(self, space: DmaSpace, calls: CallPoint, name: str) -> None:
        self._space, self._calls, self._name = space, calls, name

    def dma_read(self, iova: int, size: int) -> bytes:
        return self._access(iova, size, False, lambda: self._space.dma_read(iova, size))

    def dma_write(self, iova: int, data: bytes) -> None:
        self._access(iova, len(data), True, lambda: self._space.dma_write(iova, data))

    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        size = memoryview(buffer).nbytes
        self._access(iova, size, write, lambda: self._space.dma_rw(iova, buffer, write))

    def mapping_at(self, iova: int, write: bool) -> Mapping:
        return self._space.mapping_at(iova, write)  # a look-up: the access is dma_pieces()

    def dma_pieces(self, pieces: Sequence[Piece], buffer: bytearray | memoryview, write: bool) -> None:
        size = memoryview(buffer).nbytes
        iova = pieces[0].mapping.iova + pieces[0].offset if pieces else 0
        self._access(iova, size, write, lambda: self._space.dma_pieces(pieces, buffer, write))

    def pin_pages(self, iova: int, count: int, prot: Prot) -> Pin:
        call = self._call("pin", {"iova": iova, "count": count})
        pin = self._calls.run(call, lambda: self._space.pin_pages(iova, count, prot))
        return Pin(self, pin.iova, pin.size, pin.prot, pin.segments)

    def unpin_pages(self, iova: int, count: int) -> None:
        self._space.unpin_pages(iova, count)  # nobody may hold up an unmap that waits for it

    def read_pinned(self, pin: Pin, offset: int, size: int) -> bytes:
        return self._access(
            pin.iova + offset, size, False, lambda: self._space.read_pinned(pin, offset, size)
        )

    def write_pinned(self, pin: Pin, offset: int, data: bytes) -> None:
        write = self._space.write_pinned
        self._access(pin.iova + offset, len(data), True, lambda: write(pin, offset, data))

    def _access(self, iova: int, size: int, write: bool, function: Callable[[], T]) -> T:
        call = self._call("write" if write else "read", {"iova": iova, "size": size})
        try:
            return self._calls.run(call, function)
        except DmaFault:
            raise
        except OSError as error:
            reason = error.strerror or errno.errorcode.get(error.errno or 0, "refused")
            raise DmaFault(Fault(iova, size, write, reason)) from error

    def _call(self, name: str, arguments: dict[str, object]) -> Call:
        return Call(CallKind.DMA, self._name, name, arguments)
