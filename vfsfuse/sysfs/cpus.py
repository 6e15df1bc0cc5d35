# SPDX-License-Identifier: Apache-2.0
"""Sets of CPUs, as the kernel prints them: as a mask and as a list.

State: none. Source: Documentation/admin-guide/cputopology.rst, the formats %*pb and %*pbl of the kernel's
core-api/printk-formats.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

WORD_BITS = 32
_ONLINE = Path("/sys/devices/system/cpu/online")


@cache
def online() -> frozenset[int]:
    """The CPUs that the machine has online when this is called first: a device without a NUMA node is near to
    all of them. CPU 0 alone, if the machine does not say."""
    try:
        return frozenset(parse_list(_ONLINE.read_text()))
    except (OSError, ValueError):
        return frozenset({0})


def parse_list(text: str) -> Iterator[int]:
    """The CPUs of a list such as "0-3,8". Raises ValueError for any other text."""
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def as_mask(cpus: frozenset[int]) -> str:
    """The CPUs as a bit mask in hexadecimal, in words of 32 bits, as wide as the highest online CPU needs."""
    width = max(online() | cpus) + 1
    value = sum(1 << cpu for cpu in cpus)
    words = []
    while width > 0:
        bits = min(width, WORD_BITS)
        words.append(f"{value & (1 << bits) - 1:0{-(-bits // 4)}x}")
        value, width = value >> WORD_BITS, width - WORD_BITS
    return ",".join(reversed(words))


def as_list(cpus: frozenset[int]) -> str:
    """The CPUs as a list of numbers and ranges, such as "0-3,8"."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)
