# SPDX-License-Identifier: Apache-2.0
"""DMA and interrupts of a device while somebody attends to them: each one passes the lab's call point.

Threads: as :class:`devmodel.iommu.dmaspace.DmaSpace`; a delayed access keeps its thread waiting.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

from devmodel.callpoint import Call, CallKind, CallPoint
from devmodel.iommu.api import PAGE_SIZE, DmaFault, Fault, PageRequest, PageResponse, Prot
from devmodel.iommu.dmaspace import DmaSpace, Piece, Pin
from devmodel.iommu.mappings import Mapping
from devmodel.irq.eventfd import Point
from devmodel.irq.kinds import PciIrq
from devmodel.region.access import first_bytes
from devmodel.region.backing import Backing

T = TypeVar("T")
TOLD_BYTES = 64
"""Bytes of a DMA from or to a buffer that are told."""
RECORDED_BYTES = 4 << 20
"""The same while somebody records."""


class ToldDevice(Protocol):
    """A device whose DMA and interrupts are told."""

    name: str

    @property
    def calls(self) -> CallPoint:
        """The call point of its lab."""

    @property
    def backing(self) -> Backing:
        """The memory of its regions, which DMA copies from and to."""


def interrupt_point(device: ToldDevice, index: PciIrq, vector: int) -> Point:
    """What sends interrupt ``vector`` of ``index`` through the call point of the device's lab."""
    calls, name, kind = device.calls, device.name, index.name

    def interrupt(send: Callable[[], None]) -> None:
        calls.signal(Call(CallKind.INTERRUPT, name, kind, {"vector": vector}, device=device), send)

    return interrupt


class ListenedDma(DmaSpace):
    """``space``, for a device. A refused access is a :class:`DmaFault` for the device. A pin is one of
    ``space``."""

    __slots__ = ("_calls", "_device", "_space")

    def __init__(self, device: ToldDevice, space: DmaSpace) -> None:
        self._device, self._space, self._calls = device, space, device.calls

    @property
    def _told_bytes(self) -> int:
        return RECORDED_BYTES if self._calls.recorded else TOLD_BYTES

    @property
    def plain(self) -> DmaSpace:
        return self._space

    def refuse(self, iova: int, size: int, write: bool, reason: str) -> NoReturn:
        call = self._call("write" if write else "read", {"iova": iova, "size": size})
        self._calls.tell(call, lambda: self._space.refuse(iova, size, write, reason))

    def asked_pages(self, request: PageRequest, response: PageResponse) -> None:
        told = {"iova": request.iova, "size": request.pages * PAGE_SIZE, "response": response.name}
        self._calls.tell(self._call("request", told), lambda: None)

    def dma_read(self, iova: int, size: int) -> bytes:
        call = self._call("read", {"iova": iova, "size": size})
        return self._access(call, False, lambda: self._space.dma_read(iova, size))

    def dma_write(self, iova: int, data: bytes) -> None:
        call = self._call("write", {"iova": iova, "size": len(data), "data": data[: self._told_bytes]})
        self._access(call, True, lambda: self._space.dma_write(iova, data))

    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        self._move(iova, buffer, write, lambda: self._space.dma_rw(iova, buffer, write))

    def mapping_at(self, iova: int, write: bool) -> Mapping:
        return self._space.mapping_at(iova, write)  # a look-up: the access is dma_pieces()

    def dma_pieces(self, pieces: Sequence[Piece], buffer: bytearray | memoryview, write: bool) -> None:
        iova = pieces[0].mapping.iova + pieces[0].offset if pieces else 0
        self._move(iova, buffer, write, lambda: self._space.dma_pieces(pieces, buffer, write))

    def pin_pages(self, iova: int, count: int, prot: Prot) -> Pin:
        call = self._call("pin", {"iova": iova, "count": count})
        return self._calls.run(call, lambda: self._space.pin_pages(iova, count, prot))

    def unpin_pages(self, iova: int, count: int) -> None:
        self._space.unpin_pages(iova, count)  # nobody may hold up an unmap that waits for it

    def read_pinned(self, pin: Pin, offset: int, size: int) -> bytes:
        call = self._call("read", {"iova": pin.iova + offset, "size": size})
        return self._access(call, False, lambda: self._space.read_pinned(pin, offset, size))

    def write_pinned(self, pin: Pin, offset: int, data: bytes) -> None:
        told = {"iova": pin.iova + offset, "size": len(data), "data": data[: self._told_bytes]}
        write = self._space.write_pinned
        self._access(self._call("write", told), True, lambda: write(pin, offset, data))

    def _move(
        self,
        iova: int,
        buffer: bytes | bytearray | memoryview,
        write: bool,
        function: Callable[[], None],
    ) -> None:
        access = self._device.backing.access
        told: dict[str, Any] = {"iova": iova, "size": memoryview(buffer).nbytes}
        if write:
            told["data"] = first_bytes(buffer, self._told_bytes, access)
            self._access(self._call("write", told), True, function)
            return

        def read() -> bytes:
            function()
            return first_bytes(buffer, self._told_bytes, access)

        self._access(self._call("read", told), False, read)

    def _access(self, call: Call, write: bool, function: Callable[[], T]) -> T:
        try:
            return self._calls.run(call, function)
        except DmaFault:
            raise
        except OSError as error:
            iova, size = call.arguments["iova"], call.arguments["size"]
            reason = error.strerror or errno.errorcode.get(error.errno or 0, "refused")
            raise DmaFault(Fault(iova, size, write, reason)) from error

    def _call(self, name: str, arguments: dict[str, Any]) -> Call:
        return Call(CallKind.DMA, self._device.name, name, arguments, device=self._device)
