# SPDX-License-Identifier: Apache-2.0
"""Functions that are removed and found again: numbers, addresses, order, and failures that leave nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from uuid import UUID

import pytest

from devmodel.lifecycle import physical
from devmodel.lifecycle.binding import function_of
from devmodel.lifecycle.bridge import Bridge
from devmodel.lifecycle.function import VFIO_PCI, PciFunction
from devmodel.lifecycle.hotplug import PCI
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import LabSpec, TypeSpec, VfSpec
from devmodel.models.gpu import Vgpu
from devmodel.pci.config import Aperture, Assigned
from devmodel.pci.fields import Bar
from devmodel.region.region import Memory
from devmodel.vfio.devicefile import DeviceFile
from tests.unit.fakes import fails, gpu_parent, parent_of
from tests.unit.test_lab import BDF, MIB, Recorder

NEIGHBOUR, PORT = "0000:86:01.0", "0000:00:01.0"
TYPES = (TypeSpec("vgpu-1", "a quarter", Vgpu, memory=MIB),)
GPU = gpu_parent(BDF, TYPES, 4 * MIB, vf=VfSpec(2, Vgpu, MIB))


class Refusing(Recorder):
    """An observer that cannot show the function called :attr:`refused`."""

    refused = ""

    def function_added(self, function: PciFunction) -> None:
        if function.name == self.refused:
            raise RuntimeError("no room")
        super().function_added(function)


@pytest.fixture
def recorder() -> Refusing:
    return Refusing()


@pytest.fixture
def lab(recorder: Refusing) -> Iterator[Lab]:
    neighbour = gpu_parent(NEIGHBOUR, TYPES, 4 * MIB)
    recorder.lab = made = Lab(LabSpec((GPU, neighbour)), recorder)
    yield made
    made.close()


@pytest.fixture
def gpu(lab: Lab) -> PhysicalFunction:
    return function_of(lab.parents[BDF])


@pytest.fixture
def port(lab: Lab) -> Bridge:
    return lab.ports["0000:86"]


def test_addresses_are_given_again() -> None:
    aperture = Aperture()
    small, large = Bar(Memory(4096)), Bar(Memory(MIB), mem64=True)
    first, second = Assigned(aperture), Assigned(aperture)
    given = [first.take(small), first.take(large, 4)]
    others = [second.take(small), second.take(large)]
    assert len({*given, *others}) == 4
    again = first.again()
    assert [again.take(small), again.take(large, 4)] == given
    assert again.take(small) not in (*given, *others)


def test_a_function_that_is_found_again_has_the_same_class(lab: Lab, gpu: PhysicalFunction) -> None:
    """Classes of models are kept, with a sample of each: a new class every time would fill the memory."""
    lab.hotplug.remove(gpu)
    lab.hotplug.rescan(PCI)
    again = function_of(lab.parents[BDF])
    assert again is not gpu and again.layout is not gpu.layout
    assert again.model is gpu.model and again.traits is gpu.traits


def test_what_is_found_again_is_new_in_its_old_place(lab: Lab, gpu: PhysicalFunction) -> None:
    rows = gpu.device.resource_rows()
    lab.sriov.set_count(gpu, 2)
    vfs = [vf.device.resource_rows() for vf in gpu.vfs]
    gpu.driver_override = VFIO_PCI
    gpu.device.write(0, 0, b"kept")
    lab.hotplug.remove(gpu)
    fails(errno.ENODEV, gpu.device.read, 0, 0, 4)
    fails(errno.ENODEV, lab.drivers.find, BDF)
    assert BDF not in lab.parents and set(lab.drivers.functions) == {NEIGHBOUR, PORT}
    lab.hotplug.remove(gpu)  # nothing
    lab.hotplug.rescan(PCI)
    found = function_of(lab.parents[BDF])
    assert found is not gpu and parent_of(found).memory_free == 4 * MIB
    assert (found.driver, found.driver_override, found.group.number) == ("vgpu", None, 0)
    assert found.device.read(0, 0, 4) == bytes(4)
    assert found.device.resource_rows() == rows
    lab.sriov.set_count(found, 2)
    assert [vf.device.resource_rows() for vf in found.vfs] == vfs
    assert found.bus == [*found.bus[:1], found, *found.vfs] and found.upstream is lab.ports["0000:86"]


def test_the_lowest_number_is_taken(lab: Lab, gpu: PhysicalFunction, port: Bridge) -> None:
    neighbour = function_of(lab.parents[NEIGHBOUR])
    mdev = lab.create(parent_of(neighbour).types["vgpu-1"], UUID(int=1))
    assert [each.group.number for each in (gpu, neighbour, port, mdev)] == [0, 1, 2, 3]
    lab.hotplug.remove(gpu)
    again = lab.create(parent_of(neighbour).types["vgpu-1"], UUID(int=2))
    lab.hotplug.rescan(PCI)
    assert (again.group.number, lab.drivers.find(BDF).group.number) == (0, 4)
    assert sorted(lab.groups) == [0, 1, 2, 3, 4]


def test_a_root_port_goes_last_and_comes_first(lab: Lab, port: Bridge, recorder: Refusing) -> None:
    windows = port.device.resource_rows()
    lab.hotplug.remove(port)
    assert not lab.ports and not lab.parents and not lab.groups and not lab.drivers.functions
    lab.hotplug.rescan("0000:86")  # nothing is known of that bus
    assert not lab.drivers.functions
    lab.hotplug.rescan("0000:00")
    names = (PORT, BDF, NEIGHBOUR)
    assert recorder.seen == [
        *(("unbound", name) for name in reversed(names)),
        *(("removed", name) for name in (BDF, NEIGHBOUR, PORT)),
        *(("added", name) for name in names),
        *(("bound", name) for name in names),
    ]
    assert lab.ports["0000:86"].device.resource_rows() == windows
    assert [lab.drivers.find(name).upstream for name in names] == [None, *[lab.ports["0000:86"]] * 2]


def test_autoprobe_decides_whether_it_is_bound(lab: Lab, gpu: PhysicalFunction) -> None:
    lab.drivers.autoprobe = False
    lab.hotplug.remove(gpu)
    lab.hotplug.rescan(PCI)
    assert lab.drivers.find(BDF).driver is None
    lab.hotplug.rescan(PCI)
    assert lab.drivers.find(BDF).driver is None


@pytest.mark.parametrize("what", ["vgpu", "function", "neighbour's"])
def test_what_is_held_keeps_all(lab: Lab, gpu: PhysicalFunction, port: Bridge, what: str) -> None:
    free = lab.create(parent_of(gpu).types["vgpu-1"], UUID(int=1))
    if what == "function":
        gpu.driver_override = VFIO_PCI
        lab.drivers.unbind(gpu, "vgpu")
        lab.drivers.attach(gpu)
        held = DeviceFile(gpu)
    else:
        parent = lab.parents[NEIGHBOUR if what == "neighbour's" else BDF]
        held = DeviceFile(lab.create(parent.types["vgpu-1"], UUID(int=2)))
    there = dict(lab.drivers.functions), dict(lab.groups), set(lab.mdevs)
    fails(errno.EBUSY, lab.hotplug.remove, port)
    if what != "neighbour's":
        fails(errno.EBUSY, lab.hotplug.remove, gpu)
    assert (lab.drivers.functions, lab.groups, set(lab.mdevs)) == there and free.leaving == 0
    held.close()
    lab.hotplug.remove(port)
    assert not lab.mdevs and not lab.groups


@pytest.mark.parametrize("refused", [PORT, BDF, NEIGHBOUR])
def test_what_cannot_be_shown_is_not_there(lab: Lab, port: Bridge, recorder: Refusing, refused: str) -> None:
    lab.hotplug.remove(port)
    recorder.refused = refused
    with pytest.raises(RuntimeError, match="no room"):
        lab.hotplug.rescan(PCI)
    assert refused not in lab.drivers.functions and len(lab.groups) == len(lab.drivers.functions)
    recorder.refused = ""
    lab.hotplug.rescan(PCI)
    assert set(lab.drivers.functions) == {PORT, BDF, NEIGHBOUR} and sorted(lab.groups) == [0, 1, 2]


def test_what_cannot_be_made_again_leaves_no_group(lab: Lab, gpu: PhysicalFunction) -> None:
    """A model may fail later, although it was made before."""
    lab.hotplug.remove(gpu)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(physical, "traits_of", _fails)
        for _ in range(2):
            with pytest.raises(ValueError, match="today"):
                lab.hotplug.rescan(PCI)
    assert len(lab.groups) == len(lab.drivers.functions) == 2
    lab.hotplug.rescan(PCI)
    assert sorted(lab.groups) == [0, 1, 2] and lab.drivers.find(BDF).group.number == gpu.group.number


def _fails(*_: object) -> None:
    raise ValueError("not today")
