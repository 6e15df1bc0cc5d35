# SPDX-License-Identifier: Apache-2.0
"""Models as functions of a lab: what a physical, a virtual or an integrated function adds to its model.

State: caches of classes, which are filled on the lifecycle thread and as lab files are read. Source: PCI
SR-IOV 1.1 chapter 3 (the registers that a virtual function lacks), PCI Express Base 4.0 chapter 1.3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from devmodel.device.pci import PciDevice
from devmodel.memo import memoized
from devmodel.pci import regs
from devmodel.pci.capability import (
    Capability,
    ExtendedCapability,
    alternative_routing,
)
from devmodel.pci.config import ConfigSpace
from devmodel.pci.express import as_integrated, as_virtual, express
from devmodel.pci.fields import Bar
from devmodel.pci.regs import CapId, Command, Reg

MOST_MODELS = 1024
"""Classes of models that are kept, of each kind."""


class ExpressFunction(PciDevice):
    """Mixed into a model: a PCI Express function. It has the :attr:`EXTENDED` capabilities of all its classes
    too, as far as its model has none with the same id."""

    __slots__ = ()
    EXTENDED: ClassVar[Sequence[ExtendedCapability]] = ()

    def capabilities(self) -> Sequence[Capability]:
        caps = tuple(super().capabilities())
        return caps if any(cap.id == CapId.EXP for cap in caps) else (*caps, express())

    def extended_capabilities(self) -> Sequence[ExtendedCapability]:
        found = {cap.id: cap for cap in super().extended_capabilities()}
        for each in reversed(type(self).__mro__):
            for cap in vars(each).get("EXTENDED", ()):
                found.setdefault(cap.id, cap)
        return tuple(found.values())


class FunctionWithMore(ExpressFunction):
    """Mixed into a model: a function with capabilities that its model may have as well."""

    __slots__ = ()


class VirtualFunctionModel(ExpressFunction):
    """Mixed into a model: a virtual function. Its memory is always decoded, by its physical function; its own
    command register has no bit for that.

    Raises ValueError for a model with I/O BARs or a ROM.
    """

    __slots__ = ()
    EXTENDED = (alternative_routing(),)
    DECODED = Command.MEMORY

    def _config_space(self) -> ConfigSpace:
        space = super()._config_space()
        space.freeze(Reg.COMMAND, 2, self.DECODED)
        return space

    def _with_decoding(self, command: int) -> int:
        return command

    def capabilities(self) -> Sequence[Capability]:
        return [as_virtual(cap) for cap in super().capabilities()]

    def bars(self) -> Mapping[int, Bar]:
        bars = super().bars()
        if any(bar.io or index == regs.ROM_BAR for index, bar in bars.items()):
            raise ValueError("virtual functions have no I/O BARs and no ROM")
        return bars


class IntegratedFunction(PciDevice):
    """Mixed into a model: a function on bus 0, which has no link."""

    __slots__ = ()

    def capabilities(self) -> Sequence[Capability]:
        return [as_integrated(cap) for cap in super().capabilities()]


@memoized(MOST_MODELS)
def extended_model(model: type[PciDevice], extended: tuple[ExtendedCapability, ...]) -> type[PciDevice]:
    """``model`` as a PCI Express function that has these extended capabilities too, as far as it has none of
    the same ids. A captured model has its own only."""
    return mixed(FunctionWithMore, model, {"EXTENDED": extended})


@memoized(MOST_MODELS)
def integrated_model(model: type[PciDevice]) -> type[PciDevice]:
    """``model`` as an endpoint in the root complex."""
    return mixed(IntegratedFunction, model, {})


@memoized(MOST_MODELS)
def virtual_model(model: type[PciDevice]) -> type[PciDevice]:
    """``model`` as a virtual function, which has no INTx."""
    return mixed(VirtualFunctionModel, model, {"identity": replace(model.identity, irq_pin=0)})


def mixed(mixin: type[PciDevice], model: type[PciDevice], members: Mapping[str, object]) -> type[PciDevice]:
    """A class that is ``mixin`` and then ``model``, with these members."""
    return type(model.__name__, (mixin, model), {"__slots__": (), **members})


def as_hardware(offset: int, data: bytes) -> bytes:
    """``data``, read at ``offset`` of a virtual function's configuration space, as the hardware answers.

    A virtual function has no ids and BARs of its own there; vfio-pci adds them for its clients.
    """
    shown = bytearray(data)
    for first, end, value in _NOT_THERE:
        for position in range(max(first, offset), min(end, offset + len(data))):
            shown[position - offset] = value
    return bytes(shown)


def lacks(offset: int) -> bool:
    """Whether a virtual function has no byte at ``offset`` of its configuration space in hardware."""
    return any(first <= offset < end for first, end, _ in _NOT_THERE)


_NOT_THERE = (
    (Reg.VENDOR_ID, Reg.COMMAND, 0xFF),
    (Reg.BASE_ADDRESS_0, Reg.BASE_ADDRESS_0 + 4 * regs.STD_NUM_BARS, 0),
)
