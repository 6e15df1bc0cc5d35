# SPDX-License-Identifier: Apache-2.0
"""The answer of VFIO_DEVICE_GET_REGION_INFO as a device gives it whose regions cannot be mapped.

A program that maps a region makes loads and stores that nobody can record.  Functions of bytes; no state.
Source: <linux/vfio.h>, struct vfio_region_info, struct vfio_info_cap_header.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from ioctl_shim._native import lib

REGION_INFO = struct.Struct("=4I2Q")
"""argsz, flags, index, cap_offset, size, offset."""
_HEADER = struct.Struct("=2HI")
"""id, version, next: the offset of the next capability from the beginning of the struct."""
_HIDDEN = lib.VFIO_REGION_INFO_FLAG_MMAP | lib.VFIO_REGION_INFO_FLAG_CAPS


def without_mmap(before: bytes, after: bytes, capabilities: bytes) -> bytes:
    """What the program finds in place of `after`: no FLAG_MMAP, and no sparse-mmap capability.

    `before` and `after` are the struct with what argsz says is behind it, before and after the call;
    `capabilities` is the whole chain of the region.  All else is as the kernel answers."""
    if min(len(before), len(after)) < REGION_INFO.size:
        return after
    _, flags, index, _, size, offset = REGION_INFO.unpack_from(after)
    argsz, first, behind = int.from_bytes(before[:4], "little"), 0, before[REGION_INFO.size :]
    flags &= ~_HIDDEN
    kept = _without_sparse(capabilities)
    if kept:
        flags |= lib.VFIO_REGION_INFO_FLAG_CAPS
        needed = REGION_INFO.size + len(kept)
        if argsz < needed:
            argsz = needed
        else:
            first, behind = REGION_INFO.size, kept + behind[len(kept) :]
    answer = REGION_INFO.pack(argsz, flags, index, first, size, offset) + behind
    return answer[: len(after)]


def region_asked(before: bytes) -> int:
    """The index of the region that a program asks for, -1 if it cannot be read."""
    return int(REGION_INFO.unpack_from(before)[2]) if len(before) >= REGION_INFO.size else -1


def _without_sparse(capabilities: bytes) -> bytes:
    """The chain without sparse-mmap capabilities, linked anew.  It may be anything but a chain."""
    starts: list[int] = []
    at = REGION_INFO.size if capabilities else 0
    while REGION_INFO.size <= at <= REGION_INFO.size + len(capabilities) - _HEADER.size and at not in starts:
        starts.append(at)
        at = _HEADER.unpack_from(capabilities, at - REGION_INFO.size)[2]
    ends = sorted([*starts, REGION_INFO.size + len(capabilities)])
    following = dict(pairwise(ends))
    kept = b""
    pointer = -1
    for start in starts:
        one = capabilities[start - REGION_INFO.size : following[start] - REGION_INFO.size]
        kind, version, _ = _HEADER.unpack_from(capabilities, start - REGION_INFO.size)
        if kind == lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            continue
        if pointer >= 0:
            here = (REGION_INFO.size + len(kept)).to_bytes(4, "little")
            kept = kept[:pointer] + here + kept[pointer + 4 :]
        pointer = len(kept) + 4
        kept += _HEADER.pack(kind, version, 0) + one[_HEADER.size :]
    return kept
