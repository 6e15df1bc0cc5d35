# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of iommufd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.iommufd.client import Iommufd
from tests.lab import MountedLab
from tests.vfio.conftest import machine

__all__ = ["machine"]


@pytest.fixture
def iommufd(machine: MountedLab) -> Iterator[Iommufd]:
    """A fresh open of dev/iommu in a lab with one of every kind of device."""
    with Iommufd(machine.path) as opened:
        yield opened
