# SPDX-License-Identifier: Apache-2.0
"""Physical PCI functions, their virtual functions, and the parent of vGPUs that a physical one may be.

State: as in devmodel.lifecycle.function. Source: Documentation/PCI/pci-iov-howto.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from uuid import UUID

from devmodel.device.pci import PciDevice, ResourceRow, show_multifunction
from devmodel.device.tasks import TaskHost
from devmodel.device.traits import Traits, make_device, traits_of
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.functionmodels import extended_model, integrated_model
from devmodel.lifecycle.mdev import Parent
from devmodel.lifecycle.pcicore import NO_NODE
from devmodel.lifecycle.spec import Framework, FunctionSpec, ParentSpec
from devmodel.lifecycle.vf import VfLayout, physical_model
from devmodel.pci.address import PciAddress
from devmodel.pci.capability import ExtendedCapability, access_control, serial_number
from devmodel.pci.config import Aperture, Decided
from devmodel.topology.placement import Placement
from devmodel.vfio.group import Assignable, Group
from devmodel.vfio.vfio_pci import VfioPciFunction
from devmodel.vfio.vftoken import VfToken


class PhysicalParent(Parent):
    """A parent that is a physical function: ``function``, such as a GPU."""

    __slots__ = ("function",)

    def __init__(self, spec: ParentSpec, function: PhysicalFunction, host: TaskHost | None) -> None:
        """For :class:`PhysicalFunction`."""
        super().__init__(spec, host)
        self.function = function

    @property
    def vgpus(self) -> int:
        if self.spec.framework is Framework.NVIDIA and self.places is not None:
            return len(self.places)
        return super().vgpus

    @property
    def device(self) -> PciDevice:
        return self.function.device

    @property
    def has_host_driver(self) -> bool:
        return self.function.driver == self.spec.driver

    @property
    def leaving(self) -> bool:
        return bool(self.function.leaving)


class PhysicalFunction(PciFunction):
    """A physical PCI function, such as a GPU or a network card.

    ``parent`` shares it among vGPUs, None for a function that has none. ``layout`` describes its virtual
    functions, None without SR-IOV; ``vfs`` has those that are enabled. A function with SR-IOV has a
    ``vf_token`` while it is bound to vfio-pci. ``autoprobe`` (the function's sriov_drivers_autoprobe) is
    whether drivers may be bound to its virtual functions without an override.
    """

    __slots__ = (
        "_multifunction",
        "_places",
        "autoprobe",
        "host",
        "layout",
        "parent",
        "spec",
        "vf_token",
        "vfs",
    )

    def __init__(
        self,
        spec: FunctionSpec,
        group: Group,
        aperture: Aperture,
        bus: list[VfioPciFunction] | None = None,
        host: TaskHost | None = None,
        offsets: Mapping[str, int] | None = None,
        buses: Placement | None = None,
    ) -> None:
        """``offsets`` is what :func:`devmodel.lifecycle.vf.place_vfs` gives, ``buses`` are those of the lab
        (None: bus 0 is a root bus). Raises ValueError when the model cannot be what the spec asks for."""
        self.spec, self.host = spec, host
        self.layout, model, traits = shape_of(spec, aperture, offsets, buses)
        address = PciAddress.parse(spec.name)
        self._multifunction = buses is not None and buses.multifunction(address)
        self._places = traits.place(aperture)
        self.vfs: list[VirtualFunction] = []
        self.vf_token: VfToken | None = None
        self.autoprobe = True
        super().__init__(address, group, model, traits, [] if bus is None else bus)
        self.core.numa_node = NO_NODE if spec.numa_node is None else spec.numa_node
        shared = spec.parent
        self.parent = None if shared is None else PhysicalParent(shared, self, host)

    def reshape(self, shape: Shape, places: tuple[int, ...]) -> PciDevice | None:
        """Be of another model, with virtual functions of another model, as :meth:`renew`."""
        self.layout, self._places = shape.layout, places
        return self.renew(shape.model, shape.traits)

    def relayout(self, layout: VfLayout) -> None:
        """Have virtual functions of another model. Those look the same from here: the layouts are equal."""
        self.layout = layout
        for each in self.model.__mro__:
            if "LAYOUT_OF_VFS" in vars(each):
                setattr(each, "LAYOUT_OF_VFS", layout)  # noqa: B010 # mypy does not know that it has one

    def _make(self) -> PciDevice:
        spec = self.spec
        places = Decided(self._places)
        device = make_device(self.model, spec.name, spec.memory, spec.options, spec.texts, places)
        device.tasks.host = self.host
        if self._multifunction:
            show_multifunction(device)
        return device

    def rows(self) -> Iterator[ResourceRow]:
        yield from self.traits.rows(self._places)
        if self.layout is not None:
            yield from (row for _, row in self.layout.rows())

    @property
    def host_driver(self) -> str | None:
        return self.spec.driver

    @property
    def own_vf_token(self) -> VfToken | None:
        return self.vf_token

    def check_token(self, token: UUID | None) -> None:
        if self.vf_token is not None:
            self.vf_token.check(token)
        elif token is not None:
            raise OSError(errno.EINVAL, "a VF token, but the function has no SR-IOV")


class Shape(NamedTuple):
    """What a physical function is made by: the layout of its virtual functions, its model with all that the
    lab adds, and the traits of that."""

    layout: VfLayout | None
    model: type[PciDevice]
    traits: Traits


def shape_of(
    spec: FunctionSpec,
    aperture: Aperture,
    offsets: Mapping[str, int] | None = None,
    buses: Placement | None = None,
) -> Shape:
    """The shape of a physical function. ``aperture`` gives the BARs of its virtual functions their addresses;
    other arguments, and errors, are as for :class:`PhysicalFunction`. Any thread."""
    if spec.model is None:
        raise ValueError(f"{spec.name} has no model")
    layout = VfLayout(spec, (offsets or {})[spec.name], aperture) if spec.vf is not None else None
    model = spec.model if layout is None else physical_model(spec.model, layout)
    extended = _extended(spec)
    if extended:
        model = extended_model(model, extended)
    address = PciAddress.parse(spec.name)
    if not address.bus if buses is None else buses.above(address) is None:
        model = integrated_model(model)
    return Shape(layout, model, traits_of(model, spec.memory, spec.options, spec.texts))


def _extended(spec: FunctionSpec) -> tuple[ExtendedCapability, ...]:
    """The extended capabilities that a spec asks for, besides those of the model."""
    found = [access_control()] if spec.acs else []
    if spec.serial is not None:
        found.append(serial_number(spec.serial))
    return tuple(found)


class VirtualFunction(PciFunction):
    """Virtual function ``index`` of a physical one.

    ``vectors`` is the size of its MSI-X table if the driver of the physical one shares vectors out, else 0.
    ``vgpu`` is what clients open of it while its host driver keeps it for them (devmodel.lifecycle.vendor).
    """

    __slots__ = ("index", "physical", "vectors", "vgpu")
    is_virtual = True

    def __init__(
        self,
        physical: PhysicalFunction,
        layout: VfLayout,
        index: int,
        group: Group,
        bus: list[VfioPciFunction],
    ) -> None:
        self.physical, self.index, self.vectors = physical, index, 0
        self.vgpu: Assignable | None = None
        super().__init__(layout.address(index), group, layout.model, layout.traits, bus)
        self.core.no_master()
        self.upstream = physical.upstream
        self.core.numa_node = physical.core.numa_node

    def check_page_requests(self) -> None:
        try:
            self.physical.check_page_requests()
        except OSError:
            super().check_page_requests()
        else:
            raise OSError(errno.EINVAL, f"{self.name} asks for pages through {self.physical.name}")

    def rows(self) -> Iterator[ResourceRow]:
        layout = self.physical.layout
        assert layout is not None
        return self.traits.rows(layout.places_of(self.index))

    def _make(self) -> PciDevice:
        layout = self.physical.layout
        assert layout is not None
        device = layout.make(self.name, self.index)
        device.tasks.host = self.physical.host
        device.attach_parent(self.physical.device)
        if self.vectors:
            device.size_msix(self.vectors)
        return device

    @property
    def parent(self) -> PhysicalParent | None:
        """The parent that it is a virtual function of, None for those of a function that is no parent."""
        return self.physical.parent

    @property
    def host_driver(self) -> str | None:
        return None if self.physical.spec.vf is None else self.physical.spec.vf.driver

    @property
    def probed(self) -> bool:
        return self.physical.autoprobe or self.driver_override is not None

    def does_dma(self, driver: str | None) -> bool:
        return self.vgpu is None and super().does_dma(driver)

    @property
    def assigned(self) -> Assignable | None:
        return super().assigned if self.vgpu is None else self.vgpu

    @property
    def probe_fails(self) -> bool:
        return self.physical.spec.vf is not None and self.index in self.physical.spec.vf.failing

    @property
    def token(self) -> VfToken | None:
        """The token that its users share with those of the physical function. None while that is not bound to
        vfio-pci."""
        return self.physical.vf_token

    @property
    def below_port(self) -> bool:
        return super().below_port and self.address.bus == self.physical.address.bus

    def check_token(self, token: UUID | None) -> None:
        if self.token is not None:
            self.token.check_user(token)
        elif token is not None:
            raise OSError(errno.EINVAL, "a VF token, but vfio-pci does not drive the physical function")

    def first_opened(self) -> None:
        if self.token is not None:
            self.token.count(1)
        super().first_opened()

    def last_closed(self) -> None:
        try:
            super().last_closed()
        finally:
            if self.token is not None:
                self.token.count(-1)
