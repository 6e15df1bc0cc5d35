# SPDX-License-Identifier: Apache-2.0
"""Groups of the functions of a lab, without a mount: their numbers, members and ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devmodel.ida import Ida
from devmodel.lifecycle.function import VFIO_PCI, PciFunction
from devmodel.lifecycle.iommugroup import IommuGroup
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.spec import BridgeKind, BridgeSpec, FunctionSpec, LabSpec
from devmodel.models.plain import PlainSpec, plain_model
from devmodel.vfio.devicefile import DeviceFile
from tests.unit.test_lab import Recorder

MODEL = plain_model(PlainSpec())
PORT = FunctionSpec("0000:00:01.0", None, "pcieport", bridge=BridgeSpec(BridgeKind.ROOT_PORT, 1), slot="1")


@contextmanager
def lab_of(*functions: FunctionSpec) -> Iterator[Lab]:
    recorder = Recorder()
    recorder.lab = lab = Lab(LabSpec((), functions=functions), recorder)
    yield lab
    lab.close()


def card(function: int, group: str | int | None = None, bus: int = 1) -> FunctionSpec:
    return FunctionSpec(f"0000:{bus:02x}:00.{function}", MODEL, group=group)


def numbers(lab: Lab) -> dict[str, int]:
    return {name: function.group.number for name, function in sorted(lab.drivers.functions.items())}


def members(function: PciFunction) -> list[str]:
    assert isinstance(function.group, IommuGroup)
    return [each.name for each in function.group.members]


def test_numbers_that_are_kept_are_never_given() -> None:
    numbers = Ida()
    numbers.keep({0, 2, 3})
    assert [numbers.take() for _ in range(3)] == [1, 4, 5]
    numbers.give(4)
    assert [numbers.take() for _ in range(2)] == [4, 6]


def test_a_number_of_the_lab_file_is_nobody_elses() -> None:
    """Also while no function of that group is there."""
    with lab_of(PORT, card(0, 1), card(0, bus=2), card(0, 0, bus=3)) as lab:
        assert numbers(lab) == {
            "0000:00:01.0": 2,
            "0000:00:02.0": 4,
            "0000:00:03.0": 5,
            "0000:01:00.0": 1,
            "0000:02:00.0": 3,
            "0000:03:00.0": 0,
        }
        for name in ("0000:01:00.0", "0000:03:00.0", "0000:02:00.0"):
            lab.hotplug.remove(lab.drivers.functions[name])
        assert sorted(lab.groups) == [2, 4, 5]
        lab.hotplug.rescan("pci")
        assert numbers(lab)["0000:01:00.0"] == 1 and numbers(lab)["0000:02:00.0"] == 3


def test_a_group_ends_with_its_last_member() -> None:
    with lab_of(PORT, card(0), card(1)) as lab:
        gpu, audio = (lab.drivers.functions[f"0000:01:00.{function}"] for function in range(2))
        assert gpu.group is audio.group and members(gpu) == [gpu.name, audio.name]
        number = gpu.group.number
        lab.hotplug.remove(gpu)
        assert members(audio) == [audio.name] and lab.groups[number] is audio.group
        lab.hotplug.remove(audio)
        assert number not in lab.groups
        lab.hotplug.rescan("pci")
        found = lab.drivers.functions[audio.name]
        assert found.group is not audio.group and found.group.number == number
        assert members(found) == [gpu.name, audio.name]


@pytest.mark.parametrize(
    ("vendor", "words", "acs", "apart"),
    [
        (0x8086, ("express",), None, True),
        (0x8086, ("express",), False, False),
        (0x8086, (), None, False),
        (0x1022, ("express",), None, False),
        (0x1022, ("express",), True, True),
    ],
)
def test_integrated_functions_of_intel_are_apart(
    vendor: int, words: tuple[str, ...], acs: bool | None, apart: bool
) -> None:
    """As Linux knows of them; functions of Intel below a port need ACS."""
    model = plain_model(PlainSpec(vendor=vendor, capabilities=words))
    names = ("0000:00:1f.0", "0000:00:1f.3", "0000:01:00.0", "0000:01:00.3")
    functions = [FunctionSpec(name, model, acs=acs) for name in names]
    with lab_of(PORT, *functions) as lab:
        first, second, *below = (lab.drivers.functions[spec.name].group for spec in functions)
        assert (first is not second) == apart
        assert (below[0] is not below[1]) == bool(acs)


@pytest.mark.parametrize("group", [None, 7])
def test_a_number_that_a_client_still_holds_is_not_given(group: int | None) -> None:
    """Its card was pulled out under it, and comes back."""
    with lab_of(PORT, card(0, group)) as lab:
        function, slot = lab.drivers.functions["0000:01:00.0"], lab.hotplug.slots.by_bus["0000:01"]
        before = function.group.number
        function.driver_override = VFIO_PCI
        lab.drivers.attach(function)
        client = DeviceFile(function)
        lab.cards.surprise_unplug(slot)
        lab.cards.plug(slot)
        again = lab.drivers.functions[function.name]
        assert again.group is not function.group and again.group.number != before
        client.close()
