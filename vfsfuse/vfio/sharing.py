# SPDX-License-Identifier: Apache-2.0
"""The ioctls of dev/iommu by which mappings share memory: copies, files, and who pays for them.

The rules are those of devmodel.iommufd.sharing.  Source: <linux/iommufd.h>.  Threads and errors:
vfsfuse.vfio.fops.
"""

from __future__ import annotations

import errno

from devmodel.iommu.api import MustWait
from devmodel.iommufd import sharing
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.mapflags import MapFlags, check_map
from devmodel.iommufd.physical import physical
from ioctl_shim.client import CAP_SYS_RAWIO
from vfsfuse.vfio.contextfile import ContextFops, check_flags
from vfsfuse.vfio.fops import Request, answers


class SharingFops(ContextFops):
    """Answers the ioctls of shared memory."""

    __slots__ = ()

    @answers("IOMMU_IOAS_COPY")
    def ioas_copy(self, request: Request) -> int | None:
        argument, may_wait = request.argument, not request.on_pump
        asked, using = argument.value, self.context.objects.using
        sharing.check_copy(asked.flags, asked.length, asked.dst_iova, asked.src_iova)
        try:
            with using(asked.src_ioas_id, Ioas) as src:
                pieces = sharing.source(src, asked.src_iova, asked.length, may_wait)
            with using(asked.dst_ioas_id, Ioas) as dst:
                asked.dst_iova = sharing.copy(dst, pieces, asked.flags, asked.dst_iova, may_wait)
        except MustWait:  # memory is pinned, which takes as long as the client likes
            return None
        argument.reply()
        return 0

    @answers("IOMMU_IOAS_MAP_FILE")
    def ioas_map_file(self, request: Request) -> int:
        argument = request.argument
        asked = argument.value
        check_map(asked.flags, 0, asked.iova, asked.length)
        with self.context.objects.using(asked.ioas_id, Ioas) as ioas:
            sharing.check_file(asked.start, asked.length)
            write = bool(asked.flags & MapFlags.WRITEABLE)
            memory = self.files.of(request.caller, asked.fd, write)
            payer = self.processes.of(request.tid)
            asked.iova = sharing.map_file(
                ioas, memory, payer, asked.flags, asked.start, asked.length, asked.iova
            )
        argument.reply()
        return 0

    @answers("IOMMU_IOAS_CHANGE_PROCESS")
    def ioas_change_process(self, request: Request) -> int | None:
        check_flags(reserved=request.argument.value.reserved)
        try:
            sharing.change_process(self.context, self.processes.of(request.tid), not request.on_pump)
        except MustWait:  # very many mappings
            return None
        return 0

    @answers("IOMMU_IOAS_NOIOMMU_GET_PA")
    def ioas_noiommu_get_pa(self, request: Request) -> int:
        argument = request.argument
        if not request.caller.capable(CAP_SYS_RAWIO):
            raise OSError(errno.EPERM, "physical addresses are for a process with CAP_SYS_RAWIO")
        asked, objects = argument.value, self.context.objects
        check_flags(asked.flags, reserved=asked.reserved)
        with objects.using(asked.ioas_id, Ioas) as ioas:
            asked.out_phys, asked.length = physical(objects, ioas, asked.iova, asked.length)
        argument.reply()
        return 0
