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

_PARTS = ("[0-9a-f]{4,8}", "[0-9a-f]{2}", "[01][0-9a-f]", "[0-7]")
"""Domain, bus, device and function."""


PATTERN = re.compile(
    r"{}:{}:{}\.{}".format(*(f"({part}|\\{{{part}-{part}\\}})" for part in _PARTS)), re.ASCII
)


def addresses(name: str) -> list[str]:
    """The addresses that ``name`` stands for, in their order. Raises ValueError with the reason and the
    remedy."""
    if "{" not in name:
        PciAddress.parse(name)
        return [name]
    found = PATTERN.fullmatch(name)
    if found is None:
        raise ValueError(f'{name!r} is not a pattern of addresses (such as "0000:40:{{00-1f}}.{{0-7}}")')
    parts = [_range(text) for text in found.groups()]
    if len(parts[0]) * len(parts[1]) * len(parts[2]) * len(parts[3]) > MAX_ADDRESSES:
        raise ValueError(f"stands for more than {MAX_ADDRESSES} addresses (write several patterns)")
    return [f"{domain}:{bus}:{device}.{function}" for domain, bus, device, function in product(*parts)]


def _range(text: str) -> list[str]:
    first, _, last = text.strip("{}").partition("-")
    low, high = int(first, 16), int(last or first, 16)
    if low > high:
        raise ValueError(f"{text} is no range (give the lower one first)")
    return [f"{number:0{len(first)}x}" for number in range(low, high + 1)]
