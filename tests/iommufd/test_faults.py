# SPDX-License-Identifier: Apache-2.0
"""Fault queues: a C client under `vfsfuse run`, which can give it the descriptor, on a real mount; without a
run they are refused."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ioctl_shim._native import lib
from tests.commands import ROOT, vfsfuse
from tests.descriptors import open_files
from tests.iommufd.client import Cdev, Iommufd
from tests.iommufd.devices import IOMMU_FAULT_QUEUE_ALLOC, cdev_of, given_fault_queue
from tests.labs import MountedLab, described
from tests.vfio.client import fails
from tests.vfio.devices import HAND_OVER, HAND_OVER_FORMAT, bound, handed_over
from tests.waiting import settled, wait_for
from vfsfuse.vfio.handover import MAX_GIVEN

Compile = Callable[..., Path]
ASKER, DEAF, PHYSICAL = "0000:86:00.0", "0000:87:00.0", "0000:90:00.0"
SECONDS = 30


def _function(name: str, model: str, more: str = "") -> str:
    types = 'types.none = { description = "none", model = "mtty", instances = 1 }'
    return f'[parents."{name}"]\nkind = "gpu"\ndriver = "asking"\nmodel = "{model}"\n{more}\n{types}\n'


LAB = f"""\
[models]
asker = "{ROOT}/tests/iommufd/asker.py:Asker"
copier = "{ROOT}/examples/copier.py:Copier"

{_function(ASKER, "asker")}
[functions."{PHYSICAL}"]
model = "asker"
driver = "asking"
vfs = 1
vf = {{ model = "asker", enabled = 1 }}
{_function(DEAF, "copier")}
"""
REQUESTS = "[iommu]\npage_requests = true\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab with functions that ask their IOMMU for pages, and one that cannot."""
    with described(tmp_path_factory.mktemp("faults"), REQUESTS + LAB) as mounted:
        yield mounted


def client(machine: MountedLab, program: Path, *mode: str) -> subprocess.CompletedProcess[str]:
    """The C client, under a run."""
    limited = ["timeout", "-k", "1", str(SECONDS), str(program)]
    return vfsfuse("run", "--mount", machine.path, "--", *limited, "/dev", *mode)


def test_a_queue_and_its_errnos(machine: MountedLab, compile_client: Compile) -> None:
    done = client(machine, compile_client("fault_queue"), "queue")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_a_function_asks_for_pages(machine: MountedLab, compile_client: Compile) -> None:
    with bound(machine, ASKER):
        done = client(machine, compile_client("fault_queue"), cdev_of(machine, ASKER).name, "pages")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_the_trace_shows_what_a_client_gets(
    machine: MountedLab, compile_client: Compile, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    program = compile_client("fault_queue")
    done = vfsfuse("run", "--mount", machine.path, "--trace", trace, "--", program, "/dev", "queue")
    assert done.returncode == 0, done.stderr
    lines = [line for line in trace.read_text().splitlines() if "IOMMU_FAULT_QUEUE_ALLOC" in line]
    assert "iommufd IOMMU_FAULT_QUEUE_ALLOC {size=16, flags=0x0} => {out_fault_id=1}" in lines[0]
    assert any("{size=16, flags=0x1} = -1 ENOTSUP" in line for line in lines)


def test_the_trace_shows_what_a_function_asks_for(
    machine: MountedLab, compile_client: Compile, tmp_path: Path
) -> None:
    trace, program = tmp_path / "trace", compile_client("fault_queue")
    run = ["run", "--mount", str(machine.path), "--trace", str(trace), "--"]
    with bound(machine, ASKER):
        done = vfsfuse(*run, program, "/dev", cdev_of(machine, ASKER).name, "pages")
    assert done.returncode == 0, done.stderr
    lines = trace.read_text()
    assert f"{ASKER} DMA request 8192 bytes at 0x100000: SUCCESS" in lines
    assert f"{ASKER} DMA request 4096 bytes at 0x100000: INVALID" in lines
    assert "flags=IOMMU_HWPT_FAULT_ID_VALID" in lines


def test_a_function_without_the_capability(machine: MountedLab, compile_client: Compile) -> None:
    with bound(machine, DEAF):
        done = client(machine, compile_client("fault_queue"), cdev_of(machine, DEAF).name, "none")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_hw_info_says_who_has_ats(machine: MountedLab) -> None:
    for name, lacks in ((ASKER, 0), (DEAF, lib.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED)):
        with bound(machine, name), Iommufd(machine.path) as iommufd, Cdev(cdev_of(machine, name)) as cdev:
            info, _ = iommufd.hw_info(cdev.bind(iommufd))
            assert info.out_capabilities & lib.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED == lacks


def test_a_virtual_function_asks_through_its_physical_one(machine: MountedLab) -> None:
    """So it cannot have a queue of its own."""
    virtual = (machine.path / "sys/bus/pci/devices" / PHYSICAL / "virtfn0").resolve()
    (virtual / "driver_override").write_text("vfio-pci")
    (machine.path / "sys/bus/pci/drivers_probe").write_text(virtual.name)
    with Iommufd(machine.path) as iommufd, Cdev(cdev_of(machine, virtual.name)) as cdev:
        device, ioas = cdev.bind(iommufd), iommufd.ioas()
        with given_fault_queue(machine, iommufd) as (queue, _):
            hwpt = iommufd.hwpt(device, ioas, lib.IOMMU_HWPT_FAULT_ID_VALID, fault_id=queue)
            fails(errno.EINVAL, cdev.attach, hwpt)
            cdev.attach(ioas)


def test_an_iommu_without_the_capability(
    tmp_path_factory: pytest.TempPathFactory, compile_client: Compile
) -> None:
    with described(tmp_path_factory.mktemp("deaf"), LAB) as machine, bound(machine, ASKER):
        done = client(machine, compile_client("fault_queue"), cdev_of(machine, ASKER).name, "none")
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_without_a_run_there_is_no_descriptor(machine: MountedLab) -> None:
    with Iommufd(machine.path) as iommufd:
        fails(errno.EOPNOTSUPP, iommufd.fault_queue)
        assert iommufd.ioas() == 1


def test_lspci_shows_the_capabilities(machine: MountedLab) -> None:
    config = (machine.path / "sys/bus/pci/devices" / ASKER / "config").read_bytes()
    heads = [int.from_bytes(config[at : at + 2], "little") for at in range(256, len(config), 4)]
    assert 0x0F in heads and 0x13 in heads
    ecap = (machine.path / "sys/class/iommu/dmar0/intel-iommu/ecap").read_text()
    assert int(ecap, 16) >> 29 & 1 and int(ecap, 16) >> 2 & 1


def test_nothing_is_left_of_a_client_that_is_gone(machine: MountedLab, compile_client: Compile) -> None:
    """Each client uses a context of its own; the server holds no file of theirs."""
    program = compile_client("fault_queue")
    client(machine, program, "queue")
    before = settled(lambda: open_files(machine.pid))
    client(machine, program, "queue")
    wait_for(lambda: open_files(machine.pid) <= before)


# ---- as a hostile supervisor asks ----


def ask(file: int, tid: int = 0, size: int = 16) -> int:
    """HAND_OVER of FAULT_QUEUE_ALLOC: the token."""
    return handed_over(file, IOMMU_FAULT_QUEUE_ALLOC, struct.pack("=IIII", size, 0, 0, 0), tid)[0]


def test_who_asks_for_many_queues_has_the_last_ones(machine: MountedLab) -> None:
    """The rest is withdrawn, and so are all with the last close of dev/iommu."""
    with Iommufd(machine.path) as iommufd:
        tokens = [ask(iommufd.fd) for _ in range(MAX_GIVEN + 20)]
        names = [machine.path / f".fault-queue-{token}" for token in tokens]
        assert [name.exists() for name in names] == [False] * 20 + [True] * MAX_GIVEN
        assert iommufd.ioas() <= MAX_GIVEN + 1, "the ids of the others are free again"
        assert not [name for name in os.listdir(machine.path) if name.startswith(".")]
    wait_for(lambda: not any(name.exists() for name in names))


def test_a_token_is_of_one_thread_and_for_one_open(machine: MountedLab) -> None:
    with Iommufd(machine.path) as iommufd:
        name = machine.path / f".fault-queue-{ask(iommufd.fd)}"
        with ThreadPoolExecutor(1) as other:
            fails(errno.EACCES, lambda: other.submit(os.open, name, os.O_RDWR).result())
        file = os.open(name, os.O_RDWR)
        fails(errno.ENOENT, os.open, name, os.O_RDWR)
        assert os.read(file, 0) == b""
        os.close(file)
        assert iommufd.ioas() == 1, "nobody said that a client has it"


def test_data_that_are_no_struct(machine: MountedLab) -> None:
    with Iommufd(machine.path) as iommufd:
        for data in (b"", bytes(15)):
            fails(errno.EINVAL, handed_over, iommufd.fd, IOMMU_FAULT_QUEUE_ALLOC, data, 1)
        for cmd in (0, 0x3B6A, 0x3B81, 0xFFFFFFFF):  # ioctls of other files, or that give nothing
            fails(errno.ENOTTY, handed_over, iommufd.fd, cmd, bytes(16), 1)
        most = 2**32 - 1
        ask_all = bytearray(HAND_OVER_FORMAT.pack(IOMMU_FAULT_QUEUE_ALLOC, most, 2**64 - 1, most, bytes(260)))
        fcntl.ioctl(iommufd.fd, HAND_OVER, ask_all)
