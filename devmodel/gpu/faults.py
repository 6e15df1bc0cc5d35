# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a command, as its client reads it in ERROR_CODE and ERROR_ADDRESS.

State: none.
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """The values of ERROR_CODE."""

    NONE = 0
    BAD_COMMAND = 1
    """An unknown opcode or flag, a misaligned fill or fence, a pitch below the width; the address is the
    packet's."""
    BAD_ADDRESS = 2
    """Neither video memory nor behind the GTT, or across the end of either."""
    NOT_PRESENT = 3
    """The GTT has no valid entry for the page."""
    READ_ONLY = 4
    """The GTT's entry does not let the engine write."""
    DMA = 5
    """The IOMMU refused: not mapped, not so, or the device is no bus master."""
    BAD_RING = 6
    """RING_BASE, RING_SIZE or RING_TAIL cannot be; the address is the value that was refused."""
    HANG = 7
    """Nothing came back in time; the address is where the engine waited."""
    NO_MEMORY = 8
    """The host has no page left for video memory; the address is where the slice begins."""


class EngineFault(Exception):
    """Ends one command: ``code``, and the graphics ``address`` at which it happened."""

    def __init__(self, code: ErrorCode, address: int) -> None:
        super().__init__(f"{code.name} at {address:#x}")
        self.code = code
        self.address = address


class EngineStopped(Exception):
    """The device was reset or released, or the engine was taken away: the worker must touch nothing more."""
