# SPDX-License-Identifier: Apache-2.0
"""What a lab has to know of a PCI function before its model is made: its BARs, and some of its capabilities.

Functions of the same model, memory and options have the same traits, so one device is made for all of them,
looked at, and closed again. A function's own model is made when somebody uses the function.

State: a cache, which is filled on the lifecycle thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devmodel.device.pci import PciDevice, ResourceRow
from devmodel.memo import memoized
from devmodel.pci import regs
from devmodel.pci.config import Aperture
from devmodel.pci.express import ExpressRegisters
from devmodel.pci.fields import Bar
from devmodel.pci.regs import CapId, ExtCapId, IoResource

MOST_KINDS = 4096
"""Traits that are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Traits:
    """Of a function of one kind.

    ``bars`` are by index, with regions that are closed. ``lines`` has the size of each and its flags in sysfs
    ``resource``, and ``wanted`` where it is to be (0: anywhere). ``options`` are all of them. ``express`` are
    the registers of the PCI Express capability, None without one or for its old version.
    """

    bars: Mapping[int, Bar]
    lines: tuple[tuple[int, int], ...]
    wanted: Mapping[int, int]
    options: Mapping[str, int]
    express: ExpressRegisters | None
    is_express: bool
    power_management: bool
    ari: bool
    flr: bool
    config_size: int
    msix_vectors: int
    has_vpd: bool
    aer: bool

    @classmethod
    def of(cls, device: PciDevice) -> Traits:
        """Those of a device."""
        config = device.config
        return cls(
            device.bar_map,
            tuple(_line(*each) for each in device.bar_map.items()),
            {index: device.wanted_address(index) for index in device.bar_map},
            device.options,
            next(filter(None, map(ExpressRegisters.of, device.caps)), None),
            bool(config.find(CapId.EXP)),
            bool(config.find(CapId.PM)),
            config.has_extended(ExtCapId.ARI),
            device.has_flr,
            config.size,
            device.msix_vectors,
            device.vpd is not None,
            config.has_extended(ExtCapId.AER),
        )

    def place(self, aperture: Aperture) -> tuple[int, ...]:
        """Addresses for the BARs, in their order. Raises ValueError when there is no room."""
        return tuple(aperture.take(bar, 1, self.wanted[index]) for index, bar in self.bars.items())

    def rows(self, places: Sequence[int]) -> Iterator[ResourceRow]:
        """The lines of sysfs ``resource`` that its BARs have at ``places``."""
        for (size, flags), start in zip(self.lines, places, strict=True):
            yield ResourceRow(start, start + size - 1, flags)


def _line(index: int, bar: Bar) -> tuple[int, int]:
    """Size and flags of a BAR in sysfs ``resource``."""
    return bar.size, bar.resource_flags | (IoResource.READONLY if index == regs.ROM_BAR else 0)


def make_device(
    model: type[PciDevice],
    name: str,
    memory: int,
    options: Mapping[str, int],
    texts: Mapping[str, str],
    aperture: Aperture | None = None,
    **more: Any,
) -> PciDevice:
    """A device of a model. ``more`` are arguments of its own kind. Raises ValueError as the model does."""
    if texts:
        more["texts"] = texts
    return model(name, memory, options, aperture, **more)


def traits_of(
    model: type[PciDevice], memory: int, options: Mapping[str, int], texts: Mapping[str, str]
) -> Traits:
    """The traits of a function of a model. Raises ValueError as the model does."""
    return _traits(model, memory, tuple(sorted(options.items())), tuple(sorted(texts.items())))


@memoized(MOST_KINDS)
def _traits(
    model: type[PciDevice],
    memory: int,
    options: tuple[tuple[str, int], ...],
    texts: tuple[tuple[str, str], ...],
) -> Traits:
    device = make_device(model, "sample", memory, dict(options), dict(texts))
    try:
        return Traits.of(device)
    finally:
        device.close()
