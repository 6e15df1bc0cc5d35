# SPDX-License-Identifier: Apache-2.0
"""Fixtures: labs that a module shares. Each test takes away what it creates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nvidia.host import LAB as VENDOR
from tests.vfio.copiers import LAB as COPIERS
from vfsfuse import Device, Lab


@pytest.fixture(scope="module")
def builtin() -> Iterator[Lab]:
    """The built-in lab."""
    with Lab(strict=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def vendor() -> Iterator[Lab]:
    """A lab whose GPU has NVIDIA's framework."""
    with Lab(VENDOR, strict=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def copiers() -> Iterator[Lab]:
    """A lab of devices that do DMA: vGPUs, and the function tests.vfio.copiers.GPU."""
    with Lab(COPIERS, strict=True) as lab:
        yield lab


@pytest.fixture
def device(copiers: Lab) -> Iterator[Device]:
    """An open copier, with interrupts and DMA enabled."""
    with copiers.create("copier-1") as vgpu, vgpu.open() as opened:
        opened.enable()
        yield opened
