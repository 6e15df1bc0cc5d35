# SPDX-License-Identifier: Apache-2.0
"""uevents as datagrams: what the kernel sends to udev, and what udev sends to programs with libudev.

Pure functions on bytes.  Source: netlink(7); udev(7); lib/kobject_uevent.c for the kernel's format; for the
other one, the header and the hash that the monitors of libudev read since version 161.
"""

from __future__ import annotations

import struct

MAGIC = 0xFEEDCAFE
PREFIX = b"libudev\0"

_HEADER = struct.Struct("=8s4x3I4x4x8x")
"""The prefix, the sizes in the machine's byte order, and room for the numbers in network order."""

_IN_NETWORK_ORDER = struct.Struct("!I")
_MAGIC_AT, _SUBSYSTEM_AT, _DEVTYPE_AT = 8, 24, 28
_WORD = 0xFFFFFFFF
_MULTIPLIER, _SHIFT = 0x5BD1E995, 24


def properties_of(datagram: bytes) -> dict[str, str]:
    """The properties in a datagram of the kernel, which begins with a line `ACTION@DEVPATH`.  Those that are
    no UTF-8 are as os.fsdecode() has them."""
    lines = datagram.decode("utf-8", "surrogateescape").split("\0")[1:]
    return dict(line.split("=", 1) for line in lines if "=" in line)


def without_number(datagram: bytes) -> bytes:
    """The datagram without its SEQNUM, which is the last property: the kernel adds one of its own."""
    head, _, tail = datagram.rpartition(b"\0SEQNUM=")
    return head + b"\0" if tail.rstrip(b"\0").isdigit() else datagram


def to_libudev(properties: dict[str, str]) -> bytes:
    """The datagram by which udev tells programs of an event: a header, by which the kernel can filter, and
    the properties."""
    body = "".join(f"{key}={value}\0" for key, value in properties.items())
    payload = body.encode("utf-8", "surrogateescape")
    message = bytearray(_HEADER.pack(PREFIX, _HEADER.size, _HEADER.size, len(payload)) + payload)
    _IN_NETWORK_ORDER.pack_into(message, _MAGIC_AT, MAGIC)
    for key, place in (("SUBSYSTEM", _SUBSYSTEM_AT), ("DEVTYPE", _DEVTYPE_AT)):
        if key in properties:
            text = properties[key].encode("utf-8", "surrogateescape")
            _IN_NETWORK_ORDER.pack_into(message, place, murmur2(text))
    return bytes(message)


def murmur2(text: bytes) -> int:
    """MurmurHash2 of `text` with the seed 0, for a processor with the machine's byte order."""
    value = len(text)
    whole = len(text) & ~3
    for (word,) in struct.iter_unpack("=I", text[:whole]):
        word = word * _MULTIPLIER & _WORD
        word = (word ^ word >> _SHIFT) * _MULTIPLIER & _WORD
        value = value * _MULTIPLIER & _WORD ^ word
    if rest := text[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * _MULTIPLIER & _WORD
    value = (value ^ value >> 13) * _MULTIPLIER & _WORD
    return value ^ value >> 15
