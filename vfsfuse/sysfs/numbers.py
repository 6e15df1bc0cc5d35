# SPDX-License-Identifier: Apache-2.0
"""Numbers written to attributes.  No state; source: Documentation/core-api/kernel-api.rst, kstrtoul()."""

from __future__ import annotations

import re

UNSIGNED = re.compile(r"\+?(?:0[xX][0-9a-fA-F]{1,16}|0[0-7]{0,21}|[1-9][0-9]{0,18})", re.ASCII)


def parse_number(text: str) -> int:
    """An unsigned number in C's notation, as kstrtoul() takes it with base 0.  Raises ValueError."""
    if UNSIGNED.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a number")
    digits = text.removeprefix("+").lower()
    return int(digits, 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10)
