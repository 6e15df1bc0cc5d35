# SPDX-License-Identifier: Apache-2.0
"""The open file of dev/iommu without its handlers, which are in one module for each subject.

vfsfuse.vfio.iommufd puts them together.  State: the context's (devmodel.iommufd).
Threads and errors: vfsfuse.vfio.fops.
"""

from __future__ import annotations

import errno

from devmodel.iommufd.compat import Compat
from devmodel.iommufd.context import Context
from ioctl_shim.abi import Kind
from ioctl_shim.filememory import Files
from ioctl_shim.processes import Processes
from vfsfuse.vfio.fops import Services
from vfsfuse.vfio.handover import GivingFops


class ContextFops(GivingFops):
    """One open of dev/iommu.  `processes` are those that make its mappings, `files` what they have handed in,
    `compat` is the container of VFIO that it is as well."""

    __slots__ = ("compat", "context", "files", "processes", "services")
    kind = Kind.IOMMUFD

    def __init__(self, context: Context, processes: Processes, services: Services) -> None:
        self.context, self.processes, self.services = context, processes, services
        self.compat = Compat(context)
        self.files = Files()
        super().__init__(services.offer)

    @property
    def subject(self) -> str:
        return "iommufd"

    def release(self) -> None:
        super().release()
        self.context.put()


def check_flags(flags: int = 0, known: int = 0, reserved: int = 0) -> None:
    """The first check of most ioctls of iommufd.  Raises OSError(EOPNOTSUPP) for a flag that is not `known`,
    and for a reserved member that is not 0."""
    if flags & ~known or reserved:
        raise OSError(errno.EOPNOTSUPP, f"flags {flags:#x}, reserved member {reserved:#x}")
