# SPDX-License-Identifier: Apache-2.0
"""Numbers and truth values written to attributes.

State: none. Source: Documentation/core-api/kernel-api.rst, kstrtoul(), kstrtouint(), kstrtoint(), kstrtol()
and kstrtobool().
"""

from __future__ import annotations

import errno
import re

NUMBER = re.compile(r"\+?(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
"""A number in C's notation: decimal, hexadecimal or octal."""

DECIMAL = re.compile(r"[+-]?[0-9]+", re.ASCII)


def parse_number(text: str) -> int:
    """A number of 64 bits, as kstrtoul() takes it with base 0, for stores that say EINVAL to a larger one.
    Raises ValueError."""
    value = _value(text)
    if value >> 64:
        raise ValueError(f"{text} has more than 64 bits")
    return value


def parse_ulong(text: str) -> int:
    """A number of 64 bits, as kstrtoul() takes it with base 0.  Raises ValueError, and OSError(ERANGE) for a
    larger number."""
    value = _value(text)
    if value >> 64:
        raise OSError(errno.ERANGE, f"{text} has more than 64 bits")
    return value


def parse_uint(text: str) -> int:
    """A number of 32 bits, as kstrtouint() takes it with base 0.  Raises ValueError, and OSError(ERANGE) for
    a larger number."""
    value = _value(text)
    if value >> 32:
        raise OSError(errno.ERANGE, f"{text} has more than 32 bits")
    return value


def parse_int(text: str) -> int:
    """A whole number that may be negative, as kstrtoint() takes it with base 0.  Raises ValueError, and
    OSError(ERANGE) for a number of more than 32 bits."""
    value = -_value(text[1:]) if text.startswith("-") else _value(text)
    if not -(2**31) <= value < 2**31:
        raise OSError(errno.ERANGE, f"{text} does not fit an int")
    return value


def parse_decimal(text: str) -> int:
    """A whole number that may be negative, as kstrtol() takes it with base 10.  Raises ValueError, and
    OSError(ERANGE) for a number of more than 64 bits."""
    if DECIMAL.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a decimal number")
    digits = text.lstrip("+-")
    value = int(digits) if len(digits.lstrip("0")) < 20 else 2**64
    value = -value if text.startswith("-") else value
    if not -(2**63) <= value < 2**63:
        raise OSError(errno.ERANGE, f"{text[:32]} does not fit a long")
    return value


def parse_bool(text: str) -> bool:
    """A truth value as kstrtobool() reads it: the first letter decides, of "on" and "off" the
    second.

    Raises ValueError for anything else.
    """
    for value, beginnings in ((True, ("y", "t", "1", "on")), (False, ("n", "f", "0", "of"))):
        if text.lower().startswith(beginnings):
            return value
    raise ValueError(f"{text!r} is neither Y nor N")


def _value(text: str) -> int:
    """The value of a number of any length, a page at most.  Raises ValueError."""
    if NUMBER.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a number")
    digits = text.removeprefix("+").lower()
    return int(digits, 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10)
