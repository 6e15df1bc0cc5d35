# SPDX-License-Identifier: Apache-2.0
"""A lab whose fault rules tests change through the file `faults` of its mount, and a copier that is open in
it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.iommufd.client import Iommufd
from tests.iommufd.conftest import copier, gpu, iommufd, memory, vgpu
from tests.iommufd.devices import LAB, Copier
from tests.labs import MountedLab, described
from tests.vfio.client import (
    PAGE,
    Memory,
)

__all__ = ["copier", "gpu", "iommufd", "memory", "vgpu"]

IOVA, TARGET = 1 << 20, (1 << 20) + PAGE
SOURCE_REGISTER, STATUS_REGISTER, COMMAND_REGISTER = 0x00, 0x18, 0x14
VFS = """
[functions."0000:90:00.0"]
driver = "pf"
vfs = 4
vf = { driver = "vfdriver" }
"""
PF = "0000:90:00.0"


class Faults:
    """The rules of a lab, through its file."""

    def __init__(self, lab: MountedLab) -> None:
        self.path = lab.path / "faults"

    def write(self, text: str | bytes) -> str:
        """The outcome of a write. Raises OSError, whose text is the file's reason."""
        fd = os.open(self.path, os.O_RDWR)
        try:
            os.write(fd, text.encode() if isinstance(text, str) else text)
            return os.pread(fd, 1 << 20, 0).decode()
        except OSError as error:
            raise OSError(error.errno, os.pread(fd, 1 << 20, 0).decode()) from None
        finally:
            os.close(fd)

    def list(self) -> list[str]:
        return self.path.read_text().splitlines()

    @contextmanager
    def hold(self, *rules: str) -> Iterator[None]:
        """The lab has these rules in the block."""
        self.write("".join(f"add {rule}\n" for rule in rules))
        try:
            yield
        finally:
            self.write("clear\n")

    def said(self, number: int = 0) -> str:
        """How often a rule has hit."""
        return self.list()[number].partition("  # ")[2]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab of copiers, and a function with virtual ones."""
    with described(tmp_path_factory.mktemp("faults"), LAB + VFS) as mounted:
        yield mounted


@pytest.fixture
def faults(machine: MountedLab) -> Faults:
    return Faults(machine)


@pytest.fixture
def mapped(iommufd: Iommufd, copier: Copier, memory: Memory) -> Memory:
    """Memory of the client that the copier reaches at IOVA."""
    ioas = iommufd.ioas()
    iommufd.map(ioas, memory.address, memory.size, IOVA)
    copier.attach(ioas)
    return memory


def read(copier: Copier, offset: int, size: int = 4) -> int:
    return int.from_bytes(os.pread(copier.fd, size, offset), "little")


def put(copier: Copier, offset: int, value: int, size: int = 4) -> None:
    assert os.pwrite(copier.fd, value.to_bytes(size, "little"), offset) == size


@contextmanager
def aside(call: Callable[[], object]) -> Iterator[Future[object]]:
    """A call on a thread of its own."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(call)
