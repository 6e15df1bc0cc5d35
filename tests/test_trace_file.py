# SPDX-License-Identifier: Apache-2.0
"""The file `trace` of a mount: what clients do is told once, to each reader, and no reader delays a call."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import VFSFUSE, run
from tests.iommufd.client import Iommufd
from tests.iommufd.devices import Copier
from tests.labs import MountedLab, described
from tests.tracefile import Reader, created, open_config, until
from tests.vfio.client import DEVICE_RESET, PAGE, Memory, fails
from tests.vfio.copiers import COMMAND_REGISTER, DECODE, LAB
from tests.waiting import wait_for

IOVA = 1 << 20
BROKEN = """
from devmodel.sdk import Bar, Identity, Layout, PciDevice, Register, Registers

class Broken(PciDevice):
    identity = Identity(0x1234, 0x0001, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self):
        return {0: Bar(Registers(LAYOUT, self))}

    def divide(self, value):
        self.answer = 1 // value

LAYOUT = Layout(4096, [Register(0, 4, "DIVIDE", on_write=Broken.divide)])
"""


BROKEN_LAB = """\
[models]
broken = "{}/broken.py:Broken"

[parents.broken]
kind = "virtual"
driver = "broken"
slots = 1
types.broken-1 = {{ description = "is wrong" }}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab of copiers."""
    with described(tmp_path_factory.mktemp("trace"), LAB) as mounted:
        yield mounted


# ---- what is told ----


def test_a_dialogue_is_told_with_its_data_and_its_client(machine: MountedLab) -> None:
    memory = Memory(2 * PAGE)
    memory.write(b"\7" * 100)
    with Reader(machine) as reader, created(machine) as vgpu:
        with Iommufd(machine.path) as iommufd, Copier(vgpu.cdev) as opened:
            fails(errno.EBADFD, opened.bind, opened)
            opened.ready(iommufd)
            ioas = iommufd.ioas()
            iommufd.map(ioas, memory.address, memory.size, IOVA)
            opened.attach(ioas)
            opened.begin(IOVA, IOVA + PAGE, 100)
            wait_for(lambda: opened.status)
            opened.ioctl(DEVICE_RESET)
            number = os.open(vgpu.path / "config", os.O_RDONLY)
            os.pread(number, 4, 0x10)
            os.close(number)
        found = until(reader, lambda records: sum(each.name == "close" for each in records) == 3)
    memory.close()
    cdev, config = (
        str(vgpu.cdev.relative_to(machine.path)),
        str((vgpu.path / "config").relative_to(machine.path)),
    )
    name = vgpu.name
    told = [
        (each.kind, each.subject, each.name)
        for each in sorted(found, key=lambda each: each.number)
        if each.arguments.get("register") not in ("STATUS", "COMMAND") and each.name != "close"
    ]
    in_order = [
        ("lifecycle", "copier-1", "create"),
        ("lifecycle", name, "probe"),
        ("open", "iommufd", "open"),
        ("open", name, "open"),
        ("ioctl", name, "VFIO_DEVICE_BIND_IOMMUFD"),
        ("ioctl", name, "VFIO_DEVICE_BIND_IOMMUFD"),
        ("ioctl", "iommufd", "IOMMU_IOAS_ALLOC"),
        ("ioctl", "iommufd", "IOMMU_IOAS_MAP"),
        ("ioctl", name, "VFIO_DEVICE_ATTACH_IOMMUFD_PT"),
        ("region", name, "write"),
        ("dma", name, "read"),
        ("dma", name, "write"),
        ("ioctl", name, "VFIO_DEVICE_RESET"),
        ("reset", name, "reset"),
        ("open", name, "open"),
        ("region", name, "read"),
    ]
    assert told[1:] == in_order, found  # the first is the store
    by = {(each.kind, each.name, each.errno): each for each in found}
    assert by["ioctl", "VFIO_DEVICE_BIND_IOMMUFD", errno.EBADFD].result is None
    assert by["open", "open", 0].arguments == {"path": config}
    assert [each.arguments["path"] for each in found if each.name == "open"] == ["dev/iommu", cdev, config]
    mapped = by["ioctl", "IOMMU_IOAS_MAP", 0]
    assert len(mapped.arguments["before"]) == len(mapped.arguments["after"]) == mapped.arguments["before"][0]
    read = by["dma", "read", 0]
    assert read.arguments == {"iova": IOVA, "size": 100, "data": b"\7" * 64}
    assert (read.pid, read.tid, read.comm, read.result) == (0, 0, "", None)
    assert by["dma", "write", 0].arguments["iova"] == IOVA + PAGE
    wrote = next(each for each in found if each.kind == "region" and each.arguments["size"] == 24)
    assert wrote.arguments["register"] == "SOURCE..COMMAND" and wrote.result == 24
    assert wrote.arguments["data"] == IOVA.to_bytes(8, "little") + (IOVA + PAGE).to_bytes(
        8, "little"
    ) + bytes([100, 0, 0, 0, 1, 0, 0, 0])
    base = by["region", "read", 0]
    assert (base.arguments["register"], base.arguments["region"], base.result) == ("BAR0", 7, 4)
    clients = {(each.pid, each.tid, each.comm) for each in found if each.tid}
    comm = Path("/proc/self/comm").read_text().strip()
    assert clients == {(os.getpid(), threading.get_native_id(), comm)}
    assert all(0 <= (each.duration or 0) < 60 and abs(each.time - time.time()) < 600 for each in found)


def test_a_reader_of_faults_keeps_nothing_else(machine: MountedLab) -> None:
    faults = machine.api.faults
    late = faults.add(name="late", region="config", range=8, delay=0.01)
    wrong = faults.add(name="wrong", region="config", range=9, access="write", errno="EPERM")
    with (
        late,
        wrong,
        Reader(machine, injected=["w*"], keep=2) as some,
        Reader(machine, injected=["any"], keep=2) as both,
        open_config(machine) as fd,
    ):
        os.pread(fd, 1, 8)
        fails(errno.EPERM, os.pwrite, fd, b"1", 9)
        for _ in range(5):
            os.pread(fd, 4, 0)
        found = until(both, lambda records: len(records) == 2)
        told = [(each.name, each.fault, each.delayed, each.errno) for each in found]
        assert told == [("read", "late", True, 0), ("write", "wrong", False, errno.EPERM)]
        assert until(some, len) == found[1:]


def test_a_c_client_under_run_is_told_as_itself(
    machine: MountedLab, compile_client: Callable[..., Path]
) -> None:
    client = compile_client("copier_client")
    with Reader(machine) as reader, created(machine) as vgpu:
        done = run([*VFSFUSE, "run", "--mount", machine.path, "--", client, vgpu.group, vgpu.name])
        assert done.stdout == "status 1\nok\n", done.stderr
        found = until(reader, lambda records: [each for each in records if each.kind == "reset"])
    comms = {each.name: (each.comm, each.pid == each.tid) for each in found if each.kind == "ioctl"}
    assert {name.removeprefix("VFIO_") for name in comms} >= {
        *("GET_API_VERSION", "GROUP_SET_CONTAINER", "SET_IOMMU", "IOMMU_MAP_DMA", "GROUP_GET_DEVICE_FD"),
        *("DEVICE_GET_INFO", "DEVICE_SET_IRQS", "DEVICE_RESET", "IOMMU_UNMAP_DMA"),
    }
    assert set(comms.values()) == {("copier_client", True)}
    assert [each.arguments for each in found if each.kind == "interrupt"] == [{"vector": 0}]
    status = [each for each in found if each.arguments.get("register") == "STATUS" and each.name == "read"]
    assert status[-1].arguments["data"] == (1).to_bytes(4, "little")


def test_a_dma_fault_says_why(machine: MountedLab) -> None:
    with Reader(machine, kinds=["dma"]) as reader, created(machine) as vgpu:
        with Iommufd(machine.path) as iommufd, Copier(vgpu.cdev) as opened:
            opened.ready(iommufd)
            opened.attach(iommufd.ioas())
            opened.begin(IOVA, IOVA, 8)
            wait_for(lambda: opened.status)
        (fault,) = until(reader, bool)
    assert (fault.errno, fault.arguments) == (errno.EFAULT, {"iova": IOVA, "size": 8})
    assert fault.error and "\n" not in fault.error


def test_dma_of_a_device_that_is_no_bus_master_is_told(machine: MountedLab) -> None:
    with Reader(machine, kinds=["dma"]) as reader, created(machine) as vgpu:
        with Iommufd(machine.path) as iommufd, Copier(vgpu.cdev) as opened:
            opened.ready(iommufd)
            opened.attach(iommufd.ioas())
            opened.set_config(COMMAND_REGISTER, DECODE)
            opened.begin(IOVA, IOVA, 8)
            wait_for(lambda: opened.status)
        (fault,) = until(reader, bool)
    assert (fault.subject, fault.name, fault.arguments) == (vgpu.name, "read", {"iova": IOVA, "size": 8})
    assert (fault.errno, fault.error) == (errno.EFAULT, "the device is no bus master")


def test_an_exception_of_a_model_says_where(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    lab = described(tmp_path, BROKEN_LAB.format(tmp_path))
    with lab:
        with Reader(lab, kinds=["region"]) as reader, created(lab, "broken-1", "broken") as vgpu:
            device = vgpu.open()
            fails(errno.EIO, os.pwrite, device, bytes(4), 0)
            os.close(device)
            (wrong,) = until(reader, bool)
        lab.log_path.write_text("")  # it has a traceback, and is looked through at the end
    line = next(number for number, line in enumerate(BROKEN.splitlines(), 1) if "1 // value" in line)
    assert wrong.error == f"ZeroDivisionError: integer division or modulo by zero (broken.py:{line})"
    assert wrong.arguments["register"] == "DIVIDE" and wrong.result is None and wrong.errno == errno.EIO


def test_a_process_has_its_new_name_after_exec(machine: MountedLab) -> None:
    config = machine.gpu / "config"
    with Reader(machine, kinds=["open"]) as reader:
        run(["sh", "-c", f"read -r line < {config}; exec xxd -l 4 {config}"])
        found = until(reader, lambda records: sum(each.name == "close" for each in records) == 2)
    opened = [(each.pid, each.comm) for each in found if each.name == "open"]
    assert [name for _, name in opened] == ["sh", "xxd"] and opened[0][0] == opened[1][0]
