# SPDX-License-Identifier: Apache-2.0
"""A card whose model fails when it has to let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from devmodel.sdk import Bar, Capability, Identity, Memory, PciDevice, express, msi, power_management


class _Card(PciDevice):
    identity = Identity(0x1234, 0xC0F6, 0x1AF4, 0x1100, class_code=0x058000, irq_pin=1)

    def bars(self) -> Mapping[int, Bar]:
        return {0: Bar(Memory(4096))}

    def capabilities(self) -> Sequence[Capability]:
        return power_management(), msi(1), express()


class Closed(_Card):
    def closed(self) -> None:
        raise RuntimeError("not now")


class Exits(_Card):
    def closed(self) -> None:
        raise SystemExit(3)


class Stopped(_Card):
    """It fails at the end of a client; a reset is not possible either."""

    def stopped(self) -> None:
        raise RuntimeError("not now")
