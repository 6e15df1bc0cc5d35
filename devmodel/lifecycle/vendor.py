# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's vendor-specific VFIO: virtual functions that the host driver keeps, and gives to clients as vGPUs.

There are no mediated devices. A virtual function that is bound to the host driver of its GPU is a device of
VFIO. It cannot be used until it has a type. The type decides the model that clients get; what the host sees
of the function stays as it is.

State: the lifecycle thread's, under ``Lab.lock``. Whether a client has a vGPU open, its type, and the making
of its model are under the group's lock too. Source: the files that NVIDIA's driver has in sysfs since Linux
6.8, as its tools and the documents of projects that use them describe them.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from devmodel.calls.point import CallPoint
from devmodel.device.base import Device
from devmodel.device.pci import PciDevice
from devmodel.ida import Ida
from devmodel.iommufd.hwinfo import UnitFacts
from devmodel.lifecycle.binding import DriverCore
from devmodel.lifecycle.change import lifecycle_change
from devmodel.lifecycle.departed import Departed
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.physical import PhysicalParent, VirtualFunction
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import Framework, PlacementMode, TypeSpec
from devmodel.lifecycle.vgpuplaces import VgpuPlaces
from devmodel.vfio.group import Assignable
from devmodel.vfio.lingering import InUse, check_clients

NOT_APPLICABLE = "Not Applicable"
MOST_PARAMS = 1024
"""Bytes of ``vgpu_params``."""
_HEADER = "ID    : vGPU Name\n"
"""The first line of a catalogue."""


class VendorVgpu(Assignable):
    """What clients open of a virtual function that the host driver keeps: a vGPU of ``type``, None before it
    has one. ``parent`` is the GPU that it takes its share from."""

    __slots__ = ("_device", "changing", "function", "params", "parent", "type", "vfio_minor", "warm_update")
    emulated_iommu = False

    def __init__(self, function: VirtualFunction, parent: PhysicalParent, minor: int) -> None:
        """It joins the function's group later, by :meth:`join`."""
        self.function, self.parent = function, parent
        self.vfio_minor: int | None = minor
        self.type: TypeSpec | None = None
        self.params = ""
        """What was written to ``vgpu_params``: for the vGPU's driver, which does not read it here."""
        self.warm_update = False
        self.changing = False
        """Whether its type is about to change. Nobody can open it meanwhile. Under the group's lock."""
        self._device: Device | None = None
        super().__init__(function.name, function.group, joined=False)

    @property
    def device(self) -> Device:
        """The model of its type, made at the first call. Without a type a device that is gone."""
        made = self._device
        return made if made is not None else self._make()

    @property
    def share(self) -> Share:
        """What it has of the GPU. Raises ``OSError(ENXIO)`` without a type. Any thread."""
        return Share.of(check_typed(self))

    @property
    def made(self) -> Device | None:
        """The model, None if nothing has used it yet. Any thread."""
        return self._device

    @property
    def model(self) -> type[PciDevice] | None:
        """The class of its model, also while it has no model yet; None without a type. Any thread."""
        made, type_ = self._device, self.type
        if type_ is None:
            return None
        return type(made) if isinstance(made, PciDevice) else type_.model

    @property
    def unit(self) -> UnitFacts | None:
        return self.function.unit

    def hold(self) -> None:
        with self.group.lock:
            self._check_unchanging()
            super().hold()

    def first_opened(self) -> None:
        self._check_unchanging()  # a file that was open before may be bound only now
        if self.type is None:
            raise OSError(errno.ENODEV, f"{self.name} has no type of vGPU")

    def check_idle(self) -> None:
        """Raise :class:`InUse` while a client uses it: it is open by its group, or bound. Under the group's
        lock."""
        if not self.users and self.binding is None:
            return
        file = self.group.opened
        clients = [each.client for each in self.cdevs]
        check_clients(self.group, clients if file is None else [*clients, file.client])
        raise InUse(errno.EBUSY, f"{self.name} is in use")

    def _check_unchanging(self) -> None:
        if self.changing:
            raise OSError(errno.ENODEV, f"the type of {self.name} is about to change")

    def retype(self, type_: TypeSpec | None) -> Device | None:
        """Have another type, or none. The caller has made sure that no client opens it. Returns the model
        that it had."""
        with self.group.lock:
            self.type, before, self._device = type_, self._device, None
        return before

    def _make(self) -> Device:
        with self.group.lock:
            if self._device is None:
                self._device = self._blank() if self.type is None else self._model(self.type)
            return self._device

    def _model(self, type_: TypeSpec) -> Device:
        share = Share.of(type_)
        made = type_.model(self.name, share.memory, share.options)
        made.tasks.host = self.parent.host
        made.attach_parent(self.parent.device)
        return made

    def _blank(self) -> Device:
        made = Device(self.name, (), ())
        made.close()
        return made


class VendorFramework:
    """The vGPUs of a lab whose GPUs have this framework."""

    def __init__(self, lock: threading.RLock, drivers: DriverCore, minors: Ida, departed: Departed) -> None:
        self._lock, self._drivers, self._minors, self._departed = lock, drivers, minors, departed
        self.retyped: Callable[[VendorVgpu], None] = _nobody_told
        """Is told that a vGPU has another model, or none. No client can open it meanwhile. An exception
        undoes the change to a type. Lifecycle thread, under ``Lab.lock``. Set by whoever shows the lab."""
        drivers.host_probes.append(self._probe)
        drivers.host_removes.append(self._remove)

    @property
    def calls(self) -> CallPoint:
        return self._drivers.calls

    # ---- the files of the directory `nvidia` ----

    def creatable(self, parent: PhysicalParent, vgpu: VendorVgpu | None = None) -> list[TypeSpec]:
        """The types that the GPU has room for; none for a vGPU that has a type."""
        with self._lock:
            if vgpu is not None and vgpu.type is not None:
                return []
            return [each.spec for each in parent.types.values() if has_room(parent, each.spec)]

    @lifecycle_change
    def set_type(self, vgpu: VendorVgpu, number: int) -> None:
        """Make it a vGPU of the type with this number, or with 0 none. After any error it is as it was.

        Raises ``OSError``: :class:`InUse` while a client uses it; ENODEV when it is gone or about to go;
        EPERM for a type while it has one, and for 0 while it has none; EIO for a type that the GPU does not
        have, or has no room for.
        """
        with self._lock:
            with vgpu.group.lock:
                if vgpu.gone or vgpu.leaving:
                    raise OSError(errno.ENODEV, f"{vgpu.name} is gone")
                vgpu.check_idle()
                if bool(number) is (vgpu.type is not None):
                    raise OSError(errno.EPERM, f"{vgpu.name} has {'a' if number else 'no'} type")
                vgpu.changing = True
            try:
                if number:
                    self._give(vgpu, self._find(vgpu.parent, number))
                else:
                    self._clear(vgpu)
            finally:
                vgpu.changing = False

    def set_params(self, vgpu: VendorVgpu, text: str) -> None:
        """Keep parameters of a vGPU, whatever they are. Blanks clear them.

        Raises ``OSError``: E2BIG for more than :data:`MOST_PARAMS` bytes, ENXIO without a type, EPERM while a
        client uses it.
        """
        with self._lock:
            if len(text) > MOST_PARAMS:
                raise OSError(errno.E2BIG, f"{len(text)} bytes of parameters")
            check_typed(vgpu)
            with vgpu.group.lock:
                if vgpu.users:
                    raise OSError(errno.EPERM, f"{vgpu.name} is in use")
            vgpu.params = text.strip()

    def move(self, vgpu: VendorVgpu, start: int) -> None:
        """Move a vGPU to another place on the GPU.

        Raises ``OSError``: ENXIO without a type, :class:`InUse` while a client uses it, and as
        :meth:`VgpuPlaces.move`.
        """
        with self._lock:
            check_typed(vgpu)
            with vgpu.group.lock:
                vgpu.check_idle()
            places_of(vgpu.parent).move(vgpu, start)

    def set_mode(self, parent: PhysicalParent, mode: PlacementMode) -> None:
        """Choose which vGPUs can be beside one another. Raises ``OSError`` as :attr:`VgpuPlaces.mode`."""
        with self._lock:
            places_of(parent).mode = mode

    def close(self) -> None:
        """Close every model, held or not. For the end of the process."""
        for function in self._drivers.functions.values():
            vgpu = vgpu_of(function)
            if vgpu is not None:
                _close(vgpu.made)

    # ---- drivers ----

    def _probe(self, function: PciFunction, driver: str, undo: ExitStack) -> None:
        """The host driver takes a function: it registers a virtual one of its GPU with VFIO."""
        parent = vendor_parent(function)
        if parent is None or not parent.has_host_driver or driver != parent.spec.driver:
            return
        self._drivers.check_iommu(function)
        assert isinstance(function, VirtualFunction)
        minor = function.vfio_minor = self._minors.take()
        undo.callback(self._drivers.free_minor, function)
        vgpu = function.vgpu = VendorVgpu(function, parent, minor)
        undo.callback(setattr, function, "vgpu", None)
        vgpu.join()
        undo.callback(vgpu.withdraw)

    def _remove(self, function: PciFunction) -> None:
        """The host driver has left a function. No client uses it, or it has vanished."""
        vgpu = vgpu_of(function)
        if vgpu is not None:
            vgpu.function.vgpu = None
            if vgpu.made is not None and vgpu.made.vanished:
                self._departed.add(vgpu, lambda: _close(self._take_back(vgpu)))
                return
            if not vgpu.gone:
                vgpu.withdraw()
            _close(self._take_back(vgpu))

    # ---- types ----

    def _find(self, parent: PhysicalParent, number: int) -> TypeSpec:
        found = next((each.spec for each in parent.types.values() if each.spec.number == number), None)
        if found is None or not has_room(parent, found):
            raise OSError(errno.EIO, f"{parent.name} cannot make a vGPU of type {number}")
        return found

    def _give(self, vgpu: VendorVgpu, type_: TypeSpec) -> None:
        parent, share = vgpu.parent, Share.of(type_)
        with ExitStack() as undo:
            places_of(parent).take(vgpu, type_)
            undo.callback(places_of(parent).give, vgpu)
            parent.charge(share)
            undo.callback(parent.refund, share)
            blank = vgpu.retype(type_)
            undo.callback(vgpu.retype, None)
            self.retyped(vgpu)
            undo.pop_all()
        _close(blank)

    def _clear(self, vgpu: VendorVgpu) -> None:
        before = self._take_back(vgpu)
        try:
            self.retyped(vgpu)
        finally:
            _close(before)

    def _take_back(self, vgpu: VendorVgpu) -> Device | None:
        """Take the type back, with the share and the place. Returns the model."""
        if vgpu.type is not None:
            places_of(vgpu.parent).give(vgpu)
            vgpu.parent.refund(Share.of(vgpu.type))
        vgpu.params, vgpu.warm_update = "", False
        return vgpu.retype(None)


def catalogue(types: Iterable[TypeSpec]) -> str:
    """The text of ``creatable_vgpu_types``: a header, and a line for each type."""
    lines = (f"{each.number:<5} : {each.pretty_name or each.name}\n" for each in types)
    return "".join([_HEADER, *lines])


def vendor_parent(function: PciFunction) -> PhysicalParent | None:
    """The GPU of this framework that a virtual function is of, None for any other function."""
    parent = function.parent if isinstance(function, VirtualFunction) else None
    return parent if parent is not None and parent.spec.framework is Framework.NVIDIA else None


def vgpu_of(function: PciFunction) -> VendorVgpu | None:
    """What clients open of a function while its host driver keeps it; None for any other function."""
    found = function.vgpu if isinstance(function, VirtualFunction) else None
    return found if isinstance(found, VendorVgpu) else None


def places_of(parent: PhysicalParent) -> VgpuPlaces:
    """The places on a GPU of this framework. Raises ``OSError(ENODEV)`` for another parent."""
    if parent.places is None:
        raise OSError(errno.ENODEV, f"{parent.name} has another framework")
    return parent.places


def has_room(parent: PhysicalParent, spec: TypeSpec) -> bool:
    """Whether the GPU has room for another vGPU of this type."""
    return parent.room_for(Share.of(spec)) > 0 and places_of(parent).room_for(spec) > 0


def check_typed(vgpu: VendorVgpu) -> TypeSpec:
    """The type of a vGPU. Raises ``OSError(ENXIO)`` while it has none."""
    if vgpu.type is None:
        raise OSError(errno.ENXIO, f"{vgpu.name} has no type")
    return vgpu.type


def _nobody_told(vgpu: VendorVgpu) -> None:
    return


def _close(device: Device | None) -> None:
    if device is not None:
        device.close()
