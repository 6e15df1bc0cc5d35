# SPDX-License-Identifier: Apache-2.0
"""The few colours of a trace on a terminal.

The escape sequences are those that every terminal with colours has (ECMA-48).  State: none, constant.
"""

from __future__ import annotations

from collections.abc import Mapping

ERROR = "31"
"""Red: a call that failed, the fault rules that it has met, and records that are lost."""
BY_KIND: Mapping[str, str] = {
    "ioctl": "36",
    "region": "32",
    "dma": "33",
    "interrupt": "35",
    "store": "34",
    "lifecycle": "34",
    "lost": ERROR,
}
"""By kind of record: cyan, green, yellow, magenta, blue.  Other kinds have no colour."""


def coloured(text: str, colour: str | None) -> str:
    """`text` in a colour; as it is without one."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and text else text
