# SPDX-License-Identifier: Apache-2.0
"""An open VFIO device: its ioctls, and its regions at index << 40 (<linux/vfio.h>, vfio-pci).

The meaning of each ioctl is in devmodel.vfio: info, irqset, features, gfx and vfio_pci.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ctypes import c_int32
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from devmodel.device.base import Device
from devmodel.device.display import Plane
from devmodel.region.backing import REGION_SHIFT
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.features import FeatureData, GivesDescriptor, WakeUp, checked, feature, mig_state
from devmodel.vfio.flags import DeviceFeature
from devmodel.vfio.gfx import display_of, is_probe, shown_plane
from devmodel.vfio.group import Assignable, Group
from devmodel.vfio.info import device_info, irq_info, region_info
from devmodel.vfio.irqset import IrqData, IrqRequest, set_irqs
from devmodel.vfio.lingering import Renewing
from devmodel.vfio.migration import change_state, migrates
from devmodel.vfio.vfio_pci import (
    Dependent,
    HotResetInfo,
    IoEventfdRequest,
    driven,
    hot_reset,
    hot_reset_info,
    ioeventfd,
    reset,
)
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import Kind, row_of
from ioctl_shim.client import Caller
from ioctl_shim.lane import WHOLE, Opened, Shut, SizedIoctl
from vfsfuse.vfio.chain import RegionFacts, irq_flags, region_facts, reply
from vfsfuse.vfio.described import tell_device
from vfsfuse.vfio.eventfds import borrow, lender
from vfsfuse.vfio.fops import Request, Services, VfioFops, answers
from vfsfuse.vfio.givenfiles import device_state_file
from vfsfuse.vfio.group import GroupFops
from vfsfuse.vfio.handover import Given, GivingFops, HandOver, gives, refused
from vfsfuse.vfio.port import Port

D = TypeVar("D", bound=DeviceFile)
_FEATURE = row_of(Kind.DEVICE, "VFIO_DEVICE_FEATURE")
_SET_STATE = DeviceFeature.SET | DeviceFeature.MIG_DEVICE_STATE
MIG_STATE = int(ffi.sizeof("struct vfio_device_feature_mig_state"))
NO_HOTSPOT = 0xFFFFFFFF
PROMPT_VECTORS = 64
"""How many vectors SET_IRQS sets up on the pump: four system calls each, some 5 us."""
PLANE: Sequence[str] = (
    *("drm_format", "drm_format_mod", "width", "height", "stride", "size"),
    *("x_pos", "y_pos", "x_hot", "y_hot", "region_index"),
)


class DeviceFops(GivingFops):
    """One open of a device, through its group or through dev/vfio/devices/vfio<N>.

    `can_map` has the indexes of regions that the file can map, as far as they are memory; `mappable`
    has those of which the client hears. `released` is called on the device lane when the last descriptor
    of the open is closed."""

    __slots__ = ("can_map", "device", "mappable", "opened", "regions", "released", "services")
    kind = Kind.DEVICE
    kvm_tracks = True

    def __init__(
        self,
        opened: DeviceFile,
        services: Services,
        mappable: frozenset[int],
        released: Callable[[], None],
    ) -> None:
        self.opened, self.services = opened, services
        self.device: Device = opened.device
        self.can_map, self.released = mappable, released
        self.mappable = frozenset[int]() if services.calls.hides_mmap else mappable
        super().__init__(services.offer)
        self.regions: dict[int, RegionFacts] = {}
        """The answers for regions that the client has asked for. They never change."""

    def ioctl(self, cmd: int, arg: int, tid: int, on_pump: int) -> int | None:
        self.device.check_present()
        return VfioFops.ioctl(self, cmd, arg, tid, on_pump)  # super() costs more

    def sized_ioctl(self, call: SizedIoctl) -> int:
        self.device.check_present()
        return super().sized_ioctl(call)

    def release(self) -> None:
        super().release()
        self.opened.close()
        self.released()

    @property
    def shut(self) -> Shut | None:
        """Keeps the regions closed as long as the client must not use the device."""
        return None

    @property
    def subject(self) -> str:
        return self.device.name

    @answers("VFIO_DEVICE_GET_INFO")
    def get_info(self, request: Request) -> int:
        info, found = request.argument.value, device_info(self.opened)
        info.flags = lib.VFIO_DEVICE_FLAGS_PCI if found.is_pci else 0
        info.flags |= lib.VFIO_DEVICE_FLAGS_RESET if found.resettable else 0
        info.num_regions, info.num_irqs = found.regions, found.irqs
        reply(request.argument, lib.VFIO_DEVICE_FLAGS_CAPS, ())  # no capability fits the models
        return 0

    @answers("VFIO_DEVICE_GET_REGION_INFO")
    def get_region_info(self, request: Request) -> int:
        argument = request.argument
        info = argument.value
        index = info.index
        facts = self.regions.get(index)
        if facts is None:
            facts = self.regions[index] = region_facts(
                region_info(self.device, index, index in self.mappable)
            )
        info.offset = index << REGION_SHIFT
        info.size, info.flags, caps = facts
        reply(argument, lib.VFIO_REGION_INFO_FLAG_CAPS, caps)
        return 0

    @answers("VFIO_DEVICE_GET_IRQ_INFO")
    def get_irq_info(self, request: Request) -> int:
        info = request.argument.value
        found = irq_info(self.device, info.index)
        info.flags, info.count = irq_flags(found), found.count
        request.argument.reply()
        return 0

    @answers("VFIO_DEVICE_SET_IRQS")
    def set_irqs(self, request: Request) -> int | None:
        header = request.argument.value
        if request.on_pump and header.count > PROMPT_VECTORS:
            return None
        asked = IrqRequest(header.flags, header.index, header.start, header.count)
        data = IrqData(request.room, request.read_behind, partial(_descriptors, request))
        set_irqs(self.device, asked, data, partial(lender, request.caller), self.services.watcher)
        return 0

    @answers("VFIO_DEVICE_RESET")
    def reset(self, request: Request) -> int:
        reset(self.opened)
        return 0

    @answers("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO")
    def get_hot_reset_info(self, request: Request) -> int:
        found, argument = hot_reset_info(self.opened), request.argument
        info = argument.value
        room = (argument.argsz - argument.row.size) // ffi.sizeof("struct vfio_pci_dependent_device")
        info.count = len(found.functions)
        info.flags = _ownership(found) if info.count <= room else 0
        argument.reply(b"".join(_dependent(each) for each in found.functions[:room]))
        if info.count > room:
            raise OSError(errno.ENOSPC, f"{info.count} devices are affected, and there is room for {room}")
        return 0

    @answers("VFIO_DEVICE_PCI_HOT_RESET")
    def hot_reset(self, request: Request) -> int:
        driven(self.opened)
        asked = request.argument.value
        hot_reset(self.opened, asked.flags, asked.count, partial(self._groups, request))
        return 0

    @answers("VFIO_DEVICE_IOEVENTFD")
    def ioeventfd(self, request: Request) -> int:
        driven(self.opened)
        asked = request.argument.value
        what = IoEventfdRequest(asked.flags, asked.offset, asked.data, asked.fd)
        ioeventfd(self.opened, what, partial(borrow, request.caller), self.services.watcher)
        return 0

    @answers("VFIO_DEVICE_FEATURE")
    def feature(self, request: Request) -> int | None:
        flags = request.argument.value.flags
        if request.on_pump and flags == _SET_STATE and migrates(self.device):
            return None  # it waits for the DMA of the device
        payload = PAYLOADS.get(flags & DeviceFeature.MASK)
        complete = payload is None or request.room >= payload[0]
        data = FeatureData(complete, lambda: None if payload is None else payload[1](request, payload[0]))
        try:
            answer = feature(self.opened, flags, data, partial(borrow, request.caller))
        except GivesDescriptor:
            raise refused(request) from None
        if answer:
            request.caller.write(request.arg + request.row.minsz, answer)
        return 0

    @gives("VFIO_DEVICE_FEATURE")
    def give_feature(self, asked: HandOver) -> Given:
        """SET MIG_DEVICE_STATE."""
        self.device.check_present()
        head = asked.struct_of(_FEATURE)
        if head.flags != _SET_STATE:
            raise OSError(errno.ENOTTY, f"no descriptor for DEVICE_FEATURE flags {head.flags:#x}")
        data = asked.data[_FEATURE.minsz :]
        checked(self.opened, head.flags, len(data) >= MIG_STATE)
        stream = change_state(self.device, int.from_bytes(data[:4], "little"))
        if stream is None:
            return Given(asked.data[: _FEATURE.minsz] + mig_state(self.opened))
        answer = asked.data[: _FEATURE.minsz] + mig_state(self.opened)[:4]
        return Given(answer, partial(device_state_file, stream))

    @answers("VFIO_DEVICE_BIND_IOMMUFD")
    def bind(self, request: Request) -> int:
        """A device that was opened through its group cannot be bound."""
        if not self.services.cdevs:
            raise OSError(errno.ENOTTY, "devices have no character devices of their own")
        check_bind(request)
        raise OSError(errno.EINVAL, f"{self.device.name} was opened through its group")

    @answers("VFIO_DEVICE_QUERY_GFX_PLANE")
    def query_plane(self, request: Request) -> int:
        display = display_of(self.device)
        argument = request.argument
        info = argument.value
        if is_probe(info.flags, display.plane_region in self.mappable):
            return 0
        plane = shown_plane(self.device, info.drm_plane_type)
        for name, value in zip(PLANE, _plane(plane), strict=True):
            setattr(info, name, value)
        argument.reply()
        return 0

    def _groups(self, request: Request, count: int) -> list[Group]:
        return [self._group(request.caller, number) for number in _descriptors(request, count)]

    def _group(self, caller: Caller, number: int) -> Group:
        found = self.services.find_file(caller, number)
        if not isinstance(found, GroupFops) or found.file.revoked:
            raise OSError(errno.EINVAL, f"descriptor {number} is not a VFIO group, or of no use any more")
        return found.file.group


def open_device(
    device: Assignable,
    make: Callable[[], D],
    fops: Callable[[D, Services, frozenset[int], Callable[[], None]], DeviceFops],
    port: Callable[[], Port],
    services: Services,
    may_wait: bool,
    released: Callable[[], None] | None = None,
) -> Opened:
    """The answer to an open(2) of `device`, which `make` opens.  `fops` is the class of the file.  `released`
    is called when the file is closed.

    Raises OSError as open(2), and MustWait when the thread must not wait and the device's memory has to be
    moved first (vfsfuse.vfio.ownfiles), or the device is about to get another model."""
    device.await_renewal(may_wait)
    way = port()
    own = way.own
    own.open_device(may_wait)
    with ExitStack() as undo:
        undo.callback(own.close_device)
        try:
            opened = make()
        except Renewing:  # since the look a moment ago
            undo.close()
            return open_device(device, make, fops, port, services, may_wait, released)
        undo.callback(opened.close)
        memory, backing_id = way.memory(), way.take_backing()
        undo.pop_all()
    regions = opened.device.regions
    mappable = frozenset(range(len(regions))) - opened.device.backing.away if backing_id else frozenset()

    def ended() -> None:
        way.give_backing(backing_id)
        own.close_device()
        if released is not None:
            released()

    file = fops(opened, services, mappable, ended)
    if opened.started and services.calls.recorded:
        tell_device(services.calls, opened, mappable)
    submit = services.threads.submit if migrates(opened.device) else None  # give_feature may wait
    access = opened.assignable.access
    return Opened(file, memory, WHOLE, backing_id, regions=access, submit=submit, shut=file.shut)


def check_bind(request: Request) -> Any:
    """The struct of BIND_IOMMUFD.  Raises OSError: as `Request.argument`, EINVAL (flags, no descriptor)."""
    asked = request.argument.value
    if asked.flags & ~lib.VFIO_DEVICE_BIND_FLAG_TOKEN or asked.iommufd < 0:
        raise OSError(errno.EINVAL, f"BIND flags {asked.flags:#x}, descriptor {asked.iommufd}")
    return asked


def _descriptors(request: Request, count: int) -> list[int]:
    """The __s32 numbers behind the struct."""
    return list((c_int32 * count).from_buffer_copy(request.read_behind(4 * count)))


def _uuid(request: Request, size: int) -> UUID:
    return UUID(bytes=request.read_behind(size))


def _wake_up(request: Request, size: int) -> WakeUp:
    entry: Any = ffi.new("struct vfio_device_low_power_entry_with_wakeup *")
    ffi.memmove(entry, request.read_behind(size), size)
    return WakeUp(entry.wakeup_eventfd, entry.reserved)


def _state(request: Request, size: int) -> int:
    return int.from_bytes(request.read_behind(size)[:4], "little")


PAYLOADS: dict[int, tuple[int, Callable[[Request, int], object]]] = {
    DeviceFeature.PCI_VF_TOKEN: (16, _uuid),
    DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP: (
        int(ffi.sizeof("struct vfio_device_low_power_entry_with_wakeup")),
        _wake_up,
    ),
    DeviceFeature.MIGRATION: (8, lambda request, size: None),
    DeviceFeature.MIG_DEVICE_STATE: (MIG_STATE, _state),
}
"""Features with data: the number of bytes, and the function that decodes those of SET."""


def _ownership(found: HotResetInfo) -> int:
    """Flags of the info."""
    if not found.by_device:
        return 0
    owned = lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED if found.all_owned else 0
    return int(lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID | owned)


def _dependent(each: Dependent) -> bytes:
    place = each.address
    device = {"group_id": each.owner, "segment": place.segment, "bus": place.bus, "devfn": place.devfn}
    return bytes(ffi.buffer(ffi.new("struct vfio_pci_dependent_device *", device)))


def _plane(plane: Plane | None) -> Sequence[int]:
    """The values of the fields in PLANE.  A display that shows nothing has no format and no size.

    The struct has no offset.  A client such as QEMU maps the region from its start.  So it shows the start of
    the memory, even if the guest has panned.
    """
    if plane is None:
        return (0, 0, 0, 0, 0, 0, 0, 0, NO_HOTSPOT, NO_HOTSPOT, 0)
    size = -(-plane.size // mmap.PAGESIZE) * mmap.PAGESIZE
    shape = (plane.fourcc, 0, plane.width, plane.height, plane.stride, size)
    return (*shape, 0, 0, NO_HOTSPOT, NO_HOTSPOT, plane.region)
