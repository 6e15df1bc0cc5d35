# SPDX-License-Identifier: Apache-2.0
"""Devices that are bound to a context: a physical function by a device object, a mediated device by an access
object, as the kernel has it.

A physical function attaches to an HWPT, or to an IOAS, which gives it an automatic HWPT. A mediated device
attaches to an IOAS. Another attach replaces the first; when it fails, the first one stays. All functions of
an IOMMU group attach to the same HWPT (:mod:`devmodel.iommufd.devicegroup`).

State: what a device is attached to changes under the device's turn, that of its group for a function, which
only threads that may wait take, and at the end, when no call on the device's file is under way. Ids and
references are under
``ObjectTable.lock``. Source: <linux/vfio.h> (VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_ATTACH_IOMMUFD_PT),
<linux/iommufd.h>, Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import errno
import threading
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from devmodel.iommu.api import AskPages, DmaUser, PageAnswer, PageRequest, PageResponse
from devmodel.iommu.backend import PinningBackend
from devmodel.iommu.dmaspace import DmaSpace
from devmodel.iommufd.context import Context
from devmodel.iommufd.devicegroup import DeviceGroup, Translation
from devmodel.iommufd.hwinfo import IommuDevice, UnitFacts
from devmodel.iommufd.hwpt import Hwpt, hwpt_for
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.objects import IommufdObject, ObjectType

_RANGES = PinningBackend.iova_ranges
MSI_WINDOW = ((_RANGES[0][1] + 1, _RANGES[1][0] - 1),)
"""The iovas, first and last, that a function cannot use, because writes there are interrupts."""


class Bindable(Protocol):
    """A device that can be bound, as iommufd sees it."""

    name: str

    @property
    def group(self) -> object:
        """Its IOMMU group."""

    @property
    def emulated_iommu(self) -> bool:
        """Whether it is mediated: it reaches memory through its driver, not by DMA of its own."""

    @property
    def unit(self) -> UnitFacts | None:
        """The IOMMU unit that it is behind. None for a mediated device and a function without an IOMMU."""

    @property
    def ats(self) -> bool:
        """Whether it can have translations cached."""

    def check_page_requests(self) -> None:
        """As :meth:`IommuDevice.check_page_requests`."""

    def ask_pages_by(self, ask: AskPages | None) -> None:
        """Ask for pages by ``ask`` from now on. Does not wait."""

    @property
    def dma_user(self) -> DmaUser:
        """Who is told of unmaps of pages that are pinned for it."""

    def connect(self, space: DmaSpace | None) -> None:
        """Do DMA through ``space`` from now on. Does not wait."""

    def settle(self) -> None:
        """Wait for the DMA that is under way. ``OSError(EBUSY)`` when it does not end."""

    def unpin_all(self) -> None:
        """Have the model unpin all its pages."""


class BoundDevice(IommufdObject):
    """A device that is bound to ``context``, until :meth:`unbind`. DESTROY of it is EBUSY."""

    __slots__ = ("bindable", "context")

    def __init__(self, context: Context, bindable: Bindable) -> None:
        """For :func:`bind`."""
        super().__init__()
        self.context, self.bindable = context, bindable
        self.users = 1

    @property
    def domain(self) -> object:
        """What its DMA goes through, as its IOMMU sees it. None while that lets none pass. Any thread."""
        return None

    @abstractmethod
    def attach(self, pt_id: int) -> int:
        """ATTACH: do DMA through object ``pt_id`` from now on. Returns the id to report. May wait for
        clients, whose memory is pinned, and for DMA under way.

        Raises ``OSError``, with the device attached as before: ENOENT, EINVAL (no such object, or not one to
        attach to), EADDRINUSE (a mapping that the device cannot reach), ENOMEM, EFAULT (the memory of a
        mapping cannot be pinned), EBUSY (a DMA does not end).
        """

    @abstractmethod
    def detach(self) -> None:
        """DETACH: do no DMA from now on. Without an attachment it does nothing. May wait for DMA under way.
        Raises ``OSError(EBUSY)`` when one does not end; then the device is attached as before."""

    def begin(self) -> None:
        """It is an object of the context now. For :func:`bind`."""
        return

    @abstractmethod
    def _end(self) -> None:
        """Detach, without waiting for DMA that has begun."""

    def unbind(self) -> None:
        """The device's file is closed, and no call on it is under way. Does not wait."""
        try:
            self._end()
        finally:
            objects = self.context.objects
            with objects.lock:
                self.users -= 1
                objects.remove(self)
            self.context.put()


class Access(BoundDevice):
    """A mediated device that is bound. ``ioas`` is what it is attached to; to that it is an
    :class:`devmodel.iommu.api.IommuGroup`."""

    __slots__ = ("ioas", "turn")
    type = ObjectType.ACCESS
    emulated = True

    def __init__(self, context: Context, bindable: Bindable) -> None:
        super().__init__(context, bindable)
        self.turn = threading.Lock()
        self.ioas: Ioas | None = None

    @property
    def number(self) -> int:
        """Its id."""
        return self.id

    def attach(self, pt_id: int) -> int:
        objects = self.context.objects
        with self.turn, objects.using(pt_id, Ioas) as ioas:
            if ioas is not self.ioas:
                with ExitStack() as undo:
                    ioas.add_access(self, self.bindable.dma_user)
                    objects.hold(ioas)
                    undo.callback(self._drop, ioas)
                    self._leave()
                    undo.pop_all()
                self._enter(ioas)
        return pt_id

    def detach(self) -> None:
        with self.turn:
            self._leave()

    def _enter(self, ioas: Ioas) -> None:
        self.ioas = ioas
        self.bindable.connect(ioas.space)

    def _leave(self) -> None:
        ioas = self.ioas
        if ioas is None:
            return
        self.bindable.connect(None)
        self.bindable.unpin_all()
        try:
            self.bindable.settle()
        except OSError:
            self.bindable.connect(ioas.space)
            raise
        self.ioas = None
        self._drop(ioas)

    def _end(self) -> None:
        ioas, self.ioas = self.ioas, None
        if ioas is not None:
            self.bindable.connect(None)
            self.bindable.unpin_all()
            self._drop(ioas)

    def _drop(self, ioas: Ioas) -> None:
        ioas.remove_access(self, self.bindable.dma_user)
        self.context.objects.drop(ioas)


class PhysicalDevice(BoundDevice, IommuDevice):
    """A physical function that is bound. ``hwpt`` is what it is attached to itself; it does DMA where its
    group does."""

    __slots__ = ("_group", "_reserved", "hwpt")
    type = ObjectType.DEVICE

    def __init__(self, context: Context, bindable: Bindable) -> None:
        super().__init__(context, bindable)
        self.hwpt: Hwpt | None = None
        self._reserved: object = None
        """In whose name the IOAS of the HWPT keeps the iovas that the device cannot use."""
        self._group = DeviceGroup()

    def begin(self) -> None:
        self._group = self.context.groups.enter(self.bindable.group, self.bindable)
        self.bindable.ask_pages_by(self._ask_pages)

    @property
    def ats(self) -> bool:
        return self.bindable.ats

    def check_page_requests(self) -> None:
        self.bindable.check_page_requests()

    def _ask_pages(self, request: PageRequest, answer: PageAnswer) -> None:
        """The function asks for pages. Nobody can be asked while no HWPT with a fault queue is there."""
        with self._group.lock:  # it is not detached meanwhile
            hwpt = self.hwpt
            if hwpt is not None and hwpt.faults is not None:
                hwpt.faults.ask(self, hwpt, request, answer)
                return
        answer(PageResponse.INVALID)

    @property
    def unit(self) -> UnitFacts | None:
        return self.bindable.unit

    @property
    def domain(self) -> object:
        return self._group.hwpt

    @property
    def reserved_iovas(self) -> tuple[tuple[int, int], ...]:
        """The iovas, first and last, that it cannot use."""
        return () if self.unit is None else MSI_WINDOW

    def attach(self, pt_id: int) -> int:
        """As :meth:`BoundDevice.attach`, and EINVAL when another device of the group is attached to something
        else. A device that is attached takes the others that are attached along."""
        group = self._group
        with group.turn, self.context.objects.using(pt_id, IommufdObject) as found:
            ioas = self._ioas_of(found)
            with group.lock:
                before = group.hwpt
                moving = [each for each in group.attached if isinstance(each, PhysicalDevice)]
            if self not in moving:
                self._check_shared(found, before)
                moving = [self]
            with ExitStack() as undo:
                owners = [each._reserve(ioas, undo) for each in moving]
                hwpt = self._joined(found, undo)
                for each in moving:
                    if each is not self:
                        hwpt.join(each)
                        undo.callback(hwpt.leave, each)
                if hwpt is self.hwpt:
                    return hwpt.id
                self._move(hwpt, before)
                undo.pop_all()
            self._enter(hwpt, moving, owners)
            return hwpt.id

    def detach(self) -> None:
        """As :meth:`BoundDevice.detach`. The device goes on doing DMA while another one of the group is
        attached."""
        group = self._group
        with group.turn:
            hwpt = self.hwpt
            if hwpt is None:
                return
            with group.lock:
                alone = group.attached == {self}
            if alone:
                self._move(None, hwpt)
            self._end()

    def unbind(self) -> None:
        self.bindable.ask_pages_by(None)
        try:
            super().unbind()
        finally:
            self.context.groups.leave(self.bindable.group, self.bindable)

    def _end(self) -> None:
        group = self._group
        with group.lock:
            hwpt, self.hwpt = self.hwpt, None
            group.attached.discard(self)
            if not group.attached:
                group.move(None)
        if hwpt is not None:
            self._drop(hwpt, self._reserved)

    # ---- with the group's turn ----

    def _ioas_of(self, found: IommufdObject) -> Ioas:
        if isinstance(found, Ioas):
            return found
        if isinstance(found, Hwpt):
            return found.ioas
        raise OSError(errno.EINVAL, f"object {found.id} is a {found.type.value}: nothing to attach to")

    def _check_shared(self, found: IommufdObject, hwpt: object) -> None:
        """Raise ``OSError(EINVAL)`` unless the device attaches to the HWPT that others of its group have."""
        if isinstance(hwpt, Hwpt) and found is not hwpt and not (hwpt.auto and found is hwpt.ioas):
            raise OSError(errno.EINVAL, "another device of the group is attached to something else")

    def _reserve(self, ioas: Ioas, undo: ExitStack) -> object:
        owner = object()
        ioas.reserve(owner, self.reserved_iovas)
        undo.callback(ioas.unreserve, owner)
        return owner

    def _joined(self, found: IommufdObject, undo: ExitStack) -> Hwpt:
        if isinstance(found, Hwpt):
            hwpt = found
            hwpt.join(self)
        else:
            hwpt = hwpt_for(self._ioas_of(found), self)
        undo.callback(hwpt.leave, self)
        return hwpt

    def _move(self, hwpt: Hwpt | None, before: Translation | None) -> None:
        """Have the group do DMA through ``hwpt``, and wait for what has begun. When some does not end, the
        group stays where it was: ``OSError(EBUSY)``."""
        group = self._group
        with group.lock:
            group.move(hwpt)  # no DMA is refused meanwhile
        try:
            group.settle()
        except OSError:
            with group.lock:
                group.move(before if group.attached else None)
            raise

    def _enter(self, hwpt: Hwpt, moving: Sequence[PhysicalDevice], owners: Sequence[object]) -> None:
        """The devices are attached to ``hwpt``, unless one of them has ended meanwhile."""
        group, former = self._group, list[tuple[PhysicalDevice, Hwpt | None, object]]()
        with group.lock:
            for each, owner in zip(moving, owners, strict=True):
                if each is self or each in group.attached:
                    former.append((each, each.hwpt, each._reserved))
                    each.hwpt, each._reserved = hwpt, owner
                    group.attached.add(each)
                else:
                    former.append((each, hwpt, owner))
            if group.hwpt is not hwpt:
                group.move(hwpt)  # the last of the others has ended
        for each, left, owner in former:
            if left is not None:
                each._drop(left, owner)

    def _drop(self, hwpt: Hwpt, owner: object) -> None:
        ioas = hwpt.ioas
        hwpt.leave(self)
        ioas.unreserve(owner)


def bind(context: Context, bindable: Bindable) -> BoundDevice:
    """Bind a device to ``context``. Does not wait.

    Raises ``OSError``: EBADFD when the context has ended, ENOMEM as :meth:`ObjectTable.add`.
    """
    context.get()
    try:
        made = (Access if bindable.emulated_iommu else PhysicalDevice)(context, bindable)
        context.objects.add(made)
    except BaseException:
        context.put()
        raise
    made.begin()
    return made
