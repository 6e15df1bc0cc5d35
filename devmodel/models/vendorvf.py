# SPDX-License-Identifier: Apache-2.0
"""What the host sees of a virtual function that the driver of a GPU keeps for a vGPU: registers and apertures
that nobody but that driver understands.

State: none of its own. Through vfio-pci it is memory without behaviour.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from devmodel.device.options import Option
from devmodel.device.pci import PciDevice
from devmodel.pci.capability import Capability, power_management
from devmodel.pci.express import express
from devmodel.pci.fields import Bar, Identity
from devmodel.region.region import Memory

REGISTERS, APERTURE = 256 << 10, 32 << 20


class VendorVf(PciDevice):
    """A virtual function of a GPU. Option ``window`` is the size of BAR 1 in MiB, a power of two."""

    __slots__ = ()
    OPTIONS: ClassVar[Mapping[str, Option]] = {"window": Option(256, 1, 1 << 16)}
    identity = Identity(0x1234, 0x86F0, 0x1AF4, 0x1100, class_code=0x030000, revision=1)

    @classmethod
    def validate(cls, memory: int, options: Mapping[str, int]) -> None:
        super().validate(memory, options)
        window = options.get("window", 256)
        if window & (window - 1):
            raise ValueError(f"option 'window' is {window}, not a power of two")

    def bars(self) -> Mapping[int, Bar]:
        return {
            0: Bar(Memory(REGISTERS)),
            1: Bar(Memory(self.options["window"] << 20), mem64=True, prefetch=True),
            3: Bar(Memory(APERTURE), mem64=True, prefetch=True),
        }

    def capabilities(self) -> Sequence[Capability]:
        return (power_management(), express())
