# SPDX-License-Identifier: Apache-2.0
"""Vital product data: resources of tagged fields, as bytes and as values.

State: none, all are values. Source: PCI 3.0 appendix I.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

NAME, READ_ONLY, READ_WRITE, END = 0x82, 0x90, 0x91, 0x78
"""Tags of the resources that lspci knows."""
CHECKSUM, FREE = b"RV", b"RW"
"""Keywords of fields that are no data: the checksum, whose sum with all before it is 0, and free room."""
MOST_FIELD, MOST_RESOURCE = 255, 32767


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource: its ``tag``, and either the ``text`` of a name or ``fields`` of keyword and data."""

    tag: int
    text: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = ()


def parse(data: bytes) -> Sequence[Resource] | None:
    """The resources up to the end tag, None for data that are broken or have others."""
    found: list[Resource] = []
    offset = 0
    while offset < len(data) and data[offset] != END:
        if offset + 3 > len(data) or data[offset] not in (NAME, READ_ONLY, READ_WRITE):
            return None
        tag = data[offset]
        (size,) = struct.unpack_from("<H", data, offset + 1)
        body = data[offset + 3 : offset + 3 + size]
        if len(body) != size:
            return None
        fields = tuple(_fields(body)) if tag != NAME else ()
        if tag != NAME and sum(3 + len(field) for _, field in fields) != size:
            return None
        found.append(Resource(tag, body if tag == NAME else b"", fields))
        offset += 3 + size
    return found if offset < len(data) else None


def pack(resources: Sequence[Resource]) -> bytes:
    """The bytes of resources with the end tag. The checksum is computed anew."""
    data = bytearray()
    for resource in resources:
        size = len(resource.text) + sum(3 + len(field) for _, field in resource.fields)
        data += struct.pack("<BH", resource.tag, size) + resource.text
        for keyword, field in resource.fields:
            data += keyword + bytes([len(field)])
            if keyword == CHECKSUM and field:
                field = bytes([-sum(data) & 0xFF]) + field[1:]
            data += field
    return bytes(data) + bytes([END])


def checksum_is_good(data: bytes) -> bool:
    """Whether the sum of all bytes up to the checksum is 0; true without one."""
    resources = parse(data)
    return resources is None or pack(resources) == data[: data.index(END, _end(resources)) + 1]


def _end(resources: Sequence[Resource]) -> int:
    return sum(3 + len(each.text) + sum(3 + len(field) for _, field in each.fields) for each in resources)


def _fields(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 0
    while offset + 3 <= len(body):
        size = body[offset + 2]
        yield body[offset : offset + 2], body[offset + 3 : offset + 3 + size]
        offset += 3 + size


KEYWORDS: Mapping[str, int] = MappingProxyType(
    {"Read-only fields": READ_ONLY, "Read/write fields": READ_WRITE}
)
"""What lspci says above the fields of a resource."""
