# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of vGPUs in NVIDIA's framework, without a mount: what a failure leaves, and the lab file."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devmodel.iommufd.context import Context
from devmodel.lifecycle.function import VFIO_PCI
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction, PhysicalParent
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import Framework, LabSpec, PlacementMode
from devmodel.lifecycle.vendor import VendorVgpu, vgpu_of
from devmodel.vfio.cdev import CdevFile
from devmodel.vfio.devicefile import DeviceFile
from tests.unit.fakes import fails, parent_of
from tests.unit.test_lab import Recorder
from vfsfuse.labfile.reader import LabFileError, load

GPU = "0000:86:00.0"
TEXT = """
[parents."0000:86:00.0"]
kind = "gpu"
driver = "nvidia"
framework = "nvidia"
vendor = 0x10de
device = 0x2ab0
memory = "64M"
slots = 16
vfs = 4
types.nvidia-4 = { description = "a quarter", memory = "16M", slots = 4, instances = 4 }
types.nvidia-8 = { description = "a half", memory = "32M", slots = 8, instances = 2 }
"""
Load = Callable[[str], LabSpec]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    def load_text(text: str) -> LabSpec:
        (tmp_path / "my.toml").write_text(text)
        return load(tmp_path / "my.toml")

    return load_text


@pytest.fixture
def lab(load_text: Load) -> Iterator[Lab]:
    recorder = Recorder()
    recorder.lab = made = Lab(load_text(TEXT), recorder)
    yield made
    made.close()


@pytest.fixture
def gpu(lab: Lab) -> PhysicalFunction:
    """The GPU, with its virtual functions."""
    found = lab.drivers.find(GPU)
    assert isinstance(found, PhysicalFunction)
    lab.sriov.set_count(found, 4)
    return found


def vgpus(gpu: PhysicalFunction) -> list[VendorVgpu]:
    found = [vgpu_of(vf) for vf in gpu.vfs]
    return [vgpu for vgpu in found if vgpu is not None]


def state(gpu: PhysicalFunction) -> object:
    """What a change that fails must leave alone."""
    parent = parent_of(gpu)
    return (
        parent.memory_free,
        parent.slots_free,
        parent.vgpus,
        [(vf.driver, vf.vfio_minor, vf.vgpu, vf.group.devices, vf.group.viable) for vf in gpu.vfs],
        [(vgpu.type, vgpu.made, vgpu.params, vgpu.changing) for vgpu in vgpus(gpu)],
    )


def test_virtual_functions_of_the_driver_are_in_their_groups(gpu: PhysicalFunction) -> None:
    assert [vf.driver for vf in gpu.vfs] == ["nvidia"] * 4
    assert [vf.group.devices for vf in gpu.vfs] == [(vgpu,) for vgpu in vgpus(gpu)]
    assert all(vf.group.viable and not vf.group.emulated for vf in gpu.vfs)
    assert not gpu.group.viable and gpu.group.devices == ()
    assert [vf.assigned for vf in gpu.vfs] == vgpus(gpu) and gpu.assigned is None
    assert (parent_of(gpu).memory_free, parent_of(gpu).slots_free) == (64 << 20, 16)


@pytest.mark.parametrize("number", [0, 4, 8, 5])
def test_a_change_that_fails_leaves_nothing(lab: Lab, gpu: PhysicalFunction, number: int) -> None:
    first, second = vgpus(gpu)[:2]
    lab.vendor.set_type(first, 4)
    before = state(gpu)
    if number in (5, 8):
        fails(errno.EIO, lab.vendor.set_type, second, number)
    fails(errno.EPERM, lab.vendor.set_type, first, number or 4)
    fails(errno.EPERM, lab.vendor.set_type, second, 0)
    assert state(gpu) == before


def test_a_tree_that_cannot_show_it_undoes_a_type(lab: Lab, gpu: PhysicalFunction) -> None:
    vgpu = vgpus(gpu)[0]
    blank = vgpu.device
    before = state(gpu)

    def no_room(_: VendorVgpu) -> None:
        assert vgpu.type is not None and vgpu.changing and not vgpu.group.leaving
        fails(errno.ENODEV, vgpu.hold)
        raise OSError(errno.ENOMEM, "no room")

    lab.vendor.retyped = no_room
    fails(errno.ENOMEM, lab.vendor.set_type, vgpu, 4)
    after = state(gpu)
    assert before[:4] == after[:4]  # type: ignore[index]
    assert (vgpu.type, vgpu.changing) == (None, False)
    fails(errno.ENODEV, vgpu.device.check_present)
    fails(errno.ENODEV, blank.check_present)
    lab.vendor.retyped = lambda vgpu: None
    lab.vendor.set_type(vgpu, 4)
    vgpu.device.check_present()


def test_an_open_vgpu_keeps_its_type(lab: Lab, gpu: PhysicalFunction) -> None:
    vgpu = vgpus(gpu)[0]
    fails(errno.ENODEV, DeviceFile, vgpu)
    lab.vendor.set_type(vgpu, 4)
    file = DeviceFile(vgpu)
    before = state(gpu)
    for number in (0, 4):
        fails(errno.EBUSY, lab.vendor.set_type, vgpu, number)
    fails(errno.EBUSY, lab.drivers.unbind, gpu.vfs[0], "nvidia")
    fails(errno.EBUSY, lab.sriov.set_count, gpu, 0)
    assert state(gpu) == before
    device = vgpu.device
    file.close()
    lab.vendor.set_type(vgpu, 0)
    fails(errno.ENODEV, device.check_present)


def test_a_file_is_not_bound_while_the_type_changes(
    lab: Lab, gpu: PhysicalFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device lane binds a file that was open before, while the type goes."""
    vgpu = vgpus(gpu)[0]
    lab.vendor.set_type(vgpu, 4)
    context, parent = Context(), parent_of(gpu)
    file, refund = CdevFile(vgpu), parent.refund

    def bind_and_refund(share: Share) -> None:
        fails(errno.ENODEV, file.bind, None, lambda: context)
        refund(share)

    monkeypatch.setattr(PhysicalParent, "refund", lambda _, share: bind_and_refund(share))
    lab.vendor.set_type(vgpu, 0)
    assert (vgpu.users, vgpu.binding, vgpu.type) == (0, None, None)
    file.close()
    context.put()


def test_everything_is_given_back_with_the_driver(lab: Lab, gpu: PhysicalFunction) -> None:
    parent, (first, second, *_) = parent_of(gpu), vgpus(gpu)
    lab.vendor.set_type(first, 4)
    lab.vendor.set_type(second, 4)
    minors = [vf.vfio_minor for vf in gpu.vfs]
    lab.drivers.unbind(gpu.vfs[0], "nvidia")
    assert (gpu.vfs[0].vgpu, gpu.vfs[0].vfio_minor, gpu.vfs[0].group.devices) == (None, None, ())
    assert (parent.vgpus, parent.memory_free) == (1, 48 << 20)
    fails(errno.ENODEV, lab.vendor.set_type, first, 4)
    lab.drivers.attach(gpu.vfs[0])
    assert [vf.vfio_minor for vf in gpu.vfs] == minors and vgpus(gpu)[0] is not first
    lab.drivers.unbind(gpu, "nvidia")
    assert (gpu.vfs, parent.vgpus, parent.memory_free, parent.slots_free) == ([], 0, 64 << 20, 16)


def test_with_vfio_pci_on_the_gpu_there_are_no_vgpus(lab: Lab, gpu: PhysicalFunction) -> None:
    lab.drivers.unbind(gpu, "nvidia")
    lab.vfio.enable_sriov = True
    gpu.driver_override = VFIO_PCI
    lab.drivers.attach(gpu)
    lab.sriov.set_count(gpu, 2)
    assert [(vf.driver, vf.vgpu) for vf in gpu.vfs] == [(VFIO_PCI, None)] * 2
    lab.drivers.unbind(gpu.vfs[0], VFIO_PCI)
    gpu.vfs[0].driver_override = "nvidia"
    lab.drivers.bind(gpu.vfs[0], "nvidia")
    assert (gpu.vfs[0].driver, gpu.vfs[0].vgpu, gpu.vfs[0].group.viable) == ("nvidia", None, False)


# ---- the lab file ----


def test_the_lab_file_is_read(load_text: Load) -> None:
    text = TEXT + 'types.all = { description = "all", id = 9, memory = "64M", slots = 16, starts = [0] }\n'
    (parent,) = load_text(f'{text}placement = "heterogeneous"\nnvidia.files = 2\n').parents
    assert parent.framework is Framework.NVIDIA
    assert (parent.placement, parent.nvidia.files) == (PlacementMode.HETEROGENEOUS, 2)
    assert [(each.number, each.starts) for each in parent.types] == [(4, None), (8, None), (9, (0,))]
    ids = [
        (each.model.identity.subsystem_vendor, each.model.identity.subsystem_device) for each in parent.types
    ]
    assert ids == [(0x10DE, 4), (0x10DE, 8), (0x10DE, 9)]
    function = parent.function
    assert function is not None and function.vf is not None and function.model is not None
    assert (function.vf.driver, function.vf.memory, function.drivers) == (
        "nvidia",
        None,
        ("nvidia", "nvidia"),
    )
    physical, virtual = function.model.identity, function.vf.model.identity
    assert (physical.vendor, physical.device) == (virtual.vendor, virtual.device) == (0x10DE, 0x2AB0)


@pytest.mark.parametrize(
    ("old", "new", "where", "why"),
    [
        ("vfs = 4\n", "", "vfs", "is missing: virtual functions are what becomes vGPUs (add it)"),
        (
            "vfs = 4\n",
            'vfs = 4\nvf_memory = "1M"\n',
            "vf_memory",
            "gets its memory with a type (leave it out)",
        ),
        ('framework = "nvidia"', 'framework = "amd"', "framework", 'give one of "mdev", "nvidia"'),
        ("slots = 16", 'placement = "heterogeneous"', "slots", "places are counted in slots (add it)"),
        ("slots = 16", 'slots = 16\nplacement = "mixed"', "placement", '"heterogeneous"'),
        ("slots = 16", "slots = 16\nnvidia.files = 3", "nvidia.files", "is neither 2"),
        ("slots = 16", "slots = 16\nnvidia.size = 3", "nvidia.size", "there is no such key"),
        ('framework = "nvidia"', "nvidia.files = 2", "nvidia", 'is for framework = "nvidia"'),
        ("types.nvidia-4", "types.quarter", "types.quarter.id", "does not end in a number (add it)"),
        ("types.nvidia-4", "types.x-8", "types.nvidia-8.id", "is 8, that of 'x-8' too (give another)"),
        ("slots = 4,", "slots = 4, starts = [0, 13],", "types.nvidia-4.starts", "(begin at 12 at most)"),
        ("slots = 4,", "slots = 4, starts = [],", "types.nvidia-4.starts", "is not an array of slots"),
        ("slots = 4,", "slots = 4, id = 0,", "types.nvidia-4.id", "out of range"),
        ("slots = 4,", "slots = 4, vendor = 65536,", "types.nvidia-4.vendor", "out of range"),
        ('"a quarter"', f'"x", pretty_name = "{"y" * 4090}"', "types", "more than 4096 bytes, a page"),
    ],
)
def test_an_error_says_what_to_mend(load_text: Load, old: str, new: str, where: str, why: str) -> None:
    assert old in TEXT
    with pytest.raises(LabFileError) as caught:
        load_text(TEXT.replace(old, new, 1))
    (line,) = caught.value.lines
    assert f'my.toml: parents."{GPU}".{where}: ' in line and why in line and line.endswith(")")
