# SPDX-License-Identifier: Apache-2.0
"""Addresses of functions in a lab file: "0000:65:00.1", or a pattern that stands for many, such as
"0000:40:{00-1f}.{0-7}".

State: none, all are values.
"""

import re
from itertools import product

from devmodel.pci.address import PciAddress

MAX_ADDRESSES = 1 << 16
"""Addresses that one pattern stands for: those of a domain."""

_DIGITS = ((4, 0xFFFF), (2, 0xFF), (2, 0x1F), (1, 7))
"""Hexadecimal digits of domain, bus, device and function, and the largest of each."""


def _part(digits: int) -> str:
    one = f"[0-9a-f]{{{digits}}}"
    return f"({one}|\\{{{one}-{one}\\}})"


PATTERN = re.compile("{}:{}:{}\\.{}".format(*(_part(digits) for digits, _ in _DIGITS)), re.ASCII)


def addresses(name: str) -> list[str]:
    """The addresses that ``name`` stands for, in their order. Raises ValueError with the reason and the
    remedy."""
    if "{" not in name:
        PciAddress.parse(name)
        return [name]
    found = PATTERN.fullmatch(name)
    if found is None:
        raise ValueError(f'{name!r} is not a pattern of addresses (such as "0000:40:{{00-1f}}.{{0-7}}")')
    parts = [_range(text, *limits) for text, limits in zip(found.groups(), _DIGITS, strict=True)]
    if len(parts[0]) * len(parts[1]) * len(parts[2]) * len(parts[3]) > MAX_ADDRESSES:
        raise ValueError(f"stands for more than {MAX_ADDRESSES} addresses (write several patterns)")
    return [f"{domain}:{bus}:{device}.{function}" for domain, bus, device, function in product(*parts)]


def _range(text: str, digits: int, most: int) -> list[str]:
    first, _, last = text.strip("{}").partition("-")
    low, high = int(first, 16), int(last or first, 16)
    if not low <= high <= most:
        raise ValueError(f"{text} is no range of 0 to {most:x} (give the lower one first)")
    return [f"{number:0{digits}x}" for number in range(low, high + 1)]
