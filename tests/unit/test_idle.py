# SPDX-License-Identifier: Apache-2.0
"""Functions that nobody has used yet: they have no device, and what they say is what it would say."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

from devmodel.lifecycle.function import VFIO_PCI, PciFunction
from devmodel.lifecycle.hotplug import PCI
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import FunctionSpec, LabSpec, VfSpec
from devmodel.models.gpu import Vgpu
from devmodel.models.plain import PlainBar, PlainDevice, PlainSpec, plain_model
from devmodel.pci.barkind import BarKind
from devmodel.pci.regs import Command, ExtCapId
from tests.unit.fakes import fails
from tests.unit.test_bridges import MACHINE, ROOTS
from tests.unit.test_lab import MIB, Recorder

CARD = plain_model(
    PlainSpec(
        bars=(PlainBar(0, MIB), PlainBar(2, 64 * MIB, BarKind.MEM64_PREFETCH)),
        rom_size=65536,
        capabilities=("pm", "msix:4", "express", "ari"),
    )
)


class Counted(CARD):  # type: ignore[valid-type,misc]  # a class that is made at run time
    """Counts how many devices there are."""

    __slots__ = ()
    made: ClassVar[list[str]] = []

    def bars(self) -> object:
        self.made.append("one")
        return super().bars()


FUNCTIONS = (
    FunctionSpec("0000:10:00.0", CARD, "card"),
    FunctionSpec("0000:10:00.1", CARD, "card", serial=5),
    FunctionSpec("0000:00:02.0", CARD),
    FunctionSpec("0000:11:00.0", Vgpu, "card", 16 * MIB, vf=VfSpec(2, Vgpu, MIB, driver="vf")),
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    recorder = Recorder()
    recorder.lab = made = Lab(LabSpec((), functions=FUNCTIONS), recorder)
    yield made
    made.close()


def physical(lab: Lab, name: str) -> PhysicalFunction:
    found = lab.drivers.find(name)
    assert isinstance(found, PhysicalFunction)
    return found


def command(function: PciFunction) -> Command:
    return function.device.config.command


def test_nobody_has_a_device_until_it_is_used(lab: Lab) -> None:
    assert [each.made for each in lab.drivers.functions.values()] == [None] * 6
    first = lab.drivers.find("0000:10:00.0")
    assert first.device is first.made and first.made.name == "0000:10:00.0"
    assert sum(each.made is not None for each in lab.drivers.functions.values()) == 1


@pytest.mark.parametrize(
    "spec", [LabSpec((), functions=FUNCTIONS), LabSpec((), functions=MACHINE, roots=ROOTS)]
)
def test_what_is_known_before_is_what_the_device_says(spec: LabSpec) -> None:
    recorder = Recorder()
    recorder.lab = lab = Lab(spec, recorder)
    for function in tuple(lab.drivers.functions.values()):
        if isinstance(function, PhysicalFunction) and function.layout is not None:
            lab.sriov.set_count(function, 2)
    for function in lab.drivers.functions.values():
        identity, traits = function.identity, function.traits
        rows = sorted(row for row in function.rows() if row.flags)
        device = function.device
        assert rows == sorted(row for row in device.resource_rows() if row.flags)
        assert (identity, dict(traits.options)) == (device.identity, dict(device.options))
        assert traits.config_size == device.config.size and traits.flr == device.has_flr
        assert traits.ari == device.config.has_extended(ExtCapId.ARI)
        assert {index: bar.size for index, bar in traits.bars.items()} == {
            index: bar.size for index, bar in device.bar_map.items()
        }
    lab.close()


def test_one_sample_is_made_for_all_of_a_kind() -> None:
    Counted.made.clear()
    functions = tuple(FunctionSpec(f"0000:10:{slot:02x}.0", Counted, "card") for slot in range(20))
    recorder = Recorder()
    recorder.lab = lab = Lab(LabSpec((), functions=functions), recorder)
    assert len(Counted.made) == 1
    lab.close()


def test_two_threads_get_the_same_device(lab: Lab) -> None:
    function = lab.drivers.find("0000:10:00.1")
    barrier, found = threading.Barrier(4), []

    def use() -> None:
        barrier.wait()
        found.append(function.device)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and {id(each) for each in found} == {id(function.made)}


def test_a_device_comes_into_the_state_that_its_host_has_left(lab: Lab) -> None:
    bound, left, enabled = (
        lab.drivers.find(name) for name in ("0000:10:00.0", "0000:10:00.1", "0000:00:02.0")
    )
    lab.drivers.unbind(left, "card")
    enabled.set_enabled(True)
    enabled.set_enabled(False)
    assert left.core.power_state == "unknown" and bound.core.power_state == "D0"
    assert (left.made, enabled.made) == (None, None)
    assert [bool(command(each) & Command.MASTER) for each in (bound, left, enabled)] == [True, False, False]
    assert all(command(each) & Command.MEMORY for each in (bound, left, enabled))


def test_a_virtual_function_is_no_master_before_its_driver(lab: Lab) -> None:
    gpu = physical(lab, "0000:11:00.0")
    gpu.autoprobe = False
    lab.sriov.set_count(gpu, 2)
    assert [vf.made for vf in gpu.vfs] == [None, None]
    assert not command(gpu.vfs[0]) & Command.MASTER
    gpu.vfs[1].driver_override = "vf"
    lab.drivers.bind(gpu.vfs[1], "vf")
    assert command(gpu.vfs[1]) & Command.MASTER


def test_what_was_never_used_goes_and_comes(lab: Lab) -> None:
    function = lab.drivers.find("0000:10:00.0")
    rows = list(function.rows())
    lab.hotplug.remove(function)
    assert function.made is None
    fails(errno.ENODEV, lambda: function.device)
    lab.hotplug.rescan(PCI)
    found = lab.drivers.find("0000:10:00.0")
    assert list(found.rows()) == rows and found.made is None and found.driver == "card"


def test_vfio_takes_an_idle_function(lab: Lab) -> None:
    function = lab.drivers.find("0000:10:00.1")
    lab.drivers.unbind(function, "card")
    function.driver_override = VFIO_PCI
    lab.drivers.bind(function, VFIO_PCI)
    assert function.made is None and function.supported_resets == ("flr",)
    function.reset()
    assert function.made is not None


def test_a_bus_reset_makes_nothing(lab: Lab) -> None:
    port = lab.ports["0000:10"]
    port.device.write(7, 0x3E, b"\x40\0")
    assert [each.made for each in port.functions] == [None, None]
    assert isinstance(lab.drivers.find("0000:10:00.0").device, PlainDevice)
