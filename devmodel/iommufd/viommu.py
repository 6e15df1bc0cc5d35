# SPDX-License-Identifier: Apache-2.0
"""Virtual IOMMUs and what belongs to them: the emulated IOMMU has none, as most hardware.

Each function here has the checks of Linux in its order, and then fails as Linux does without the hardware.
State: none. Any thread. Source: <linux/iommufd.h> (struct iommu_viommu_alloc and those that follow).
"""

from __future__ import annotations

import errno
from typing import NoReturn

from devmodel.iommu.api import ADDRESSES
from devmodel.iommufd.hwinfo import IommuDevice
from devmodel.iommufd.objects import IommufdObject, ObjectTable

MAX_ENTRY_SIZE, MAX_ENTRIES = 4096, 2**19
"""The most bytes in an entry of HWPT_INVALIDATE, and the most entries."""


def refuse_invalidate(
    table: ObjectTable, number: int, address: int, size: int, count: int, reserved: int
) -> NoReturn:
    """HWPT_INVALIDATE with ``count`` entries of ``size`` bytes at ``address``.

    Raises ``OSError``: EOPNOTSUPP (``reserved``), EINVAL (entries that are nowhere, empty, too large or too
    many), ENOENT (no such object), EINVAL (an object that no guest has page tables in).
    """
    if reserved:
        raise OSError(errno.EOPNOTSUPP, "a reserved member is set")
    if (count and not (address and size)) or size > MAX_ENTRY_SIZE or count > MAX_ENTRIES:
        raise OSError(errno.EINVAL, f"{count} entries of {size} bytes at {address:#x}")
    with table.using(number, IommufdObject) as found:
        raise OSError(errno.EINVAL, f"object {number} is of the type {found.type.value}, not nested")


def refuse_viommu(table: ObjectTable, flags: int, kind: int, device: int) -> NoReturn:
    """VIOMMU_ALLOC of the type ``kind``. Raises ``OSError``: EOPNOTSUPP (flags, type 0), ENOENT (no such
    function), EOPNOTSUPP."""
    _check_kind(flags, kind)
    with table.using(device, IommuDevice):
        raise OSError(errno.EOPNOTSUPP, f"the IOMMU has no virtual ones of type {kind}")


def refuse_vdevice(viommu: int) -> NoReturn:
    """VDEVICE_ALLOC. Raises ``OSError(ENOENT)``: there is no such virtual IOMMU."""
    raise _no_viommu(viommu)


def refuse_event_queue(flags: int, reserved: int, kind: int, depth: int, viommu: int) -> NoReturn:
    """VEVENTQ_ALLOC of the type ``kind``. Raises ``OSError``: EOPNOTSUPP (flags, ``reserved``, type 0),
    EINVAL (no depth), ENOENT (no such virtual IOMMU)."""
    _check_kind(flags | reserved, kind)
    if not depth:
        raise OSError(errno.EINVAL, "a queue for no events")
    raise _no_viommu(viommu)


def refuse_hw_queue(flags: int, kind: int, iova: int, length: int, viommu: int) -> NoReturn:
    """HW_QUEUE_ALLOC of the type ``kind``. Raises ``OSError``: EOPNOTSUPP (flags, type 0), EINVAL (no
    length), EOVERFLOW (wraps around), ENOENT (no such virtual IOMMU)."""
    _check_kind(flags, kind)
    if not length:
        raise OSError(errno.EINVAL, "a queue without a length")
    if iova + length > ADDRESSES:
        raise OSError(errno.EOVERFLOW, f"{length:#x} bytes at iova {iova:#x} wrap around")
    raise _no_viommu(viommu)


def _check_kind(flags: int, kind: int) -> None:
    if flags or not kind:
        raise OSError(errno.EOPNOTSUPP, f"flags {flags:#x}, type {kind}")


def _no_viommu(number: int) -> OSError:
    return OSError(errno.ENOENT, f"there is no virtual IOMMU {number}")
