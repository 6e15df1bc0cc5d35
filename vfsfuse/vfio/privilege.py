# SPDX-License-Identifier: Apache-2.0
"""What the kernel asks with capable() before it lets a client use what could harm the host.  Any thread."""

from __future__ import annotations

from devmodel.vfio.group import Group
from ioctl_shim.client import CAP_SYS_RAWIO, Caller


def rawio(group: Group, tid: int) -> bool:
    """Whether thread `tid` may use a group without IOMMU; asked of the kernel only where it matters."""
    return group.noiommu and Caller(tid).capable(CAP_SYS_RAWIO)
