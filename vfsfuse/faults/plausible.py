# SPDX-License-Identifier: Apache-2.0
"""Which calls of a client can fail, and with which errnos Linux fails them: what a sweep tries.

A call whose arguments are right fails on Linux for want of something: memory, room, a device that is still
there.  Those errnos are here, the most usual one first.  The errnos of wrong arguments (EFAULT, most of
EINVAL) are not, except where Linux has no other.  Callers: any thread.  State: none.

Source: drivers/vfio, drivers/iommu/iommufd, drivers/base and fs/kernfs of Linux 6.18 (errnos only).
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import (
    EACCES,
    EADDRINUSE,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    EMSGSIZE,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTTY,
    EOPNOTSUPP,
    EPERM,
)
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a sweep, which reads the table, starts without the emulation
    from devmodel.calls.call import Call

KINDS = ("open", "ioctl", "region", "store")
"""The kinds of calls that can fail."""

Errnos = tuple[int, ...]

IOCTLS: Mapping[str, Errnos] = {
    "VFIO_GET_API_VERSION": (),
    "VFIO_CHECK_EXTENSION": (),
    "VFIO_SET_IOMMU": (ENOMEM, EPERM, EBUSY, ENODEV),
    "VFIO_IOMMU_GET_INFO": (ENOMEM,),
    "VFIO_IOMMU_MAP_DMA": (ENOMEM, ENOSPC, EEXIST),
    "VFIO_IOMMU_UNMAP_DMA": (EINVAL,),
    "VFIO_IOMMU_DIRTY_PAGES": (ENOMEM, EINVAL),
    "VFIO_GROUP_GET_STATUS": (ENODEV,),
    "VFIO_GROUP_SET_CONTAINER": (EBUSY, ENOMEM, EPERM, ENODEV),
    "VFIO_GROUP_UNSET_CONTAINER": (EBUSY,),
    "VFIO_GROUP_GET_DEVICE_FD": (ENODEV, EBUSY, ENOMEM, EIO),
    "VFIO_DEVICE_GET_INFO": (EIO, ENOMEM),
    "VFIO_DEVICE_GET_REGION_INFO": (EIO, ENOMEM),
    "VFIO_DEVICE_GET_IRQ_INFO": (EIO,),
    "VFIO_DEVICE_SET_IRQS": (ENOMEM, ENOSPC, EBUSY, EIO),
    "VFIO_DEVICE_RESET": (EAGAIN, ENOTTY, EIO),
    "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO": (ENODEV, ENOMEM, ENOSPC),
    "VFIO_DEVICE_PCI_HOT_RESET": (EAGAIN, ENODEV, EPERM, ENOMEM),
    "VFIO_DEVICE_QUERY_GFX_PLANE": (EINVAL, ENODEV),
    "VFIO_DEVICE_IOEVENTFD": (ENOSPC, ENOMEM),
    "VFIO_DEVICE_FEATURE": (ENOTTY, ENOMEM, EIO),
    "VFIO_DEVICE_BIND_IOMMUFD": (ENOMEM, EBUSY, EPERM, ENODEV),
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT": (ENOMEM, EBUSY, EINVAL),
    "VFIO_DEVICE_DETACH_IOMMUFD_PT": (),
    "IOMMU_DESTROY": (EBUSY,),
    "IOMMU_IOAS_ALLOC": (ENOMEM,),
    "IOMMU_IOAS_ALLOW_IOVAS": (EADDRINUSE, ENOMEM),
    "IOMMU_IOAS_COPY": (ENOMEM, ENOSPC, EEXIST),
    "IOMMU_IOAS_IOVA_RANGES": (EMSGSIZE,),
    "IOMMU_IOAS_MAP": (ENOMEM, ENOSPC, EEXIST),
    "IOMMU_IOAS_UNMAP": (ENOENT,),
    "IOMMU_OPTION": (EPERM, EBUSY, EOPNOTSUPP),
    "IOMMU_VFIO_IOAS": (ENODEV,),
    "IOMMU_HWPT_ALLOC": (ENOMEM, EOPNOTSUPP, EINVAL),
    "IOMMU_GET_HW_INFO": (EOPNOTSUPP, ENOMEM),
    "IOMMU_HWPT_SET_DIRTY_TRACKING": (EOPNOTSUPP, ENOMEM),
    "IOMMU_HWPT_GET_DIRTY_BITMAP": (ENOMEM, EINVAL),
    "IOMMU_HWPT_INVALIDATE": (EIO, EOPNOTSUPP),
    "IOMMU_FAULT_QUEUE_ALLOC": (ENOMEM,),
    "IOMMU_IOAS_MAP_FILE": (ENOMEM, ENOSPC, EEXIST),
    "IOMMU_VIOMMU_ALLOC": (EOPNOTSUPP, ENOMEM),
    "IOMMU_VDEVICE_ALLOC": (EEXIST, ENOMEM),
    "IOMMU_IOAS_CHANGE_PROCESS": (ENOMEM, EINVAL),
    "IOMMU_VEVENTQ_ALLOC": (EEXIST, ENOMEM),
    "IOMMU_HW_QUEUE_ALLOC": (ENOMEM, EOPNOTSUPP),
    "IOMMU_IOAS_NOIOMMU_GET_PA": (ENOENT,),
}
"""By name; no errno: Linux always carries it out."""

OPENS: tuple[tuple[str, Errnos], ...] = (
    ("dev/vfio/vfio", (ENOMEM, EACCES)),
    ("dev/vfio/devices/*", (ENODEV, ENOMEM, EACCES)),
    ("dev/vfio/*", (EBUSY, ENODEV, EPERM, EACCES)),
    ("dev/*", (ENOMEM, EACCES)),
    ("*", (ENOMEM, EACCES, ENODEV)),
)
"""By the first pattern that a path in the mount fits: container, VFIO devices, groups, dev/iommu, files of
functions."""

REGIONS: Mapping[str, Errnos] = {"read": (EIO,), "write": (EIO,)}

STORES: tuple[tuple[str, Errnos], ...] = (
    ("create", (ENOSPC, ENODEV, ENOMEM)),
    ("vgpu_create", (ENOSPC, ENODEV, ENOMEM)),
    ("current_vgpu_type", (ENOSPC, EBUSY, ENOMEM)),
    ("remove", (EBUSY, EAGAIN, ENODEV)),
    ("vgpu_destroy", (EBUSY, ENODEV)),
    ("bind", (ENODEV, EBUSY, ENOMEM)),
    ("unbind", (ENODEV,)),
    ("drivers_probe", (EINVAL, ENODEV)),
    ("new_id", (EEXIST, ENOMEM)),
    ("sriov_numvfs", (ENOMEM, ENOSPC, EBUSY)),
    ("reset", (ENOTTY, EAGAIN, EIO)),
    ("power", (EBUSY, ENODEV, EIO)),
    ("*", (ENOMEM,)),
)
"""By the first pattern that an attribute's name fits.  Linux copies each store into its own memory first."""


def failures(call: Call) -> Errnos:
    """The errnos with which Linux may fail `call`, the most usual one first; none for a call that cannot
    fail, that no client waits for, or that is on a file of the mount itself."""
    return errnos(call.kind.value, call.name, call.subject) if call.tid else ()


def errnos(kind: str, name: str, subject: str) -> Errnos:
    """The same, by the kind, the name and the subject that a trace shows.

    An open's subject is the path before it has succeeded."""
    if kind == "ioctl":
        return IOCTLS.get(name, ())
    if kind == "region":
        return REGIONS.get(name, ())
    if kind == "open":  # a name with a dot at the mount's root is of a file that `run` opens for its program
        return _first(OPENS, subject) if name == "open" and not subject.startswith(".") else ()
    if kind == "store":
        return _first(STORES, name) if subject else ()
    return ()


def _first(table: tuple[tuple[str, Errnos], ...], name: str) -> Errnos:
    return next((given for pattern, given in table if fnmatchcase(name, pattern)), ())
