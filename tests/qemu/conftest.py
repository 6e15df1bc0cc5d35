# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the guest's image, and a lab and a guest that tests share because a boot takes ten seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import needs
from tests.commands import ROOT
from tests.labs import MountedLab, Vgpu, described
from tests.qemu import drivers, programs
from tests.qemu.guest import Guest, build
from tests.qemu.machine import Machine, in_lab, vfio
from tests.qemu.paused import Paused, paused_machine, place_all

SERIAL, MBOCHS, VGPU = 4, 5, 6
"""PCI slots in the shared guest."""


@dataclass
class Everything:
    """A guest with a serial card and two displays, by PCI slot."""

    machine: Machine
    vgpus: dict[int, Vgpu]


@pytest.fixture(scope="package")
def guest() -> Guest:
    return build()


@pytest.fixture(scope="package")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """The built-in lab, and examples/copier.py in it."""
    copier = (
        (ROOT / "examples/copier.toml").read_text().replace("copier.py", str(ROOT / "examples/copier.py"))
    )
    with described(
        tmp_path_factory.mktemp("qemu"), (ROOT / "vfsfuse/labfile/lab.toml").read_text() + copier
    ) as mounted:
        yield mounted


@pytest.fixture(scope="package")
def everything(shared_lab: MountedLab, guest: Guest) -> Iterator[Everything]:
    """A booted guest. Where memory can be mapped, it is, and QEMU shows the displays. Otherwise the displays
    have a smaller mode, because QEMU passes each 8 bytes of video memory on."""
    create, display, mode = shared_lab.create, {"display": "on"}, ""
    if needs.NO_PASSTHROUGH:
        display, mode = {}, "video=640x480"
    with create("mtty-1", "mtty") as port, create("mbochs-medium", "mbochs") as mbochs, create() as vgpu:
        options = vfio(port, SERIAL) + vfio(mbochs, MBOCHS, **display) + vfio(vgpu, VGPU, **display)
        with Machine(in_lab(shared_lab), options, guest, mode) as machine:
            machine.console.wait_up()
            yield Everything(machine, {SERIAL: port, MBOCHS: mbochs, VGPU: vgpu})
            drivers.assert_healthy(machine.console)


@pytest.fixture(scope="module", params=["mmap", "x-no-mmap", *programs.NEWER])
def paused(request: pytest.FixtureRequest, shared_lab: MountedLab) -> Iterator[Paused]:
    """The machine of tests.qemu.paused: with memory mapped into QEMU, with all accesses trapped, and in each
    newer QEMU by iommufd, where memory is mapped if it can be."""
    if request.param == "mmap" and needs.NO_PASSTHROUGH:
        pytest.skip(needs.NO_PASSTHROUGH)
    mapped = request.param != "x-no-mmap" and not needs.NO_PASSTHROUGH
    suite = request.param if request.param in programs.NEWER else ""
    with paused_machine(shared_lab, mapped, suite) as machine:
        yield machine


@pytest.fixture
def placed(paused: Paused) -> Paused:
    """The same, its devices on the bus."""
    place_all(paused)
    return paused
