# SPDX-License-Identifier: Apache-2.0
"""The kinds of BARs: ports, or memory of 32 or 64 bits, prefetchable or not.

State: none, all are values. Source: PCI 3.0 chapter 6.2.5, <linux/pci_regs.h> (PCI_BASE_ADDRESS_*).
"""

from __future__ import annotations

from enum import Enum

from devmodel.pci.regs import BaseAddress


class BarKind(Enum):
    """The kinds of BARs, as a lab file names them."""

    MEM32 = "mem32"
    MEM32_PREFETCH = "mem32-prefetch"
    MEM64 = "mem64"
    MEM64_PREFETCH = "mem64-prefetch"
    IO = "io"

    @property
    def io(self) -> bool:
        """Whether it decodes ports."""
        return self is BarKind.IO

    @property
    def wide(self) -> bool:
        """Whether it takes two registers."""
        return self in (BarKind.MEM64, BarKind.MEM64_PREFETCH)

    @property
    def prefetch(self) -> bool:
        """Whether it is prefetchable."""
        return self in (BarKind.MEM32_PREFETCH, BarKind.MEM64_PREFETCH)

    @classmethod
    def made_of(cls, io: bool, wide: bool, prefetch: bool) -> BarKind:
        """That of a BAR of ports, or of memory with these properties."""
        if io:
            return cls.IO
        return cls("mem" + ("64" if wide else "32") + ("-prefetch" if prefetch else ""))

    @classmethod
    def of(cls, register: int) -> BarKind:
        """That of a BAR whose register has such a value."""
        wide, prefetch = register & BaseAddress.MEM_TYPE_64, register & BaseAddress.MEM_PREFETCH
        return cls.made_of(bool(register & BaseAddress.SPACE_IO), bool(wide), bool(prefetch))
