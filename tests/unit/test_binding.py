# SPDX-License-Identifier: Apache-2.0
"""The PCI driver core: who drives a physical function, and that nothing is left over when that fails."""

import errno
from collections.abc import Iterator
from uuid import UUID

import pytest

from devmodel.lifecycle.binding import function_of
from devmodel.lifecycle.function import VFIO_PCI, PciFunction
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import LabSpec, ParentSpec, TypeSpec
from devmodel.models.gpu import Vgpu
from devmodel.models.mtty import Mtty
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.groupfile import open_group
from tests.unit.fakes import fails, gpu_parent, parent_of
from tests.unit.test_lab import BDF, MIB, Recorder

GPU = gpu_parent(BDF, (TypeSpec("vgpu-1", "all", Vgpu, memory=2 * MIB),), 2 * MIB)
MTTY = ParentSpec("mtty", "virtual", "mtty", (TypeSpec("mtty-1", "a port", Mtty),), slots=2)


class Refusing(Recorder):
    """An observer that cannot show a binding while told so."""

    def bound(self, function: PciFunction) -> None:
        if self.fail:
            raise RuntimeError("no room")
        super().bound(function)


@pytest.fixture
def recorder() -> Refusing:
    return Refusing()


@pytest.fixture
def lab(recorder: Refusing) -> Iterator[Lab]:
    recorder.lab = made = Lab(LabSpec((GPU, MTTY)), recorder)
    yield made
    made.close()


@pytest.fixture
def gpu(lab: Lab) -> PhysicalFunction:
    return function_of(lab.parents[BDF])


def override(lab: Lab, gpu: PhysicalFunction) -> None:
    """Give the function to vfio-pci, as driverctl does."""
    gpu.driver_override = VFIO_PCI
    lab.drivers.unbind(gpu, "vgpu")
    lab.drivers.attach(gpu)


def test_vfio_pci_takes_the_function_only_when_overridden(lab: Lab, gpu: PhysicalFunction) -> None:
    lab.drivers.unbind(gpu, "vgpu")
    fails(errno.ENODEV, lab.drivers.bind, gpu, VFIO_PCI)
    gpu.driver_override = VFIO_PCI
    fails(errno.ENODEV, lab.drivers.bind, gpu, "vgpu")
    lab.drivers.bind(gpu, VFIO_PCI)
    assert gpu.driver == VFIO_PCI
    assert open_group(gpu.group).get_device is not None


def test_a_bound_function_is_not_bound_again(lab: Lab, gpu: PhysicalFunction) -> None:
    fails(errno.EBUSY, lab.drivers.bind, gpu, "vgpu")
    fails(errno.ENODEV, lab.drivers.unbind, gpu, VFIO_PCI)


def test_a_function_loses_its_vgpus_with_its_driver(
    lab: Lab, gpu: PhysicalFunction, recorder: Refusing
) -> None:
    mdev = lab.create(parent_of(gpu).types["vgpu-1"], UUID(int=1))
    hold = DeviceFile(mdev)
    fails(errno.EBUSY, lab.drivers.unbind, gpu, "vgpu")
    assert (gpu.driver, mdev.gone, mdev.leaving) == ("vgpu", False, 0)
    hold.close()
    lab.drivers.unbind(gpu, "vgpu")
    assert mdev.gone and not lab.mdevs and parent_of(gpu).memory_free == parent_of(gpu).spec.memory
    assert recorder.seen[-2:] == [("removed", mdev.name), ("unbound", gpu.name)]
    fails(errno.ENODEV, lab.create, parent_of(gpu).types["vgpu-1"], UUID(int=1))


def test_a_function_in_use_stays(lab: Lab, gpu: PhysicalFunction) -> None:
    override(lab, gpu)
    hold = DeviceFile(gpu)
    fails(errno.EBUSY, lab.drivers.unbind, gpu, VFIO_PCI)
    hold.close()
    lab.drivers.unbind(gpu, VFIO_PCI)
    fails(errno.ENODEV, open_group, gpu.group)


def test_probe_is_no_error_without_a_driver(lab: Lab, gpu: PhysicalFunction) -> None:
    gpu.driver_override = "absent"
    lab.drivers.unbind(gpu, "vgpu")
    lab.drivers.attach(gpu)
    assert gpu.driver is None
    gpu.driver_override = None
    lab.drivers.attach(gpu)
    assert gpu.driver == "vgpu"


def test_the_vfio_number_comes_and_goes(lab: Lab, gpu: PhysicalFunction) -> None:
    def minor() -> int | None:
        return gpu.vfio_minor

    override(lab, gpu)
    assert minor() == 0
    lab.drivers.unbind(gpu, VFIO_PCI)
    assert minor() is None
    assert lab.create(lab.parents["mtty"].types["mtty-1"], UUID(int=2)).vfio_minor == 0


def test_a_binding_that_cannot_be_shown_leaves_nothing(
    lab: Lab, gpu: PhysicalFunction, recorder: Refusing
) -> None:
    lab.drivers.unbind(gpu, "vgpu")
    gpu.driver_override = VFIO_PCI
    recorder.fail = True
    with pytest.raises(RuntimeError):
        lab.drivers.bind(gpu, VFIO_PCI)
    assert (gpu.driver, gpu.vfio_minor, gpu.gone) == (None, None, True)
    recorder.fail = False
    lab.drivers.bind(gpu, VFIO_PCI)
    assert gpu.vfio_minor == 0


def test_a_virtual_parent_is_no_pci_function(lab: Lab) -> None:
    fails(errno.ENODEV, function_of, lab.parents["mtty"])
    fails(errno.ENODEV, lab.drivers.find, "mtty")


def test_a_vgpu_without_its_driver(lab: Lab, gpu: PhysicalFunction, recorder: Refusing) -> None:
    mdev = lab.create(parent_of(gpu).types["vgpu-1"], UUID(int=1))
    driver = lab.mdev_driver
    fails(errno.EBUSY, driver.bind, mdev)
    hold = DeviceFile(mdev)
    fails(errno.EBUSY, driver.unbind, mdev)
    hold.close()
    driver.unbind(mdev)
    fails(errno.ENODEV, driver.unbind, mdev)
    fails(errno.ENODEV, open_group, mdev.group)
    assert mdev.device.name == mdev.name
    recorder.fail = True
    with pytest.raises(RuntimeError):
        driver.bind(mdev)
    recorder.fail = False
    assert (mdev.bound, mdev.gone) == (False, True)
    lab.remove(mdev)
    fails(errno.ENODEV, lab.remove, mdev)
    assert recorder.seen[-3:] == [("added", mdev.name), ("unbound", mdev.name), ("removed", mdev.name)]


def test_an_unbound_vgpu_is_removed_before_its_model_is_made(lab: Lab, gpu: PhysicalFunction) -> None:
    lab.mdev_driver.autoprobe = False
    mdev = lab.create(parent_of(gpu).types["vgpu-1"], UUID(int=1))
    assert (mdev.bound, mdev.gone) == (False, True)
    lab.remove(mdev)
    with pytest.raises(OSError, match="is gone"):
        _ = mdev.device
