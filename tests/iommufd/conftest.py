# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of iommufd."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.iommufd.client import Iommufd
from tests.iommufd.devices import Copier, cdev_of
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import PAGE, Memory
from tests.vfio.conftest import machine
from tests.vfio.copiers import GPU
from tests.vfio.devices import bound

__all__ = ["machine"]


@pytest.fixture
def iommufd(machine: MountedLab) -> Iterator[Iommufd]:
    """A fresh open of dev/iommu in a lab with one of every kind of device."""
    with Iommufd(machine.path) as opened:
        yield opened


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Sixteen pages of this process."""
    memory = Memory(16 * PAGE)
    yield memory
    memory.close()


@pytest.fixture
def pages() -> Iterator[Memory]:
    """Two pages, behind which there is nothing."""
    memory = Memory(3 * PAGE)
    end = Memory(PAGE, prot=0, address=memory.address + 2 * PAGE)
    yield memory
    end.close()
    memory.close()


@pytest.fixture
def memfd() -> Iterator[int]:
    """A file of four pages that can be sealed."""
    fd = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


# ---- for modules whose `machine` is a lab of tests.iommufd.devices.LAB ----


@pytest.fixture
def vgpu(machine: MountedLab) -> Iterator[Vgpu]:
    """A mediated device that nobody has open."""
    with machine.create("copier-1", "copiers") as made:
        yield made


@pytest.fixture
def copier(machine: MountedLab, iommufd: Iommufd) -> Iterator[Copier]:
    """A mediated device, bound."""
    with machine.create("copier-1", "copiers") as vgpu, Copier(vgpu.cdev) as opened:
        opened.ready(iommufd)
        yield opened


@pytest.fixture
def gpu(machine: MountedLab, iommufd: Iommufd) -> Iterator[Copier]:
    """A physical function, bound."""
    with bound(machine, GPU), Copier(cdev_of(machine, GPU)) as opened:
        opened.ready(iommufd)
        yield opened


@pytest.fixture(params=["copier", "gpu"])
def either(request: pytest.FixtureRequest) -> Copier:
    """A mediated device, and a physical function."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Copier)
    return found
