# SPDX-License-Identifier: Apache-2.0
"""The ring of commands, as its registers described it when the engine was enabled.

State: under the device's lock. Source: docs/vgpu.md, "The engine".
"""

from dataclasses import dataclass

from devmodel.gpu.commands import PACKET_SIZE
from devmodel.gpu.gtt import SYSTEM_BASE, SYSTEM_SIZE

MIN_RING, MAX_RING = 4096, 1 << 20
"""Bytes: 64 to 16,384 packets."""


@dataclass(slots=True)
class Ring:
    """``head`` and ``tail`` are offsets in bytes: of the next packet, and of the first free place."""

    base: int
    size: int
    head: int = 0
    tail: int = 0

    @property
    def depth(self) -> int:
        """Packets that wait, and the one in execution."""
        return (self.tail - self.head) % self.size // PACKET_SIZE

    def next_packets(self, most: int) -> tuple[int, int]:
        """Graphics address and bytes of the next packets, up to ``most`` that lie in one piece."""
        end = self.tail if self.tail >= self.head else self.size
        return self.base + self.head, min(end - self.head, most * PACKET_SIZE)

    def advance(self) -> None:
        """The packet at the head is done with."""
        self.head = (self.head + PACKET_SIZE) % self.size

    def accepts(self, tail: int) -> bool:
        """Whether the tail can be there."""
        return tail < self.size and not tail % PACKET_SIZE


def impossible_value(base: int, size: int, video: int) -> int | None:
    """The base or the size of a ring, whichever is impossible with ``video`` bytes of video memory; else
    None."""
    if not MIN_RING <= size <= MAX_RING or size & (size - 1):
        return size
    start, room = (SYSTEM_BASE, SYSTEM_SIZE) if base >= SYSTEM_BASE else (0, video)
    return base if base % PACKET_SIZE or base - start + size > room else None
