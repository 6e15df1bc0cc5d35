# SPDX-License-Identifier: Apache-2.0
"""IOMMU_OPTION of dev/iommu: what a context or an address space does in another way than by default.

Source: <linux/iommufd.h>.  Threads and errors: vfsfuse.vfio.fops.
"""

from __future__ import annotations

import errno
import struct
from typing import Any

from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.sharing import set_rlimit_mode
from ioctl_shim._native import ffi, lib
from ioctl_shim.client import CAP_SYS_RESOURCE
from vfsfuse.vfio.contextfile import ContextFops, check_flags
from vfsfuse.vfio.fops import Request, answers

_VALUE_AT = int(ffi.offsetof("struct iommu_option", "val64"))


class OptionFops(ContextFops):
    """Answers IOMMU_OPTION."""

    __slots__ = ()

    @answers("IOMMU_OPTION")
    def option(self, request: Request) -> int:
        asked = request.argument.value
        check_flags(reserved=asked.reserved)
        if asked.option_id == lib.IOMMU_OPTION_RLIMIT_MODE:
            value = self._rlimit_mode(request, asked)
        elif asked.option_id == lib.IOMMU_OPTION_HUGE_PAGES:
            value = self._huge_pages(asked)
        else:
            raise OSError(errno.EOPNOTSUPP, f"option {asked.option_id}")
        request.caller.write(request.arg + _VALUE_AT, struct.pack("=Q", value))
        return 0

    def _rlimit_mode(self, request: Request, asked: Any) -> int:
        if asked.object_id:
            raise OSError(errno.EOPNOTSUPP, "the option is that of the context, not of an object")
        if not _is_set(asked.op):
            return int(not self.context.locked.by_user)
        set_rlimit_mode(self.context, asked.val64, request.caller.capable(CAP_SYS_RESOURCE))
        return int(asked.val64)

    def _huge_pages(self, asked: Any) -> int:
        with self.context.objects.using(asked.object_id, Ioas) as ioas:
            if not _is_set(asked.op):
                return int(ioas.huge_pages)
            ioas.set_huge_pages(asked.val64)
            return int(asked.val64)


def _is_set(op: int) -> bool:
    """Whether the option is to be set, not asked for.  Raises OSError(EOPNOTSUPP)."""
    if op not in (lib.IOMMU_OPTION_OP_SET, lib.IOMMU_OPTION_OP_GET):
        raise OSError(errno.EOPNOTSUPP, f"operation {op} on an option")
    return bool(op == lib.IOMMU_OPTION_OP_SET)
