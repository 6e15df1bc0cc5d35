# SPDX-License-Identifier: Apache-2.0
"""The ioctls of VFIO and iommufd as rows keyed by (file kind, number), and the decoders of their arguments.

The numbers collide between kinds of file (VFIO_BASE + 16 is IOMMU_DISABLE on a container and DEVICE_IOEVENTFD
on a device), so no table is keyed by number alone.  Neither is one by name alone: dev/iommu answers ioctls of
containers, too.  Structs are in native/vfio.cdef and native/iommufd.cdef; the sources are <linux/vfio.h> and
<linux/iommufd.h>.
"""

from __future__ import annotations

import enum
import errno
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from ioctl_shim._native import ffi, lib
from ioctl_shim.client import Caller
from ioctl_shim.longcalls import has_zeros


class Kind(enum.Enum):
    """The kind of an open VFIO or iommufd file."""

    CONTAINER = "container"
    GROUP = "group"
    DEVICE = "device"
    IOMMUFD = "iommufd"
    SPAPR = "sPAPR container"
    """A container with a POWER IOMMU. SET_IOMMU never makes one here. Its ioctl numbers collide with
    type1's."""
    MIGRATION = "migration data"


def offsetofend(struct: str, member: str) -> int:
    """Bytes of `struct` up to the end of `member`: the smallest argsz that the kernel accepts (`minsz`)."""
    kind = dict(ffi.typeof(struct).fields)[member]
    return int(kind.offset + ffi.sizeof(kind.type))


@dataclass(frozen=True, slots=True)
class Row:
    """One ioctl: its file kind, number above VFIO_BASE, name, and the argument's struct up to `last`."""

    kind: Kind
    nr: int
    name: str
    struct: str | None = None
    last: str | None = None
    blocking: bool = False
    """Whether a thread that may wait answers it, never the pump: the handler makes a request to the mount
    itself, or it may take long."""
    refused: str = ""
    """The reason why it has no handler and returns ENOTTY; empty for an ioctl that works."""
    since: str = ""
    """The first Linux version whose header has it, for ioctls that are newer than 6.1."""
    checked: bool = False
    """Whether the struct is checked to its end, as all of iommufd's are: what the client gives beyond ours
    must be zeros."""
    gives: str = ""
    """The prefix of the name of the unlisted file at the root of a mount that its answer has a descriptor of
    (vfsfuse.vfio.handover).  Empty for an ioctl that gives no descriptor."""
    minsz: int = field(init=False, default=0)
    size: int = field(init=False, default=0)
    pointer: Any = field(init=False, default=None)
    """The cffi type of a pointer to the struct."""

    def __post_init__(self) -> None:
        pointer = ffi.typeof(self.struct + " *" if self.struct else "char[1]")
        object.__setattr__(self, "pointer", pointer)
        if self.struct and self.last:
            object.__setattr__(self, "minsz", offsetofend(self.struct, self.last))
            object.__setattr__(self, "size", int(ffi.sizeof(self.struct)))

        if self.size > lib.LANE_ARGUMENT or not 0 <= self.nr < lib.LANE_ROWS:
            raise ValueError(f"{self.name}: the pump has no room for number {self.nr} of {self.size} bytes")

    @property
    def cmd(self) -> int:
        """The request number: _IO(';', VFIO_BASE + nr)."""
        return ord(";") << 8 | (int(lib.VFIO_BASE) + self.nr)


def _iommufd(nr: int, name: str, last: str, since: str, blocking: bool = False, gives: str = "") -> Row:
    """The row of an ioctl that <linux/iommufd.h> numbers `nr`.  Its struct has its name."""
    struct = f"struct {_STRUCTS.get(name, name.lower())}"
    nr -= lib.VFIO_BASE
    return Row(_I, nr, name, struct, last, blocking, since=since, checked=True, gives=gives)


_C, _G, _D, _I = Kind.CONTAINER, Kind.GROUP, Kind.DEVICE, Kind.IOMMUFD
_POWER = "only of a POWER machine's IOMMU"
_DMABUF = "a dma-buf is the kernel's to make"
_MIGRATION = "no device copies its state while it runs"

_BIND = ("struct vfio_device_bind_iommufd", "out_devid")
_ATTACH = ("struct vfio_device_attach_iommufd_pt", "pt_id")
_DETACH = ("struct vfio_device_detach_iommufd_pt", "flags")
_STRUCTS = {"IOMMU_FAULT_QUEUE_ALLOC": "iommu_fault_alloc", "IOMMU_GET_HW_INFO": "iommu_hw_info"}
"""Structs of iommufd that do not have the names of their ioctls."""
_TYPE1_INFO = ("struct vfio_iommu_type1_info", "iova_pgsizes")
_TYPE1_MAP = ("struct vfio_iommu_type1_dma_map", "size")
_TYPE1_UNMAP = ("struct vfio_iommu_type1_dma_unmap", "size")

# To add an ioctl: CONTRIBUTING.md, "Adding an ioctl".
ROWS: tuple[Row, ...] = (
    Row(_C, 0, "VFIO_GET_API_VERSION"),
    Row(_C, 1, "VFIO_CHECK_EXTENSION"),
    Row(_C, 2, "VFIO_SET_IOMMU"),
    Row(_C, 12, "VFIO_IOMMU_GET_INFO", *_TYPE1_INFO),
    Row(_C, 13, "VFIO_IOMMU_MAP_DMA", *_TYPE1_MAP),
    Row(_C, 14, "VFIO_IOMMU_UNMAP_DMA", *_TYPE1_UNMAP),
    Row(_C, 17, "VFIO_IOMMU_DIRTY_PAGES", "struct vfio_iommu_type1_dirty_bitmap", "flags", blocking=True),
    Row(_G, 3, "VFIO_GROUP_GET_STATUS", "struct vfio_group_status", "flags"),
    Row(_G, 4, "VFIO_GROUP_SET_CONTAINER", blocking=True),
    Row(_G, 5, "VFIO_GROUP_UNSET_CONTAINER"),
    Row(_G, 6, "VFIO_GROUP_GET_DEVICE_FD", gives=".device-"),
    Row(_D, 7, "VFIO_DEVICE_GET_INFO", "struct vfio_device_info", "num_irqs"),
    Row(_D, 8, "VFIO_DEVICE_GET_REGION_INFO", "struct vfio_region_info", "offset"),
    Row(_D, 9, "VFIO_DEVICE_GET_IRQ_INFO", "struct vfio_irq_info", "count"),
    Row(_D, 10, "VFIO_DEVICE_SET_IRQS", "struct vfio_irq_set", "count"),
    Row(_D, 11, "VFIO_DEVICE_RESET"),
    Row(_D, 12, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", "struct vfio_pci_hot_reset_info", "count"),
    Row(_D, 13, "VFIO_DEVICE_PCI_HOT_RESET", "struct vfio_pci_hot_reset", "count", blocking=True),
    Row(_D, 14, "VFIO_DEVICE_QUERY_GFX_PLANE", "struct vfio_device_gfx_plane_info", "region_index"),
    Row(_D, 15, "VFIO_DEVICE_GET_GFX_DMABUF", refused=_DMABUF),
    Row(_D, 16, "VFIO_DEVICE_IOEVENTFD", "struct vfio_device_ioeventfd", "fd"),
    Row(_D, 17, "VFIO_DEVICE_FEATURE", "struct vfio_device_feature", "flags", gives=".device-state-"),
    Row(_D, 18, "VFIO_DEVICE_BIND_IOMMUFD", *_BIND, blocking=True, since="6.6", checked=True),
    Row(_D, 19, "VFIO_DEVICE_ATTACH_IOMMUFD_PT", *_ATTACH, blocking=True, since="6.6"),
    Row(_D, 20, "VFIO_DEVICE_DETACH_IOMMUFD_PT", *_DETACH, blocking=True, since="6.6"),
    Row(Kind.MIGRATION, 21, "VFIO_MIG_GET_PRECOPY_INFO", refused=_MIGRATION, since="6.2"),
    Row(_C, 15, "VFIO_IOMMU_ENABLE", refused=_POWER),
    Row(_C, 16, "VFIO_IOMMU_DISABLE", refused=_POWER),
    Row(Kind.SPAPR, 12, "VFIO_IOMMU_SPAPR_TCE_GET_INFO", refused=_POWER),
    Row(Kind.SPAPR, 17, "VFIO_IOMMU_SPAPR_REGISTER_MEMORY", refused=_POWER),
    Row(Kind.SPAPR, 18, "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY", refused=_POWER),
    Row(Kind.SPAPR, 19, "VFIO_IOMMU_SPAPR_TCE_CREATE", refused=_POWER),
    Row(Kind.SPAPR, 20, "VFIO_IOMMU_SPAPR_TCE_REMOVE", refused=_POWER),
    Row(Kind.SPAPR, 21, "VFIO_EEH_PE_OP", refused=_POWER),
    Row(_I, 0, "VFIO_GET_API_VERSION"),
    Row(_I, 1, "VFIO_CHECK_EXTENSION"),
    Row(_I, 2, "VFIO_SET_IOMMU"),
    Row(_I, 12, "VFIO_IOMMU_GET_INFO", *_TYPE1_INFO),
    Row(_I, 13, "VFIO_IOMMU_MAP_DMA", *_TYPE1_MAP),
    Row(_I, 14, "VFIO_IOMMU_UNMAP_DMA", *_TYPE1_UNMAP),
    _iommufd(0x80, "IOMMU_DESTROY", "id", "6.2"),
    _iommufd(0x81, "IOMMU_IOAS_ALLOC", "out_ioas_id", "6.2"),
    _iommufd(0x82, "IOMMU_IOAS_ALLOW_IOVAS", "allowed_iovas", "6.2", blocking=True),
    _iommufd(0x83, "IOMMU_IOAS_COPY", "src_iova", "6.2"),
    _iommufd(0x84, "IOMMU_IOAS_IOVA_RANGES", "out_iova_alignment", "6.2", blocking=True),
    _iommufd(0x85, "IOMMU_IOAS_MAP", "iova", "6.2"),
    _iommufd(0x86, "IOMMU_IOAS_UNMAP", "length", "6.2"),
    _iommufd(0x87, "IOMMU_OPTION", "val64", "6.2", blocking=True),
    _iommufd(0x88, "IOMMU_VFIO_IOAS", "reserved", "6.2"),
    _iommufd(0x89, "IOMMU_HWPT_ALLOC", "reserved", "6.6", blocking=True),
    _iommufd(0x8A, "IOMMU_GET_HW_INFO", "reserved", "6.6"),
    _iommufd(0x8B, "IOMMU_HWPT_SET_DIRTY_TRACKING", "reserved", "6.7"),
    _iommufd(0x8C, "IOMMU_HWPT_GET_DIRTY_BITMAP", "data", "6.7", blocking=True),
    _iommufd(0x8D, "IOMMU_HWPT_INVALIDATE", "reserved", "6.8"),
    _iommufd(0x8E, "IOMMU_FAULT_QUEUE_ALLOC", "out_fault_fd", "6.11", gives=".fault-queue-"),
    _iommufd(0x8F, "IOMMU_IOAS_MAP_FILE", "iova", "6.13", blocking=True),
    _iommufd(0x90, "IOMMU_VIOMMU_ALLOC", "out_viommu_id", "6.13"),
    _iommufd(0x91, "IOMMU_VDEVICE_ALLOC", "virt_id", "6.13"),
    _iommufd(0x92, "IOMMU_IOAS_CHANGE_PROCESS", "reserved", "6.14"),
    _iommufd(0x93, "IOMMU_VEVENTQ_ALLOC", "out_veventq_fd", "6.15", gives=".event-queue-"),
    _iommufd(0x94, "IOMMU_HW_QUEUE_ALLOC", "length", "6.17"),
    _iommufd(0x95, "IOMMU_IOAS_NOIOMMU_GET_PA", "out_phys", "7.3"),
)

HAND_OVER_FORMAT = Struct("=IIQI260s")
"""The argument of HAND_OVER: the number of the client's ioctl, the client's thread, a token, and the size of
the data that follow, which the client's pointer leads to.  Data for the client come back, and the token of a
file to open, 0 if there is none."""
HAND_OVER: int = 3 << 30 | HAND_OVER_FORMAT.size << 16 | ord("V") << 8 | 0x40
"""Ours, on an open file of VFIO: _IOWR('V', 0x40, HAND_OVER_FORMAT); see vfsfuse.vfio.handover."""
HANDED_OVER: int = 1 << 30 | 4 << 16 | ord("V") << 8 | 0x44
"""Ours, on a file that was opened by a token: _IOW('V', 0x44, __u32), the client has it now."""

FILE_NUMBER: int = 2 << 30 | 8 << 16 | ord("V") << 8 | 0x43
"""Ours, on an open group or device: _IOR('V', 0x43, uint64_t), the number of the open file, which no other
one gets; see vfsfuse.run.kvm."""

RUN_NODE: int = 3 << 30 | int(ffi.sizeof("struct vfsfuse_run_node")) << 16 | ord("V") << 8 | 0x42
"""Ours, on the file `.run` of a mount's root: _IOWR('V', 0x42, struct vfsfuse_run_node); see
vfsfuse.views.runfile."""


RUN_LAB: int = 2 << 30 | 4 << 16 | ord("V") << 8 | 0x45
"""Ours, on the same file: _IOR('V', 0x45, __u32), the LabFlags of the lab."""


class LabFlag(enum.IntFlag):
    """What the supervisor of a run has to know of a lab."""

    NONE = 0
    MIGRATES = 1
    """A model migrates, so an ioctl of a device may give its state."""


class NodeKind(enum.IntEnum):
    """What a file of a mount stands for on Linux, as struct vfsfuse_run_node says it."""

    FILE = 0
    """A file as it is here."""
    CHARACTER = 1
    """The node of a character device."""
    ANONYMOUS = 2
    """A file that no path leads to, such as what GROUP_GET_DEVICE_FD returns: an anonymous inode."""


_BY_NAME: dict[tuple[Kind, str], Row] = {(row.kind, row.name): row for row in ROWS}


def row_of(kind: Kind, name: str) -> Row:
    """The ioctl called `name` of files of this kind.  Raises LookupError."""
    return _BY_NAME[kind, name]


@functools.cache
def rows_of(kind: Kind) -> Mapping[int, Row]:
    """The ioctls of files of this kind, also those that are refused, by request number."""
    return {row.cmd: row for row in ROWS if row.kind is kind}


def native_rows(kind: Kind) -> Any:
    """The rows of a kind of file for the pump. The pump fetches the structs of the rows that do not block."""
    table = ffi.new("struct lane_rows *")
    for row in ROWS:
        if row.kind is kind and not row.blocking and not row.refused:
            table.minsz[row.nr], table.size[row.nr] = row.minsz, row.size
            table.checked |= row.checked << row.nr
    return table


_FETCHED: tuple[Any, ...] = tuple(map(lib.lane_argument, range(lib.LANE_SLOTS + 1)))
"""The struct lane_argument of each pump, by its slot.  There is none for slot 0, which is no pump."""
_VALUES: tuple[dict[str, Any], ...] = tuple(
    {row.name: ffi.cast(row.pointer, fetched.data) for row in ROWS} if fetched else {} for fetched in _FETCHED
)


class Fetched:
    """The struct that the pump of `slot` has fetched for the ioctl that it answers now.  On that pump."""

    __slots__ = ("_native",)

    def __init__(self, slot: int) -> None:
        self._native: Any = _FETCHED[slot]

    def head(self, row: Row) -> bytes:
        """What was read of the client's struct, which is `row.minsz` bytes or more.  Empty if that failed."""
        native = self._native
        if native.error:
            return b""
        data = bytes(ffi.buffer(native.data, row.size))
        read = row.minsz
        if row.checked:
            read = max(read, min(int.from_bytes(data[:4], "little"), row.size))
        return data[:read]

    def send(self, tid: int, arg: int) -> bytes:
        """Write the handler's reply to the client now, instead of after the call.  Returns it.  Raises
        OSError(EFAULT, ESRCH, EPERM)."""
        native = self._native
        size = native.reply
        if not size:
            return b""
        native.reply = 0
        Caller(tid).write_from(arg, native.data, size)
        return bytes(ffi.buffer(native.data, size))


class Argument:
    """The struct an ioctl's `arg` points at, read from the client under the handshake of VFIO or iommufd.

    VFIO reads the row's minsz and no more; OSError(EINVAL) says that argsz is less.  iommufd reads all of the
    struct that the client has, and looks through what is longer than ours.  Then the errors are EINVAL for a
    size less than minsz, and E2BIG for a byte that is not 0 beyond the struct.  Both raise OSError(EFAULT)
    when the pointer cannot be read.

    `value` is the struct as cffi cdata, zero where nothing was read; only `reply` writes to the client.
    `argsz` is the size that the client names, iommufd's `size` too.

    A pump has fetched the struct already, and writes it back after the handler has returned. Do not keep
    `value` longer than that. `slot` is the pump's, and 0 on any other thread.
    """

    __slots__ = ("_arg", "_slot", "_tid", "argsz", "row", "value")

    def __init__(self, row: Row, tid: int, arg: int, slot: int = 0) -> None:
        self.row, self._tid, self._arg, self._slot = row, tid, arg, slot
        if not slot:
            self.value: Any = ffi.new(row.pointer)
            if row.checked:
                self.argsz: int = _read_checked(Caller(tid), arg, self.value, row)
                return
            Caller(tid).read_into(arg, self.value, row.minsz)
        elif error := _FETCHED[slot].error:
            raise OSError(-error, f"{row.name}: the struct at {arg:#x} cannot be read")
        else:
            self.value = _VALUES[slot][row.name]
        self.argsz = self.value.size if row.checked else self.value.argsz
        if self.argsz < row.minsz:
            raise OSError(errno.EINVAL, f"{row.name}: argsz {self.argsz} is less than {row.minsz}")

    def reply(self, chain: bytes = b"") -> None:
        """Copy min(argsz, sizeof) bytes of the struct back, followed by the capability chain if there is
        one."""
        argsz, size = self.argsz, self.row.size
        if argsz < size:
            size = argsz
        if self._slot and not chain:
            _FETCHED[self._slot].reply = size
        elif chain:
            Caller(self._tid).write(self._arg, bytes(ffi.buffer(self.value, size)) + chain)
        else:
            self.reply_now()

    def reply_now(self) -> None:
        """As `reply`, but at once, for a handler that takes back what it has made if that fails.  Raises
        OSError(EFAULT)."""
        Caller(self._tid).write_from(self._arg, self.value, min(self.argsz, self.row.size))


def _read_checked(caller: Caller, arg: int, value: Any, row: Row) -> int:
    """Read a struct that is checked to its end at `arg` into `value`; returns the size that the client names.

    A thread that may wait: a client may name 4 GiB, which take a second to look through.  Raises
    OSError(EFAULT, EINVAL, E2BIG)."""
    size = int.from_bytes(caller.read(arg, 4), "little")
    if size < row.minsz:
        raise OSError(errno.EINVAL, f"{row.name}: size {size} is less than {row.minsz}")
    if size > row.size and not has_zeros(caller, arg + row.size, size - row.size):
        raise OSError(errno.E2BIG, f"{row.name}: not all of the {size} bytes beyond {row.size} are 0")
    caller.read_into(arg, value, min(size, row.size))
    return size
