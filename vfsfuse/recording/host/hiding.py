# SPDX-License-Identifier: Apache-2.0
"""The answer of VFIO_DEVICE_GET_REGION_INFO as a device gives it whose regions cannot be mapped.

A program that maps a region makes loads and stores that nobody can record.  Functions of bytes; no state.
Source: <linux/vfio.h>, struct vfio_region_info, struct vfio_info_cap_header.
"""

from __future__ import annotations

from ioctl_shim._native import lib
from vfsfuse.recording.regioninfo import HEADER, REGION_INFO, SPARSE_MMAP, chain_of

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
    """The chain without sparse-mmap capabilities, linked anew."""
    left = [each for each in chain_of(capabilities).capabilities if each.id != SPARSE_MMAP]
    kept = b""
    for number, each in enumerate(left, start=1):
        end = REGION_INFO.size + len(kept) + HEADER.size + len(each.content)
        kept += HEADER.pack(each.id, each.version, end if number < len(left) else 0) + each.content
    return kept
