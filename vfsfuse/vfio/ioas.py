# SPDX-License-Identifier: Apache-2.0
"""The ioctls of dev/iommu that make I/O address spaces (IOAS) and change their mappings.

The rules are those of devmodel.iommufd.ioas.  Source: <linux/iommufd.h>.  Threads and errors:
vfsfuse.vfio.fops.
"""

from __future__ import annotations

import errno

from devmodel.iommufd.ioas import Ioas
from vfsfuse.vfio.contextfile import ContextFops
from vfsfuse.vfio.fops import Request, answers


class IoasFops(ContextFops):
    """Answers the ioctls of address spaces."""

    __slots__ = ()

    @answers("IOMMU_IOAS_ALLOC")
    def ioas_alloc(self, request: Request) -> int:
        argument, objects = request.argument, self.context.objects
        if argument.value.flags:
            raise OSError(errno.EOPNOTSUPP, f"flags {argument.value.flags:#x} of an IOAS")
        made = Ioas(self.context.locked)
        objects.reserve(made)
        try:
            argument.value.out_ioas_id = made.id
            argument.reply_now()
        except BaseException:
            objects.cancel(made)
            raise
        objects.publish(made)
        return 0
