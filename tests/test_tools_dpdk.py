# SPDX-License-Identifier: Apache-2.0
"""DPDK's dpdk-devbind.py, unmodified, under `vfsfuse run`: it lists devices, and binds them to vfio-pci and
back.

Releases since 24.11 ask whether the machine has an IOMMU.  The tests read and write what they do, and run the
installed script, whichever release it is of.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import vfsfuse
from tests.labs import MountedLab, described
from tests.tool import Tool, need

SCRIPT = "dpdk-devbind.py"
DEVICE, OTHER = "0000:86:00.0", "0000:87:00.0"
MODEL = Path(__file__).parent / "vfio/models/accelerator.py"
PARENT = """
[parents."{name}"]
kind = "gpu"
driver = "accel-drv"
model = "accelerator"
memory = "16M"
iommu = {iommu}
types.one = {{ memory = "4M", description = "a share" }}
"""
NEWER = """
import os
if not os.listdir("/sys/class/iommu"):
    name = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    with open(name) as file:
        print(file.read(1))
    with open(name, "w") as file:
        file.write("1")
    with open(name) as file:
        print(file.read(1))
"""
"""What newer releases do before they bind to vfio-pci, with --noiommu-mode."""


def mounted(folder: Path, iommu: bool) -> MountedLab:
    parents = [PARENT.format(name=name, iommu=str(iommu).lower()) for name in (DEVICE, OTHER)]
    return described(folder, f'models = {{ accelerator = "{MODEL}:Accelerator" }}\n' + "".join(parents))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[MountedLab]:
    """Two accelerators behind an IOMMU."""
    with mounted(tmp_path, True) as made:
        yield made


@pytest.fixture
def bare_lab(tmp_path: Path) -> Iterator[MountedLab]:
    """Two accelerators without an IOMMU."""
    with mounted(tmp_path, False) as made:
        yield made


@pytest.fixture(autouse=True)
def programs() -> None:
    for program, package in ((SCRIPT, "dpdk"), ("lspci", "pciutils"), ("ip", "iproute2")):
        need(program, package)


def driver_of(lab: MountedLab, name: str) -> str:
    link = lab.path / "sys/bus/pci/devices" / name / "driver"
    return link.readlink().name if link.exists() else ""


def asks_for_iommu() -> bool:
    """Whether the installed script is such a release."""
    found = shutil.which(SCRIPT)
    return found is not None and "--noiommu-mode" in Path(found).read_text()


def status(lab: MountedLab) -> list[str]:
    """The lines of devices in its status."""
    return [line for line in Tool(lab, SCRIPT).quiet("-s").splitlines() if line.startswith("0000:")]


def test_status_lists_the_devices_of_the_lab(lab: MountedLab) -> None:
    shown = Tool(lab, SCRIPT).quiet("-s")
    assert "Baseband devices using kernel driver" in shown and "No 'Network' devices detected" in shown
    assert [line.split() for line in status(lab)] == [
        [name, "'Device", "c0f6'", "drv=accel-drv", "unused=vfio-pci"] for name in (DEVICE, OTHER)
    ]


def test_it_binds_to_vfio_pci_and_back(lab: MountedLab) -> None:
    tool = Tool(lab, SCRIPT)
    assert tool.quiet("-b", "vfio-pci", DEVICE) == ""
    assert [driver_of(lab, name) for name in (DEVICE, OTHER)] == ["vfio-pci", "accel-drv"]
    function = lab.path / "sys/bus/pci/devices" / DEVICE
    assert (function / "driver_override").read_text() == "(null)\n"
    assert (lab.path / "dev/vfio" / (function / "iommu_group").readlink().name).exists()
    assert f"{DEVICE} 'Device c0f6' drv=vfio-pci unused=" in status(lab)
    again = tool.run("-b", "vfio-pci", "86:00.0")
    assert again.returncode == 0 and "already bound to driver vfio-pci" in again.stderr
    assert tool.quiet("-b", "accel-drv", DEVICE) == ""
    assert driver_of(lab, DEVICE) == "accel-drv"


def test_it_binds_all_that_match_and_unbinds(lab: MountedLab) -> None:
    tool = Tool(lab, SCRIPT)
    assert tool.quiet("-b", "vfio-pci", "8[67]:00.0") == ""
    assert [driver_of(lab, name) for name in (DEVICE, OTHER)] == ["vfio-pci", "vfio-pci"]
    assert tool.quiet("-u", DEVICE, OTHER) == ""
    assert [driver_of(lab, name) for name in (DEVICE, OTHER)] == ["", ""]
    assert all("unused=vfio-pci" in line and "drv=" not in line for line in status(lab))


def test_a_driver_that_is_not_there_is_refused(lab: MountedLab) -> None:
    refused = Tool(lab, SCRIPT).run("-b", "igb_uio", DEVICE)
    assert refused.returncode == 1 and "Driver 'igb_uio' is not loaded." in refused.stderr
    assert driver_of(lab, DEVICE) == "accel-drv"


def test_a_lab_with_an_iommu_has_one_for_newer_releases(lab: MountedLab) -> None:
    done = vfsfuse("run", "--mount", lab.path, "--", "/usr/bin/python3", "-c", NEWER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_an_iommu_newer_releases_turn_noiommu_on(bare_lab: MountedLab) -> None:
    done = vfsfuse("run", "--mount", bare_lab.path, "--", "/usr/bin/python3", "-c", NEWER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "N\nY\n", "")
    flags = []
    if asks_for_iommu():
        flags = ["--noiommu-mode"]
        (bare_lab.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode").write_text("N")
    Tool(bare_lab, SCRIPT).quiet(*flags, "-b", "vfio-pci", DEVICE)
    assert driver_of(bare_lab, DEVICE) == "vfio-pci"
    assert [name for name in os.listdir(bare_lab.path / "dev/vfio") if name.startswith("noiommu-")]


def test_without_an_iommu_vfio_pci_is_refused(bare_lab: MountedLab) -> None:
    refused = Tool(bare_lab, SCRIPT).run("-b", "vfio-pci", DEVICE)
    assert "IOMMU support is disabled" in refused.stderr or "Cannot bind to driver" in refused.stderr
    assert driver_of(bare_lab, DEVICE) != "vfio-pci"


@needs.root("the owner of a file is changed by root")
def test_the_group_is_given_to_a_user_as_newer_releases_do(lab: MountedLab) -> None:
    assert Tool(lab, SCRIPT).quiet("-b", "vfio-pci", DEVICE) == ""
    group = (lab.path / "sys/bus/pci/devices" / DEVICE / "iommu_group").readlink().name
    assert Tool(lab, "chown").quiet("65534:65534", f"/dev/vfio/{group}") == ""
    assert (lab.path / "dev/vfio" / group).stat().st_uid == 65534
