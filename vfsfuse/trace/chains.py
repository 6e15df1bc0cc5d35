# SPDX-License-Identifier: Apache-2.0
"""Chains of capabilities behind the INFO structs of VFIO.

`cap_offset` of a struct says where its first capability is, and each capability where the next one is.  A
chain is a client's bytes: it may point anywhere, or in a circle.  Source: <linux/vfio.h>.  State: none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vfsfuse.trace.forms import Form, Shown, array, fields, hexdump
from vfsfuse.trace.structs import Layout, Tail

_HEADER = 8
"""Bytes of struct vfio_info_cap_header: id, version, offset of the next capability."""


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability: its struct, and the array that follows it, if one does."""

    layout: Layout | None
    """None for a header with nothing behind it."""
    array: str = ""
    count: str = ""
    """The member that says how long the array is."""
    element: Layout | None = None

    def show(self, data: bytes, at: int) -> dict[str, Shown]:
        """The members of the capability at `at`, after its header."""
        if self.layout is None:
            return {}
        shown = self.layout.shown(data, at)
        count = self.layout.values(data, at).get(self.count)
        if self.element is not None and count is not None:
            shown[self.array] = self.element.array(data, at + self.layout.size, count)
        return shown


def _walk(data: bytes, offset: int) -> Iterator[int]:
    """The offsets of the capabilities that the data has, each of them once."""
    seen: set[int] = set()
    while offset not in seen and 0 < offset <= len(data) - _HEADER:
        seen.add(offset)
        yield offset
        offset = int.from_bytes(data[offset + 4 : offset + 8], "little")


def chain(ids: Form, known: Mapping[int, Capability]) -> Tail:
    """What a struct with `cap_offset` returns behind it.  `ids` shows the number of a capability."""

    def capability(data: bytes, at: int) -> Shown:
        number = int.from_bytes(data[at : at + 2], "little")
        version = int.from_bytes(data[at + 2 : at + 4], "little")
        said = {"id": ids(number), "version": Shown(str(version), version)}
        if number in known:
            return fields({**said, **known[number].show(data, at)})
        following = int.from_bytes(data[at + 4 : at + 8], "little")
        end = following if following > at else len(data)
        rest = data[at + _HEADER : end]
        return fields({**said, "data": Shown(hexdump(rest), rest.hex())})

    def tail(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
        found = [capability(data, at) for at in _walk(data, values.get("cap_offset", 0))]
        return {"capabilities": array(found, len(found))} if found else {}

    return tail
