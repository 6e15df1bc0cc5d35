# SPDX-License-Identifier: Apache-2.0
"""A VFIO client in plain Python: fcntl.ioctl and ctypes on the files of a mount, written from <linux/vfio.h>.

It shares nothing with the server's declarations, so that a mistake there does not cancel out here. Used by
tests in their own process, and by the child processes they start (`python -c "from tests.vfio.client ..."`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

S = TypeVar("S", bound="Struct")
PAGE = mmap.PAGESIZE
NOWHERE = 1 << 44
U16, U32, U64 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
TYPE1, TYPE1V2, DMA_CC, NESTING, NOIOMMU, UNMAP_ALL, UPDATE_VADDR = 1, 3, 4, 6, 8, 9, 10
READ, WRITE, VADDR = 1, 2, 4
"""Flags of MAP_DMA."""
UNMAP_DIRTY, UNMAP_EVERYTHING, UNMAP_VADDR = 1, 2, 4
DIRTY_START, DIRTY_STOP, DIRTY_GET = 1, 2, 4
MAP_FIXED, MAP_FAILED = 0x10, 2**64 - 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)


def request(nr: int) -> int:
    """The number of VFIO's ioctl `nr`: _IO(';', 100 + nr)."""
    return ord(";") << 8 | (100 + nr)


API_VERSION, CHECK_EXTENSION, SET_IOMMU = request(0), request(1), request(2)
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER, GROUP_GET_DEVICE_FD = map(request, range(3, 7))
DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS = map(request, range(7, 11))
DEVICE_RESET, IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA = map(request, range(11, 15))
DEVICE_PCI_HOT_RESET_INFO, DEVICE_PCI_HOT_RESET, DEVICE_IOEVENTFD = request(12), request(13), request(16)
IOMMU_ENABLE, IOMMU_DISABLE, IOMMU_DIRTY_PAGES, DEVICE_FEATURE = map(request, (15, 16, 17, 17))


class Struct(ctypes.Structure):
    """A struct whose first member is argsz, which is its size unless given."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"argsz": ctypes.sizeof(self), **fields})


class GroupStatus(Struct):
    _fields_ = (("argsz", U32), ("flags", U32))


class DeviceInfo(Struct):
    _fields_ = (
        ("argsz", U32),
        ("flags", U32),
        ("num_regions", U32),
        ("num_irqs", U32),
        ("cap_offset", U32),
        ("pad", U32),
    )


class RegionInfo(Struct):
    _fields_ = (
        ("argsz", U32),
        ("flags", U32),
        ("index", U32),
        ("cap_offset", U32),
        ("size", U64),
        ("offset", U64),
    )


class IrqInfo(Struct):
    _fields_ = (("argsz", U32), ("flags", U32), ("index", U32), ("count", U32))


class IrqSet(Struct):
    """Its data[] follows; see `buffer`."""

    _fields_ = (("argsz", U32), ("flags", U32), ("index", U32), ("start", U32), ("count", U32))


class IommuInfo(Struct):
    _fields_ = (
        ("argsz", U32),
        ("flags", U32),
        ("iova_pgsizes", U64),
        ("cap_offset", U32),
        ("pad", U32),
    )


class DmaMap(Struct):
    _fields_ = (("argsz", U32), ("flags", U32), ("vaddr", U64), ("iova", U64), ("size", U64))


class DmaUnmap(Struct):
    """Its struct vfio_bitmap follows when UNMAP_DIRTY is set: `DmaUnmapDirty`."""

    _fields_ = (("argsz", U32), ("flags", U32), ("iova", U64), ("size", U64))


class DmaUnmapDirty(Struct):
    _fields_ = (
        ("argsz", U32),
        ("flags", U32),
        ("iova", U64),
        ("size", U64),
        ("bitmap_pgsize", U64),
        ("bitmap_size", U64),
        ("bitmap_data", U64),
    )


class DirtyBitmap(Struct):
    _fields_ = (("argsz", U32), ("flags", U32))


class DirtyBitmapGet(Struct):
    """struct vfio_iommu_type1_dirty_bitmap with its struct vfio_iommu_type1_dirty_bitmap_get."""

    _fields_ = (
        ("argsz", U32),
        ("flags", U32),
        ("iova", U64),
        ("size", U64),
        ("bitmap_pgsize", U64),
        ("bitmap_size", U64),
        ("bitmap_data", U64),
    )


class CapHeader(ctypes.Structure):
    _fields_ = (("id", U16), ("version", U16), ("next", U32))


def ioctl(fd: int, cmd: int, arg: Any = 0) -> int:
    """ioctl(2) with a number, an address, or anything of ctypes (by reference); OSError when it fails."""
    if isinstance(arg, int):
        arg = ctypes.c_void_p(arg)
    elif isinstance(arg, (ctypes.Structure, ctypes.Array)):
        arg = ctypes.byref(arg)
    ctypes.set_errno(0)
    result = int(_libc.ioctl(fd, ctypes.c_ulong(cmd), arg))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ioctl {cmd:#x}")
    return result


def fails(number: int, call: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Assert that the call raises OSError with this errno."""
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def buffer(head: ctypes.Structure, data: bytes = b"", room: int = 0) -> Any:
    """A ctypes buffer with the struct, `data` behind it and `room` more bytes; argsz is left as it is."""
    content = bytes(head) + data
    return ctypes.create_string_buffer(content, len(content) + room)


def chain(raw: bytes, offset: int) -> list[tuple[int, int, bytes]]:
    """(id, version, body) of each capability from `offset`; a body ends where the next one or `raw` does."""
    found = []
    while offset:
        header = CapHeader.from_buffer_copy(raw, offset)
        assert header.next == 0 or header.next > offset
        body = raw[offset + ctypes.sizeof(CapHeader) : header.next or len(raw)]
        found.append((header.id, header.version, body))
        offset = header.next
    return found


def with_caps(fd: int, cmd: int, kind: type[S], **fields: Any) -> tuple[S, list[tuple[int, int, bytes]]]:
    """Ask twice, as clients do: for the size, then with room for the capability chain."""
    first = kind(**fields)
    ioctl(fd, cmd, first)
    argsz = max(first.argsz, ctypes.sizeof(first))
    whole = buffer(kind(**{**fields, "argsz": argsz}), room=argsz - ctypes.sizeof(first))
    ioctl(fd, cmd, whole)
    info = kind.from_buffer_copy(whole.raw)
    return info, chain(whole.raw[:argsz], info.cap_offset)


class File:
    """An open file of the mount; `fd` is its descriptor, closed at the end of the context."""

    def __init__(self, path: Path | str | int) -> None:
        self.fd = path if isinstance(path, int) else os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self: F) -> F:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def ioctl(self, cmd: int, arg: Any = 0) -> int:
        return ioctl(self.fd, cmd, arg)

    def by_value(self, cmd: int, arg: int = 0) -> int:
        """An ioctl that carries its argument itself, through fcntl.ioctl."""
        return int(fcntl.ioctl(self.fd, cmd, arg))


F = TypeVar("F", bound=File)


class Container(File):
    """dev/vfio/vfio of a mount at `root`."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(Path(root) / "dev/vfio/vfio")

    def check_extension(self, extension: int) -> int:
        return self.by_value(CHECK_EXTENSION, extension)

    def set_iommu(self, kind: int = TYPE1V2) -> None:
        self.by_value(SET_IOMMU, kind)

    def map(self, iova: int, vaddr: int, size: int, flags: int = READ | WRITE) -> None:
        self.ioctl(IOMMU_MAP_DMA, DmaMap(flags=flags, vaddr=vaddr, iova=iova, size=size))

    def unmap(self, iova: int, size: int, flags: int = 0) -> int:
        dma = DmaUnmap(flags=flags, iova=iova, size=size)
        self.ioctl(IOMMU_UNMAP_DMA, dma)
        return int(dma.size)

    def info(self) -> tuple[IommuInfo, dict[int, tuple[int, bytes]]]:
        """IOMMU_GET_INFO, and (version, body) of its capabilities by id."""
        info, caps = with_caps(self.fd, IOMMU_GET_INFO, IommuInfo)
        return info, {identity: (version, body) for identity, version, body in caps}

    @property
    def dma_avail(self) -> int:
        return int.from_bytes(self.info()[1][3][1][:4], "little")


class Group(File):
    """dev/vfio/<number> of a mount at `root`; `number` may be "noiommu-<N>"."""

    def __init__(self, root: Path | str, number: str | int) -> None:
        super().__init__(Path(root) / "dev/vfio" / str(number))

    @property
    def flags(self) -> int:
        status = GroupStatus()
        self.ioctl(GROUP_GET_STATUS, status)
        return int(status.flags)

    def set_container(self, container: File | int) -> None:
        fd = container.fd if isinstance(container, File) else container
        self.ioctl(GROUP_SET_CONTAINER, ctypes.byref(ctypes.c_int(fd)))

    def unset_container(self) -> None:
        self.ioctl(GROUP_UNSET_CONTAINER)

    def device_fd(self, name: str) -> int:
        """GROUP_GET_DEVICE_FD: only works under `vfsfuse run`."""
        return self.ioctl(GROUP_GET_DEVICE_FD, ctypes.create_string_buffer(name.encode()))


class Memory:
    """Pages of this process at a known address, by mmap(2) itself: nothing keeps them from being unmapped."""

    def __init__(
        self,
        size: int,
        fd: int = -1,
        *,
        private: bool = False,
        prot: int = 3,
        address: int = 0,
        offset: int = 0,
    ) -> None:
        """`size` bytes of the file `fd`, from `offset`, or without one anonymous; `address` replaces what is
        there."""
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        flags |= mmap.MAP_ANONYMOUS if fd < 0 else 0
        flags |= MAP_FIXED if address else 0
        self.size = size
        self.address = int(_libc.mmap(address, size, prot, flags, fd, offset))
        if self.address == MAP_FAILED:
            raise OSError(ctypes.get_errno(), "mmap")

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        return ctypes.string_at(self.address + offset, self.size - offset if size is None else size)

    def write(self, data: bytes, offset: int = 0) -> None:
        ctypes.memmove(self.address + offset, data, len(data))

    def close(self) -> None:
        """Unmap the pages; their address means nothing from now on."""
        _libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size))


def unmapped_address() -> int:
    """An address of this process where nothing is mapped, and nothing will be: the kernel fills the address
    space from the top, and programs are far above it."""
    mappings = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    assert not any(int(first, 16) <= NOWHERE < int(end, 16) for first, end in mappings)
    return NOWHERE
