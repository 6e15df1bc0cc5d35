# SPDX-License-Identifier: Apache-2.0
"""The ioctls of dev/iommu about hardware: page tables (HWPTs), dirty tracking, and what the IOMMU is.

The rules are those of devmodel.iommufd: hwpt, dirty, hwinfo and viommu.  Source: <linux/iommufd.h>.
Threads and errors: vfsfuse.vfio.fops.
"""

from __future__ import annotations

import errno
from typing import Any, NoReturn

from devmodel.iommu.api import ADDRESSES
from devmodel.iommufd import viommu
from devmodel.iommufd.dirty import check_dirty_range
from devmodel.iommufd.faultqueue import FaultQueue
from devmodel.iommufd.hwinfo import HwInfo, IommuDevice, check_hw_info, hw_info
from devmodel.iommufd.hwpt import Hwpt, Wish, allocated, tracked_space
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import Kind, row_of
from ioctl_shim.client import Caller
from ioctl_shim.longcalls import long_calls
from vfsfuse.vfio.chain import packed
from vfsfuse.vfio.contextfile import ContextFops, check_flags
from vfsfuse.vfio.fops import Request, answers
from vfsfuse.vfio.givenfiles import fault_file
from vfsfuse.vfio.handover import Given, HandOver, gives, refused

_AT_ONCE = 4096
"""Bytes that a pump writes for one call. A client may ask for 4 GiB of zeros."""
_ZEROS = bytes(1 << 20)
_FAULT_QUEUE_ALLOC = row_of(Kind.IOMMUFD, "IOMMU_FAULT_QUEUE_ALLOC")
_VEVENTQ_ALLOC = row_of(Kind.IOMMUFD, "IOMMU_VEVENTQ_ALLOC")


class ClientBits:
    """A bitmap at an address of the caller's (devmodel's Bitmap)."""

    __slots__ = ("_address", "_caller")

    def __init__(self, caller: Caller, address: int) -> None:
        self._caller, self._address = caller, address

    def read(self, offset: int, size: int) -> bytes:
        return self._caller.read(self._at(offset, size), size)

    def write(self, offset: int, data: bytes) -> None:
        self._caller.write(self._at(offset, len(data)), data)

    def _at(self, offset: int, size: int) -> int:
        return _client_range(self._address + offset, size)


class HwptFops(ContextFops):
    """Answers the ioctls about hardware."""

    __slots__ = ()

    @answers("IOMMU_HWPT_ALLOC")
    def hwpt_alloc(self, request: Request) -> int:
        argument = request.argument
        asked = argument.value
        data = asked.data_type, asked.data_len
        wish = Wish(asked.dev_id, asked.pt_id, asked.flags, *data, asked.reserved, asked.fault_id)
        with allocated(self.context.objects, wish) as made:
            asked.out_hwpt_id = made.id
            argument.reply_now()
        return 0

    @answers("IOMMU_GET_HW_INFO")
    def get_hw_info(self, request: Request) -> int | None:
        info = request.argument.value
        check_hw_info(info.flags, bytes(info.reserved))
        with self.context.objects.using(info.dev_id, IommuDevice) as device:
            found = hw_info(device, info.flags, info.out_data_type)
        if request.on_pump and info.data_len > _AT_ONCE:
            return None
        data = _vtd_data(found)
        _fill(request.caller, info.data_uptr, data, info.data_len)
        info.data_len, info.out_data_type = len(data), found.type
        info.out_max_pasid_log2, info.out_capabilities = 0, found.capabilities
        request.argument.reply()
        return 0

    @answers("IOMMU_HWPT_SET_DIRTY_TRACKING")
    def set_dirty_tracking(self, request: Request) -> int:
        asked = request.argument.value
        check_flags(asked.flags, lib.IOMMU_HWPT_DIRTY_TRACKING_ENABLE)
        with self.context.objects.using(asked.hwpt_id, Hwpt) as hwpt:
            space = tracked_space(hwpt)
            (space.start if asked.flags else space.stop)()
        return 0

    @answers("IOMMU_HWPT_GET_DIRTY_BITMAP")
    def get_dirty_bitmap(self, request: Request) -> int:
        asked = request.argument.value
        check_flags(asked.flags, lib.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR, asked.reserved)
        with self.context.objects.using(asked.hwpt_id, Hwpt) as hwpt:
            last = check_dirty_range(asked.iova, asked.length, asked.page_size, hwpt.ioas.alignment)
            bits = ClientBits(request.caller, asked.data)
            tracked_space(hwpt).report(asked.iova, last, asked.page_size, bits, clear=not asked.flags)
        return 0

    @answers("IOMMU_HWPT_INVALIDATE")
    def hwpt_invalidate(self, request: Request) -> int:
        argument, objects = request.argument, self.context.objects
        asked = argument.value
        count, asked.entry_num = asked.entry_num, 0
        try:
            viommu.refuse_invalidate(
                objects, asked.hwpt_id, asked.data_uptr, asked.entry_len, count, asked.reserved
            )
        finally:
            argument.reply_now()  # also that nothing was invalidated

    @answers("IOMMU_FAULT_QUEUE_ALLOC")
    def fault_queue_alloc(self, request: Request) -> int:
        check_flags(request.argument.value.flags)
        raise refused(request)

    @gives("IOMMU_FAULT_QUEUE_ALLOC")
    def give_fault_queue(self, asked: HandOver) -> Given:
        made = asked.struct_of(_FAULT_QUEUE_ALLOC)
        check_flags(made.flags)
        queue = FaultQueue(self.context)
        made.out_fault_id = queue.id
        data = bytes(ffi.buffer(made))[: ffi.offsetof("struct iommu_fault_alloc", "out_fault_fd")]
        return Given(data, lambda opening, closed: fault_file(queue, closed), queue.close)

    @answers("IOMMU_VIOMMU_ALLOC")
    def viommu_alloc(self, request: Request) -> int:
        asked = request.argument.value
        viommu.refuse_viommu(self.context.objects, asked.flags, asked.type, asked.dev_id)

    @answers("IOMMU_VDEVICE_ALLOC")
    def vdevice_alloc(self, request: Request) -> int:
        viommu.refuse_vdevice(request.argument.value.viommu_id)

    @answers("IOMMU_VEVENTQ_ALLOC")
    def veventq_alloc(self, request: Request) -> int:
        self._refuse_event_queue(request.argument.value)

    @gives("IOMMU_VEVENTQ_ALLOC")
    def give_event_queue(self, asked: HandOver) -> Given:
        self._refuse_event_queue(asked.struct_of(_VEVENTQ_ALLOC))

    def _refuse_event_queue(self, asked: Any) -> NoReturn:
        viommu.refuse_event_queue(
            asked.flags, asked.reserved, asked.type, asked.veventq_depth, asked.viommu_id
        )

    @answers("IOMMU_HW_QUEUE_ALLOC")
    def hw_queue_alloc(self, request: Request) -> int:
        asked = request.argument.value
        viommu.refuse_hw_queue(
            asked.flags, asked.type, asked.nesting_parent_iova, asked.length, asked.viommu_id
        )


def _vtd_data(found: HwInfo) -> bytes:
    if found.vtd is None:
        return b""
    flags, capabilities, extended = found.vtd
    fields = {"flags": flags, "cap_reg": capabilities, "ecap_reg": extended}
    return packed("struct iommu_hw_info_vtd *", fields)


def _fill(caller: Caller, address: int, data: bytes, room: int) -> None:
    """Store `data` in `room` bytes of the client: what fits, and zeros behind it.  Raises OSError(EFAULT)."""
    _client_range(address, room)
    head = (data + _ZEROS[: _AT_ONCE - len(data)])[:room]
    if room:
        caller.write(address, head)
    if room <= len(head):
        return
    with long_calls.one() as rest:
        for offset in range(len(head), room, len(_ZEROS)):
            caller.write(address + offset, _ZEROS[: room - offset])
            rest()


def _client_range(address: int, size: int) -> int:
    """`address`.  Raises OSError(EFAULT) for a range that wraps around."""
    if address + size > ADDRESSES:
        raise OSError(errno.EFAULT, f"{size} bytes at {address:#x}")
    return address
