# SPDX-License-Identifier: Apache-2.0
"""read(2), write(2) and getdents(2) of the lab's files with memory that waits when it is touched."""

from __future__ import annotations

import pytest

from tests import needs
from tests.hostile.conftest import NOWHERE, PARENT, TYPE, Lab, Place

GPU = f"sys/class/mdev_bus/{PARENT}"
READ = [f"{GPU}/vendor", f"{GPU}/config", f"{GPU}/mdev_supported_types/{TYPE}/available_instances"]
STORES = [f"{GPU}/vgpu_create", f"{GPU}/mdev_supported_types/{TYPE}/create"]
LISTED = ["sys/bus/mdev/devices", GPU, "sys/class/vgpu", "dev/vfio", "dev/vfio/devices"]
"""Directories in which names come and go."""


@pytest.mark.parametrize("call", ["read-config", "write-config", "read-memory", "write-memory"])
def test_a_device(hostile_lab: Lab, vgpu: Place, call: str) -> None:
    hostile_lab.check(hostile_lab.hostile(vgpu, call, "-m", "shared"), "0")


@pytest.mark.parametrize("path", READ)
def test_reading_an_attribute(hostile_lab: Lab, path: str) -> None:
    there = str(hostile_lab.mounted.path / path)
    hostile_lab.check(hostile_lab.hostile(NOWHERE, "read-file", "-m", "shared", "-p", there), "0")


@pytest.mark.parametrize("path", STORES)
def test_writing_an_attribute(hostile_lab: Lab, path: str) -> None:
    there = str(hostile_lab.mounted.path / path)
    hostile_lab.check(hostile_lab.hostile(NOWHERE, "write-file", "-m", "shared", "-p", there), "EINVAL")


@pytest.mark.parametrize("path", LISTED)
@pytest.mark.parametrize(
    "user", [False, pytest.param(True, marks=needs.root("an ordinary user lists already"))]
)
def test_listing_a_directory(hostile_lab: Lab, path: str, user: bool) -> None:
    there = str(hostile_lab.mounted.path / path)
    hostile_lab.check(hostile_lab.hostile(NOWHERE, "list", "-m", "shared", "-p", there, user=user), "0")
