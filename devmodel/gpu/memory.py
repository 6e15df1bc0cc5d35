# SPDX-License-Identifier: Apache-2.0
"""Graphics addresses, as the commands of one worker use them: video memory from 0, system memory behind the
GTT from ``SYSTEM_BASE``.

State: a worker's, on its thread; any thread that stops the worker sets ``stopped``. All calls raise
:class:`EngineFault` for an invalid address, and move at most :data:`SLICE_BYTES` at once.
Source: docs/vgpu.md, "Translation".
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from devmodel.device.dma import DmaPort
from devmodel.gpu.faults import EngineFault, EngineStopped, ErrorCode
from devmodel.gpu.gtt import SYSTEM_BASE, SYSTEM_SIZE
from devmodel.gpu.shadow import Shadow
from devmodel.gpu.video import Bytes, NoPage, VideoMemory
from devmodel.iommu.api import DmaFault
from devmodel.region.backing import Backing

SLICE_BYTES = 512 << 10
SLICE_SPANS = 256
"""The bytes and the places of one slice, at most. After a slice the engine may turn to another vGPU."""


class CopySpan(NamedTuple):
    """``size`` bytes at ``target``. A copy takes them from ``source``."""

    target: int
    source: int
    size: int


class GraphicsMemory:
    """The memory accesses of commands. ``where`` is the address of the newest DMA, ``waited`` the nanoseconds
    during which DMA made no progress."""

    __slots__ = ("_access", "_bounce", "_port", "_shadow", "_size", "_video", "stopped", "waited", "where")

    def __init__(self, backing: Backing, size: int, shadow: Shadow, port: DmaPort) -> None:
        """``size`` bytes of video memory in region 0 of ``backing``."""
        self._size = size
        self._access = backing.access
        self._video = VideoMemory(backing, size)
        self._shadow, self._port = shadow, port
        self._bounce: Bytes | None = None
        self.stopped = False
        self.where = 0
        self.waited = 0

    def stop(self) -> None:
        """Disconnect the worker from the memory, even if the worker still runs. Any thread."""
        self.stopped = True
        self._video.revoke()

    def check(self, address: int, size: int) -> None:
        """Raise BAD_ADDRESS unless all ``size`` bytes (1 or more) are video memory, or all are behind the
        GTT."""
        base, room = (SYSTEM_BASE, SYSTEM_SIZE) if address >= SYSTEM_BASE else (0, self._size)
        if address - base + size > room:
            raise EngineFault(ErrorCode.BAD_ADDRESS, max(address, base + room))

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of video or system memory."""
        self.check(address, size)
        if address < SYSTEM_BASE:
            try:
                return self._video.load(address, self._scratch, size)
            except NoPage as error:
                raise _no_memory(address) from error
        buffer = bytearray(size)
        self._dma([(address, size)], buffer, write=False)
        return bytes(buffer)

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` in video or system memory."""
        self.check(address, len(data))
        if address < SYSTEM_BASE:
            try:
                self._video.store(address, self._scratch, data)
            except NoPage as error:
                raise _no_memory(address) from error
        else:
            self._dma([(address, len(data))], bytearray(data), write=True)

    def copy(self, spans: Sequence[CopySpan]) -> None:
        """Copy all spans, with the result of copying one after the other.

        Either all targets or none are video memory, and the same goes for the sources. The caller has checked
        all addresses.
        """
        first = spans[0]
        to_system = first.target >= SYSTEM_BASE
        try:
            _COPIES[to_system, first.source >= SYSTEM_BASE](self, spans)
        except NoPage as error:
            raise _no_memory(first.source if to_system else first.target) from error

    def fill(self, spans: Sequence[CopySpan], pattern: int) -> None:
        """Store a 32-bit pattern in all targets. Addresses and sizes are multiples of 4."""
        if spans[0].target < SYSTEM_BASE:
            try:
                for target, _, size in spans:
                    self._video.fill(target, size, pattern)
            except NoPage as error:
                raise _no_memory(spans[0].target) from error
            return
        total = sum(span.size for span in spans)
        self._scratch.fill(0, total, pattern)
        self._dma(_targets(spans), self._scratch.view(0, total), write=True)

    def _within_video(self, spans: Sequence[CopySpan]) -> None:
        for target, source, size in spans:
            self._video.move(target, self._video, source, size)

    def _to_video(self, spans: Sequence[CopySpan]) -> None:
        if len(spans) == 1:
            target, _, size = spans[0]
            self._dma(_sources(spans), self._video.view(target, size), write=False)
            return
        self._gather(spans)
        offset = 0
        for target, _, size in spans:
            self._video.move(target, self._scratch, offset, size)
            offset += size

    def _to_system(self, spans: Sequence[CopySpan]) -> None:
        if len(spans) == 1:
            _, source, size = spans[0]
            self._dma(_targets(spans), self._video.view(source, size), write=True)
            return
        offset = 0
        for _, source, size in spans:
            self._scratch.move(offset, self._video, source, size)
            offset += size
        self._dma(_targets(spans), self._scratch.view(0, offset), write=True)

    def _within_system(self, spans: Sequence[CopySpan]) -> None:
        self._dma(_targets(spans), self._gather(spans), write=True)

    def _gather(self, spans: Sequence[CopySpan]) -> memoryview:
        view = self._scratch.view(0, sum(span.size for span in spans))
        self._dma(_sources(spans), view, write=False)
        return view

    def _dma(self, ranges: Sequence[tuple[int, int]], buffer: bytearray | memoryview, write: bool) -> None:
        if self.stopped:
            raise EngineStopped
        self.where = ranges[0][0]
        with self._port.under_way():
            try:
                space = self._port.space(0, len(buffer), write)
            except DmaFault as fault:
                raise EngineFault(ErrorCode.DMA, self.where) from fault
            begun = time.monotonic_ns() - time.thread_time_ns()
            try:
                self._shadow.transfer(space, ranges, buffer, write)
            finally:
                self.waited += max(time.monotonic_ns() - time.thread_time_ns() - begun, 0)

    @property
    def _scratch(self) -> Bytes:
        if self._bounce is None:
            self._bounce = Bytes(bytearray(SLICE_BYTES), self._access)
        return self._bounce


_COPIES: Mapping[tuple[bool, bool], Callable[[GraphicsMemory, Sequence[CopySpan]], None]] = {
    (False, False): GraphicsMemory._within_video,
    (False, True): GraphicsMemory._to_video,
    (True, False): GraphicsMemory._to_system,
    (True, True): GraphicsMemory._within_system,
}
"""The way to copy, by whether the target and the source are system memory."""


def _no_memory(address: int) -> EngineFault:
    return EngineFault(ErrorCode.NO_MEMORY, address)


def _targets(spans: Sequence[CopySpan]) -> list[tuple[int, int]]:
    return _joined([(target, size) for target, _, size in spans])


def _sources(spans: Sequence[CopySpan]) -> list[tuple[int, int]]:
    return _joined([(source, size) for _, source, size in spans])


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges, with those merged that follow each other without a gap, as lines may."""
    found: list[tuple[int, int]] = []
    end = -1
    for address, size in ranges:
        if address == end:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((address, size))
        end = address + size
    return found
