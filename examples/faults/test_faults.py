# SPDX-License-Identifier: Apache-2.0
"""What the driver ../driver/copy.c does when something fails: each test has a fault rule in its lab."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import vfsfuse

pytestmark = pytest.mark.vfio_lab("../copier.toml")
LOST = {"interrupt": "MSIX", "drop": True}
Drive = Callable[[], subprocess.CompletedProcess[str]]


@pytest.fixture
def drive(vfio_lab: vfsfuse.Lab, tmp_path: Path) -> Drive:
    """Runs the driver on a new device."""
    binary, source = tmp_path / "copy", Path(__file__).parents[1] / "driver/copy.c"
    subprocess.run(["gcc", "-o", binary, source], check=True)
    device = vfio_lab.create("copier-1")
    command = [binary, str(device.group), device.name, "5"]
    return lambda: vfio_lab.run(command, capture_output=True, text=True, timeout=5)


def test_no_memory_can_be_mapped(drive: Drive, vfio_lab: vfsfuse.Lab) -> None:
    fault = vfio_lab.faults.add(ioctl="VFIO_IOMMU_MAP_DMA", errno="ENOMEM")
    done = drive()
    assert (done.returncode, done.stderr) == (1, "copy: MAP_DMA: Cannot allocate memory\n")
    assert fault.hits == 1


def test_the_device_cannot_read_the_memory(drive: Drive, vfio_lab: vfsfuse.Lab) -> None:
    vfio_lab.faults.add(dma="read", errno="EFAULT")
    assert drive().stderr == "copy: the device cannot copy 5 bytes: status 2\n"


@pytest.mark.vfio_lab("../copier.toml", faults=[LOST])
def test_the_interrupt_is_lost(drive: Drive) -> None:
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for ever: a bug
        drive()
