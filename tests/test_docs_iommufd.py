# SPDX-License-Identifier: Apache-2.0
"""docs/iommufd.md is what the rows say, names everything in the header, and a mount does what it says."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from ioctl_shim._native import lib
from tests.iommufd.client import (
    Cdev,
    HwptInvalidate,
    HwQueueAlloc,
    Iommufd,
    Struct,
    VdeviceAlloc,
    VeventqAlloc,
)
from tests.iommufd.devices import given_fault_queue
from tests.labs import MountedLab
from tests.vfio.client import fails
from tests.vfio.conftest import machine
from tests.vfio.devices import NEIGHBOUR, bound, function_dir
from tools import iommufd_table
from tools.uapi.iommufd import CONTAINER, IOCTLS, TOPICS
from vfsfuse.vfio.iommufd import IommufdFops

__all__ = ["machine"]
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


STATES = {name: state for topic in TOPICS for name, state in topic.names.items()} | dict(IOCTLS)


@dataclass
class Bound:
    """A function that is bound to an iommufd as the device `id`; `ioas` is an IOAS."""

    iommufd: Iommufd
    id: int
    ioas: int

    def does(self, name: str, call: Callable[[], object]) -> None:
        """Check that the call does what the document says of the name."""
        state = STATES[name]
        refused = re.match(r"refuses with (E\w+)", state)
        if refused:
            fails(getattr(errno, refused.group(1)), call)
        else:
            assert state.startswith("works")
            call()


@pytest.fixture
def function(machine: MountedLab) -> Iterator[Bound]:
    with bound(machine, NEIGHBOUR), Iommufd(machine.path) as iommufd:
        (name,) = os.listdir(function_dir(machine, NEIGHBOUR) / "vfio-dev")
        with Cdev(machine.path / "dev/vfio/devices" / name) as cdev:
            yield Bound(iommufd, cdev.bind(iommufd), iommufd.ioas())


@pytest.mark.parametrize("name", [name for name in STATES if re.match("IOMMU_HWPT_(ALLOC|FAULT)_", name)])
def test_flags_of_hwpts(machine: MountedLab, function: Bound, name: str) -> None:
    flag = getattr(lib, name)
    with given_fault_queue(machine, function.iommufd) as (queue, _):
        make = partial(function.iommufd.hwpt, function.id, function.ioas, flag, fault_id=queue)
        function.does(name, make)


@pytest.mark.parametrize("name", [name for name in STATES if name.startswith("IOMMU_HWPT_DATA_")])
def test_types_of_data_of_hwpts(function: Bound, name: str) -> None:
    kind = getattr(lib, name)
    data = {"data_type": kind, "data_len": 16 if kind else 0}
    function.does(name, lambda: function.iommufd.hwpt(function.id, function.ioas, **data))


@pytest.mark.parametrize("name", [name for name in STATES if name.startswith("IOMMU_VIOMMU_TYPE_")])
def test_types_of_virtual_iommus(function: Bound, name: str) -> None:
    kind = getattr(lib, name)
    for stated in (name, "IOMMU_VIOMMU_ALLOC"):
        function.does(stated, lambda: function.iommufd.viommu(function.id, function.ioas, kind))


def test_capabilities_that_are_never_there(function: Bound) -> None:
    info, _ = function.iommufd.hw_info(function.id)
    names = [name for name in STATES if name.startswith("IOMMU_HW_CAP_")]
    there = {name for name in names if info.out_capabilities & getattr(lib, name)}
    assert there == {name for name in names if not STATES[name].startswith("never")}
