# SPDX-License-Identifier: Apache-2.0
"""Slots of a lab file: which ports have one, their names, which cards are absent at first, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from devmodel.lifecycle.bridge import place_functions
from devmodel.lifecycle.slots import Slots, absent_at_first, slot_ports, slot_problems
from devmodel.lifecycle.spec import BridgeKind, BridgeSpec, FunctionSpec
from devmodel.models.gpu import PhysicalGpu
from vfsfuse.labfile.reader import LabFileError, load


def card(address: str, slot: str | None = None, plugged: bool = True) -> FunctionSpec:
    return FunctionSpec(address, PhysicalGpu, memory=16 << 20, slot=slot, plugged=plugged)


def bridge(
    address: str, kind: BridgeKind, secondary: int, slot: str | None = None, plugged: bool = True
) -> FunctionSpec:
    return FunctionSpec(address, None, slot=slot, plugged=plugged, bridge=BridgeSpec(kind, secondary))


SWITCH = (
    bridge("0000:00:01.0", BridgeKind.ROOT_PORT, 1),
    bridge("0000:01:00.0", BridgeKind.UPSTREAM, 2),
    bridge("0000:02:00.0", BridgeKind.DOWNSTREAM, 3),
    card("0000:03:00.0"),
)


def ports_of(functions: Sequence[FunctionSpec]) -> dict[str, str]:
    return dict(slot_ports(place_functions(functions).buses))


def slots_of(*functions: FunctionSpec) -> dict[str, tuple[str, int, bool, bool]]:
    slots = Slots()
    slots.boot(functions, ports_of(functions))
    return {bus: (each.name, each.number, each.has_card, each.is_on) for bus, each in slots.by_bus.items()}


def test_a_slot_is_named_by_its_port_or_its_card() -> None:
    assert slots_of(card("0000:05:00.0", "7"), card("0000:05:00.1"), card("0000:06:00.0")) == {
        "0000:05": ("7", 7, True, True)
    }
    port = bridge("0000:00:01.0", BridgeKind.ROOT_PORT, 5, "7")
    assert slots_of(port, card("0000:05:00.0", plugged=False)) == {"0000:05": ("7", 7, True, False)}
    assert slots_of(port) == {"0000:05": ("7", 7, False, False)}
    upstream = bridge("0000:01:00.0", BridgeKind.UPSTREAM, 2, "4")
    downstream = bridge("0000:02:00.0", BridgeKind.DOWNSTREAM, 3, "5")
    assert slots_of(upstream, downstream, card("0000:03:00.0", "5")) == {
        "0000:01": ("4", 4, True, True),
        "0000:03": ("5", 5, True, True),
    }


def test_slots_of_one_number_get_names_of_their_own() -> None:
    named = slots_of(*(card(f"0000:0{bus}:00.0", "2") for bus in (5, 6, 7)), card("0001:01:00.0", "2"))
    assert [name for name, *_ in named.values()] == ["2", "2-1", "2-2", "2-3"]


def test_a_device_below_no_port_is_in_a_fixed_slot() -> None:
    functions = (card("0000:00:02.1", "2"), card("0000:00:02.0"), card("0000:05:00.0", "2"))
    slots = Slots()
    slots.boot(functions, ports_of(functions))
    assert slots.fixed == [("2-1", "0000:00:02")] and slots.by_bus["0000:05"].name == "2"


def test_which_ports_can_have_a_slot() -> None:
    pci = bridge("0000:00:02.0", BridgeKind.PCI, 9)
    assert ports_of((*SWITCH, pci, card("0000:09:03.0"), card("0000:00:05.0"))) == {
        "0000:01": "0000:00:01.0",
        "0000:03": "0000:02:00.0",
    }


def test_all_below_an_absent_bridge_is_absent() -> None:
    functions = list(SWITCH)
    functions[1] = bridge("0000:01:00.0", BridgeKind.UPSTREAM, 2, "1", plugged=False)
    assert absent_at_first(functions) == {"0000:01:00.0", "0000:02:00.0", "0000:03:00.0"}
    functions[1], functions[3] = SWITCH[1], card("0000:03:00.0", "1", plugged=False)
    assert absent_at_first(functions) == {"0000:03:00.0"}


@pytest.mark.parametrize(
    ("functions", "address", "why"),
    [
        ([card("0000:00:02.0", "1", plugged=False)], "0000:00:02.0", "is always there"),
        ([*SWITCH, card("0000:02:01.0", "1", plugged=False)], "0000:02:01.0", "is always there"),
        ([card("0000:00:02.0", "1"), card("0000:00:02.1", "2")], "0000:00:02.1", "0000:00:02.0 says"),
        ([card("0000:05:00.0", plugged=False)], "0000:05:00.0", "needs a slot"),
        ([card("0000:05:00.0", "1"), card("0000:05:00.1", "2")], "0000:05:00.1", "says that this is slot 1"),
        (
            [bridge("0000:00:01.0", BridgeKind.ROOT_PORT, 5, "1"), card("0000:05:00.0", "2")],
            "0000:05:00.0",
            "0000:00:01.0 says that this is slot 1",
        ),
        ([card("0000:05:00.0", "1"), card("0000:05:00.1", plugged=False)], "0000:05:00.1", "plug both"),
    ],
)
def test_mistakes(functions: list[FunctionSpec], address: str, why: str) -> None:
    ((where, said),) = slot_problems(functions, ports_of(functions))
    assert where == address and why in said
    with pytest.raises(ValueError, match=address):
        slots_of(*functions)


def test_a_lab_file_says_where_the_mistake_is(tmp_path: Path) -> None:
    source = tmp_path / "lab.toml"
    source.write_text(
        """
        [functions."0000:00:02.0"]
        slot = "1"
        plugged = false
        [functions."0000:05:00.0"]
        plugged = false
        [parents."0000:06:00.0"]
        kind = "gpu"
        driver = "vgpu"
        memory = "16M"
        plugged = false
        types.all = { memory = "16M", description = "all" }
        """
    )
    with pytest.raises(LabFileError) as caught:
        load(source)
    keys = [line.removeprefix(f"{source}: ").split(": ")[0] for line in caught.value.lines]
    assert sorted(keys) == [
        'functions."0000:00:02.0".slot',
        'functions."0000:05:00.0".slot',
        'parents."0000:06:00.0".slot',
    ]
    assert all(line.endswith(")") for line in caught.value.lines)


def test_a_vgpu_of_a_card_that_is_not_there(tmp_path: Path) -> None:
    source = tmp_path / "lab.toml"
    source.write_text(
        """
        [parents."0000:06:00.0"]
        kind = "gpu"
        driver = "vgpu"
        memory = "16M"
        slot = "1"
        plugged = false
        types.all = { memory = "16M", description = "all" }
        [[vgpus]]
        parent = "0000:06:00.0"
        type = "all"
        uuid = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
        """
    )
    with pytest.raises(LabFileError, match=r"vgpus\.0\.parent: 0000:06:00\.0 is not plugged in"):
        load(source)
