# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of the VFIO interface."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.labs import MountedLab, described
from tests.vfio.devices import LAB


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab with one of every kind of device, mounted for a module."""
    with described(tmp_path_factory.mktemp("machine"), LAB) as mounted:
        yield mounted
