# SPDX-License-Identifier: Apache-2.0
"""Memory that waits when it is touched, and files that answer nothing, wherever iommufd takes them.

Each row is the last call of a client whose context has the IOAS 1 with a mapping, and what it returns once
nothing holds it any more.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs
from tests.commands import VFSFUSE
from tests.hostile.clients import Hostile
from tests.hostile.conftest import Lab, reachable
from tests.iommufd.client import (
    DEVICE_ATTACH,
    DEVICE_BIND,
    MAP_FIXED_IOVA,
    OP_GET,
    READ_WRITE,
    STRUCTS,
    VFIO_IOAS_SET,
    AllowIovas,
    AttachPt,
    BindIommufd,
    ChangeProcess,
    Destroy,
    FaultQueueAlloc,
    GetDirtyBitmap,
    HwInfo,
    HwptAlloc,
    HwptInvalidate,
    HwQueueAlloc,
    IoasAlloc,
    IoasCopy,
    IoasMap,
    IoasUnmap,
    IovaRanges,
    MapFile,
    NoiommuGetPa,
    Option,
    SetDirtyTracking,
    Struct,
    VdeviceAlloc,
    VeventqAlloc,
    VfioIoas,
    ViommuAlloc,
)
from tests.ordinary_user import UID
from tests.vfio import client

IOVA, LENGTH = 0x10000, 0x4000
FIXED = READ_WRITE | MAP_FIXED_IOVA
BEFORE = (
    IoasAlloc(),
    IoasMap(ioas_id=1, flags=FIXED, user_va=0x10000, length=LENGTH, iova=IOVA),
    VfioIoas(op=VFIO_IOAS_SET, ioas_id=1),
)


@dataclass(frozen=True)
class Row:
    """A call, and the errno's name that it returns, "0" if it works."""

    struct: Struct
    outcome: str = "0"
    before: tuple[Struct, ...] = BEFORE


CALLS: tuple[Row, ...] = (
    Row(Destroy(id=2), "ENOENT"),
    Row(IoasAlloc()),
    Row(AllowIovas(ioas_id=1)),
    Row(IoasCopy(dst_ioas_id=1, src_ioas_id=1, flags=FIXED, src_iova=IOVA, length=LENGTH, dst_iova=2 * IOVA)),
    Row(IovaRanges(ioas_id=1), "EMSGSIZE"),
    Row(IoasMap(ioas_id=1, flags=READ_WRITE, user_va=0x10000, length=LENGTH)),
    Row(IoasUnmap(ioas_id=1, iova=IOVA, length=LENGTH)),
    Row(Option(op=OP_GET)),
    Row(VfioIoas()),
    Row(HwptAlloc(dev_id=9, pt_id=1), "ENOENT"),
    Row(HwInfo(dev_id=9), "ENOENT"),
    Row(SetDirtyTracking(hwpt_id=9), "ENOENT"),
    Row(GetDirtyBitmap(hwpt_id=9), "ENOENT"),
    Row(HwptInvalidate(hwpt_id=1), "EINVAL"),
    Row(FaultQueueAlloc(), "EOPNOTSUPP"),
    Row(MapFile(ioas_id=1, flags=READ_WRITE, fd=-1, length=LENGTH), "EBADF"),
    Row(ViommuAlloc(dev_id=9, type=1), "ENOENT"),
    Row(VdeviceAlloc(viommu_id=9, dev_id=9), "ENOENT"),
    Row(ChangeProcess(), "EINVAL"),
    Row(VeventqAlloc(viommu_id=9, type=1, veventq_depth=1), "ENOENT"),
    Row(HwQueueAlloc(viommu_id=9, type=1, length=4096), "ENOENT"),
    Row(NoiommuGetPa(ioas_id=9), "ENOENT" if os.geteuid() == 0 else "EPERM"),
)
"""Every ioctl of iommufd."""
REPLIED = (IoasAlloc, IoasCopy, IovaRanges, IoasMap, IoasUnmap, Option, VfioIoas, HwptInvalidate)
"""Those that write to their struct, whatever they return."""
by_name = {type(row.struct).__name__: row for row in CALLS}


@dataclass(frozen=True)
class Clients:
    """Makes hostile clients of the lab."""

    lab: Lab
    program: Path

    def check(self, row: Row, *options: str, user: bool = False) -> None:
        """A client makes the calls of the row.  While the last one is held, nobody else waits."""
        self.make([text(struct) for struct in (*row.before, row.struct)], row.outcome, *options, user=user)

    def make(
        self, calls: list[str], outcome: str, *options: str, user: bool = False, run: bool = False
    ) -> None:
        """As `check`, with calls as the client has them on its command line.  `run`: under `vfsfuse run`."""
        ordinary = os.geteuid() != 0
        fd, file = tempfile.mkstemp(prefix="held-", dir=self.lab.folder)
        os.close(fd)
        if user and not ordinary:
            os.chown(file, UID, UID)
        how = ["-u" if run else "-f"] if user or ordinary else []
        node = str(self.lab.mounted.path / "dev/iommu")
        command = [*VFSFUSE, "run", "--mount", str(self.lab.mounted.path), "--"] if run else []
        command += [str(self.program), *how, *options, file, node, *calls]
        client = Hostile(command, UID if user and not ordinary else None)
        self.lab.check(client, outcome)
        assert client.held or "-d" in options  # descriptors are for nothing that a client can hold

    @property
    def bound(self) -> list[str]:
        """Calls that make the IOAS 1, and bind a function as the device 2."""
        function = self.lab.mounted.path / "dev/vfio/devices" / self.lab.function.vfio
        bind = BindIommufd()
        return [
            text(IoasAlloc()),
            f"+{function}",
            f"+@{BindIommufd.iommufd.offset},{text(bind, DEVICE_BIND)}",
        ]


def text(struct: ctypes.Structure, number: int = 0) -> str:
    """An ioctl on the client's command line."""
    if isinstance(struct, Struct):
        number = struct.cmd()
    return f"{number:#x}:{bytes(struct).hex()}"


@pytest.fixture(scope="module")
def clients(hostile_lab: Lab, compile_client: Callable[..., Path]) -> Iterator[Clients]:
    yield Clients(hostile_lab, reachable(compile_client("hostile_ioctl"), hostile_lab.folder))
    hostile_lab.leaks.check()


def test_every_ioctl_has_a_row() -> None:
    assert {type(row.struct) for row in CALLS} == set(STRUCTS)
    assert all(row.outcome == "0" or hasattr(errno, row.outcome) for row in CALLS)


@pytest.mark.parametrize("name", by_name)
def test_a_struct_that_waits(clients: Clients, name: str) -> None:
    clients.check(by_name[name], "-m", "shared")


@pytest.mark.parametrize("name", [struct.__name__ for struct in STRUCTS if struct.least])
def test_the_rest_of_a_struct_that_waits(clients: Clients, name: str) -> None:
    """What is behind the least size."""
    row = by_name[name]
    clients.check(row, "-m", "shared", "-b", str(row.struct.minimum()))


@pytest.mark.parametrize("name", ["IoasMap", "HwptAlloc", "Destroy"])
def test_a_tail_that_waits(clients: Clients, name: str) -> None:
    """Behind our whole struct, in a page that has to be looked at because the client says so."""
    row = by_name[name]
    whole = ctypes.sizeof(row.struct)
    longer = type(row.struct).from_buffer_copy(bytes(row.struct))
    longer.size = whole + 4096
    clients.check(Row(longer, row.outcome), "-m", "shared", "-b", str(whole))


@pytest.mark.parametrize("struct", REPLIED, ids=lambda struct: struct.__name__)
def test_an_answer_that_waits(clients: Clients, struct: type[Struct]) -> None:
    clients.check(by_name[struct.__name__], "-m", "stored")


@pytest.mark.parametrize("memory", ["private", "userfault", "locked"])
@pytest.mark.parametrize("name", ["IoasAlloc", "IoasMap", "Destroy"])
def test_other_memory(clients: Clients, name: str, memory: str) -> None:
    clients.check(by_name[name], "-m", memory)


@pytest.mark.parametrize("name", ["IoasAlloc", "IoasMap"])
@needs.root("the other tests run as an ordinary user already")
def test_memory_of_an_ordinary_user(clients: Clients, name: str) -> None:
    clients.check(by_name[name], "-m", "shared", user=True)


ARRAYS = {
    "ranges to allow": (Row(AllowIovas(ioas_id=1, num_iovas=1), "EINVAL"), "shared"),
    "ranges to fill in": (Row(IovaRanges(ioas_id=1, num_iovas=1)), "stored"),
}
"""Structs that point to an array of ranges. What is held is zeros in the end, which are no range to allow."""


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_waits(clients: Clients, name: str) -> None:
    row, memory = ARRAYS[name]
    clients.check(row, "-m", memory, "-o", str(type(row.struct).allowed_iovas.offset))


def test_a_file_that_answers_nothing(clients: Clients) -> None:
    """IOAS_MAP_FILE takes any file as long as no domain needs its pages."""
    row = Row(MapFile(ioas_id=1, flags=READ_WRITE, length=LENGTH))
    clients.check(row, "-d", str(MapFile.fd.offset))


def test_a_file_that_answers_nothing_is_not_pinned(clients: Clients) -> None:
    attach = f"+{text(AttachPt(pt_id=1), DEVICE_ATTACH)}"
    row = MapFile(ioas_id=1, flags=READ_WRITE, length=LENGTH)
    clients.make([*clients.bound, attach, text(row)], "EINVAL", "-d", str(MapFile.fd.offset))


def test_what_the_iommu_is_waits_for_memory(clients: Clients) -> None:
    asked = HwInfo(dev_id=2, data_len=64)
    calls = [*clients.bound, text(asked)]
    clients.make(calls, "0", "-m", "stored", "-o", str(HwInfo.data_uptr.offset))


@pytest.mark.parametrize("memory", ["shared", "userfault", "locked"])
@pytest.mark.parametrize(
    "call",
    [text(HwptAlloc(dev_id=2, pt_id=1)), f"+{text(AttachPt(pt_id=1), DEVICE_ATTACH)}"],
    ids=["HWPT_ALLOC", "ATTACH"],
)
def test_what_pins_mapped_memory_waits_for_it(clients: Clients, call: str, memory: str) -> None:
    mapped = IoasMap(ioas_id=1, flags=FIXED, length=LENGTH, iova=IOVA)
    before = f"*{IoasMap.user_va.offset},{text(mapped)}"
    clients.make([*clients.bound, before, call], "0", "-m", memory)


@pytest.mark.parametrize("memory", ["shared", "userfault", "locked"])
def test_a_copy_that_is_pinned_waits_for_its_memory(clients: Clients, memory: str) -> None:
    """The source is an IOAS without a device, whose id is the first one behind that of the HWPT."""
    attach = f"+{text(AttachPt(pt_id=1), DEVICE_ATTACH)}"
    mapped = IoasMap(ioas_id=4, flags=FIXED, length=LENGTH, iova=IOVA)
    before = [attach, text(IoasAlloc()), f"*{IoasMap.user_va.offset},{text(mapped)}"]
    copy = IoasCopy(dst_ioas_id=1, src_ioas_id=4, flags=READ_WRITE, src_iova=IOVA, length=LENGTH)
    clients.make([*clients.bound, *before, text(copy)], "0", "-m", memory)


# ---- dev/iommu as a container ----

CONTAINER: dict[str, tuple[client.Struct, int]] = {
    "GET_INFO": (client.IommuInfo(), client.IOMMU_GET_INFO),
    "MAP_DMA": (client.DmaMap(flags=3, vaddr=0x10000, iova=2 * IOVA, size=LENGTH), client.IOMMU_MAP_DMA),
    "UNMAP_DMA": (client.DmaUnmap(iova=IOVA, size=LENGTH), client.IOMMU_UNMAP_DMA),
}


@pytest.mark.parametrize(
    ("name", "memory"),
    [*((name, "shared") for name in CONTAINER), ("GET_INFO", "stored"), ("UNMAP_DMA", "stored")],
)
def test_a_struct_of_a_container_that_waits(clients: Clients, name: str, memory: str) -> None:
    clients.make([*map(text, BEFORE), text(*CONTAINER[name])], "0", "-m", memory)


def test_capabilities_that_wait(clients: Clients) -> None:
    """They are written before the struct is, behind it."""
    asked = bytes(client.IommuInfo(argsz=256)).ljust(256, b"\0")
    calls = [*map(text, BEFORE), f"{client.IOMMU_GET_INFO:#x}:{asked.hex()}"]
    clients.make(calls, "0", "-m", "stored", "-b", str(ctypes.sizeof(client.IommuInfo)))


@pytest.mark.parametrize("memory", ["shared", "userfault", "locked"])
def test_map_dma_pins_memory_that_waits(clients: Clients, memory: str) -> None:
    attach = f"+{text(AttachPt(pt_id=1), DEVICE_ATTACH)}"
    asked = client.DmaMap(flags=3, iova=IOVA, size=LENGTH)
    calls = [*clients.bound, text(BEFORE[2]), attach, text(asked, client.IOMMU_MAP_DMA)]
    clients.make(calls, "0", "-m", memory, "-o", str(client.DmaMap.vaddr.offset))


@pytest.mark.parametrize("memory", ["shared", "userfault", "locked"])
def test_opening_a_device_pins_memory_that_waits(clients: Clients, memory: str) -> None:
    """A function whose group has joined the iommufd: the supervisor waits, and nobody else does."""
    function = clients.lab.function
    mapped = client.DmaMap(flags=3, iova=IOVA, size=LENGTH)
    calls = [
        f"+{clients.lab.mounted.path}/dev/vfio/{function.group}",
        f"+@0,{client.GROUP_SET_CONTAINER:#x}:{bytes(4).hex()}",
        f"*{client.DmaMap.vaddr.offset},{text(mapped, client.IOMMU_MAP_DMA)}",
        f"+{client.GROUP_GET_DEVICE_FD:#x}:{function.name.encode().hex()}00",
    ]
    clients.make(calls, "0", "-m", memory, run=True)
