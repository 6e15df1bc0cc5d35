# SPDX-License-Identifier: Apache-2.0
"""QEMU with `-accel kvm` and devices of a lab, under `vfsfuse run`.

The machine does not run, so a host whose KVM cannot run a guest will do.  QEMU adds each group or device to
KVM's VFIO device when it starts, takes it away when the device is unplugged, and complains of each failure.
With iommufd it ends if one cannot be added.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from fcntl import ioctl

import pytest

from tests.labs import MountedLab, Vgpu
from tests.qemu import programs
from tests.qemu.iommufd import OBJECT, Opened
from tests.qemu.machine import Machine, in_lab, vfio
from tests.waiting import wait_for

SLOTS = 4, 5
"""PCI slots of the devices."""
KVM_CREATE_VM = 0xAE01


def _no_kvm() -> str:
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    try:
        os.close(ioctl(kvm, KVM_CREATE_VM, 0))
    except OSError as error:
        return f"/dev/kvm makes no virtual machine: {error.strerror}"
    finally:
        os.close(kvm)
    return ""


pytestmark = [pytest.mark.qemu, pytest.mark.skipif(bool(reason := _no_kvm()), reason=reason)]


@pytest.fixture
def vgpus(lab: MountedLab) -> Iterator[list[Vgpu]]:
    with ExitStack() as stack:
        yield [stack.enter_context(lab.create()) for _ in SLOTS]


def assert_realized(machine: Machine, vgpus: list[Vgpu]) -> None:
    """QEMU has the devices, ends at once and well, and has complained of nothing about them."""
    with machine:
        for slot, vgpu in zip(SLOTS, vgpus, strict=True):
            shown = (vgpu.path / "config").read_bytes()[:4]
            assert machine.qtest.config(slot, 0, 4) == int.from_bytes(shown, "little")
        assert machine.qmp.execute("query-kvm") == {"enabled": True, "present": True}
        machine.qmp.execute("quit")
        wait_for(lambda: "running" not in machine.explain())
        assert "ended with 0" in machine.explain()
        assert "KVM VFIO device" not in machine.explain()


@pytest.mark.parametrize("suite", ["", *programs.NEWER])
def test_by_groups(lab: MountedLab, vgpus: list[Vgpu], suite: str) -> None:
    program = programs.of_suite(suite) if suite else programs.system()
    options = [part for slot, vgpu in zip(SLOTS, vgpus, strict=True) for part in vfio(vgpu, slot)]
    assert_realized(Machine(in_lab(lab), options, program=program, accel="kvm"), vgpus)


@pytest.mark.parametrize("suite", programs.NEWER)
def test_by_iommufd(lab: MountedLab, vgpus: list[Vgpu], suite: str) -> None:
    """QEMU opens all files by itself."""
    program = programs.of_suite(suite)
    options = ["-object", f"iommufd,id={OBJECT}"]
    for slot, vgpu in zip(SLOTS, vgpus, strict=True):
        options += vfio(vgpu, slot, iommufd=OBJECT)
    assert_realized(Machine(in_lab(lab), options, program=program, accel="kvm"), vgpus)


@pytest.mark.parametrize("suite", programs.NEWER)
def test_by_descriptors(lab: MountedLab, vgpus: list[Vgpu], suite: str) -> None:
    program, opened = programs.of_suite(suite), Opened(lab)
    devices = [part for slot, vgpu in zip(SLOTS, vgpus, strict=True) for part in opened.mediated(vgpu, slot)]
    options = ["-object", f"iommufd,id={OBJECT}", *devices]
    machine = Machine(in_lab(lab), options, program=program, accel="kvm", descriptors=opened.descriptors)
    assert_realized(machine, vgpus)
