# SPDX-License-Identifier: Apache-2.0
"""The ioctls of dev/iommu that make I/O address spaces (IOAS) and change their mappings.

The rules are those of devmodel.iommufd.ioas.  Source: <linux/iommufd.h>.  Threads and errors:
vfsfuse.vfio.fops.
"""

from __future__ import annotations

import errno
import struct

from devmodel.iommu.api import MustWait
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.iovas import MAX_ALLOWED, Range, check_allowed
from devmodel.iommufd.mapflags import check_map
from vfsfuse.vfio.contextfile import ContextFops, check_flags
from vfsfuse.vfio.fops import Request, answers

_RANGE = struct.Struct("=QQ")  # struct iommu_iova_range
_AT_ONCE = 512
"""Ranges of a client that are read at once."""


class IoasFops(ContextFops):
    """Answers the ioctls of address spaces."""

    __slots__ = ()

    @answers("IOMMU_IOAS_ALLOC")
    def ioas_alloc(self, request: Request) -> int:
        argument, objects = request.argument, self.context.objects
        check_flags(argument.value.flags)
        made = Ioas(self.context.locked, self.context.budget)
        objects.reserve(made)
        try:
            argument.value.out_ioas_id = made.id
            argument.reply_now()
        except BaseException:
            objects.cancel(made)
            raise
        objects.publish(made)
        return 0

    # These two are hot. On the pump they do not wait, so there is no need to keep DESTROY waiting for them.

    @answers("IOMMU_IOAS_MAP")
    def ioas_map(self, request: Request) -> int | None:
        argument, objects = request.argument, self.context.objects
        asked = argument.value
        flags, va, length, iova = asked.flags, asked.user_va, asked.length, asked.iova
        check_map(flags, asked.reserved, iova, length)
        if request.on_pump:
            ioas = objects.find(asked.ioas_id, Ioas)
            try:
                asked.iova = ioas.map(self.processes.of(request.tid), flags, va, length, iova, False)
            except MustWait:  # memory is pinned, which takes as long as the client likes
                return None
        else:
            with objects.using(asked.ioas_id, Ioas) as ioas:
                asked.iova = ioas.map(self.processes.of(request.tid), flags, va, length, iova)
        argument.reply()
        return 0

    @answers("IOMMU_IOAS_UNMAP")
    def ioas_unmap(self, request: Request) -> int | None:
        argument, objects = request.argument, self.context.objects
        asked = argument.value
        if request.on_pump:
            try:
                asked.length = objects.find(asked.ioas_id, Ioas).unmap(asked.iova, asked.length, False)
            except MustWait:  # for a DMA under way
                return None
        else:
            with objects.using(asked.ioas_id, Ioas) as ioas:
                asked.length = ioas.unmap(asked.iova, asked.length)
        argument.reply()
        return 0

    @answers("IOMMU_IOAS_IOVA_RANGES")
    def iova_ranges(self, request: Request) -> int:
        argument = request.argument
        asked = argument.value
        check_flags(reserved=asked.reserved)
        with self.context.objects.using(asked.ioas_id, Ioas) as ioas:
            ranges, alignment = ioas.iova_ranges(), ioas.alignment
        room = asked.num_iovas
        if room and ranges:
            request.caller.write(asked.allowed_iovas, b"".join(_RANGE.pack(*one) for one in ranges[:room]))
        asked.num_iovas, asked.out_iova_alignment = len(ranges), alignment
        argument.reply_now()
        if len(ranges) > room:
            raise OSError(errno.EMSGSIZE, f"{len(ranges)} ranges, and room for {room}")
        return 0

    @answers("IOMMU_IOAS_ALLOW_IOVAS")
    def allow_iovas(self, request: Request) -> int:
        asked = request.argument.value
        check_flags(reserved=asked.reserved)
        with self.context.objects.using(asked.ioas_id, Ioas) as ioas:
            ioas.allow(_allowed(request))
        return 0


def _allowed(request: Request) -> list[Range]:
    """The client's ranges for ALLOW_IOVAS. Waits for its memory.

    Raises OSError: EFAULT for a range that cannot be read, ENOMEM for too many, but EINVAL if one before it
    is wrong.
    """
    count, address = int(request.argument.value.num_iovas), int(request.argument.value.allowed_iovas)
    found: list[Range] = []
    at_once = _AT_ONCE
    while len(found) < count:
        try:
            if len(found) >= MAX_ALLOWED:
                raise OSError(errno.ENOMEM, f"{MAX_ALLOWED} allowed ranges are the limit")
            some = min(at_once, count - len(found))
            data = request.caller.read(address + len(found) * _RANGE.size, some * _RANGE.size)
        except OSError:
            if at_once > 1:  # look at those before the one that cannot be read
                at_once = 1
                continue
            check_allowed(found)
            raise
        found.extend(_RANGE.iter_unpack(data))
    return found
