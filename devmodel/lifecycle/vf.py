# SPDX-License-Identifier: Apache-2.0
"""The layout of the virtual functions of a physical one: how many, where, with which BARs, of which model.

State: none that changes; used on the lifecycle thread. Source: PCI SR-IOV 1.1 chapter 3 (the
capability), Documentation/PCI/pci-iov-howto.rst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import ClassVar

from devmodel.device.pci import PciDevice, ResourceRow
from devmodel.device.traits import make_device, traits_of
from devmodel.lifecycle.functionmodels import MOST_MODELS, ExpressFunction, mixed, virtual_model
from devmodel.lifecycle.spec import FunctionSpec, TypeSpec, VfSpec
from devmodel.memo import memoized
from devmodel.pci import regs
from devmodel.pci.address import PciAddress, bus_name
from devmodel.pci.capability import (
    ExtendedCapability,
    alternative_routing,
    single_root_io,
)
from devmodel.pci.config import Aperture, ConfigSpace, Decided
from devmodel.pci.regs import ExtCapId

FIRST_OFFSET = 4
"""Fewest routing ids from a physical function to its first virtual one, unless its spec gives them."""
MAX_VFS = 1024
"""Most virtual functions of one function of a lab. SR-IOV has 16 bits for the number."""
_OF_LAYOUT = (
    *((offset, 2) for offset in (regs.SRIOV_CTRL, regs.SRIOV_INITIAL_VF, regs.SRIOV_TOTAL_VF)),
    *((offset, 2) for offset in (regs.SRIOV_NUM_VF, regs.SRIOV_VF_OFFSET, regs.SRIOV_VF_STRIDE)),
    (regs.SRIOV_VF_DID, 2),
    *((regs.SRIOV_BAR + 4 * index, 4) for index in range(regs.STD_NUM_BARS)),
)
"""Registers of the SR-IOV capability that say what a layout says: offset and bytes."""
VF_ROWS = 7
"""Line of sysfs ``resource``, from 0, that has the first VF BAR."""


def vf_type(spec: FunctionSpec, vf: VfSpec) -> TypeSpec:
    """A virtual function as a type: the share of the function's memory that each one takes.

    Unless ``vf`` says how much, that is an equal share of the memory, rounded down to a power of two.
    """
    if vf.memory is None:
        return TypeSpec("vf", f"virtual function of {spec.name}", vf.model, slots=0, options=vf.options)
    share = spec.memory // vf.count
    memory = vf.memory or (1 << share.bit_length() >> 1)
    return TypeSpec("vf", f"virtual function of {spec.name}", vf.model, memory=memory, options=vf.options)


def place_vfs(specs: Sequence[FunctionSpec]) -> Mapping[str, int]:
    """By name, how many routing ids behind each physical function with SR-IOV its virtual ones begin.

    That is the offset of its spec, or without one the first with room. No two functions of a lab have the
    same address. Virtual functions may lie on later buses, which then have no physical function: a bus is
    below one bridge only. Raises ValueError when there is no room behind one.
    """
    taken = {PciAddress.parse(spec.name) for spec in specs}
    buses = {address.bus_name for address in taken}
    offsets: dict[str, int] = {}
    chosen = [(spec, spec.vf) for spec in specs if spec.vf is not None]
    for spec, vf in sorted(chosen, key=lambda each: each[1].offset is None):  # given ones first
        physical = PciAddress.parse(spec.name)
        offset = _first_offset(physical, vf, taken) if vf.offset is None else vf.offset
        places = _places(physical, offset, vf)
        if not taken.isdisjoint(places):
            met = min(taken.intersection(places))
            raise ValueError(f"a virtual function of {physical} meets another function at {met}")
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
    return own if spec.vf is None else own.after(offsets[spec.name] + (spec.vf.count - 1) * spec.vf.stride)


def _first_offset(physical: PciAddress, vf: VfSpec, taken: AbstractSet[PciAddress]) -> int:
    """The first offset with room for the virtual functions of a physical one. Raises ValueError when there is
    none."""
    offset = FIRST_OFFSET
    while True:
        places = _places(physical, offset, vf)
        met = next((index for index in reversed(range(vf.count)) if places[index] in taken), None)
        if met is None:
            return offset
        offset += met + 1 if vf.stride == 1 else 1  # others of stride 1 would meet it, too


def _places(physical: PciAddress, offset: int, vf: VfSpec) -> list[PciAddress]:
    try:
        return [physical.after(offset + index * vf.stride) for index in range(vf.count)]
    except ValueError as error:
        raise ValueError(f"no room for {vf.count} virtual functions behind {physical}") from error


class VfLayout:
    """The virtual functions of one physical function: ``total`` of type ``type``, the first ``offset``
    routing ids behind it, the others ``stride`` apart.

    ``vectors`` is the size of the MSI-X table that each can have, 0 without MSI-X. Layouts are equal if the
    physical function is the same with both.
    """

    __slots__ = ("_model", "_physical", "offset", "places", "spec", "total", "traits", "type")

    def __init__(self, spec: FunctionSpec, offset: int, aperture: Aperture) -> None:
        """For a function that has virtual ones. Raises ValueError for a model that cannot be that of a
        virtual function."""
        assert spec.vf is not None
        self.spec, self.total, self.offset = spec.vf, spec.vf.count, offset
        self.type = vf_type(spec, spec.vf)
        self._physical = PciAddress.parse(spec.name)
        self._model = virtual_model(self.type.model)
        self._check(spec)
        self.traits = traits_of(self._model, self.type.memory, self.type.options, self.spec.texts)
        wanted = {**self.traits.wanted, **({} if spec.model is None else spec.model.vf_addresses)}
        self.places = {
            index: (aperture.take(bar, self.total, wanted.get(index, 0)), bar)
            for index, bar in self.traits.bars.items()
        }
        if self.spec.vectors and not self.vectors:
            raise ValueError("vectors are shared out among functions with MSI-X, and this model has none")

    @property
    def _shown(self) -> tuple[object, ...]:
        """What the physical function shows of it."""
        places = ((index, base, bar.size, bar.flags) for index, (base, bar) in self.places.items())
        return self.total, self.offset, self.stride, self.device_id, *places

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VfLayout) and self._shown == other._shown

    def __hash__(self) -> int:
        return hash(self._shown)

    @property
    def vectors(self) -> int:
        """The size of the MSI-X table that each can have, 0 without MSI-X."""
        return self.traits.msix_vectors

    @property
    def stride(self) -> int:
        """Routing ids from each to the next."""
        return self.spec.stride

    @property
    def model(self) -> type[PciDevice]:
        """The model of each."""
        return self._model

    @property
    def device_id(self) -> int:
        """The device id of all of them. Their vendor id is the physical function's."""
        return self._model.identity.device

    def address(self, index: int) -> PciAddress:
        """Where virtual function ``index`` is."""
        return self._physical.after(self.offset + index * self.stride)

    def make(self, name: str, index: int) -> PciDevice:
        """The device of virtual function ``index``, which is called ``name``, with its BARs at their
        addresses."""
        type_, places = self.type, Decided(self.places_of(index))
        return make_device(self._model, name, type_.memory, type_.options, self.spec.texts, places)

    def places_of(self, index: int) -> list[int]:
        """The addresses of the BARs of virtual function ``index``, in their order."""
        return [base + index * bar.size for base, bar in self.places.values()]

    def capability(self) -> ExtendedCapability:
        """The SR-IOV capability of the physical function."""
        bars = [0] * regs.STD_NUM_BARS
        for index, (base, bar) in self.places.items():
            bars[index] |= base & 0xFFFFFFFF | bar.flags
            if bar.mem64:
                bars[index + 1] = base >> 32
        return single_root_io(self.total, self.offset, self.stride, self.device_id, bars)

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
        self._model.validate_texts(self.spec.texts)


class FunctionWithVfs(ExpressFunction):
    """Mixed into a model: a physical function that has virtual functions."""

    __slots__ = ()
    EXTENDED = (alternative_routing(),)
    LAYOUT_OF_VFS: ClassVar[VfLayout]

    def _config_space(self) -> ConfigSpace:
        """The SR-IOV capability of one that was captured is made to fit."""
        space = super()._config_space()
        place, body = space.extended(ExtCapId.SRIOV), self.LAYOUT_OF_VFS.capability().body
        for offset, width in _OF_LAYOUT:
            if offset >= regs.SRIOV_BAR and not self.LAYOUT_OF_VFS.places:
                continue  # a text of lspci does not say how large they are
            space.preset(place + offset, width, int.from_bytes(body[offset - 4 :][:width], "little"))
        return space

    def resource_rows(self) -> list[ResourceRow]:
        rows = super().resource_rows()
        for index, row in self.LAYOUT_OF_VFS.rows():
            rows[index] = row
        return rows


@memoized(MOST_MODELS)
def physical_model(model: type[PciDevice], layout: VfLayout) -> type[PciDevice]:
    """``model`` with SR-IOV: the same class for a function that is removed and found again."""
    extended = (*FunctionWithVfs.EXTENDED, layout.capability())
    return mixed(FunctionWithVfs, model, {"EXTENDED": extended, "LAYOUT_OF_VFS": layout})
