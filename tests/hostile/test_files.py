# SPDX-License-Identifier: Apache-2.0
"""read(2), write(2) and getdents(2) of the lab's files with memory that waits when it is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests import needs
from tests.hostile.clients import SECONDS
from tests.hostile.conftest import NOWHERE, PARENT, TYPE, Lab, Place, remove
from tests.inotify import Heard, Watch, watching

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


@pytest.mark.parametrize("path", ["dev/vfio", "dev/vfio/devices"])
def test_listing_a_watched_directory(hostile_lab: Lab, path: str) -> None:
    """Watchers hear of what comes and goes when the client has closed the directory, and names are found
    meanwhile."""
    there = hostile_lab.mounted.path / path
    client = hostile_lab.hostile(NOWHERE, "list", "-m", "shared", "-p", str(there))
    with watching(there) as watch, forgetting(watch), client:
        client.wait_for_call()
        vgpu = hostile_lab.mounted.create(TYPE)
        assert watch.silent(1)
        names = [vgpu.vfio if path.endswith("devices") else vgpu.group, "nothing"]
        looks = [subprocess.Popen(["test", "-e", there / name]) for name in names]
        found = [look.wait(SECONDS) for look in looks]
        outcome = client.release()
        vgpu.remove()
        assert (found, outcome) == ([0, 1], "0")
        hear(watch, (str(there), "IN_DELETE", names[0]))


def test_writing_to_a_node_that_goes(hostile_lab: Lab) -> None:
    """The client holds the lock of the node's inode."""
    nodes = hostile_lab.mounted.path / "dev/vfio"
    with watching(nodes) as watch, forgetting(watch):
        vgpu = hostile_lab.mounted.create(TYPE)
        node = nodes / vgpu.group
        hear(watch, (str(nodes), "IN_CREATE", vgpu.group))
        client = hostile_lab.hostile(NOWHERE, "write-file", "-m", "shared", "-p", str(node))
        with client:
            client.wait_for_call()
            remove(vgpu)
            hear(watch, (str(nodes), "IN_DELETE", vgpu.group))
            stalled = hostile_lab.everybody.stalled()
            assert (stalled, client.release()) == ({}, "EINVAL")


@contextmanager
def forgetting(watch: Watch) -> Iterator[None]:
    """Let pass what is still heard of vGPUs of before."""
    while not watch.silent():
        pass
    yield


def hear(watch: Watch, wanted: Heard) -> None:
    """Wait for an event; there may be others before it."""
    while wanted not in (heard := watch.hear(1)):
        assert heard
