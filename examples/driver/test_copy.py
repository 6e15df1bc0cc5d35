# SPDX-License-Identifier: Apache-2.0
"""Tests of the driver copy.c.  Each test has a lab of its own, with a new device."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import vfsfuse

BAR0 = 0  # VFIO's index of the region; configuration space is 7, and has a STATUS, too
DONE = b"\1\0\0\0"
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
    done = drive(5)
    assert done.stderr == ""
    assert done.stdout == "*****\n"


def test_it_says_that_the_memory_ends(drive: Drive) -> None:
    done = drive(4000)
    assert (done.returncode, done.stderr) == (1, "copy: the device cannot copy 4000 bytes: status 2\n")


def test_it_acknowledges_the_interrupt(drive: Drive, vfio_lab: vfsfuse.Lab) -> None:
    with vfio_lab.trace(kinds=["region"], registers=["STATUS"]) as trace:
        drive(5)
    used = [(record.arguments["region"], record.name, record.arguments["data"]) for record in trace.records]
    assert used == [(BAR0, "read", DONE), (BAR0, "write", DONE)]
