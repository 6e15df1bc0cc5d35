# SPDX-License-Identifier: Apache-2.0
"""Vital product data as lspci prints them, made bytes again.

State: a VpdText belongs to the reading of one function. Source: the text of lspci 3.9.
"""

from __future__ import annotations

import re

from vfsfuse.capture.vpd import CHECKSUM, FREE, KEYWORDS, MOST_FIELD, MOST_RESOURCE, NAME, Resource, pack

_FIELD = re.compile(r"\[(?P<keyword>[A-Z0-9]{2})\] (?P<name>[^:]*): ?(?P<text>.*)")
_RESERVED, _FREE = re.compile(r"checksum (?:good|bad), ([0-9]+) byte"), re.compile(r"([0-9]+) byte")
_ESCAPE = re.compile(r"\\(\\|x[0-9a-f]{2})")


class VpdText:
    """Collects the lines of a function. Lines that belong to no VPD do nothing."""

    __slots__ = ("_done", "_open", "_resources")

    def __init__(self) -> None:
        self._open = self._done = False
        self._resources: list[Resource] = []

    def begin(self, capability: str) -> None:
        """The lines of this capability follow."""
        self._open = capability.startswith("Vital Product Data") and not self._done

    def line(self, line: str) -> None:
        """A line without the blanks around it."""
        if not self._open:
            return
        head = line.partition(":")[0]
        if line.startswith("Product Name: "):
            self._resources.append(Resource(NAME, _bytes(line.removeprefix("Product Name: "), MOST_RESOURCE)))
        elif head in KEYWORDS:
            self._resources.append(Resource(KEYWORDS[head]))
        elif line == "End":
            self._open, self._done = False, True
        elif (found := _FIELD.fullmatch(line)) and self._resources:
            last = self._resources[-1]
            field = found["keyword"].encode(), _data(found["keyword"].encode(), found["text"])
            if last.tag != NAME and sum(3 + len(each) for _, each in (*last.fields, field)) <= MOST_RESOURCE:
                self._resources[-1] = Resource(last.tag, fields=(*last.fields, field))

    def data(self) -> bytes:
        """The bytes, none if the text did not have all of them."""
        return pack(self._resources) if self._done and self._resources else b""


def _data(keyword: bytes, text: str) -> bytes:
    if keyword == CHECKSUM and (found := _RESERVED.match(text)):
        return bytes(1 + min(int(found[1][:4]), MOST_FIELD - 1))
    if keyword == FREE and (found := _FREE.match(text)):
        return bytes(min(int(found[1][:4]), MOST_FIELD))
    return _bytes(text, MOST_FIELD)


def _bytes(text: str, most: int) -> bytes:
    """The bytes that lspci prints as text."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return _ESCAPE.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), plain).encode(
        "latin-1"
    )[:most]
