# SPDX-License-Identifier: Apache-2.0
"""Sets of CPUs and of NUMA nodes, as the kernel prints and reads them: as a mask and as a list.

State: none. Source: Documentation/admin-guide/cputopology.rst, the formats %*pb and %*pbl of the kernel's
core-api/printk-formats.rst.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

WORD_BITS = 32


def parse_list(text: str) -> Iterator[int]:
    """The numbers of a list such as "0-3,8". Raises ValueError for any other text."""
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def as_mask(cpus: Collection[int], width: int) -> str:
    """The CPUs as a bit mask of ``width`` bits in hexadecimal, in words of 32 bits."""
    value = sum(1 << cpu for cpu in cpus)
    words = []
    while width > 0:
        bits = min(width, WORD_BITS)
        words.append(f"{value & (1 << bits) - 1:0{-(-bits // 4)}x}")
        value, width = value >> WORD_BITS, width - WORD_BITS
    return ",".join(reversed(words))


def as_list(cpus: Collection[int]) -> str:
    """The numbers as a list of numbers and ranges, such as "0-3,8"."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)


def list_line(cpus: Collection[int]) -> str:
    """The numbers as a list and a newline, which is all that the kernel prints of none."""
    return f"{as_list(cpus)}\n"
