# SPDX-License-Identifier: Apache-2.0
"""The I/O address space (the kernel's IOAS): mappings, and the DMA and pins of the devices attached to it.

An API (type1) makes and removes the mappings, on the device lane and threads that may wait. Devices see a
:class:`DmaSpace`, from other threads. ``IoAddressSpace.lock`` guards everything here, and the mappings,
backends and pins behind it. It is held to look and to mark, never while a client is asked anything, because a
client can make each answer as slow as it likes. Memory is pinned (``holding``) and dirty bitmaps are written
(``tracking``) without it. A DMA enters its ranges in ``inflight`` under the lock, copies without it, and
takes them out under it. An unmap enters its range there too, which refuses new DMA and pins, and waits for
the DMA under way.
Source: <linux/vfio.h>; Documentation/driver-api/vfio-mediated-device.rst; checks in vfio_iommu_type1's order.
"""

import errno
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from devmodel.client import Client
from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import (
    ADDRESSES,
    DMA_ENTRY_LIMIT,
    MAX_BITMAP_PAGES,
    PAGE_SIZE,
    DmaUser,
    IommuGroup,
    MustWait,
    Prot,
    check_range,
)
from devmodel.iommu.attachments import BACKENDS, Attachments, Backends
from devmodel.iommu.dmaspace import DmaSpace, Piece, Pin, StalePiece
from devmodel.iommu.holding import Holding
from devmodel.iommu.inflight import MAX_DMA, Find, Inflight, Span
from devmodel.iommu.mappings import Mapping, Mappings, extent, is_mapped
from devmodel.iommu.pins import NOTIFY_LIMIT, MediatedBackend
from devmodel.iommu.segments import Segment, copy, is_pinned, read, refusal, segments_of

_READ, _WRITE = int(Prot.READ), int(Prot.WRITE)
_IN_PAGE = PAGE_SIZE - 1

Choice = Callable[[], list[Mapping]]
"""A rule of an API, called under the lock: gives the mappings of a call, in order, or raises ``OSError``."""


class StillPinned(Exception):
    """A device keeps pages pinned that are to be unmapped: a fault of its model."""


class Tracker(Protocol):
    """What remembers something of iovas while they are mapped, such as dirty pages."""

    def unmapped(self, iova: int, end: int) -> None:
        """The mapping from ``iova`` to before ``end`` is removed. Under the lock of the space."""


class IoAddressSpace(DmaSpace):
    """Mappings by I/O virtual address, and the DMA and pins of devices.

    ``locked`` accounts for pinned pages, ``invalid_vaddrs`` counts mappings without a vaddr, and ``inflight``
    has the DMA under way and the refused DMA. ``trackers`` are told, under the lock, of each range that is
    unmapped.
    """

    __slots__ = (
        "_copying",
        "_draining",
        "_holding",
        "_strict",
        "attachments",
        "inflight",
        "invalid_vaddrs",
        "limit",
        "lock",
        "locked",
        "mappings",
        "trackers",
    )

    def __init__(
        self,
        locked: LockedMemory | None = None,
        limit: int = DMA_ENTRY_LIMIT,
        may_pin: bool = True,
        backends: Backends = BACKENDS,
    ) -> None:
        """``locked`` accounts for pinned pages together with other spaces. ``limit`` is the most mappings
        that :meth:`map` makes. ``may_pin`` allows mediated devices to pin. ``backends`` serve the groups."""
        self.lock = threading.Lock()
        self.mappings = Mappings()
        self.inflight = Inflight(self.lock, self.mappings)
        self._copying, self._draining = self.inflight.copying, self.inflight.draining
        self.locked = locked or LockedMemory()
        self.attachments = Attachments(self.locked, backends)
        self._strict = self.attachments.strict
        self._holding = Holding(self.inflight, self.attachments, self.locked, may_pin)
        self.limit = limit
        self.invalid_vaddrs = 0
        self.trackers: list[Tracker] = []

    # ---- attaching of devices: device lane; attach() with mappings on a thread that may wait ----

    @property
    def mediated(self) -> MediatedBackend | None:
        """The backend of mediated devices, while a group of them is attached."""
        return self.attachments.mediated

    def attach(self, group: IommuGroup, admit: Callable[[], None] | None = None) -> None:
        """Let the group's devices use it. For the first physical function all mappings are pinned, which
        waits for their clients. ``admit`` is a rule of the API that is called under the lock before.

        Raises ``OSError``, with the group not attached: EBUSY while a vaddr is invalid, EINVAL as
        :meth:`Attachments.add`, ENOMEM and EFAULT when the mapped memory cannot be pinned, otherwise as
        ``admit``.
        """
        with self.lock:
            if self.invalid_vaddrs:
                raise OSError(errno.EBUSY, "a mapping has no vaddr at present")
            if admit is not None:
                admit()
            backend = self.attachments.add(group, self.mappings)
            if backend.ready:
                return
        self._holding.take_over(backend, group)

    def detach(self, group: IommuGroup, keep: bool = False) -> None:
        """The opposite of :meth:`attach`. All mappings are removed with the last group unless ``keep`` is
        set."""
        with self.lock:
            if self.attachments.remove(group, self.mappings) and not keep:
                self._clear()

    def register(self, user: DmaUser) -> None:
        """An open mediated device can pin pages from now on. ``OSError(EINVAL)`` when no mediated group is
        attached."""
        with self.lock:
            if self.mediated is None:
                raise OSError(errno.EINVAL, "only mediated devices pin pages")
            self.mediated.users.append(user)

    def unregister(self, user: DmaUser) -> None:
        """The device is closed, and has unpinned all its pages."""
        with self.lock:
            if self.mediated is not None and user in self.mediated.users:
                self.mediated.users.remove(user)

    def clear(self) -> None:
        """Remove every mapping and pin."""
        with self.lock:
            self._clear()

    # ---- APIs: device lane, and threads that may wait ----

    def map(self, client: Client, iova: int, vaddr: int, size: int, prot: int, may_wait: bool = True) -> None:
        """Map ``size`` bytes from ``iova`` to ``client``'s memory from ``vaddr``. Does not touch the memory.

        Raises ``OSError``: EINVAL (no protection, no size, misaligned, not a valid iova), EOVERFLOW (wraps
        around), EEXIST (overlaps a mapping, or one that is being made), ENOSPC (too many mappings). While a
        physical function is attached, the memory is pinned, which waits for the client: also ENOMEM
        (RLIMIT_MEMLOCK) and EFAULT (no such memory), or, if ``may_wait`` is False, :class:`MustWait` with
        nothing mapped.
        """
        allowed = prot & 3
        if not allowed:
            raise OSError(errno.EINVAL, "a mapping must be readable or writable by the device")
        if (
            not size
            or (size | iova | vaddr) & _IN_PAGE
            or iova + size > ADDRESSES
            or vaddr + size > ADDRESSES
        ):
            check_range(size, iova, vaddr)  # a call each time would cost a sixth
        mapping = Mapping(client, iova, vaddr, size, allowed)
        with self.lock:
            mappings = self.mappings
            if not (self._strict or mappings.tracked or len(mappings.by_start) >= self.limit):
                if mappings.add(mapping):
                    return
                raise is_mapped(iova)
            self._check(mapping)
            self.enter(mapping, may_wait)
        if not mapping.allows:
            self.finish((mapping,), allowed)

    def finish(self, mappings: Sequence[Mapping], allows: int) -> None:
        """Pin the memory of mappings that :meth:`enter` has left without protection, and let devices use all
        of them as ``allows`` says. Waits for the client. Raises ``OSError`` as :meth:`map`."""
        self._holding.finish(mappings, allows)

    def unmap_exact(self, iova: int, size: int) -> bool:
        """Remove the mapping of exactly this range, if no device has to be told or waited for. Otherwise
        False, with nothing changed; the caller then uses :meth:`unmap`."""
        with self.lock:
            mapping = self.mappings.by_start.get(iova)
            if (
                mapping is None
                or mapping.size != size
                or mapping.pins
                or not mapping.vaddr_valid
                or self._strict
                or self._copying
                or self._draining
            ):
                return False
            self.mappings.remove(mapping)
            return True

    def unmap(self, span: Span, choose: Choice, may_wait: bool = True) -> int:
        """Remove the mappings from ``choose``, which begin in ``span``. Returns the bytes unmapped.

        Devices that pin some of them are asked to unpin, without the lock. New DMA is refused, and the unmap
        waits for DMA under way. If it has to wait and ``may_wait`` is False, raises :class:`MustWait` before
        it releases the lock. Raises ``OSError``: EBUSY when a DMA does not end, otherwise as ``choose``.
        """
        with self.lock:
            found = self.unpinned(span, choose, may_wait)
            self.inflight.drain(extent(found, span))
            return self.remove(found)

    # ---- DMA threads: DmaSpace ----

    def dma_read(self, iova: int, size: int) -> bytes:
        if not 0 < size <= MAX_DMA:
            return self.inflight.refuse_size(iova, size, write=False)
        span = ((iova, iova + size),)
        mapping = self._begin(span, _READ)
        if mapping is None:
            return self._read(iova, size, partial(self.find, iova, size, _READ))
        try:
            return mapping.client.read(mapping.vaddr + iova - mapping.iova, size)
        except OSError as error:
            raise self.inflight.failed(iova, size, False, error) from error
        finally:
            self._end(span, mapping, False)

    def dma_write(self, iova: int, data: bytes) -> None:
        size = len(data)
        span = ((iova, iova + size),)
        mapping = self._begin(span, _WRITE) if 0 < size <= MAX_DMA else None
        if mapping is None:
            self._rw(iova, memoryview(data), write=True)
            return
        try:
            mapping.client.write(mapping.vaddr + iova - mapping.iova, data)
        except OSError as error:
            raise self.inflight.failed(iova, size, True, error) from error
        finally:
            self._end(span, mapping, True)

    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        view = memoryview(buffer).cast("B")
        size = len(view)
        span = ((iova, iova + size),)
        mapping = self._begin(span, _WRITE if write else _READ) if 0 < size <= MAX_DMA else None
        if mapping is None:
            self._rw(iova, view, write)
            return
        client, part = mapping.client, (mapping.vaddr + iova - mapping.iova, size)
        try:
            (client.write_parts if write else client.read_parts)((part,), view)
        except OSError as error:
            raise self.inflight.failed(iova, size, write, error) from error
        finally:
            self._end(span, mapping, write)

    def mapping_at(self, iova: int, write: bool) -> Mapping:
        with self.lock:
            mapping = self.mappings.covering(iova)
            if mapping is None or not mapping.allows:
                raise self.inflight.fault(iova, 1, write, "not mapped")
            return mapping

    def dma_pieces(self, pieces: Sequence[Piece], buffer: bytearray | memoryview, write: bool) -> None:
        # One hold of the lock checks that each piece is still mapped and enters this DMA.
        spans = [(one.iova + offset, one.iova + offset + size) for one, offset, size in pieces if size]
        if spans:
            wanted = _WRITE if write else _READ
            self._move(spans, memoryview(buffer).cast("B"), write, partial(self.recall, pieces, wanted))

    def pin_pages(self, iova: int, count: int, prot: Prot) -> Pin:
        return Pin(self, iova, count * PAGE_SIZE, prot, self._holding.pin(iova, count, prot))

    def unpin_pages(self, iova: int, count: int) -> None:
        with self.lock:
            if self.mediated is not None:
                self.mediated.unpin(self.mappings, iova, count)

    def read_pinned(self, pin: Pin, offset: int, size: int) -> bytes:
        if not size:
            return b""
        iova = pin.iova + offset
        return self._read(iova, size, partial(self._held, pin, offset, size, _READ))

    def write_pinned(self, pin: Pin, offset: int, data: bytes) -> None:
        iova, size = pin.iova + offset, len(data)
        if size:
            span = ((iova, iova + size),)
            self._move(span, memoryview(data), True, partial(self._held, pin, offset, size, _WRITE))

    # ---- the fast path of a DMA: one mapping, which is not pinned ----

    def _begin(self, span: Sequence[Span], wanted: int) -> Mapping | None:
        """Enter a DMA whose range lies in one mapping that is not pinned. None for any other range."""
        iova, end = span[0]
        with self.lock:
            mapping = self.mappings.covering(iova)
            if (
                mapping is None
                or end > mapping.end
                or not mapping.allows & wanted
                or mapping.pages is not None
                or not mapping.vaddr_valid
                or self._draining
            ):
                return None
            self._copying.append(span)
            return mapping

    def _end(self, span: Sequence[Span], mapping: Mapping, write: bool) -> None:
        """End the DMA that :meth:`_begin` entered."""
        with self.lock:
            if write and self.mappings.tracked:  # after a fault too: some of it may have been stored
                iova, end = span[0]
                mapping.written(iova - mapping.iova, end - iova)
            self._copying.remove(span)
            if self._draining:
                self.inflight.idle.notify_all()

    # ---- any other DMA ----

    def _read(self, iova: int, size: int, find: Find) -> bytes:
        return self.inflight.transfer(((iova, iova + size),), size, False, find, read)

    def _rw(self, iova: int, view: memoryview, write: bool) -> None:
        size = len(view)
        if not 0 < size <= MAX_DMA:
            self.inflight.refuse_size(iova, size, write)
            return
        wanted = _WRITE if write else _READ
        self._move(((iova, iova + size),), view, write, partial(self.find, iova, size, wanted))

    def _move(self, spans: Sequence[Span], view: memoryview, write: bool, find: Find) -> None:
        self.inflight.transfer(spans, len(view), write, find, partial(copy, view=view, write=write))

    def _permit(self, segments: list[Segment] | None, iova: int, size: int, wanted: int) -> list[Segment]:
        reason = "not mapped" if segments is None else refusal(segments, wanted)
        if segments is None or reason is not None:
            raise self.inflight.fault(iova, size, wanted == _WRITE, reason or "")
        return segments

    def _held(self, pin: Pin, offset: int, size: int, wanted: int) -> list[Segment]:
        segments = pin.part(offset, size)
        if segments is None or not pin.prot & wanted or not all(map(is_pinned, segments)):
            raise self.inflight.fault(pin.iova + offset, size, wanted == _WRITE, "not pinned so")
        return segments

    # ---- under the lock ----

    def find(self, iova: int, size: int, wanted: int) -> list[Segment]:
        """The segments of a DMA of ``size`` bytes at ``iova`` with the protection ``wanted`` (the number of a
        :class:`Prot`). Raises :class:`DmaFault`."""
        return self._permit(segments_of(self.mappings, iova, size), iova, size, wanted)

    def recall(self, pieces: Sequence[Piece], wanted: int) -> list[Segment]:
        """As :meth:`find`, for pieces of remembered mappings. Raises :class:`StalePiece`, too."""
        for mapping, _, _ in pieces:
            if not mapping.live:
                raise StalePiece
        segments = [Segment(mapping, offset, size, mapping.pages, offset) for mapping, offset, size in pieces]
        iova, size = pieces[0].mapping.iova + pieces[0].offset, sum(piece.size for piece in pieces)
        return self._permit(segments, iova, size, wanted)

    def unpinned(self, span: Span, choose: Choice, may_wait: bool) -> list[Mapping]:
        """The mappings from ``choose``, after no device pins them any more. Releases the lock to ask devices.
        Raises :class:`MustWait` when DMA or another unmap is under way there and ``may_wait`` is False."""
        for _ in range(NOTIFY_LIMIT):
            found = choose()
            if not may_wait and self.inflight.is_used(extent(found, span)):
                raise MustWait
            pinned = [(mapping.iova, mapping.size) for mapping in found if mapping.pins]
            if not pinned:
                return found
            users = list(self.mediated.users) if self.mediated else []
            self.lock.release()
            try:
                for iova, size in pinned:
                    for user in users:
                        user.dma_unmap(iova, size)
            finally:
                self.lock.acquire()
        raise StillPinned(f"a device does not unpin iova {span[0]:#x}")

    def remove(self, mappings: Iterable[Mapping]) -> int:
        """Remove the mappings that no other unmap has removed meanwhile. Returns their bytes."""
        removed = 0
        for mapping in mappings:
            if mapping.live:
                self.mappings.remove(mapping)
                self._forget(mapping)
                removed += mapping.size
        return removed

    def enter(self, mapping: Mapping, may_wait: bool) -> None:
        """Enter a new mapping, which fits. If it has to be pinned, no device may use it before
        :meth:`finish`; raises :class:`MustWait`, with nothing changed, unless it ``may_wait`` for that."""
        if self._strict:
            if not may_wait:
                raise MustWait
            mapping.allows = 0
        self.mappings.add(mapping)

    def _check(self, mapping: Mapping) -> None:
        """Check a new mapping, in the kernel's order."""
        if self.mappings.within(mapping.iova, mapping.end):
            raise is_mapped(mapping.iova)
        if len(self.mappings) >= self.limit:
            raise OSError(errno.ENOSPC, f"{self.limit} mappings are the limit")
        self.attachments.check(mapping)
        if self.mappings.tracked and mapping.page_count > MAX_BITMAP_PAGES:
            raise OSError(errno.EINVAL, f"a mapping of {mapping.size:#x} bytes is too large to be tracked")

    def _forget(self, mapping: Mapping) -> None:
        for tracker in self.trackers:
            tracker.unmapped(mapping.iova, mapping.end)
        self.invalid_vaddrs -= not mapping.vaddr_valid
        self.attachments.forget(mapping)

    def _clear(self) -> None:
        for mapping in self.mappings:
            self._forget(mapping)
        self.mappings.clear()
        self.mappings.tracked = False
