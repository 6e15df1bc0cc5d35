# SPDX-License-Identifier: Apache-2.0
"""Two processes share an iommufd: one gets its descriptor by SCM_RIGHTS, maps its own memory and attaches a
device of its own. Each device reaches the memory of both.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.iommufd.client import ALL, Cdev, Iommufd
from tests.lab import ROOT, MountedLab, Vgpu, described
from tests.vfio.client import PAGE, Memory
from tests.vfio.test_dma_device import COMMAND_REGISTER, COPY, DECODE, DONE, FAULT, MASTER, wait_for

LAB = f"""\
[models]
copier = "{ROOT}/examples/copier.py:Copier"

[parents.copiers]
kind = "virtual"
driver = "copier"
slots = 8
types.copier-1 = {{ description = "copies" }}
"""
OURS, THEIRS = 0x100000, 0x200000
"""Where each maps its two pages."""


@pytest.fixture(scope="module")
def copiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("sharing"), LAB) as mounted:
        yield mounted


@pytest.fixture
def two(copiers: MountedLab) -> Iterator[tuple[Vgpu, Vgpu]]:
    with copiers.create("copier-1", "copiers") as one, copiers.create("copier-1", "copiers") as other:
        yield one, other


def use(path: Path, iommufd: Iommufd, ioas: int) -> Cdev:
    """The copier of this file, bound to the iommufd and attached to the IOAS."""
    device = Cdev(path)
    device.bind(iommufd)
    device.attach(ioas)
    device.set_config(COMMAND_REGISTER, DECODE | MASTER)
    return device


def copy(device: Cdev, source: int, target: int, size: int) -> int:
    """The copier copies; its status afterwards, which is acknowledged."""
    for offset, value, width in ((0, source, 8), (8, target, 8), (0x10, size, 4), (0x14, COPY, 4)):
        os.pwrite(device.fd, value.to_bytes(width, "little"), offset)
    wait_for(lambda: os.pread(device.fd, 4, 0x18) != bytes(4))
    status = os.pread(device.fd, 4, 0x18)
    os.pwrite(device.fd, status, 0x18)
    return int.from_bytes(status, "little")


PARTNER = """\
import socket, sys
from tests.iommufd.client import Iommufd
from tests.iommufd.test_sharing import DONE, OURS, THEIRS, copy, use
from tests.vfio.client import PAGE, Memory
channel = socket.socket(fileno=int(sys.argv[1]))
word, (fd,), _, _ = socket.recv_fds(channel, 16, 1)
iommufd, ioas = Iommufd(fd), int(word)
memory = Memory(2 * PAGE, private=True)
memory.write(b"theirs")
assert iommufd.map(ioas, memory.address, memory.size, THEIRS) == THEIRS
channel.send(b"mapped")
assert channel.recv(16) == b"copy"
assert memory.read(PAGE, 4) == b"ours"
with use(sys.argv[2], iommufd, ioas) as device:
    assert copy(device, THEIRS, OURS + PAGE, 6) == DONE
channel.send(b"copied")
channel.recv(16)
"""


def test_two_processes_share_an_ioas(copiers: MountedLab, two: tuple[Vgpu, Vgpu]) -> None:
    ours, theirs = socket.socketpair()
    memory = Memory(2 * PAGE, private=True)
    memory.write(b"ours")
    with Iommufd(copiers.path) as iommufd:
        ioas = iommufd.ioas()
        iommufd.map(ioas, memory.address, memory.size, OURS)
        command = [sys.executable, "-c", PARTNER, str(theirs.fileno()), str(two[1].cdev)]
        with (
            use(two[0].cdev, iommufd, ioas) as device,
            subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT) as partner,
        ):
            theirs.close()
            socket.send_fds(ours, [str(ioas).encode()], [iommufd.fd])
            assert ours.recv(16) == b"mapped"
            assert copy(device, OURS, THEIRS + PAGE, 4) == DONE
            ours.send(b"copy")
            assert ours.recv(16) == b"copied"
            assert memory.read(PAGE, 6) == b"theirs"
            assert copy(device, THEIRS, OURS, 6) == DONE
            assert memory.read(0, 6) == b"theirs"
            ours.close()
            assert partner.wait(20) == 0
            assert copy(device, THEIRS, OURS, 6) == FAULT, "private memory goes with its process"
            assert copy(device, OURS, OURS + PAGE, 6) == DONE
        assert iommufd.unmap(ioas, 0, ALL) == 4 * PAGE
        iommufd.destroy(ioas)
    memory.close()


def test_a_context_lives_as_long_as_anybody_has_it(copiers: MountedLab, two: tuple[Vgpu, Vgpu]) -> None:
    """The first process closes what it has; with the descriptors that it has passed on, all goes on."""
    memory = Memory(2 * PAGE, private=True)
    memory.write(b"there")
    first = Iommufd(copiers.path)
    ioas = first.ioas()
    first.map(ioas, memory.address, memory.size, OURS)
    device = use(two[0].cdev, first, ioas)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [first.fd, device.fd])
        first.close()
        device.close()
        _, (iommufd, fd), _, _ = socket.recv_fds(theirs, 16, 2)
    with Iommufd(iommufd) as second, Cdev(fd) as held:
        assert copy(held, OURS, OURS + PAGE, 5) == DONE
        assert memory.read(PAGE, 5) == b"there"
        second.close()
        assert copy(held, OURS + PAGE, OURS + 8, 5) == DONE, "the bound device holds the context"
    with Iommufd(copiers.path) as other:
        use(two[0].cdev, other, other.ioas()).close()
    memory.close()
