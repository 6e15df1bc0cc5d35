# SPDX-License-Identifier: Apache-2.0
"""Tests of the driver copy.c.  Each test has a lab of its own, with a new device."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import vfsfuse

BAR0, CONFIG = 0, 7  # the indexes of VFIO's regions
pytestmark = pytest.mark.vfio_lab("../copier.toml")
Drive = Callable[[int], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, compiled."""
    binary = tmp_path_factory.mktemp("driver") / "copy"
    subprocess.run(["gcc", "-o", binary, Path(__file__).with_name("copy.c")], check=True)
    return binary


@pytest.fixture
def drive(vfio_lab: vfsfuse.Lab, program: Path) -> Drive:
    """Runs the driver on a new device, to copy so many bytes."""
    device = vfio_lab.create("copier-1")

    def run(size: int) -> subprocess.CompletedProcess[str]:
        command = [program, str(device.group), device.name, str(size)]
        return vfio_lab.run(command, capture_output=True, text=True, timeout=10)

    return run


def test_it_copies(drive: Drive) -> None:
    assert drive(5).stdout == "*****\n"


def test_it_says_that_the_memory_ends(drive: Drive) -> None:
    done = drive(4000)
    assert (done.returncode, done.stderr) == (1, "copy: the device cannot copy 4000 bytes: status 2\n")


def test_it_makes_the_device_bus_master_before_it_starts_it(drive: Drive, vfio_lab: vfsfuse.Lab) -> None:
    with vfio_lab.trace(kinds=["region"]) as trace:
        drive(5)
    written = [
        (record.arguments["region"], record.arguments["register"])
        for record in trace.records
        if record.name == "write"
    ]
    assert written.index((CONFIG, "COMMAND")) < written.index((BAR0, "COMMAND"))
