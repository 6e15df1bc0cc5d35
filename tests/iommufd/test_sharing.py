# SPDX-License-Identifier: Apache-2.0
"""Two processes share an iommufd: one gets its descriptor by SCM_RIGHTS, maps its own memory and attaches a
device of its own. Each device reaches the memory of both.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.iommufd.client import ALL, Iommufd
from tests.iommufd.devices import LAB, Copier
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import PAGE, Memory
from tests.vfio.copiers import DONE, FAULT

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


def use(device: Path | str | int, iommufd: Iommufd, ioas: int) -> Copier:
    """The copier of this file, bound to the iommufd and attached to the IOAS."""
    opened = Copier(device)
    opened.ready(iommufd)
    opened.attach(ioas)
    return opened


PARTNER = """\
import socket, sys
from tests.iommufd.client import Iommufd
from tests.vfio.copiers import DONE
from tests.iommufd.test_sharing import OURS, THEIRS, use
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
    assert device.copy(THEIRS, OURS + PAGE, 6) == DONE
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
            assert device.copy(OURS, THEIRS + PAGE, 4) == DONE
            ours.send(b"copy")
            assert ours.recv(16) == b"copied"
            assert memory.read(PAGE, 6) == b"theirs"
            assert device.copy(THEIRS, OURS, 6) == DONE
            assert memory.read(0, 6) == b"theirs"
            ours.close()
            assert partner.wait(60) == 0
            assert device.copy(THEIRS, OURS, 6) == FAULT, "private memory goes with its process"
            assert device.copy(OURS, OURS + PAGE, 6) == DONE
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
    with Iommufd(iommufd) as second, Copier(fd) as held:
        assert held.copy(OURS, OURS + PAGE, 5) == DONE
        assert memory.read(PAGE, 5) == b"there"
        second.close()
        assert held.copy(OURS + PAGE, OURS + 8, 5) == DONE, "the bound device holds the context"
    with Iommufd(copiers.path) as other:
        use(two[0].cdev, other, other.ioas()).close()
    memory.close()
