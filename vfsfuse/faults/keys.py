# SPDX-License-Identifier: Apache-2.0
"""The keys of a fault rule.  This declares all that a lab file, the file `faults`, the command line, Python
and the reference know of them.

State: none.  docs/faults.md shows the table to people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vfsfuse.faults import plausible, values
from vfsfuse.faults.values import Kind


class Part(Enum):
    """Which question a key answers."""

    NAME = "name"
    WHERE = "where"
    WHEN = "when"
    WHAT = "what"


REGION = ("register", "region")
MOVES = (*REGION, "dma", "interrupt", "store")
"""Calls that move something, which can be lost, or come twice."""
FAILING = (*REGION, "ioctl", "dma", "store", "create", "bind", "probe", "open", "call")
"""Calls that their caller can see fail."""
ALL = (*FAILING, "interrupt")


@dataclass(frozen=True, slots=True)
class Key:
    """A key.  ``calls`` is whether it says which kind of call a rule is about.  ``fits`` are keys that do so:
    a rule with this key has one of them; () if it needs none and may have any."""

    part: Part
    kind: Kind[Any]
    doc: str
    fits: tuple[str, ...] = ()
    calls: bool = False


def _call(kind: Kind[Any], doc: str) -> Key:
    return Key(Part.WHERE, kind, doc, calls=True)


_ONE = "a name or a pattern"
KEYS: Mapping[str, Key] = {
    "name": Key(Part.NAME, values.name, "the rule's name, `fault<N>` unless given"),
    "device": Key(
        Part.WHERE,
        values.pattern(_ONE),
        "the device of the call: a PCI address, a UUID, `vgpu<N>`, or the type of a vGPU",
    ),
    "process": Key(Part.WHERE, values.process, "the process that makes the call, by its name or number"),
    "ioctl": _call(values.ioctl(_ONE), "an ioctl, such as `VFIO_IOMMU_MAP_DMA` or `IOMMU_*`"),
    "register": _call(
        values.pattern(_ONE), "an access that touches the register; of the `region`, if that is given"
    ),
    "region": _call(values.region, "an access of the region"),
    "range": Key(
        Part.WHERE, values.span, "only an access that touches these bytes of the region", ("region",)
    ),
    "access": Key(Part.WHERE, values.choice("read", "write"), "only reads, or only writes", REGION),
    "dma": _call(
        values.choice("read", "write", "pin", "any"), "a DMA by the device, or the pinning of pages for it"
    ),
    "iova": Key(Part.WHERE, values.span, "only a DMA that touches these addresses", ("dma",)),
    "interrupt": _call(
        values.choice("MSIX", "MSI", "INTX", "ERR", "REQ", "any"), "an interrupt that the device sends"
    ),
    "vector": Key(Part.WHERE, values.unsigned, "only this vector", ("interrupt",)),
    "store": _call(values.pattern(_ONE), "a write to the attribute, by its name or its path in the mount"),
    "create": _call(values.pattern(_ONE), "the creation of a vGPU of this type"),
    "bind": _call(values.pattern(_ONE), "a write to the file `bind` of this driver"),
    "probe": _call(values.pattern(_ONE), "the driver's probe of a device, whatever the reason for it"),
    "open": _call(values.pattern(_ONE), "an open of the file, by its path below `dev` or in the mount"),
    "call": _call(values.words(*plausible.KINDS), "any call of a program that can fail on Linux"),
    "nth": Key(Part.WHEN, values.count, "the n-th call alone"),
    "every": Key(Part.WHEN, values.count, "every n-th call"),
    "probability": Key(Part.WHEN, values.probability, "each call with this probability"),
    "seed": Key(Part.WHEN, values.unsigned, "another seed makes `probability` choose other calls; default 0"),
    "after": Key(Part.WHEN, values.seconds, "only calls from this long after the rule was added"),
    "while": Key(Part.WHEN, values.path, "only while there is a file at this path"),
    "times": Key(Part.WHEN, values.count, "this many times, and then no more"),
    "errno": Key(
        Part.WHAT,
        values.errnos,
        "the call is not made, and fails with this errno; `plausible`, beside `call`: with the errno that "
        "Linux is most likely to give for it",
        FAILING,
    ),
    "delay": Key(Part.WHAT, values.seconds, "the call is made this much later", ALL),
    "hang": Key(Part.WHAT, values.flag, "the call waits until the rule is released or cleared", ALL),
    "value": Key(
        Part.WHAT, values.bits, "the bytes that are read or written are this number", (*REGION, "dma")
    ),
    "flip": Key(
        Part.WHAT,
        values.mask,
        "these bits of what is read or written are inverted",
        (*REGION, "dma", "store"),
    ),
    "drop": Key(
        Part.WHAT,
        values.flag,
        "the call is not made, and its caller is told that it was; a read gives zeros",
        (*MOVES, "ioctl"),
    ),
    "duplicate": Key(Part.WHAT, values.flag, "the write, the interrupt or the store is made twice", MOVES),
    "remove": Key(Part.WHAT, values.flag, "the device is removed by surprise once the call is over"),
    "reset": Key(Part.WHAT, values.flag, "the device is reset once the call is over"),
    "error": Key(
        Part.WHAT,
        values.choice("fatal", "nonfatal", "corrected"),
        "the device reports an error once the call is over",
    ),
    "late": Key(
        Part.WHAT,
        values.seconds,
        "the virtual functions of `device`, or `device` itself, appear this much later",
    ),
    "driverless": Key(
        Part.WHAT,
        values.flag,
        "the virtual functions of `device`, or `device` itself, appear without a driver",
    ),
}

CALLS = tuple(name for name, key in KEYS.items() if key.calls)
EFFECTS = tuple(name for name, key in KEYS.items() if key.part is Part.WHAT)
ACTIONS = ("remove", "reset", "error")
"""What happens to the device, and not to the call."""
OF_VFS = ("late", "driverless")
"""What happens to virtual functions.  These keys say themselves which calls they are about."""
CHOOSING = ("nth", "every", "probability", "times")
"""What chooses among calls."""
