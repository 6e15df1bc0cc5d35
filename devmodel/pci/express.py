# SPDX-License-Identifier: Apache-2.0
"""The PCI Express capability: what an endpoint says of itself and of its link.

State: none, capabilities are values. Source: PCI Express Base 4.0 chapter 7.5.3, SR-IOV 1.1 chapter 3.5 (the
registers that a virtual function lacks), <linux/pci_regs.h> (PCI_EXP_*).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

from devmodel.pci import regs
from devmodel.pci.capability import Capability
from devmodel.pci.regs import CapId

WIDTHS = (1, 2, 4, 8, 12, 16, 32)
"""Numbers of lanes that a link can have."""
_LAYOUT = struct.Struct("<HIHHIHHIHHHHIIHHIHHIHH")


class LinkSpeed(IntEnum):
    """Speeds of a link, in GT/s a lane; the values are those of the link registers."""

    GT_2_5 = 1
    GT_5 = 2
    GT_8 = 3
    GT_16 = 4
    GT_32 = 5
    GT_64 = 6


class ExpressRegisters(NamedTuple):
    """The registers behind the capability's header, under their names in <linux/pci_regs.h> (PCI_EXP_)."""

    flags: int = 0
    devcap: int = 0
    devctl: int = 0
    devsta: int = 0
    lnkcap: int = 0
    lnkctl: int = 0
    lnksta: int = 0
    sltcap: int = 0
    sltctl: int = 0
    sltsta: int = 0
    rtctl: int = 0
    rtcap: int = 0
    rtsta: int = 0
    devcap2: int = 0
    devctl2: int = 0
    devsta2: int = 0
    lnkcap2: int = 0
    lnkctl2: int = 0
    lnksta2: int = 0
    sltcap2: int = 0
    sltctl2: int = 0
    sltsta2: int = 0

    def pack(self) -> bytes:
        """The bytes in configuration space."""
        return _LAYOUT.pack(*self)

    @classmethod
    def of(cls, capability: Capability) -> ExpressRegisters | None:
        """Those of a capability; None if it is not PCI Express, or an older version of the structure."""
        if capability.id != CapId.EXP or len(capability.body) != _LAYOUT.size:
            return None
        return cls(*_LAYOUT.unpack(capability.body))


def express(speed: LinkSpeed = LinkSpeed.GT_16, width: int = 16, flr: bool = True) -> Capability:
    """A PCI Express endpoint whose link has ``width`` lanes (ValueError for a number that no link has) and
    runs at ``speed``, the fastest that it can. ``flr`` is whether it has a function level reset.

    A function on bus 0 is made an integrated endpoint of it (:func:`as_integrated`).
    """
    if width not in WIDTHS:
        raise ValueError(f"a link cannot have {width} lanes: one of {', '.join(map(str, WIDTHS))}")
    devcap = regs.EXP_PAYLOAD_256B | regs.EXP_DEVCAP_EXT_TAG | regs.EXP_DEVCAP_RBER
    devctl = regs.EXP_DEVCTL_WRITABLE
    if flr:
        devcap, devctl = devcap | regs.EXP_DEVCAP_FLR, devctl | regs.EXP_DEVCTL_BCR_FLR
    values = ExpressRegisters(
        flags=regs.EXP_FLAGS_VERS_2 | regs.EXP_TYPE_ENDPOINT << 4,
        devcap=devcap,
        devctl=regs.EXP_DEVCTL_AS_LEFT,
        lnkcap=speed | width << 4 | regs.EXP_LNKCAP_ASPM_OPT,
        lnkctl=regs.EXP_LNKCTL_CCC,
        lnksta=speed | width << 4 | regs.EXP_LNKSTA_SLC,
        devcap2=regs.EXP_DEVCAP2_COMP_TMOUT | (regs.EXP_DEVCAP2_10BIT_TAG if speed >= LinkSpeed.GT_16 else 0),
        lnkcap2=((1 << speed) - 1) << 1,
        lnkctl2=speed,
        lnksta2=regs.EXP_LNKSTA2_EQUALIZED if speed >= LinkSpeed.GT_8 else 0,
    )
    writable = ExpressRegisters(
        devctl=devctl,
        lnkctl=regs.EXP_LNKCTL_WRITABLE,
        devctl2=regs.EXP_DEVCTL2_COMP_TMOUT,
        lnkctl2=regs.EXP_LNKCTL2_TLS,
    )
    cleared = ExpressRegisters(devsta=regs.EXP_DEVSTA_ERRORS)
    return Capability(CapId.EXP, values.pack(), writable.pack(), ones=cleared.pack())


def as_integrated(capability: Capability) -> Capability:
    """A PCI Express capability as that of an endpoint in the root complex, which has no link. Any other
    capability stays as it is."""
    return _changed(
        capability,
        {
            "flags": regs.EXP_FLAGS_VERS_2 | regs.EXP_TYPE_RC_END << 4,
            **dict.fromkeys(("lnkcap", "lnkctl", "lnksta", "lnkcap2", "lnkctl2", "lnksta2"), 0),
        },
        {"lnkctl": 0, "lnkctl2": 0},
    )


def as_virtual(capability: Capability) -> Capability:
    """A PCI Express capability as a virtual function has it: control and status are its physical function's,
    but for the reset. Any other capability stays as it is."""
    shared = dict.fromkeys(("devctl", "lnkctl", "lnksta", "devctl2", "lnkctl2", "lnksta2"), 0)
    return _changed(capability, shared, {**shared, "devctl": regs.EXP_DEVCTL_BCR_FLR})


def _changed(capability: Capability, values: dict[str, int], writable: dict[str, int]) -> Capability:
    if capability.id != CapId.EXP or len(capability.body) != _LAYOUT.size:
        return capability
    body, mask = (ExpressRegisters(*_LAYOUT.unpack(each)) for each in (capability.body, capability.mask))
    return replace(capability, body=body._replace(**values).pack(), mask=mask._replace(**writable).pack())
