# SPDX-License-Identifier: Apache-2.0
"""A GPU of this framework in a slot: it goes with its vGPUs, also while clients have them open."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.commands import one_write
from tests.iommufd.client import Cdev, Iommufd
from tests.labs import described
from tests.nvidia.host import ALL, LAB, PF, SLOT, SLOTS, Host
from tests.vfio.client import fails
from tests.vfio.devices import opened
from tests.waiting import settled


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    text = LAB.replace('driver = "nvidia"\n', 'driver = "nvidia"\nslot = "2"\n')
    with described(tmp_path_factory.mktemp("slot"), text) as lab:
        yield Host(lab)


def slot(host: Host) -> Path:
    return host.lab.path / "sys/bus/pci/slots/2"


def test_it_goes_with_its_vgpus(host: Host) -> None:
    vf = host.enable()[0]
    vf.set(14)
    one_write(slot(host) / "unplug", "1")
    assert not host.pf.exists() and not vf.path.exists()
    one_write(slot(host) / "plug", "1")
    assert (host.vgpus, host.free) == (0, SLOTS * SLOT)
    assert host.enable()[0].creatable == ALL


@pytest.mark.parametrize("by_group", [True, False])
def test_it_is_pulled_from_under_a_client(host: Host, by_group: bool) -> None:
    vf = host.enable()[0]
    vf.set(14)
    number, vfio = vf.group, vf.vfio
    with ExitStack() as stack:
        if by_group:
            fd = stack.enter_context(opened(host.lab, number, vf.name)).device.fd
        else:
            context = stack.enter_context(Iommufd(host.lab.path))
            device = stack.enter_context(Cdev(vf.cdev))
            device.bind(context)
            fd = device.fd
        assert os.pread(fd, 2, 7 << 40) == b"\x34\x12"
        fails(errno.EBUSY, one_write, slot(host) / "power", "0")
        one_write(slot(host) / "surprise_unplug", "1")
        assert not host.pf.exists() and os.pread(fd, 4, 7 << 40) == b"\xff" * 4
        one_write(slot(host) / "plug", "1")
        again = host.enable()[0]
        assert again.group != number and again.creatable == ALL and host.free == SLOTS * SLOT
        again.set(14)
        with opened(host.lab, again.group, again.name) as new:
            assert os.pread(new.device.fd, 2, 7 << 40) == b"\x34\x12"
            assert os.pread(fd, 4, 7 << 40) == b"\xff" * 4
        settled(lambda: again.type)
        again.set(0)
    one_write(slot(host) / "unplug", "1")
    one_write(slot(host) / "plug", "1")
    host.enable()
    numbers = {host.vf(index).group for index in range(8)}
    assert number in numbers and vfio in {host.vf(index).vfio for index in range(8)}


def test_an_open_file_that_is_not_bound(host: Host) -> None:
    vf = host.enable()[0]
    with ExitStack() as stack:
        fd = os.open(vf.cdev, os.O_RDWR)
        stack.callback(os.close, fd)
        fails(errno.EBUSY, one_write, slot(host) / "unplug", "1")
        one_write(slot(host) / "surprise_unplug", "1")
        assert not (host.lab.path / "sys/bus/pci/devices" / PF).exists()
        one_write(slot(host) / "plug", "1")
    assert host.enable()[0].creatable == ALL
