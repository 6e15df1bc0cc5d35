# SPDX-License-Identifier: Apache-2.0
"""An iommufd client in plain Python: ctypes on dev/iommu and on the character devices of devices, written
from <linux/iommufd.h> and <linux/vfio.h>.

It shares nothing with the server's declarations, so that a mistake there does not cancel out here. Used by
tests in their own process, and by the child processes they start.
"""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.vfio.client import U16, U32, U64, Container, File, ioctl, request
from tests.vfio.devices import Device

S32, U8 = ctypes.c_int32, ctypes.c_uint8
BASE = 0x80
ALL = 2**64 - 1
"""The length of an UNMAP at 0 that takes everything away."""
MAP_FIXED_IOVA, MAP_WRITEABLE, MAP_READABLE = 1, 2, 4
READ_WRITE = MAP_READABLE | MAP_WRITEABLE
RLIMIT_MODE, HUGE_PAGES = 0, 1
OP_SET, OP_GET = 0, 1
VFIO_IOAS_GET, VFIO_IOAS_SET, VFIO_IOAS_CLEAR = 0, 1, 2
HWPT_NEST_PARENT, HWPT_DIRTY_TRACKING, HWPT_FAULT_ID_VALID, HWPT_PASID = 1, 2, 4, 8
DATA_NONE, DATA_VTD_S1 = 0, 1
HW_INFO_NONE, HW_INFO_INTEL_VTD = 0, 1
HW_INFO_INPUT_TYPE = 1
CAP_DIRTY_TRACKING, CAP_PASID_EXEC, CAP_PASID_PRIV, CAP_ATS_NOT_SUPPORTED = 1, 2, 4, 8
DIRTY_TRACKING_ENABLE, DIRTY_BITMAP_NO_CLEAR = 1, 1
BIND_TOKEN, ATTACH_PASID, DETACH_PASID = 1, 1, 1
DEVICE_BIND, DEVICE_ATTACH, DEVICE_DETACH = map(request, (18, 19, 20))


class Struct(ctypes.Structure):
    """A struct whose first member is its size, which is that of all members unless given.

    `nr` is the number of its ioctl."""

    nr: ClassVar[int] = 0
    least: ClassVar[int] = 0
    """The smallest size that the kernel takes, if that is not the whole struct."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"size": ctypes.sizeof(self), **fields})

    @classmethod
    def cmd(cls) -> int:
        """The request number: _IO(';', nr)."""
        return ord(";") << 8 | cls.nr

    @classmethod
    def minimum(cls) -> int:
        """The smallest size that the kernel takes."""
        return cls.least or ctypes.sizeof(cls)


class Destroy(Struct):
    nr = 0x80
    _fields_ = (("size", U32), ("id", U32))


class IoasAlloc(Struct):
    nr = 0x81
    _fields_ = (("size", U32), ("flags", U32), ("out_ioas_id", U32))


class IovaRange(ctypes.Structure):
    """A range of iovas from `start` to `last`, which belongs to it."""

    _fields_ = (("start", U64), ("last", U64))


class AllowIovas(Struct):
    nr = 0x82
    _fields_ = (
        ("size", U32),
        ("ioas_id", U32),
        ("num_iovas", U32),
        ("reserved", U32),
        ("allowed_iovas", U64),
    )


class IoasCopy(Struct):
    nr = 0x83
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("dst_ioas_id", U32),
        ("src_ioas_id", U32),
        ("length", U64),
        ("dst_iova", U64),
        ("src_iova", U64),
    )


class IovaRanges(Struct):
    nr = 0x84
    _fields_ = (
        ("size", U32),
        ("ioas_id", U32),
        ("num_iovas", U32),
        ("reserved", U32),
        ("allowed_iovas", U64),
        ("out_iova_alignment", U64),
    )


class IoasMap(Struct):
    nr = 0x85
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("ioas_id", U32),
        ("reserved", U32),
        ("user_va", U64),
        ("length", U64),
        ("iova", U64),
    )


class IoasUnmap(Struct):
    nr = 0x86
    _fields_ = (("size", U32), ("ioas_id", U32), ("iova", U64), ("length", U64))


class Option(Struct):
    nr = 0x87
    _fields_ = (
        ("size", U32),
        ("option_id", U32),
        ("op", U16),
        ("reserved", U16),
        ("object_id", U32),
        ("val64", U64),
    )


class VfioIoas(Struct):
    nr = 0x88
    _fields_ = (("size", U32), ("ioas_id", U32), ("op", U16), ("reserved", U16))


class HwptAlloc(Struct):
    nr = 0x89
    least = 24
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("dev_id", U32),
        ("pt_id", U32),
        ("out_hwpt_id", U32),
        ("reserved", U32),
        ("data_type", U32),
        ("data_len", U32),
        ("data_uptr", U64),
        ("fault_id", U32),
        ("reserved2", U32),
    )


class HwInfo(Struct):
    """`out_data_type` is also the input type, with the flag HW_INFO_INPUT_TYPE."""

    nr = 0x8A
    least = 32
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("dev_id", U32),
        ("data_len", U32),
        ("data_uptr", U64),
        ("out_data_type", U32),
        ("out_max_pasid_log2", U8),
        ("reserved", U8 * 3),
        ("out_capabilities", U64),
    )


class VtdInfo(ctypes.Structure):
    """What GET_HW_INFO says of the type INTEL_VTD."""

    _fields_ = (("flags", U32), ("reserved", U32), ("cap_reg", U64), ("ecap_reg", U64))


class SetDirtyTracking(Struct):
    nr = 0x8B
    _fields_ = (("size", U32), ("flags", U32), ("hwpt_id", U32), ("reserved", U32))


class GetDirtyBitmap(Struct):
    nr = 0x8C
    _fields_ = (
        ("size", U32),
        ("hwpt_id", U32),
        ("flags", U32),
        ("reserved", U32),
        ("iova", U64),
        ("length", U64),
        ("page_size", U64),
        ("data", U64),
    )


class HwptInvalidate(Struct):
    nr = 0x8D
    _fields_ = (
        ("size", U32),
        ("hwpt_id", U32),
        ("data_uptr", U64),
        ("data_type", U32),
        ("entry_len", U32),
        ("entry_num", U32),
        ("reserved", U32),
    )


class FaultQueueAlloc(Struct):
    nr = 0x8E
    _fields_ = (("size", U32), ("flags", U32), ("out_fault_id", U32), ("out_fault_fd", U32))


class MapFile(Struct):
    nr = 0x8F
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("ioas_id", U32),
        ("fd", S32),
        ("start", U64),
        ("length", U64),
        ("iova", U64),
    )


class ViommuAlloc(Struct):
    nr = 0x90
    least = 24
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("type", U32),
        ("dev_id", U32),
        ("hwpt_id", U32),
        ("out_viommu_id", U32),
        ("data_len", U32),
        ("reserved", U32),
        ("data_uptr", U64),
    )


class VdeviceAlloc(Struct):
    nr = 0x91
    _fields_ = (
        ("size", U32),
        ("viommu_id", U32),
        ("dev_id", U32),
        ("out_vdevice_id", U32),
        ("virt_id", U64),
    )


class ChangeProcess(Struct):
    nr = 0x92
    _fields_ = (("size", U32), ("reserved", U32))


class VeventqAlloc(Struct):
    nr = 0x93
    least = 28
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("viommu_id", U32),
        ("type", U32),
        ("veventq_depth", U32),
        ("out_veventq_id", U32),
        ("out_veventq_fd", U32),
        ("reserved", U32),
    )


class HwQueueAlloc(Struct):
    nr = 0x94
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("viommu_id", U32),
        ("type", U32),
        ("index", U32),
        ("out_hw_queue_id", U32),
        ("nesting_parent_iova", U64),
        ("length", U64),
    )


class NoiommuGetPa(Struct):
    nr = 0x95
    _fields_ = (
        ("size", U32),
        ("flags", U32),
        ("ioas_id", U32),
        ("reserved", U32),
        ("iova", U64),
        ("length", U64),
        ("out_phys", U64),
    )


STRUCTS: tuple[type[Struct], ...] = (
    Destroy,
    IoasAlloc,
    AllowIovas,
    IoasCopy,
    IovaRanges,
    IoasMap,
    IoasUnmap,
    Option,
    VfioIoas,
    HwptAlloc,
    HwInfo,
    SetDirtyTracking,
    GetDirtyBitmap,
    HwptInvalidate,
    FaultQueueAlloc,
    MapFile,
    ViommuAlloc,
    VdeviceAlloc,
    ChangeProcess,
    VeventqAlloc,
    HwQueueAlloc,
    NoiommuGetPa,
)
"""The structs of the ioctls, in the order of their numbers."""


class VfioStruct(ctypes.Structure):
    """A struct of <linux/vfio.h>, whose first member is argsz: its size unless given."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"argsz": ctypes.sizeof(self), **fields})


class BindIommufd(VfioStruct):
    _fields_ = (
        ("argsz", U32),
        ("flags", U32),
        ("iommufd", S32),
        ("out_devid", U32),
        ("token_uuid_ptr", U64),
    )


class AttachPt(VfioStruct):
    _fields_ = (("argsz", U32), ("flags", U32), ("pt_id", U32), ("pasid", U32))


class DetachPt(VfioStruct):
    _fields_ = (("argsz", U32), ("flags", U32), ("pasid", U32))


class Iommufd(File):
    """One open of dev/iommu: of the mount at `root`, or an open descriptor of it."""

    def __init__(self, root: Path | str | int) -> None:
        super().__init__(root if isinstance(root, int) else Path(root) / "dev/iommu")

    def call(self, struct: Struct) -> Struct:
        """The ioctl of this struct, which is returned as the kernel left it."""
        ioctl(self.fd, struct.cmd(), struct)
        return struct

    def destroy(self, number: int) -> None:
        self.call(Destroy(id=number))

    def ioas(self) -> int:
        made = IoasAlloc()
        self.call(made)
        return int(made.out_ioas_id)

    def allow(self, ioas: int, *ranges: tuple[int, int]) -> None:
        """ALLOW_IOVAS with (first, last) of each range."""
        array = (IovaRange * len(ranges))(*(IovaRange(first, last) for first, last in ranges))
        self.call(AllowIovas(ioas_id=ioas, num_iovas=len(ranges), allowed_iovas=ctypes.addressof(array)))

    def ranges(self, ioas: int, room: int = 64) -> tuple[list[tuple[int, int]], int]:
        """IOVA_RANGES: (first, last) of each usable range, and the alignment of mappings."""
        array = (IovaRange * room)()
        asked = IovaRanges(ioas_id=ioas, num_iovas=room, allowed_iovas=ctypes.addressof(array))
        self.call(asked)
        return [(each.start, each.last) for each in array[: asked.num_iovas]], int(asked.out_iova_alignment)

    def map(
        self, ioas: int, user_va: int, length: int, iova: int | None = None, flags: int = READ_WRITE
    ) -> int:
        """IOAS_MAP at `iova`, or where the kernel likes. The iova is returned."""
        mapped = IoasMap(
            flags=_placed(flags, iova), ioas_id=ioas, user_va=user_va, length=length, iova=iova or 0
        )
        self.call(mapped)
        return int(mapped.iova)

    def map_file(
        self, ioas: int, fd: int, start: int, length: int, iova: int | None = None, flags: int = READ_WRITE
    ) -> int:
        """IOAS_MAP_FILE: `length` bytes of the file from `start`. The iova is returned."""
        mapped = MapFile(
            flags=_placed(flags, iova), ioas_id=ioas, fd=fd, start=start, length=length, iova=iova or 0
        )
        self.call(mapped)
        return int(mapped.iova)

    def copy(
        self,
        dst: int,
        src: int,
        src_iova: int,
        length: int,
        dst_iova: int | None = None,
        flags: int = READ_WRITE,
    ) -> int:
        """IOAS_COPY. The iova in the IOAS `dst` is returned."""
        copied = IoasCopy(
            flags=_placed(flags, dst_iova),
            dst_ioas_id=dst,
            src_ioas_id=src,
            length=length,
            dst_iova=dst_iova or 0,
            src_iova=src_iova,
        )
        self.call(copied)
        return int(copied.dst_iova)

    def unmap(self, ioas: int, iova: int = 0, length: int = ALL) -> int:
        """IOAS_UNMAP, by default of everything. The bytes that were mapped are returned."""
        gone = IoasUnmap(ioas_id=ioas, iova=iova, length=length)
        self.call(gone)
        return int(gone.length)

    def get_option(self, option: int, object_id: int = 0) -> int:
        asked = Option(option_id=option, op=OP_GET, object_id=object_id)
        self.call(asked)
        return int(asked.val64)

    def set_option(self, option: int, value: int, object_id: int = 0) -> None:
        self.call(Option(option_id=option, op=OP_SET, object_id=object_id, val64=value))

    def vfio_ioas(self) -> int:
        """The IOAS that container ioctls on this file use."""
        asked = VfioIoas(op=VFIO_IOAS_GET)
        self.call(asked)
        return int(asked.ioas_id)

    def set_vfio_ioas(self, ioas: int) -> None:
        self.call(VfioIoas(op=VFIO_IOAS_SET, ioas_id=ioas))

    def clear_vfio_ioas(self) -> None:
        self.call(VfioIoas(op=VFIO_IOAS_CLEAR))

    def hwpt(self, device: int, pt: int, flags: int = 0, **fields: int) -> int:
        """HWPT_ALLOC for the device of this id, on an IOAS or HWPT. The new HWPT's id is returned."""
        made = HwptAlloc(flags=flags, dev_id=device, pt_id=pt, **fields)
        self.call(made)
        return int(made.out_hwpt_id)

    def hw_info(self, device: int, room: int = 0, flags: int = 0, **fields: int) -> tuple[HwInfo, bytes]:
        """GET_HW_INFO with `room` bytes for data: the struct, and all bytes of that room."""
        data = ctypes.create_string_buffer(b"\xff" * room, room) if room else None
        info = HwInfo(
            dev_id=device,
            flags=flags,
            data_len=room,
            data_uptr=ctypes.addressof(data) if data else 0,
            **fields,
        )
        self.call(info)
        return info, data.raw if data else b""

    def set_dirty_tracking(self, hwpt: int, enable: bool = True) -> None:
        self.call(SetDirtyTracking(hwpt_id=hwpt, flags=DIRTY_TRACKING_ENABLE if enable else 0))

    def dirty_pages(
        self, hwpt: int, iova: int, length: int, page_size: int = 4096, flags: int = 0
    ) -> list[int]:
        """GET_DIRTY_BITMAP: the iovas of the pages that a device has written to."""
        pages = length // page_size
        bitmap = (U64 * max(1, -(-pages // 64)))()
        self.call(
            GetDirtyBitmap(
                hwpt_id=hwpt,
                flags=flags,
                iova=iova,
                length=length,
                page_size=page_size,
                data=ctypes.addressof(bitmap),
            )
        )
        return [iova + page * page_size for page in range(pages) if bitmap[page // 64] >> page % 64 & 1]

    def invalidate(self, hwpt: int, entries: Sequence[bytes] = (), data_type: int = 0, **fields: int) -> int:
        """HWPT_INVALIDATE: the number of entries that were handled."""
        data = ctypes.create_string_buffer(b"".join(entries))
        asked = HwptInvalidate(
            **{
                "hwpt_id": hwpt,
                "data_type": data_type,
                "entry_num": len(entries),
                "entry_len": len(entries[0]) if entries else 0,
                "data_uptr": ctypes.addressof(data),
                **fields,
            }
        )
        self.call(asked)
        return int(asked.entry_num)

    def fault_queue(self) -> tuple[int, int]:
        """FAULT_QUEUE_ALLOC: the object's id and its descriptor."""
        made = FaultQueueAlloc()
        self.call(made)
        return int(made.out_fault_id), int(made.out_fault_fd)

    def viommu(self, device: int, hwpt: int, type_: int = 1, **fields: int) -> int:
        made = ViommuAlloc(dev_id=device, hwpt_id=hwpt, type=type_, **fields)
        self.call(made)
        return int(made.out_viommu_id)

    def vdevice(self, viommu: int, device: int, virt_id: int = 0) -> int:
        made = VdeviceAlloc(viommu_id=viommu, dev_id=device, virt_id=virt_id)
        self.call(made)
        return int(made.out_vdevice_id)

    def change_process(self) -> None:
        self.call(ChangeProcess())

    def veventq(self, viommu: int, type_: int = 1, depth: int = 1) -> tuple[int, int]:
        """VEVENTQ_ALLOC: the object's id and its descriptor."""
        made = VeventqAlloc(viommu_id=viommu, type=type_, veventq_depth=depth)
        self.call(made)
        return int(made.out_veventq_id), int(made.out_veventq_fd)

    def hw_queue(self, viommu: int, iova: int, length: int, type_: int = 1, index: int = 0) -> int:
        made = HwQueueAlloc(
            viommu_id=viommu, type=type_, index=index, nesting_parent_iova=iova, length=length
        )
        self.call(made)
        return int(made.out_hw_queue_id)

    def get_pa(self, ioas: int, iova: int, length: int = 0) -> tuple[int, int]:
        """NOIOMMU_GET_PA: the physical address, and the bytes that follow it without a gap."""
        asked = NoiommuGetPa(ioas_id=ioas, iova=iova, length=length)
        self.call(asked)
        return int(asked.out_phys), int(asked.length)


def _placed(flags: int, iova: int | None) -> int:
    return flags if iova is None else flags | MAP_FIXED_IOVA


class IommufdContainer(Container):
    """dev/iommu of the mount at `root`, or an open descriptor of it, used as a VFIO container."""

    def __init__(self, root: Path | str | int) -> None:
        File.__init__(self, root if isinstance(root, int) else Path(root) / "dev/iommu")


class Cdev(Device):
    """An open character device of a VFIO device: of its path, or an open descriptor."""

    def bind(self, iommufd: File | int, token: uuid.UUID | None = None, **fields: int) -> int:
        """BIND_IOMMUFD. The id of the device in the iommufd is returned."""
        uuid_bytes = ctypes.create_string_buffer(token.bytes, 16) if token else None
        bound = BindIommufd(
            **{
                "iommufd": iommufd.fd if isinstance(iommufd, File) else iommufd,
                "flags": BIND_TOKEN if uuid_bytes else 0,
                "token_uuid_ptr": ctypes.addressof(uuid_bytes) if uuid_bytes else 0,
                **fields,
            }
        )
        self.ioctl(DEVICE_BIND, bound)
        return int(bound.out_devid)

    def attach(self, pt: int, **fields: int) -> int:
        """ATTACH_IOMMUFD_PT to an IOAS or HWPT. The id of what the device uses now is returned."""
        attached = AttachPt(pt_id=pt, **fields)
        self.ioctl(DEVICE_ATTACH, attached)
        return int(attached.pt_id)

    def detach(self, **fields: int) -> None:
        self.ioctl(DEVICE_DETACH, DetachPt(**fields))
