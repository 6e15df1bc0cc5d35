# SPDX-License-Identifier: Apache-2.0
"""Ranges of I/O virtual addresses as the parts of mappings they are made of, and copying to and from those.

State: none. :func:`parts_of` is called under the lock of the mappings, :func:`copy` without it, from DMA
threads. Source: Documentation/driver-api/vfio-mediated-device.rst (vfio_dma_rw).
"""

from itertools import groupby
from typing import NamedTuple

from devmodel.client import Pages
from devmodel.iommu.api import PAGE_SIZE, Prot
from devmodel.iommu.mappings import Mapping, Mappings


class Part(NamedTuple):
    """``size`` bytes at ``offset`` of a mapping; ``pages``, if there are, is where they are found."""

    mapping: Mapping
    offset: int
    size: int
    pages: Pages | None
    pages_offset: int = 0


def parts_of(mappings: Mappings, iova: int, size: int, holes: bool = False) -> list[Part] | None:
    """The mapped parts of a range, in order; None for a hole unless ``holes`` are allowed."""
    end, position = iova + size, iova
    one = mappings.covering(iova)
    if one is not None and end <= one.end:
        return [Part(one, iova - one.iova, size, one.pages, iova - one.iova)]
    found = mappings.within(iova, end)
    parts = []
    for mapping in found:
        if mapping.iova > position and not holes:
            return None
        position = max(position, mapping.iova)
        offset, length = position - mapping.iova, min(end, mapping.end) - position
        parts.append(Part(mapping, offset, length, mapping.pages, offset))
        position += length
    return parts if holes or position == end else None


def hold(part: Part, prot: Prot) -> Part:
    """The part with pages of its own, if a pinning backend does not hold the mapping's already."""
    if part.pages is not None:
        return part
    mapping = part.mapping
    pages = mapping.client.pin(mapping.vaddr + part.offset, part.size, bool(prot & Prot.WRITE))
    return Part(mapping, part.offset, part.size, pages, 0)


def is_pinned(part: Part) -> bool:
    """Whether mediated devices hold every page of it."""
    first, last = part.offset // PAGE_SIZE, (part.offset + part.size - 1) // PAGE_SIZE
    pins = part.mapping.pins
    return pins is not None and all(page in pins for page in range(first, last + 1))


def copy(parts: list[Part], view: memoryview, write: bool) -> None:
    """Move bytes between ``view`` and the parts: held pages one by one, other memory of a client at once."""
    for (client, pages), run in groupby(parts, key=lambda part: (part.mapping.client, part.pages)):
        pieces = list(run)
        size = sum(part.size for part in pieces)
        here, view = view[:size], view[size:]
        if pages is not None:
            move = pages.write_from if write else pages.read_into
            move(pieces[0].pages_offset, here)
            continue
        (client.write_parts if write else client.read_parts)(_vector(pieces), here)


def _vector(parts: list[Part]) -> list[tuple[int, int]]:
    """The parts as (vaddr, size), fewer where one goes on where the last one ends."""
    vector: list[tuple[int, int]] = []
    end = -1
    for part in parts:
        vaddr = part.mapping.vaddr + part.offset
        if vaddr == end:
            vector[-1] = (vector[-1][0], vector[-1][1] + part.size)
        else:
            vector.append((vaddr, part.size))
        end = vaddr + part.size
    return vector
