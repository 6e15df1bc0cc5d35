# SPDX-License-Identifier: Apache-2.0
"""The layout of the virtual functions of a physical one: how many, where, with which BARs, of which model.

State: none that changes; used on the lifecycle thread. Source: PCI SR-IOV 1.1 chapter 3 (the capability, and
the registers that a virtual function lacks), Documentation/PCI/pci-iov-howto.rst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from devmodel.device.pci import PciDevice, ResourceRow
from devmodel.lifecycle.spec import FunctionSpec, TypeSpec, VfSpec
from devmodel.memo import memoized
from devmodel.pci import regs
from devmodel.pci.address import PciAddress, bus_name
from devmodel.pci.capability import (
    Capability,
    ExtendedCapability,
    alternative_routing,
    single_root_io,
)
from devmodel.pci.config import Aperture, ConfigSpace
from devmodel.pci.express import as_integrated, as_virtual, express
from devmodel.pci.fields import Bar
from devmodel.pci.regs import CapId, Command, Reg

FIRST_OFFSET, STRIDE = 4, 1
"""Fewest routing ids from a physical function to its first virtual one, and those from each virtual function
to the next."""
MAX_VFS = 256
VF_ROWS = 7
"""Line of sysfs ``resource``, from 0, that has the first VF BAR."""


def vf_type(spec: FunctionSpec, vf: VfSpec) -> TypeSpec:
    """A virtual function as a type: the share of the function's memory that each one takes.

    Unless ``vf`` says how much, that is an equal share of the memory, rounded down to a power of two.
    """
    share = spec.memory // vf.count
    memory = vf.memory or (1 << share.bit_length() >> 1)
    return TypeSpec("vf", f"virtual function of {spec.name}", vf.model, memory=memory, options=vf.options)


def place_vfs(specs: Sequence[FunctionSpec]) -> Mapping[str, int]:
    """By name, how many routing ids behind each physical function with SR-IOV its virtual ones begin.

    No two functions of a lab have the same address. Virtual functions may lie on later buses, which then
    have no physical function: a bus is below one bridge only. Raises ValueError when there is no room
    behind one.
    """
    taken = {PciAddress.parse(spec.name) for spec in specs}
    buses = {address.bus_name for address in taken}
    offsets: dict[str, int] = {}
    for spec, vf in ((spec, spec.vf) for spec in specs if spec.vf is not None):
        physical = PciAddress.parse(spec.name)
        offset = FIRST_OFFSET
        while not taken.isdisjoint(places := _places(physical, offset, vf.count)):
            offset += 1
        taken.update(places)
        offsets[spec.name] = offset
        for bus in range(physical.bus + 1, last_vf(spec, offsets).bus + 1):
            if bus_name(physical.segment, bus) in buses:
                raise ValueError(
                    f"no room for {vf.count} virtual functions behind {physical}: "
                    f"bus {bus:02x} is below another bridge"
                )
    return offsets


def last_vf(spec: FunctionSpec, offsets: Mapping[str, int]) -> PciAddress:
    """The address of the last virtual function of a physical one, its own for one without; ``offsets`` is of
    :func:`place_vfs`."""
    own = PciAddress.parse(spec.name)
    return own if spec.vf is None else own.after(offsets[spec.name] + (spec.vf.count - 1) * STRIDE)


def _places(physical: PciAddress, offset: int, count: int) -> list[PciAddress]:
    try:
        return [physical.after(offset + index * STRIDE) for index in range(count)]
    except ValueError as error:
        raise ValueError(f"no room for {count} virtual functions behind {physical}") from error


class VfLayout:
    """The virtual functions of one physical function: ``total`` of type ``type``, the first ``offset``
    routing ids behind it."""

    __slots__ = ("_model", "_physical", "offset", "places", "total", "type")

    def __init__(self, spec: FunctionSpec, offset: int, aperture: Aperture) -> None:
        """For a function that has virtual ones. Raises ValueError for a model that cannot be that of a
        virtual function."""
        assert spec.vf is not None
        self.total, self.offset = spec.vf.count, offset
        self.type = vf_type(spec, spec.vf)
        self._physical = PciAddress.parse(spec.name)
        self._model = virtual_model(self.type.model)
        self._check(spec)
        sample = self._model(spec.name, self.type.memory, self.type.options)
        self.places = {index: (aperture.take(bar, self.total), bar) for index, bar in sample.bar_map.items()}
        sample.close()

    @property
    def device_id(self) -> int:
        """The device id of all of them. Their vendor id is the physical function's."""
        return self._model.identity.device

    def address(self, index: int) -> PciAddress:
        """Where virtual function ``index`` is."""
        return self._physical.after(self.offset + index * STRIDE)

    def make(self, name: str, index: int) -> PciDevice:
        """The device of virtual function ``index``, which is called ``name``, with its BARs at their
        addresses."""
        places = [base + index * bar.size for base, bar in self.places.values()]
        return self._model(name, self.type.memory, self.type.options, _Places(places))

    def capability(self) -> ExtendedCapability:
        """The SR-IOV capability of the physical function."""
        bars = [0] * regs.STD_NUM_BARS
        for index, (base, bar) in self.places.items():
            bars[index] |= base & 0xFFFFFFFF | bar.flags
            if bar.mem64:
                bars[index + 1] = base >> 32
        return single_root_io(self.total, self.offset, STRIDE, self.device_id, bars)

    def rows(self) -> Iterator[tuple[int, ResourceRow]]:
        """The lines of the VF BARs in the physical function's ``resource``, each with its number from 0."""
        for index, (base, bar) in self.places.items():
            yield VF_ROWS + index, ResourceRow(base, base + self.total * bar.size - 1, bar.resource_flags)

    def _check(self, spec: FunctionSpec) -> None:
        if spec.model is not None and spec.model.identity.vendor != self._model.identity.vendor:
            raise ValueError(
                f"virtual functions have their physical function's vendor {spec.model.identity.vendor:04x}, "
                f"not {self._model.identity.vendor:04x}"
            )
        self._model.validate(self.type.memory, self.type.options)


class _Places(Aperture):
    """Addresses that the layout has given already, in the order of the BARs."""

    __slots__ = ("_addresses",)

    def __init__(self, addresses: Sequence[int]) -> None:
        super().__init__()
        self._addresses = iter(addresses)

    def take(self, bar: Bar, count: int = 1, wanted: int = 0) -> int:
        return next(self._addresses)


class ExpressFunction(PciDevice):
    """Mixed into a model: a PCI Express function, which has :attr:`EXTENDED` capabilities too."""

    __slots__ = ()
    EXTENDED: ClassVar[Sequence[ExtendedCapability]] = (alternative_routing(),)

    def capabilities(self) -> Sequence[Capability]:
        caps = tuple(super().capabilities())
        return caps if any(cap.id == CapId.EXP for cap in caps) else (*caps, express())

    def extended_capabilities(self) -> Sequence[ExtendedCapability]:
        return (*super().extended_capabilities(), *self.EXTENDED)


class FunctionWithMore(ExpressFunction):
    """Mixed into a model: a function with capabilities that its model may have as well."""

    __slots__ = ()

    def extended_capabilities(self) -> Sequence[ExtendedCapability]:
        theirs = super(ExpressFunction, self).extended_capabilities()
        known = {cap.id for cap in theirs}
        return *theirs, *(cap for cap in self.EXTENDED if cap.id not in known)


class FunctionWithVfs(ExpressFunction):
    """Mixed into a model: a physical function that has virtual functions."""

    __slots__ = ()
    LAYOUT_OF_VFS: ClassVar[VfLayout]

    def resource_rows(self) -> list[ResourceRow]:
        rows = super().resource_rows()
        for index, row in self.LAYOUT_OF_VFS.rows():
            rows[index] = row
        return rows


class VirtualFunctionModel(ExpressFunction):
    """Mixed into a model: a virtual function. Its memory is always decoded, by its physical function; its own
    command register has no bit for that.

    Raises ValueError for a model with I/O BARs or a ROM.
    """

    __slots__ = ()
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


def physical_model(model: type[PciDevice], layout: VfLayout) -> type[PciDevice]:
    """``model`` with SR-IOV."""
    extended = (*FunctionWithVfs.EXTENDED, layout.capability())
    return _mixed(FunctionWithVfs, model, {"EXTENDED": extended, "LAYOUT_OF_VFS": layout})


@memoized()
def extended_model(model: type[PciDevice], extended: tuple[ExtendedCapability, ...]) -> type[PciDevice]:
    """``model`` as a PCI Express function that has these extended capabilities too, as far as it has none of
    the same ids. A captured model has its own only."""
    return _mixed(FunctionWithMore, model, {"EXTENDED": extended})


@memoized()
def integrated_model(model: type[PciDevice]) -> type[PciDevice]:
    """``model`` as an endpoint in the root complex."""
    return _mixed(IntegratedFunction, model, {})


@memoized()
def virtual_model(model: type[PciDevice]) -> type[PciDevice]:
    """``model`` as a virtual function, which has no INTx."""
    return _mixed(VirtualFunctionModel, model, {"identity": replace(model.identity, irq_pin=0)})


def _mixed(mixin: type[PciDevice], model: type[PciDevice], members: Mapping[str, object]) -> type[PciDevice]:
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
