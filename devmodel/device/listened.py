# SPDX-License-Identifier: Apache-2.0
"""DMA and interrupts of a device while somebody attends to them: each one passes the lab's call point.

Threads: as :class:`devmodel.iommu.dmaspace.DmaSpace`; a delayed access keeps its thread waiting.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

from devmodel.calls.call import Call, CallKind
from devmodel.calls.injection import Body
from devmodel.calls.point import CallPoint
from devmodel.calls.steered import Steered
from devmodel.device.tasks import check_current, ended_with_task
from devmodel.iommu.api import PAGE_SIZE, DmaFault, Fault, PageRequest, PageResponse, Prot
from devmodel.iommu.dmaspace import DmaSpace, Piece, Pin
from devmodel.iommu.mappings import Mapping
from devmodel.irq.eventfd import Point
from devmodel.irq.kinds import PciIrq
from devmodel.region.access import first_bytes, store_bytes
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
        return self._access(call, lambda: self._space.dma_read(iova, size), dropped=lambda: bytes(size))

    def dma_write(self, iova: int, data: bytes) -> None:
        call = self._call("write", {"iova": iova, "size": len(data), "data": data[: self._told_bytes]})
        self._access(call, lambda data: self._space.dma_write(iova, data), data, _nothing)

    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        self._move(iova, buffer, write, lambda buffer: self._space.dma_rw(iova, buffer, write))

    def mapping_at(self, iova: int, write: bool) -> Mapping:
        return self._space.mapping_at(iova, write)  # a look-up: the access is dma_pieces()

    def dma_pieces(self, pieces: Sequence[Piece], buffer: bytearray | memoryview, write: bool) -> None:
        iova = pieces[0].mapping.iova + pieces[0].offset if pieces else 0
        self._move(iova, buffer, write, lambda buffer: self._space.dma_pieces(pieces, buffer, write))

    def pin_pages(self, iova: int, count: int, prot: Prot) -> Pin:
        call = self._call("pin", {"iova": iova, "count": count})
        steered = self._calls.steer(call)
        pin = partial(self._space.pin_pages, iova, count, prot)
        return self._calls.tell(call, pin) if steered is None else self._run(steered, Body(pin))

    def unpin_pages(self, iova: int, count: int) -> None:
        self._space.unpin_pages(iova, count)  # nobody may hold up an unmap that waits for it

    def read_pinned(self, pin: Pin, offset: int, size: int) -> bytes:
        call = self._call("read", {"iova": pin.iova + offset, "size": size})
        read = partial(self._space.read_pinned, pin, offset, size)
        return self._access(call, read, dropped=lambda: bytes(size))

    def write_pinned(self, pin: Pin, offset: int, data: bytes) -> None:
        told = {"iova": pin.iova + offset, "size": len(data), "data": data[: self._told_bytes]}
        write = partial(self._space.write_pinned, pin, offset)
        self._access(self._call("write", told), write, data, _nothing)

    def _move(
        self,
        iova: int,
        buffer: bytes | bytearray | memoryview,
        write: bool,
        function: Callable[[Any], None],
    ) -> None:
        """Make a DMA from or to a buffer, whose first bytes are told."""
        access, size = self._device.backing.access, memoryview(buffer).nbytes
        told: dict[str, Any] = {"iova": iova, "size": size}
        if write:
            told["data"] = first_bytes(buffer, self._told_bytes, access)
        call = self._call("write" if write else "read", told)
        steered = self._calls.steer(call)
        changes = steered is not None and steered.injection.change is not None

        def read(steered: Steered | None = None) -> bytes:
            function(buffer)
            if steered is not None and changes and not isinstance(buffer, bytes):
                store_bytes(buffer, steered.injection.changed(first_bytes(buffer, size, access)), access)
            return first_bytes(buffer, self._told_bytes, access)

        def zeros() -> bytes:
            if not isinstance(buffer, bytes):
                store_bytes(buffer, bytes(size), access)
            return bytes(min(size, self._told_bytes))

        if steered is None:
            self._calls.tell(call, partial(function, buffer) if write else read)
        elif not write:
            self._steered(steered, Body(lambda: _Moved(read(steered)), dropped=lambda: _Moved(zeros())))
        elif changes:
            self._steered(steered, Body(function, first_bytes(buffer, size, access), _nothing))
        else:
            self._steered(steered, Body(partial(function, buffer), dropped=_nothing))

    def _access(
        self,
        call: Call,
        function: Callable[..., T],
        data: bytes | None = None,
        dropped: Callable[[], T] | None = None,
    ) -> T:
        steered = self._calls.steer(call)
        if steered is None:
            return self._calls.tell(call, function if data is None else partial(function, data))
        return self._steered(steered, Body(function, data, dropped))

    def _steered(self, steered: Steered, body: Body[T]) -> T:
        """Make an access that the listener attends to. A refused one is a fault of the device."""
        try:
            return self._run(steered, body)
        except DmaFault:
            raise
        except OSError as error:
            arguments = steered.call.arguments
            reason = error.strerror or errno.errorcode.get(error.errno or 0, "refused")
            write = steered.call.name == "write"
            raise DmaFault(Fault(arguments["iova"], arguments["size"], write, reason)) from error

    def _run(self, steered: Steered, body: Body[T]) -> T:
        """Make the rest of an access or a pin. An access of a task that was stopped meanwhile is not
        made: the device has been reset, or its client is gone."""

        def make(*arguments: bytes) -> T:
            check_current()
            return body.function(*arguments)

        try:
            return steered.run(Body(make, body.data, body.dropped), _with_task)
        except OSError:
            check_current()
            raise

    def _call(self, name: str, arguments: dict[str, Any]) -> Call:
        return Call(CallKind.DMA, self._device.name, name, arguments, device=self._device)


class _Moved(bytes):
    """The first bytes of those that a DMA has put into a buffer."""


def _with_task(steered: Steered) -> AbstractContextManager[None]:
    """The block in which an access of a task waits no longer than the task lives."""
    return ended_with_task(steered.interrupt)


def _nothing() -> None:
    """The result of a write that is dropped."""
