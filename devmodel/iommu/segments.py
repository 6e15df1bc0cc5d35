# SPDX-License-Identifier: Apache-2.0
"""Ranges of I/O virtual addresses as segments of mappings, and copying to and from segments.

State: none. :func:`segments_of`, :func:`refusal` and :func:`is_pinned` are called under the lock of the
address space; :func:`read` and :func:`copy` without it, from DMA threads. Source:
Documentation/driver-api/vfio-mediated-device.rst (vfio_dma_rw).
"""

from collections.abc import Sequence
from typing import NamedTuple

from devmodel.client import Client, Pages
from devmodel.iommu.api import PAGE_SIZE
from devmodel.iommu.mappings import Mapping, Mappings


class Segment(NamedTuple):
    """``size`` bytes at ``offset`` of a mapping. If ``pages`` is not None, these pages hold the bytes."""

    mapping: Mapping
    offset: int
    size: int
    pages: Pages | None
    pages_offset: int = 0

    def cut(self, low: int, high: int) -> "Segment":
        """The bytes from ``low`` to before ``high``, counted from the start of the segment."""
        return Segment(self.mapping, self.offset + low, high - low, self.pages, self.pages_offset + low)


def segments_of(mappings: Mappings, iova: int, size: int, holes: bool = False) -> list[Segment] | None:
    """The mapped segments of a range, in order. None for a range with a hole, unless ``holes`` is set."""
    end, position = iova + size, iova
    one = mappings.covering(iova)
    if one is not None and end <= one.end:
        return [Segment(one, iova - one.iova, size, one.pages, iova - one.iova)]
    segments = []
    for mapping in mappings.within(iova, end):
        if mapping.iova > position and not holes:
            return None
        position = max(position, mapping.iova)
        offset, length = position - mapping.iova, min(end, mapping.end) - position
        segments.append(Segment(mapping, offset, length, mapping.pages, offset))
        position += length
    return segments if holes or position == end else None


def refusal(segments: Sequence[Segment], wanted: int) -> str | None:
    """The reason why a DMA with the protection ``wanted`` (the number of a :class:`Prot`) may not use the
    segments. None when it may."""
    for segment in segments:
        if not segment.mapping.allows & wanted:
            return "not permitted" if segment.mapping.allows else "not mapped"
        if not segment.mapping.vaddr_valid and segment.pages is None:
            return "the client is moving its memory"
    return None


def is_pinned(segment: Segment) -> bool:
    """Whether mediated devices hold every page of it."""
    first, last = segment.offset // PAGE_SIZE, (segment.offset + segment.size - 1) // PAGE_SIZE
    pins = segment.mapping.pins
    return pins is not None and all(page in pins for page in range(first, last + 1))


def read(segments: Sequence[Segment]) -> bytes:
    """The bytes of the segments, one after the other. Raises ``OSError`` as :class:`Client` does."""
    found = [
        client.gather(_vector(run)) if pages is None else pages.read(run[0].pages_offset, _size(run))
        for client, pages, run in _runs(segments)
    ]
    return found[0] if len(found) == 1 else b"".join(found)


def copy(segments: Sequence[Segment], view: memoryview, write: bool) -> None:
    """Store ``view`` in the segments if ``write``, else fill it from them. Raises ``OSError`` as
    :func:`read`."""
    for client, pages, run in _runs(segments):
        size = _size(run)
        here, view = view[:size], view[size:]
        if pages is None:
            (client.write_parts if write else client.read_parts)(_vector(run), here)
        else:
            (pages.write_from if write else pages.read_into)(run[0].pages_offset, here)


def _runs(segments: Sequence[Segment]) -> list[tuple[Client, Pages | None, list[Segment]]]:
    """The segments in groups, one a call: neighbours with the same client and the same pages are a group."""
    runs: list[tuple[Client, Pages | None, list[Segment]]] = []
    client: Client | None = None
    pages: Pages | None = None
    for segment in segments:
        if segment.mapping.client is client and segment.pages is pages:
            runs[-1][2].append(segment)
        else:
            client, pages = segment.mapping.client, segment.pages
            runs.append((client, pages, [segment]))
    return runs


def _size(run: Sequence[Segment]) -> int:
    return run[0].size if len(run) == 1 else sum([segment.size for segment in run])


def _vector(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """The segments as (vaddr, size), with those merged that follow each other without a gap."""
    vector: list[tuple[int, int]] = []
    end = -1
    for segment in segments:
        vaddr = segment.mapping.vaddr + segment.offset
        if vaddr == end:
            vector[-1] = (vector[-1][0], vector[-1][1] + segment.size)
        else:
            vector.append((vaddr, segment.size))
        end = vaddr + segment.size
    return vector
