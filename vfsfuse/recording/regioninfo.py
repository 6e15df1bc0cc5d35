# SPDX-License-Identifier: Apache-2.0
"""What VFIO_DEVICE_GET_REGION_INFO says of a region: its flags, and the chain of capabilities behind them.

A chain comes from a file or a kernel, and may be anything.  Pure functions.
Source: <linux/vfio.h>, struct vfio_region_info, struct vfio_info_cap_header.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple

READ, WRITE, MMAP = 1, 2, 4
"""VFIO_REGION_INFO_FLAG_*."""
SPARSE_MMAP, TYPE = 1, 2
"""VFIO_REGION_INFO_CAP_*."""
REGION_INFO = struct.Struct("=4I2Q")
"""argsz, flags, index, cap_offset, size, offset."""
HEADER = struct.Struct("=2HI")
"""id, version, next: the offset of the next capability from the beginning of the struct; 0 ends the chain."""


class RegionCapability(NamedTuple):
    """A capability of a region: `content` is what is behind its header, up to the next one."""

    id: int
    version: int
    content: bytes


class Chain(NamedTuple):
    """The capabilities of a region in the order of the chain, and whether each lies behind the one before
    it, as the kernel makes them."""

    capabilities: list[RegionCapability]
    is_ascending: bool


def chain_of(chain: bytes) -> Chain:
    """The capabilities of a chain, up to the place where it leaves its bytes or turns back to itself."""
    starts = dict[int, None]()
    at, is_ascending = 0, True
    while 0 <= at <= len(chain) - HEADER.size and at not in starts:
        starts[at] = None
        following: int = HEADER.unpack_from(chain, at)[2]
        if not following:
            break
        is_ascending &= following >= REGION_INFO.size + at + HEADER.size
        at = following - REGION_INFO.size
    ends = dict(pairwise(sorted([*starts, len(chain)])))
    return Chain([_capability(chain, start, ends[start]) for start in starts], is_ascending)


def _capability(chain: bytes, start: int, end: int) -> RegionCapability:
    kind, version, _ = HEADER.unpack_from(chain, start)
    return RegionCapability(kind, version, chain[start + HEADER.size : end])
