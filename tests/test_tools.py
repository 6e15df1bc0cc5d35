# SPDX-License-Identifier: Apache-2.0
"""Debian's own tools, unmodified, under `vfsfuse run`: mdevctl, lspci, driverctl, lshw."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from tests.labs import MountedLab
from tests.tool import Tool, need

GPU = "0000:86:00.0"
PORT = "0000:00:01.0"
PACKAGES = {"lspci": "pciutils"}


@pytest.fixture
def tool(lab: MountedLab, request: pytest.FixtureRequest) -> Iterator[Tool]:
    """Runs the test's program (its name is after `test_`) in the lab."""
    name = request.node.name.split("_")[1]
    need(name, PACKAGES.get(name, name))
    yield Tool(lab, name)


def test_mdevctl_types(tool: Tool) -> None:
    types = json.loads(tool("types", "--dumpjson"))
    found = {name: kinds for parent in types for name, kinds in parent.items()}
    assert set(found) == {GPU, "mtty", "mdpy", "mbochs"}
    kinds = {name: what for entry in found[GPU] for name, what in entry.items()}
    assert {name: what["available_instances"] for name, what in kinds.items()} == {
        "vgpu-1": 1,
        "vgpu-2": 2,
        "vgpu-4": 4,
        "vgpu-8": 8,
    }
    assert {what["device_api"] for what in kinds.values()} == {"vfio-pci"}


def test_mdevctl_start_list_stop(tool: Tool) -> None:
    name = str(uuid.uuid4())
    tool("start", "-u", name, "-p", GPU, "-t", "vgpu-4")
    assert tool("list").strip() == f"{name} {GPU} vgpu-4 manual"
    assert (tool.lab.mdevs / name).is_dir()
    again = tool.run("start", "-u", name, "-p", GPU, "-t", "vgpu-4")
    assert again.returncode != 0
    tool("stop", "-u", name)
    assert tool("list").strip() == ""
    assert not (tool.lab.mdevs / name).exists()


def test_mdevctl_lists_beside_devices_of_the_other_face(tool: Tool) -> None:
    """A name that is no UUID is not in mdevctl's way."""
    name = str(uuid.uuid4())
    (tool.lab.gpu / "vgpu_create").write_text(f"{name}:3:vgpu-8\n")
    with tool.lab.create("mtty-1", "mtty") as card:
        assert f"{card.name} mtty mtty-1 manual\n" in tool("list")
    (tool.lab.gpu / "vgpu_destroy").write_text(f"{name}:3\n")


def test_lspci_sees_the_lab_only(tool: Tool) -> None:
    listed = tool("-D", "-n").splitlines()
    assert listed == [f"{PORT} 0604: 1b36:000c", f"{GPU} 0300: 1234:86f0 (rev 01)"]
    shown = tool("-D", "-k", "-vv")
    assert "Kernel driver in use: vgpu" in shown
    assert "Region 0: Memory at 3800000000 (64-bit, prefetchable) [size=256M]" in shown


def test_driverctl_lists_and_overrides(tool: Tool) -> None:
    assert tool.quiet("list-devices") == f"{PORT} pcieport\n{GPU} vgpu\n"
    with tool.lab.create() as held, held.cdev.open("rb"):
        refused = tool.run("--nosave", "set-override", GPU, "vfio-pci")
        assert refused.returncode != 0
        assert "busy" in refused.stderr
    assert tool("list-devices") == f"{PORT} pcieport\n{GPU} vgpu\n"
    idle = tool.lab.create()
    assert tool.quiet("--nosave", "set-override", GPU, "vfio-pci") == ""
    assert not (tool.lab.mdevs / idle.name).exists()
    assert tool.quiet("list-devices") == f"{PORT} pcieport\n{GPU} vfio-pci [*]\n"
    assert tool.quiet("list-overrides") == f"{GPU} vfio-pci\n"
    assert (tool.lab.path / "dev/vfio/0").exists()
    assert not (tool.lab.path / "sys/class/mdev_bus" / GPU).exists()
    assert tool.quiet("--nosave", "unset-override", GPU) == ""
    assert tool.quiet("list-devices") == f"{PORT} pcieport\n{GPU} vgpu\n"
    assert not (tool.lab.path / "dev/vfio/0").exists()
    assert (tool.lab.gpu / "mdev_supported_types/vgpu-1/available_instances").read_text() == "1\n"


def test_lshw_finds_the_display(tool: Tool) -> None:
    (display,) = json.loads(tool("-C", "display", "-json", "-quiet"))
    assert display["businfo"] == f"pci@{GPU}"
    assert display["configuration"]["driver"] == "vgpu"
    assert display["width"] == 64
