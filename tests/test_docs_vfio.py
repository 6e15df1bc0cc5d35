# SPDX-License-Identifier: Apache-2.0
"""docs/vfio.md is what the rows say, names everything in the header, and a mount does what it says."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from devmodel.vfio import irqset
from devmodel.vfio.container import MAP_KNOWN, UNMAP_KNOWN
from devmodel.vfio.features import FEATURES
from devmodel.vfio.flags import DeviceFeature, DmaMap, DmaUnmap, IrqSet
from ioctl_shim.abi import ROWS, Kind, Row
from tests.labs import MountedLab
from tests.vfio.client import Container, File, Group, fails, ioctl, request
from tests.vfio.devices import opened
from tools import vfio_table
from tools.uapi.names import FORMER_NAMES, TOPICS
from tools.uapi.states import WORKS
from vfsfuse.vfio.cdev import CdevFops
from vfsfuse.vfio.container import ContainerFops
from vfsfuse.vfio.device import DeviceFops
from vfsfuse.vfio.group import GroupFops

HEADER = Path("/usr/include/linux/vfio.h")
GUARDS = {"VFIO_H", "_UAPIVFIO_H"}
FILES = (ContainerFops, GroupFops, DeviceFops, CdevFops)


def test_the_file_is_what_the_rows_say() -> None:
    assert vfio_table.PATH.read_text() == vfio_table.document(), "run python -m tools.vfio_table"


def test_every_name_of_the_header_has_a_place() -> None:
    if not HEADER.exists():
        pytest.skip("no <linux/vfio.h> (apt-get install linux-libc-dev)")
    header = HEADER.read_text()
    names = set(re.findall(r"^#define\s+(_*VFIO_\w+)", header, re.MULTILINE))
    names |= set(re.findall(r"^\t(VFIO_\w+)(?:\s*=.*)?,?\s*(?:/\*.*)?$", header, re.MULTILINE))
    named = [name for topic in TOPICS for name in topic.names]
    assert len(names) > 180 and len(set(named)) == len(named)
    assert names - GUARDS - set(named) - {row.name for row in ROWS} - set(FORMER_NAMES) == set()


def test_a_row_is_answered_or_says_why_not() -> None:
    answered = {row.name for file in FILES for row, _ in file.handlers.values()}
    assert answered == {row.name for row in ROWS if not row.refused and row.kind is not Kind.IOMMUFD}


def test_a_feature_works_when_there_is_a_row_for_it() -> None:
    prefix = "VFIO_DEVICE_FEATURE_"
    methods = {"MASK", "GET", "SET", "PROBE"}
    numbers = {name: value for name, value in vars(DeviceFeature).items() if name.isupper()}
    answered = {name for name, value in numbers.items() if name not in methods and value in FEATURES}
    assert len(answered) == len(FEATURES)
    states = {name: state for topic in TOPICS for name, state in topic.names.items()}
    works = {name for name, state in states.items() if name.startswith(prefix) and state.startswith(WORKS)}
    assert {name.removeprefix(prefix) for name in works} - methods == answered


@pytest.mark.parametrize(
    ("flags", "known"),
    [(DmaMap, MAP_KNOWN), (DmaUnmap, UNMAP_KNOWN), (IrqSet, irqset.KNOWN)],
    ids=["DMA_MAP", "DMA_UNMAP", "IRQ_SET"],
)
def test_a_flag_works_when_the_rules_know_it(flags: type, known: int) -> None:
    prefix = "VFIO_" + re.sub(r"(?<!^)(?=[A-Z])", "_", flags.__name__).upper() + "_"
    states = {name: state for topic in TOPICS for name, state in topic.names.items()}
    works = {name for name, state in states.items() if name.startswith(prefix) and state.startswith(WORKS)}
    numbers = {prefix + name: value for name, value in vars(flags).items() if name.isupper()}
    assert {name for name, value in numbers.items() if value & known == value} == works


@pytest.mark.parametrize("row", [row for row in ROWS if row.refused], ids=lambda row: row.name)
def test_what_refuses_really_does(lab: MountedLab, row: Row) -> None:
    with lab.create("mtty-1", "mtty") as vgpu, opened(lab, vgpu.group, vgpu.name) as found:
        files: dict[Kind, File] = {
            Kind.CONTAINER: found.container,
            Kind.GROUP: found.group,
            Kind.DEVICE: found.device,
        }
        file = files.get(row.kind)
        if file is not None:
            fails(errno.ENOTTY, ioctl, file.fd, request(row.nr))


@pytest.mark.parametrize("extension", [2, 5, 6, 7])
def test_extensions_that_are_refused(lab: MountedLab, extension: int) -> None:
    with (
        lab.create("mtty-1", "mtty") as vgpu,
        Container(lab.path) as container,
        Group(lab.path, vgpu.group) as group,
    ):
        assert container.check_extension(extension) == 0
        group.set_container(container)
        assert container.check_extension(extension) == 0
        fails(errno.ENODEV, container.set_iommu, extension)
