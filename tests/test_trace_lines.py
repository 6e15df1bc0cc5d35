# SPDX-License-Identifier: Apache-2.0
"""The lines of real dialogues: clients in C and Python drive a mounted lab, and its trace is read as text, as
JSON and as sums.  docs/trace.md shows such lines, and they are compared with it here."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run
from tests.iommufd.client import Iommufd
from tests.iommufd.devices import Copier
from tests.labs import MountedLab
from tests.vfio.client import (
    DEVICE_FEATURE,
    DEVICE_GET_INFO,
    DEVICE_GET_REGION_INFO,
    PAGE,
    DeviceInfo,
    Memory,
    RegionInfo,
    fails,
    with_caps,
)
from tests.waiting import wait_for
from vfsfuse.trace.asjson import as_json
from vfsfuse.trace.reader import TraceReader
from vfsfuse.trace.record import Record
from vfsfuse.trace.summary import Summary
from vfsfuse.trace.text import Lines

IOVA = 1 << 20
UNLIKE = (
    (r"^\d\d:\d\d:\d\d\.\d{6} ", "TIME "),
    (r" <\d+\.\d{6}>$", " TOOK"),
    (r"\[\d+(/\d+)?\]", "[N]"),
    (r"^TIME (?!copier_client)\S+ ", "TIME ANYBODY "),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
    (r"(vaddr|user_va|allowed_iovas)=0x[0-9a-f]+", r"\1=ADDRESS"),
    (r"(VFIO_DEVICE_GET_INFO \{argsz)=2[04]\b", r"\1=SIZE"),  # it has grown with the headers
)
"""What differs from one dialogue to another."""


def alike(line: str) -> str:
    """A line without what differs from one dialogue to another."""
    for pattern, name in UNLIKE:
        line = re.sub(pattern, name, line)
    return line


@dataclass
class Traced:
    """A lab of copiers with one vGPU and a reader of its trace."""

    lab: MountedLab
    reader: TraceReader
    name: str = field(default_factory=lambda: str(uuid.uuid4()))

    def until(self, last: str) -> list[Record]:
        """The records of what has been done, up to the store to the attribute with this name."""
        found: list[Record] = []

        def came() -> bool:
            found.extend(self.reader.drain())
            return any((record.kind, record.name) == ("store", last) for record in found)

        wait_for(came)
        return found

    def create(self) -> None:
        types = self.lab.path / "sys/class/mdev_bus/copiers/mdev_supported_types"
        (types / "copier-1/create").write_text(self.name)

    def remove(self) -> None:
        (self.lab.mdevs / self.name / "remove").write_text("1")

    @property
    def cdev(self) -> Path:
        vfio = os.listdir(self.lab.mdevs / self.name / "vfio-dev")[0]
        return self.lab.path / "dev/vfio/devices" / vfio


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    with MountedLab(tmp_path, "--config", str(ROOT / "examples/copier.toml")) as lab:
        reader = TraceReader(lab.path)
        try:
            yield Traced(lab, reader)
        finally:
            reader.close()


def lines(records: list[Record]) -> list[str]:
    text = Lines()
    return [text.line(record) for record in records]


def blocks(section: str) -> list[list[str]]:
    """The indented blocks of a section of docs/trace.md."""
    text = (ROOT / "docs/trace.md").read_text().split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [[line[4:] for line in block.splitlines()] for block in found]


def drive(traced: Traced, folder: Path) -> list[Record]:
    """The dialogue of tests/clients/copier_client.c, from the creation of its vGPU to the removal."""
    compiler = shutil.which("gcc")
    assert compiler is not None, "gcc is not installed (apt-get install gcc libc6-dev)"
    client = folder / "copier_client"
    subprocess.run([compiler, "-o", client, ROOT / "tests/clients/copier_client.c"], check=True)
    traced.create()
    group = (traced.lab.mdevs / traced.name / "iommu_group").resolve().name
    done = run([*VFSFUSE, "run", "--mount", traced.lab.path, "--", client, group, traced.name])
    assert done.stdout == "status 1\nok\n", done.stderr
    traced.remove()
    return traced.until("remove")


def test_a_dialogue_of_a_c_client_is_as_documented(traced: Traced, tmp_path: Path) -> None:
    records = drive(traced, tmp_path)
    found = [alike(line) for line in lines(records)]
    transcript, sums = blocks("How to read a line")[:2]
    documented = list(map(alike, transcript))
    assert len(documented) > 20
    assert [line for line in documented if line not in found] == []
    the_clients = [line for line in documented if "copier_client[N]" in line]
    assert [line for line in found if line in the_clients] == the_clients
    assert len([line for line in found if "copier_client[N]" in line]) == len(the_clients)

    summary = Summary()
    for record in records:
        summary.add(record)
    counted = {re.sub(r"[\d. ]+", " ", alike(line)) for line in summary.table().splitlines()}
    assert [line for line in sums if re.sub(r"[\d. ]+", " ", alike(line)) not in counted] == []


def test_a_dialogue_is_json_with_the_documented_keys(traced: Traced, tmp_path: Path) -> None:
    text = (ROOT / "docs/trace.md").read_text().split("\n### JSON\n", 1)[1].split("\n## ", 1)[0]
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    documented = {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}
    found = [json.loads(json.dumps(as_json(record))) for record in drive(traced, tmp_path)]
    assert {key for record in found for key in record} == documented
    (mapped,) = [each for each in found if each["name"] == "VFIO_IOMMU_MAP_DMA"]
    assert mapped["before"]["flags"] == ["VFIO_DMA_MAP_FLAG_READ", "VFIO_DMA_MAP_FLAG_WRITE"]
    assert (mapped["before"]["iova"], mapped["before"]["size"], mapped["after"]) == (IOVA, 2 * PAGE, {})
    (status,) = [each for each in found if each["kind"] == "region" and each["name"] == "read"]
    assert (status["region"], status["value"], status["arguments"]["register"]) == ("BAR0", 1, "STATUS")
    assert {each["comm"] for each in found if each["kind"] == "region"} == {"copier_client"}


def test_a_dialogue_by_iommufd(traced: Traced) -> None:
    memory = Memory(2 * PAGE)
    traced.create()
    with Iommufd(traced.lab.path) as iommufd, Copier(traced.cdev) as copier:
        descriptor = iommufd.fd
        copier.ready(iommufd)
        ioas = iommufd.ioas()
        iommufd.map(ioas, memory.address, memory.size, IOVA)
        copier.attach(ioas)
        copier.detach()
    traced.remove()
    memory.close()
    found = [alike(line).split(" ", 3)[3] for line in lines(traced.until("remove")) if "python" in line]
    assert [line for line in found if line.startswith(("VFIO", "IOMMU"))] == [
        f"VFIO_DEVICE_BIND_IOMMUFD {{argsz=24, flags=0, iommufd={descriptor}, token_uuid_ptr=NULL}} => "
        "{out_devid=1} = 0 TOOK",
        f"IOMMU_IOAS_ALLOC {{size=12, flags=0x0}} => {{out_ioas_id={ioas}}} = 0 TOOK",
        "IOMMU_IOAS_MAP {size=40, flags=IOMMU_IOAS_MAP_FIXED_IOVA|IOMMU_IOAS_MAP_WRITEABLE|"
        f"IOMMU_IOAS_MAP_READABLE, ioas_id={ioas}, user_va=ADDRESS, length=0x2000, iova={IOVA:#x}}} => "
        f"{{iova={IOVA:#x}}} = 0 TOOK",
        f"VFIO_DEVICE_ATTACH_IOMMUFD_PT {{argsz=16, flags=0, pt_id={ioas}, pasid=0}} => {{pt_id={ioas}}} = 0 "
        "TOOK",
        "VFIO_DEVICE_DETACH_IOMMUFD_PT {argsz=12, flags=0, pasid=0} = 0 TOOK",
    ]


def test_failures_of_ioctls(traced: Traced) -> None:
    traced.create()
    with Iommufd(traced.lab.path) as iommufd, Copier(traced.cdev) as copier:
        copier.bind(iommufd)
        fails(errno.EINVAL, copier.ioctl, DEVICE_GET_INFO, DeviceInfo(argsz=8))
        fails(errno.EFAULT, copier.by_value, DEVICE_GET_INFO, 16)
        fails(errno.ENOTTY, copier.ioctl, DEVICE_FEATURE, (ctypes.c_uint32 * 4)(16, 0x10001))
        fails(errno.ENOTTY, copier.by_value, 0x3B99, 7)
    traced.remove()
    found = [alike(line).split(" ", 3)[3] for line in lines(traced.until("remove"))]
    assert [line for line in found if line.startswith(("VFIO_DEVICE_GET", "VFIO_DEVICE_FEATURE", "_"))] == [
        "VFIO_DEVICE_GET_INFO {argsz=8} = -1 EINVAL (Invalid argument): argsz 8 is less than 16 TOOK",
        "VFIO_DEVICE_GET_INFO 0x10 = -1 EFAULT (Bad address): the struct at 0x10 cannot be read TOOK",
        "VFIO_DEVICE_FEATURE {argsz=16, flags=VFIO_DEVICE_FEATURE_GET|VFIO_DEVICE_FEATURE_MIGRATION} = -1 "
        "ENOTTY (Inappropriate ioctl for device): no feature 1 TOOK",
        "_IOC(_IOC_NONE, 0x3b, 0x99, 0x0) 0x7 = -1 ENOTTY (Inappropriate ioctl for device): ioctl 0x3b99 "
        "TOOK",
    ]


@needs.passthrough
def test_capabilities_of_a_region(traced: Traced) -> None:
    traced.create()
    with Iommufd(traced.lab.path) as iommufd, Copier(traced.cdev) as copier:
        copier.bind(iommufd)
        with_caps(copier.fd, DEVICE_GET_REGION_INFO, RegionInfo, index=4)
    traced.remove()
    found = [alike(line) for line in lines(traced.until("remove")) if "REGION_INFO" in line]
    flags = "|".join(f"VFIO_REGION_INFO_FLAG_{name}" for name in ("READ", "WRITE", "MMAP", "CAPS"))
    place = "size=0x2000, offset=0x40000000000"
    assert [line.partition("VFIO_PCI_BAR4_REGION_INDEX} => ")[2] for line in found] == [
        f"{{argsz=64, flags={flags}, cap_offset=0, {place}}} = 0 TOOK",
        f"{{flags={flags}, cap_offset=32, {place}, capabilities=[{{id=VFIO_REGION_INFO_CAP_SPARSE_MMAP, "
        "version=1, nr_areas=1, areas=[{offset=0x1000, size=0x1000}]}]} = 0 TOOK",
    ]
