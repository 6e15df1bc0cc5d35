# SPDX-License-Identifier: Apache-2.0
"""docs/iommufd.md is what the rows say, names everything in the header, and a mount does what it says."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from tests.iommufd.client import (
    FaultQueueAlloc,
    HwptInvalidate,
    HwQueueAlloc,
    Iommufd,
    Struct,
    VdeviceAlloc,
    VeventqAlloc,
)
from tests.lab import MountedLab
from tests.vfio.client import fails
from tools import iommufd_table
from tools.uapi.iommufd import CONTAINER, IOCTLS, TOPICS
from vfsfuse.vfio.iommufd import IommufdFops

HEADER = Path("/usr/include/linux/iommufd.h")


def names_of(header: str) -> set[str]:
    """All constants and ioctls of <linux/iommufd.h>."""
    names = set(re.findall(r"^#define\s+(IOMMU\w+)", header, re.MULTILINE))
    return names | set(re.findall(r"^\t(IOMMU\w+)\s*=", header, re.MULTILINE))


def test_the_file_is_what_the_rows_say() -> None:
    expected = iommufd_table.document()
    assert iommufd_table.PATH.read_text() == expected, "run python -m tools.iommufd_table"


def test_every_name_of_the_header_has_a_place() -> None:
    if not HEADER.exists():
        pytest.skip("no <linux/iommufd.h>: it needs linux-libc-dev of Linux 6.2 or newer")
    names = names_of(HEADER.read_text())
    named = [name for topic in TOPICS for name in topic.names]
    assert len(names) > 60 and len(set(named)) == len(named)
    assert names - set(named) - set(IOCTLS) == set()


def test_every_ioctl_has_a_state() -> None:
    rows = iommufd_table.rows()
    assert {row.name for row in rows if row.checked} == set(IOCTLS)
    assert {row.name for row in rows if not row.checked} == set(CONTAINER)


def test_every_ioctl_is_answered() -> None:
    answered = {row.name for row, _ in IommufdFops.handlers.values()}
    assert answered == {row.name for row in iommufd_table.rows()}


REFUSED: dict[str, Struct] = {
    "IOMMU_HWPT_INVALIDATE": HwptInvalidate(hwpt_id=1),
    "IOMMU_FAULT_QUEUE_ALLOC": FaultQueueAlloc(),
    "IOMMU_VDEVICE_ALLOC": VdeviceAlloc(viommu_id=1),
    "IOMMU_VEVENTQ_ALLOC": VeventqAlloc(viommu_id=1, type=1, veventq_depth=1),
    "IOMMU_HW_QUEUE_ALLOC": HwQueueAlloc(viommu_id=1, type=1, length=4096),
}
"""Calls about the object 1, an IOAS, that nothing is wrong with but what they ask for."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_refuses_really_does(lab: MountedLab, name: str) -> None:
    number = re.fullmatch(r"refuses with (E\w+)(:.*)?", IOCTLS[name])
    assert number is not None
    with Iommufd(lab.path) as iommufd:
        assert iommufd.ioas() == 1
        fails(getattr(errno, number.group(1)), iommufd.call, REFUSED[name])
