# SPDX-License-Identifier: Apache-2.0
"""Capabilities by words, as a lab file names them: "pm", "msi:4", "msix:32@1", "express:8GT,x4".

A word is a name, perhaps with arguments behind a colon, separated by commas; "msix" may end with "@" and a
BAR. State: none, all are values. Source: as of the capabilities (devmodel.pci.capability, express).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from devmodel.pci import regs
from devmodel.pci.capability import (
    Capability,
    ExtendedCapability,
    access_control,
    alternative_routing,
    error_reporting,
    msi,
    msix,
    power_management,
    vital_product_data,
)
from devmodel.pci.express import ExpressRegisters, LinkSpeed, as_integrated, express

EXTENDED: Mapping[str, Callable[[], ExtendedCapability]] = MappingProxyType(
    {"aer": error_reporting, "acs": access_control, "ari": alternative_routing}
)
"""The words of extended capabilities."""
SPEEDS: Mapping[str, LinkSpeed] = MappingProxyType(
    {f"{speed}GT": code for speed, code in zip(("2.5", "5", "8", "16", "32", "64"), LinkSpeed, strict=True)}
)
"""The words of link speeds."""
_LEGACY_TYPE, _TYPE_MASK = 1 << 4, 0xF0
KNOWN = '"pm", "msi:4", "msix:32@1", "express", "vpd", "aer", "acs", "ari"'


@dataclass(frozen=True, slots=True)
class MemoryBar:
    """A memory BAR that may hold an MSI-X table: its index and its size in bytes."""

    index: int
    size: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the words of one function ask for."""

    caps: tuple[Capability, ...]
    extended: tuple[ExtendedCapability, ...]


def capabilities_of(words: Sequence[str], bars: Sequence[MemoryBar]) -> Capabilities:
    """The capabilities that ``words`` name, in their order. Raises ValueError for a word that is none, for
    one that comes twice, and for an MSI-X table that no BAR has room for."""
    caps: list[Capability] = []
    extended: list[ExtendedCapability] = []
    names: set[str] = set()
    for word in words:
        name, _, arguments = word.partition(":")
        if name in names:
            raise ValueError(f"capability {name!r} is there twice (leave one out)")
        names.add(name)
        if name in EXTENDED and not arguments:
            extended.append(EXTENDED[name]())
        else:
            caps.append(_capability(word, name, arguments, bars))
    if extended and "express" not in names:
        raise ValueError('extended capabilities are those of PCI Express functions (add "express")')
    return Capabilities(tuple(caps), tuple(extended))


def _capability(word: str, name: str, arguments: str, bars: Sequence[MemoryBar]) -> Capability:
    if name == "pm" and not arguments:
        return power_management()
    if name == "vpd" and not arguments:
        return vital_product_data()
    if name == "msi":
        return msi(_number(word, arguments or "1"))
    if name == "msix" and arguments:
        count, at, bar = arguments.partition("@")
        return _msix(_number(word, count), _number(word, bar) if at else None, bars)
    if name == "express":
        return _express(word, [each for each in arguments.split(",") if each])
    raise ValueError(f"{word!r} is no capability (write {KNOWN})")


def _number(word: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 4):
        raise ValueError(f"{digits!r} in {word!r} is not a number (write {KNOWN})")
    return int(digits)


def _msix(vectors: int, wanted: int | None, bars: Sequence[MemoryBar]) -> Capability:
    """MSI-X with its table in the second half of the BAR if there is room, else at its beginning; the pending
    bits come behind the table. The last BAR with room is chosen. The table of a large BAR is at 2 GiB: its
    offset has 32 bits."""
    table = vectors * regs.MSIX_ENTRY_SIZE
    size = table + -(-vectors // 64) * 8
    fitting = [bar for bar in bars if bar.size >= size and wanted in (None, bar.index)]
    if not fitting:
        which = "a memory BAR" if wanted is None else f"memory BAR {wanted}"
        raise ValueError(f"MSI-X with {vectors} vectors needs {which} of at least {size} bytes (give it one)")
    bar = fitting[-1]
    start = min(bar.size // 2, 1 << 31) if bar.size // 2 >= size else 0
    return msix(vectors, (bar.index, start), (bar.index, start + table))


def _express(word: str, arguments: Sequence[str]) -> Capability:
    """Arguments: a speed ("8GT"), a width ("x4"), "legacy" or "integrated", and "no-flr"."""
    speed, width, flr, kind = LinkSpeed.GT_16, 16, True, ""
    for each in arguments:
        if each in SPEEDS:
            speed = SPEEDS[each]
        elif each.startswith("x") and len(each) > 1:
            width = _number(word, each[1:])
        elif each == "no-flr":
            flr = False
        elif each in ("legacy", "integrated") and not kind:
            kind = each
        else:
            raise ValueError(
                f'{each!r} in {word!r} is unknown (write "2.5GT" to "64GT", "x4", "legacy", "integrated" or '
                f'"no-flr")'
            )
    cap = express(speed, width, flr)
    if kind == "integrated":
        return as_integrated(cap)
    if kind == "legacy":
        found = ExpressRegisters.of(cap)
        assert found is not None
        flags = found.flags & ~_TYPE_MASK | _LEGACY_TYPE
        return replace(cap, body=found._replace(flags=flags).pack())
    return cap
