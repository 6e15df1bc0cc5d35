# SPDX-License-Identifier: Apache-2.0
"""DMA of devices whose groups have an iommufd as their container."""

from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.commands import ROOT, vfsfuse
from tests.iommufd.client import Iommufd, IommufdContainer
from tests.labs import MountedLab, described
from tests.vfio import client
from tests.vfio.client import PAGE, Group, Memory, fails
from tests.vfio.copiers import COMMAND_REGISTER, DECODE, DONE, FAULT, MASTER
from tests.vfio.copiers import LAB as COPIERS
from tests.vfio.devices import (
    GPU,
    Opened,
    bound,
    opened,
)
from tests.vfio.test_dma_device import copy, mapped

BASE = 0x100000


@pytest.fixture(scope="module")
def copiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("copiers"), COPIERS) as mounted:
        yield mounted


@pytest.fixture(params=["mediated", "physical"])
def copier(copiers: MountedLab, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """A device that copies memory, in a container that is an iommufd."""
    with contextlib.ExitStack() as stack:
        if request.param == "physical":
            number, name = stack.enter_context(bound(copiers, GPU))[0], GPU
        else:
            vgpu = stack.enter_context(copiers.create("copier-1", "copiers"))
            number, name = vgpu.group, vgpu.name
        found = stack.enter_context(opened(copiers, number, name, container=IommufdContainer))
        decode = DECODE - 1 if request.param == "physical" else DECODE
        found.device.set_config(COMMAND_REGISTER, decode | MASTER)
        yield found


def test_dma(copier: Opened) -> None:
    with mapped(copier, 0, Memory(2 * PAGE)) as memory:
        memory.write(b"bytes", 100)
        assert copy(copier, 100, PAGE + 1, 5) == DONE
        assert memory.read(PAGE + 1, 5) == b"bytes"
        assert copy(copier, 0, 4 * PAGE, 5) == FAULT
    assert copy(copier, 0, PAGE, 5) == FAULT


def test_dma_to_a_mapping_without_a_right(copier: Opened) -> None:
    with (
        mapped(copier, 0, Memory(PAGE)),
        mapped(copier, PAGE, Memory(PAGE), client.READ),
        mapped(copier, 2 * PAGE, Memory(PAGE), client.WRITE),
        mapped(copier, 3 * PAGE, Memory(PAGE), 0),
    ):
        for source, target, status in (
            *((0, PAGE, FAULT), (PAGE, 0, DONE), (0, 2 * PAGE, DONE), (2 * PAGE, 0, FAULT)),
            *((0, 3 * PAGE, FAULT), (3 * PAGE, 0, FAULT)),
        ):
            assert copy(copier, source, target, 16) == status


def test_dma_to_the_parts_of_a_split_mapping(copier: Opened) -> None:
    """Each part is where it was, and what was cut out is gone."""
    container, memory = copier.container, Memory(8 * PAGE)
    container.set_iommu(client.TYPE1)
    container.map(BASE, memory.address, memory.size)
    for page in range(8):
        memory.write(b"page%d" % page, page * PAGE)
    assert container.unmap(BASE + 2 * PAGE, PAGE) == PAGE
    assert container.unmap(BASE + 5 * PAGE, PAGE) == PAGE
    container.map(0, memory.address + 2 * PAGE, PAGE)
    for page in range(8):
        there = DONE if page not in (2, 5) else FAULT
        assert copy(copier, BASE + page * PAGE, 8, 5) == there
        if there == DONE:
            assert memory.read(2 * PAGE + 8, 5) == b"page%d" % page
    assert copy(copier, BASE + 7 * PAGE - 2, 0, 4) == DONE  # across pages of one part
    assert copy(copier, BASE + PAGE, 0, PAGE + 1) == FAULT
    assert container.unmap(0, 0, client.UNMAP_EVERYTHING) == 7 * PAGE
    memory.close()


def test_dma_after_the_iommufd_and_the_group_are_closed(copier: Opened) -> None:
    memory = Memory(2 * PAGE)
    copier.container.map(0, memory.address, memory.size)
    copier.container.close()
    copier.group.close()
    memory.write(b"still")
    assert copy(copier, 0, PAGE, 5) == DONE
    assert memory.read(PAGE, 5) == b"still"
    memory.close()


def test_dma_follows_no_other_ioas(copier: Opened) -> None:
    """A device stays in the IOAS that it was attached to."""
    context, memory = Iommufd(copier.container.fd), Memory(2 * PAGE)
    copier.container.map(0, memory.address, memory.size)
    context.set_vfio_ioas(context.ioas())
    assert copier.container.unmap(0, memory.size) == 0
    assert copy(copier, 0, PAGE, 5) == DONE
    memory.close()


def test_a_locked_memory_limit_is_the_contexts(copier: Opened) -> None:
    """With a physical function memory is pinned as it is mapped: what the mapper may not lock is ENOMEM."""
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, str(copier.container.fd)],
        cwd=ROOT,
        pass_fds=(copier.container.fd,),
        capture_output=True,
        text=True,
        check=False,
    )
    physical = copier.name == GPU
    assert limited.stdout == ("ENOMEM\n" if physical else "mapped\n"), limited.stderr


LIMITED = """
import ctypes, errno, resource, struct, sys
from tests.iommufd.client import IommufdContainer
from tests.vfio.client import PAGE, Memory
libc = ctypes.CDLL(None)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * PAGE, 2 * PAGE))
head, sets = struct.pack("Ii", 0x20080522, 0), bytearray(24)
held = (ctypes.c_char * 24).from_buffer(sets)
assert libc.capget(head, held) == 0
sets[0:4] = (int.from_bytes(sets[0:4], "little") & ~(1 << 14)).to_bytes(4, "little")
assert libc.capset(head, held) == 0
container, memory = IommufdContainer(int(sys.argv[1])), Memory(3 * PAGE)
container.map(0, memory.address, 2 * PAGE)
container.unmap(0, 2 * PAGE)
try:
    container.map(0, memory.address, 3 * PAGE)
    print("mapped")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_a_killed_client_leaves_nothing(copiers: MountedLab) -> None:
    with bound(copiers, GPU) as (number,):
        for _ in range(3):
            client_process = subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(copiers.path), number, GPU],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert client_process.stdout is not None
            with client_process.stdout as output:
                assert output.readline() == "mapped\n"
                fails(errno.EBUSY, Group, copiers.path, number)
                client_process.send_signal(signal.SIGKILL)
                client_process.wait()
            with opened(copiers, number, GPU):
                pass


HOLDER = """
import sys, time
from pathlib import Path
from tests.iommufd.client import IommufdContainer
from tests.vfio.client import PAGE, Group, Memory
from tests.vfio.devices import group_device
root = Path(sys.argv[1])
container, group, memory = IommufdContainer(root), Group(root, sys.argv[2]), Memory(PAGE)
group.set_container(container)
device = group_device(root, group, sys.argv[3])
container.map(0, memory.address, PAGE)
print("mapped", flush=True)
time.sleep(100)
"""


def test_get_device_fd_under_run(copiers: MountedLab) -> None:
    """The supervisor hands over a device of such a group, and each error of its attachment."""
    with copiers.create("copier-1", "copiers") as vgpu, bound(copiers, GPU) as (number,):
        for group, name in ((vgpu.group, vgpu.name), (number, GPU)):
            done = vfsfuse("run", "--mount", copiers.path, "--", sys.executable, "-c", UNDER_RUN, group, name)
            assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


UNDER_RUN = """
import errno, os, sys
from tests.iommufd.client import Iommufd, IommufdContainer
from tests.vfio.client import PAGE, Group, Memory, fails, unmapped_address
from tests.vfio.devices import Device, GPU
container, group, name = IommufdContainer("/"), Group("/", sys.argv[1]), sys.argv[2]
fails(errno.EINVAL, group.device_fd, name)
group.set_container(container)
fails(errno.ENODEV, group.device_fd, "none")
container.map(0x100000, unmapped_address(), PAGE)
if name == GPU:
    fails(errno.EFAULT, group.device_fd, name)
    container.unmap(0x100000, PAGE)
with Device(group.device_fd(name)) as device:
    assert device.config(0)
    fails(errno.EBUSY, Iommufd(container.fd).destroy, 2)
fails(errno.ENOENT, Iommufd(container.fd).destroy, 2)
print("ok")
"""
