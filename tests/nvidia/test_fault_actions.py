# SPDX-License-Identifier: Apache-2.0
"""What fault rules have happen to vGPUs of this framework: to what a client has of a virtual function."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.commands import one_write
from tests.nvidia.host import Host, Vf, wait_until_free
from tests.vfio.client import fails
from tests.vfio.devices import Opened, opened
from tests.waiting import wait_for

CACHE_LINE, CONFIG = 0x0C, 7 << 40


@pytest.fixture(autouse=True)
def without_rules(host: Host) -> Iterator[None]:
    yield
    one_write(host.lab.path / "faults", "clear")


def add(host: Host, rule: str) -> None:
    one_write(host.lab.path / "faults", f"add {rule}")


def read(device: Opened, offset: int) -> bytes:
    return os.pread(device.device.fd, 4, CONFIG + offset)


def test_a_virtual_function_takes_its_vgpu_along(host: Host, vfs: list[Vf]) -> None:
    vf, free = vfs[1], host.free
    vf.set(14)
    with opened(host.lab, vf.group, vf.name) as device:
        add(host, f"device={vf.name} region=config access=read nth=1 remove=true")
        assert read(device, 0) != 4 * b"\xff"
        assert read(device, 0) == 4 * b"\xff"
        wait_for(lambda: not vf.path.exists())
        assert host.free < free  # the client has its share
    wait_for(lambda: host.free == free)
    assert (host.pf / "sriov_numvfs").read_text() == "8\n" and not (host.pf / "virtfn1").is_symlink()
    one_write(host.pf / "sriov_numvfs", "0")
    host.enable()


def test_its_client_loses_what_was_written_when_it_is_reset(host: Host, vfs: list[Vf]) -> None:
    """By itself, or with its link."""
    vf = vfs[0]
    with vf.typed(11):
        with opened(host.lab, vf.group, vf.name) as device:
            for action in ("reset=true", "error=fatal"):
                os.pwrite(device.device.fd, b"\x10", CONFIG + CACHE_LINE)
                add(host, f"device={vf.name} after=0 {action}")
                wait_for(lambda: read(device, CACHE_LINE)[:1] == b"\0")
        wait_until_free(vf)


def test_a_driver_that_refuses_a_virtual_function_makes_no_vgpu_of_it(host: Host, vfs: list[Vf]) -> None:
    vf = vfs[2]
    host.unbind(vf.name)
    add(host, f"name=refused device={vf.name} probe=nvidia errno=EIO")
    fails(5, host.bind, vf.name)
    assert not (vf.path / "vfio-dev").exists() and not (vf.path / "driver").is_symlink()
    one_write(host.lab.path / "faults", "clear refused")
    host.bind(vf.name)
    assert (vf.path / "vfio-dev").exists()
