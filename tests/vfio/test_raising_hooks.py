# SPDX-License-Identifier: Apache-2.0
"""Hooks that raise what an application ends by: EIO for that access, and nothing else is lost.

The server runs in Python's development mode, which checks more of what C code does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.commands
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import DEVICE_PCI_HOT_RESET, DEVICE_RESET, fails, ioctl
from tests.vfio.models.raising import ANSWERS, GOOD, HOOKS, TASK

LAB = f"""\
[models]
raising = "{Path(__file__).parent}/models/raising.py:Raising"

[parents.raisers]
kind = "virtual"
driver = "raising"
slots = 8
types.raising-1 = {{ description = "bugs" }}
"""
OWN = 1 << 40


@pytest.fixture(scope="module", params=["vfsfuse", "tests.listening_server"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """While somebody listens, other threads make the calls."""
    folder = tmp_path_factory.mktemp("raising")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests.commands, "VFSFUSE", [sys.executable, "-X", "dev", "-m", request.param])
        patch.setenv("LISTENER_LOG", str(folder / "calls"))
        with described(folder, LAB) as mounted:
            yield mounted
            for harm in ("SystemError", "returned a result with an exception set", "From cffi callback"):
                assert harm not in mounted.log
            mounted.log_path.write_text("")  # of bugs asked for: a log is looked through at the end


@pytest.fixture
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create("raising-1", "raisers") as made:
        yield made


@pytest.fixture
def device(vgpu: Vgpu) -> Iterator[int]:
    fd = vgpu.open()
    yield fd
    os.close(fd)


def works(lab: MountedLab, fd: int) -> None:
    """The lock is free, and the threads run."""
    assert os.pwrite(fd, b"good", GOOD) == 4 and os.pread(fd, 4, GOOD) == b"good"
    fails(errno.ENOTTY, ioctl, fd, DEVICE_PCI_HOT_RESET, 0)  # a thread that may wait answers
    assert os.listdir(lab.mdevs)


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_a_read_hook(lab: MountedLab, device: int, number: int, size: int) -> None:
    """A whole register is read by C, a part of one by Python."""
    fails(errno.EIO, os.pread, device, size, 4 * number)
    works(lab, device)


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("number", range(len(HOOKS)))
def test_a_write_hook(lab: MountedLab, device: int, number: int, size: int) -> None:
    fails(errno.EIO, os.pwrite, device, bytes(size), 4 * number)
    works(lab, device)


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_a_region_of_its_own(lab: MountedLab, device: int, number: int) -> None:
    with contextlib.suppress(OSError):  # the answer b"\1" is short, and right
        assert os.pread(device, 4, OWN + 4 * number) == b"\1"
    fails(errno.EIO, os.pwrite, device, bytes(4), OWN + 4 * number)
    works(lab, device)


@pytest.mark.parametrize("inside", [0, 1])
def test_a_task(lab: MountedLab, device: int, inside: int) -> None:
    """In a nursery of the task's own, or not."""
    os.pwrite(device, inside.to_bytes(4, "little"), TASK)
    for _ in range(3):
        works(lab, device)


def test_an_attribute(lab: MountedLab, vgpu: Vgpu, device: int) -> None:
    fails(errno.EIO, (vgpu.path / "wrong").read_text)
    fails(errno.EIO, (vgpu.path / "wrong").write_text, "1")
    works(lab, device)


def test_a_reset(lab: MountedLab, device: int) -> None:
    fails(errno.EIO, ioctl, device, DEVICE_RESET)
    works(lab, device)
