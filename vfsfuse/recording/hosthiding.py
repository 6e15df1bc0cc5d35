# SPDX-License-Identifier: Apache-2.0
"""The answer of VFIO_DEVICE_GET_REGION_INFO without what tells a program that it can map the region.

A program that maps a region makes loads and stores that nobody can record.  Functions of bytes; no state.
Source: <linux/vfio.h>, struct vfio_region_info, struct vfio_info_cap_header.
"""

from __future__ import annotations

import struct

from ioctl_shim._native import lib

REGION_INFO = struct.Struct("=4I2Q")
"""argsz, flags, index, cap_offset, size, offset."""
_HEADER = struct.Struct("=2HI")
"""id, version, next."""


def without_mmap(answer: bytes) -> bytes:
    """`answer` without VFIO_REGION_INFO_FLAG_MMAP and without the sparse-mmap capability, which is unlinked.
    All else is where it was."""
    if len(answer) < REGION_INFO.size:
        return answer
    argsz, flags, index, first, size, offset = REGION_INFO.unpack_from(answer)
    kept = _without_sparse(bytearray(answer), first)
    first = int.from_bytes(kept[12:16], "little")
    flags &= ~lib.VFIO_REGION_INFO_FLAG_MMAP
    if not first and argsz <= len(answer):
        flags &= ~lib.VFIO_REGION_INFO_FLAG_CAPS
    REGION_INFO.pack_into(kept, 0, argsz, flags, index, first, size, offset)
    return bytes(kept)


def _without_sparse(answer: bytearray, at: int) -> bytearray:
    """Let the pointer before each sparse-mmap capability lead to what is behind it.  The chain is the
    kernel's, and yet it may be anything."""
    pointer, seen = 12, set()
    while REGION_INFO.size <= at <= len(answer) - _HEADER.size and at not in seen:
        seen.add(at)
        kind, _, following = _HEADER.unpack_from(answer, at)
        if kind == lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            answer[pointer : pointer + 4] = following.to_bytes(4, "little")
        else:
            pointer = at + 4
        at = following
    return answer
