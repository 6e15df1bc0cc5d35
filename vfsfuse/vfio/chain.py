# SPDX-License-Identifier: Apache-2.0
"""Capability chains behind the structs of INFO ioctls, and the argsz handshake by which a client gets room
for them.

Source: <linux/vfio.h> (struct vfio_info_cap_header and what is said below it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ioctl_shim._native import ffi
from ioctl_shim.abi import Argument

ALIGNMENT = 8


class InfoCap(NamedTuple):
    """One capability; `body` is what follows its header."""

    id: int
    version: int
    body: bytes


def build(start: int, caps: Sequence[InfoCap]) -> bytes:
    """The chain for offset `start` of a client's buffer, every header at a multiple of ALIGNMENT."""
    chain = b""
    for number, cap in enumerate(caps, start=1):
        header: Any = ffi.new("struct vfio_info_cap_header *", {"id": cap.id, "version": cap.version})
        size = ffi.sizeof("struct vfio_info_cap_header") + len(cap.body)
        padding = -size % ALIGNMENT
        if number < len(caps):
            header.next = start + len(chain) + size + padding
        chain += bytes(ffi.buffer(header)) + cap.body + bytes(padding)
    return chain


def reply(argument: Argument, caps_flag: int, caps: Sequence[InfoCap]) -> None:
    """Answer with the struct of `argument` and `caps`, or with the argsz that they need when that was too
    little."""
    info = argument.value
    info.cap_offset = 0
    if not caps:
        argument.reply()
        return
    info.flags |= caps_flag
    chain = build(argument.row.size, caps)
    needed = argument.row.size + len(chain)
    if argument.argsz < needed:
        info.argsz = needed
        argument.reply()
    else:
        info.cap_offset = argument.row.size
        argument.reply(chain)
