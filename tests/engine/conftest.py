# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a lab with vGPUs of one physical engine, and one of them with its engine enabled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.labs import MountedLab, Vgpu, described
from tests.vfio.gpu_client import ENGINE_LAB, Gpu, gpu


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("engine"), ENGINE_LAB) as mounted:
        yield mounted


@pytest.fixture
def vgpu(machine: MountedLab) -> Iterator[Vgpu]:
    with machine.create("even") as made:
        yield made


@pytest.fixture
def engine(machine: MountedLab, vgpu: Vgpu) -> Iterator[Gpu]:
    with gpu(machine, vgpu) as made:
        yield made
