# SPDX-License-Identifier: Apache-2.0
"""vfsfuse.faults.plausible: each call that the lab answers has a row, and each errno is one of Linux."""

from __future__ import annotations

import errno

import pytest

from devmodel.calls.call import Call, CallKind
from ioctl_shim.abi import ROWS
from tests.checkout import ROOT
from vfsfuse.faults.plausible import IOCTLS, OPENS, REGIONS, STORES, errnos, failures

SWEEP = (ROOT / "docs/sweep.md").read_text(encoding="utf-8")


def test_each_ioctl_that_is_answered_has_a_row() -> None:
    assert set(IOCTLS) == {row.name for row in ROWS if not row.refused}


def test_each_errno_has_a_name_and_is_there_once() -> None:
    for given in (*IOCTLS.values(), *REGIONS.values(), *dict(OPENS).values(), *dict(STORES).values()):
        assert all(number in errno.errorcode for number in given)
        assert len(set(given)) == len(given)


@pytest.mark.parametrize(
    ("kind", "subject", "name", "first"),
    [
        ("ioctl", "container", "VFIO_IOMMU_MAP_DMA", errno.ENOMEM),
        ("ioctl", "container", "VFIO_GET_API_VERSION", None),
        ("ioctl", "container", "0x3bff", None),
        ("open", "dev/vfio/vfio", "open", errno.ENOMEM),
        ("open", "dev/vfio/0", "open", errno.EBUSY),
        ("open", "dev/vfio/devices/vfio0", "open", errno.ENODEV),
        ("open", "dev/iommu", "open", errno.ENOMEM),
        ("open", "sys/devices/pci0000:00/0000:00:05.0/resource0", "open", errno.ENOMEM),
        ("open", "dev/vfio/0", "close", None),
        ("open", ".device-3023397280249352022", "open", None),
        ("region", "vgpu0", "read", errno.EIO),
        ("region", "vgpu0", "write", errno.EIO),
        ("store", "sys/class/mdev_bus/gpu0/mdev_supported_types/small", "create", errno.ENOSPC),
        ("store", "sys/bus/pci/drivers/vfio-pci", "bind", errno.ENODEV),
        ("store", "sys/devices/pci0000:00/0000:00:05.0", "driver_override", errno.ENOMEM),
        ("store", "", "reload", None),
        ("dma", "vgpu0", "read", None),
        ("interrupt", "vgpu0", "MSIX", None),
        ("lifecycle", "vgpu0", "remove", None),
        ("reset", "vgpu0", "reset", None),
    ],
)
def test_the_first_errno(kind: str, subject: str, name: str, first: int | None) -> None:
    assert next(iter(errnos(kind, name, subject)), None) == first
    call = Call(CallKind(kind), subject, name, tid=1)
    assert next(iter(failures(call)), None) == first


def test_the_documented_table_is_this_one() -> None:
    def row(call: str, given: tuple[int, ...]) -> str:
        return f"| {call} | {', '.join(errno.errorcode[number] for number in given)} |"

    rows = [row(f"open of `{pattern}`", given) for pattern, given in OPENS]
    rows += [row(f"{name} of a region", given) for name, given in REGIONS.items()]
    rows += [row(f"store to `{pattern}`", given) for pattern, given in STORES]
    rows += [row(name, given) for name, given in IOCTLS.items() if given]
    assert "\n".join(["| call | errnos |", "| --- | --- |", *rows, "", "<!-- end -->"]) in SWEEP


def test_a_call_that_no_client_waits_for_cannot_fail() -> None:
    assert failures(Call(CallKind.REGION, "vgpu0", "write")) == ()
