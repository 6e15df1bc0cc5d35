# SPDX-License-Identifier: Apache-2.0
"""What those who attend to the call point are told of the calls on one open file.

The structs of ioctls are read from the client once more for that.  Reading them is a touch of the client's
memory, which it may hold up, so no lock is held (docs/architecture.md, "What a client gives").
Threads: pumps, and threads that may wait.  State: none.
"""

from __future__ import annotations

import errno
from typing import Any

from devmodel.calls.attending import Listener
from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from devmodel.calls.steered import Steered
from devmodel.region.backing import REGION_SHIFT
from ioctl_shim.abi import Fetched, Row, rows_of
from ioctl_shim.client import Caller, peek, writes
from ioctl_shim.lane import Opened, RegionAccess, SizedIoctl
from vfsfuse.vfio.fops import VfioFops
from vfsfuse.vfio.handover import GivingFops, HandOver, answered
from vfsfuse.vfio.port import RegionFile

MOST_TOLD = 1024
"""Bytes of an ioctl's struct, with what lies behind it, that are told."""
MOST_RECORDED = 1 << 14
"""The same while somebody records: SET_IRQS for 2048 vectors has 8212."""
IN_REGION = (1 << REGION_SHIFT) - 1
_NUMBERS = {"VFIO_GROUP_SET_CONTAINER": 4, "VFIO_DEVICE_GET_GFX_DMABUF": 4}
"""Bytes behind the pointer of ioctls that take a number by a pointer."""
_NAMES = frozenset({"VFIO_GROUP_GET_DEVICE_FD"})
"""Ioctls that take the pointer to a string."""
MOST_OF_NAME = 64


SYSFS = {"sysfs": True}
"""What is told besides of a call on `config` or `resource<N>`, which is none of VFIO."""


class ToldFile:
    """The calls on one open of `file`: what is told of them, and the accesses of its regions."""

    __slots__ = ("_index", "_regions", "_rows", "_shut", "_way", "device", "file", "subject")

    def __init__(self, opened: Opened, file: VfioFops | RegionFile) -> None:
        self.file, self._regions = file, opened.regions
        self._shut = None if opened.shut is None else opened.shut.native
        self._index: int | None = file.index
        self._way = {} if self._index is None else SYSFS
        self._rows = rows_of(file.kind) if isinstance(file, VfioFops) else None
        self.subject = file.subject
        self.device: Any = getattr(file, "device", None)

    def read_call(self, offset: int, size: int, tid: int) -> Call:
        index = self._index
        if index is None:
            index, offset = offset >> REGION_SHIFT, offset & IN_REGION
        arguments = {"region": index, "offset": offset, "size": size, **self._way}
        return self._call(CallKind.REGION, "read", arguments, tid)

    def write_call(self, offset: int, data: bytes, tid: int) -> Call:
        index = self._index
        if index is None:
            index, offset = offset >> REGION_SHIFT, offset & IN_REGION
        arguments = {"region": index, "offset": offset, "size": len(data), "data": data, **self._way}
        return self._call(CallKind.REGION, "write", arguments, tid)

    def row(self, cmd: int) -> Row | None:
        """The ioctl with this number, None for one that Linux does not have on such a file."""
        return None if self._rows is None else self._rows.get(cmd)

    def ioctl_call(self, row: Row | None, cmd: int, arg: int, tid: int) -> Call:
        """An ioctl, without its struct: `begin` adds that."""
        name = f"{cmd:#x}" if row is None else row.name
        return self._call(CallKind.IOCTL, name, {"arg": arg, "before": b"", **self._way}, tid)

    def begin(self, calls: CallPoint, listener: Listener | None, call: Call, before: bytes) -> Steered:
        """Begin an ioctl with its struct."""
        call.arguments = {**call.arguments, "before": before}
        call.after = before
        return calls.begin(listener, call)

    def sized_call(self, call: SizedIoctl) -> tuple[Call, bool]:
        """An ioctl that has a size, and whether it is one of a client's, which gets a descriptor
        (HAND_OVER)."""
        asked = HandOver.decode(call) if isinstance(self.file, GivingFops) else None
        row = None if asked is None else self.row(asked.cmd)
        if asked is None or row is None:
            return self._call(CallKind.IOCTL, f"{call.cmd:#x}", {"before": call.data}, call.tid), False
        told: dict[str, Any] = {"before": asked.data}
        if row.name in _NAMES:
            told = {"name": asked.text, "before": asked.text.encode()[:MOST_OF_NAME]}
        return self._call(CallKind.IOCTL, row.name, told, asked.client), True

    def close_call(self, path: str) -> Call:
        return self._call(CallKind.OPEN, "close", {"path": path}, 0)

    def read(self, offset: int, size: int) -> bytes:
        """A read that the pump leaves to Python.  Raises OSError as read(2)."""
        self._check_open()
        regions: RegionAccess | None = self._regions
        if regions is None:
            return self.file.read(offset, size)
        return regions.read(offset >> REGION_SHIFT, offset & IN_REGION, size)

    def zeros(self, offset: int, size: int) -> bytes:
        """What a read gives that is dropped: as many zeros as it would read of the region."""
        index = self._index
        if index is None:
            index, offset = offset >> REGION_SHIFT, offset & IN_REGION
        regions = () if self.device is None else self.device.regions
        region = regions[index] if index < len(regions) else None
        return bytes(0 if region is None else min(size, max(0, region.size - offset)))

    def write(self, offset: int, data: bytes) -> int:
        """A write that the pump leaves to Python.  Raises OSError as write(2)."""
        self._check_open()
        regions = self._regions
        if regions is None:
            return self.file.write(offset, data)
        return regions.write(offset >> REGION_SHIFT, offset & IN_REGION, data)

    def ioctl(self, call: Call, cmd: int) -> int:
        """Make an ioctl on a thread that may wait.  Raises OSError as ioctl(2)."""
        arg, before, written = call.arguments["arg"], call.arguments["before"], writes.last
        try:
            result = self.file.ioctl(cmd, arg, call.tid, on_pump=0)
            if result is None:
                raise RuntimeError(f"{call.name} is left to a thread by a thread that may wait")
            return result
        finally:
            call.after = struct_after(before, arg, call.tid, written)

    def sized_ioctl(self, call: Call, sized: SizedIoctl) -> int:
        """Make an ioctl that has a size.  Raises OSError as ioctl(2)."""
        result = self.file.sized_ioctl(sized)
        call.after = answered(sized)
        return result

    def _call(self, kind: CallKind, name: str, arguments: dict[str, Any], tid: int) -> Call:
        return Call(kind, self.subject, name, arguments, tid, self.device)

    def _check_open(self) -> None:
        if self._shut is not None and self._shut[0]:
            raise OSError(errno.EINVAL, "the device is not bound to an iommufd")


def struct_before(
    row: Row | None, arg: int, tid: int, fetched: Fetched | None, recorded: bool = False
) -> bytes:
    """The struct that `arg` points at, with what its size says is behind it: at most MOST_TOLD bytes, or
    MOST_RECORDED while somebody records; none if it cannot be read.  A pump has `fetched` the beginning."""
    if row is None or not arg:
        return b""
    if not row.struct:
        return _name_at(tid, arg) if row.name in _NAMES else peek(tid, arg, _NUMBERS.get(row.name, 0))
    head = peek(tid, arg, row.minsz) if fetched is None else fetched.head(row)
    if len(head) < row.minsz:
        return b""
    size = min(int.from_bytes(head[:4], "little"), MOST_RECORDED if recorded else MOST_TOLD)
    if size <= row.minsz:
        return head[: row.minsz]
    return head[:size] if size <= len(head) else head + peek(tid, arg + len(head), size - len(head))


def _name_at(tid: int, arg: int) -> bytes:
    try:
        return Caller(tid).read_string(arg)[:MOST_OF_NAME]
    except OSError:
        return b""


def struct_after(before: bytes, arg: int, tid: int, written: int, reply: bytes = b"") -> bytes:
    """The same bytes once the call is over.  `written` is what `writes.last` was before it, `reply` what a
    pump has written of them."""
    if reply:
        return reply + before[len(reply) :]
    return before if written == writes.last else peek(tid, arg, len(before))
