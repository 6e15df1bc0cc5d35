# SPDX-License-Identifier: Apache-2.0
"""Machines with bridges of every kind: what their configuration spaces say, and how they come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devmodel.lifecycle.bridge import PCIEPORT, Bridge
from devmodel.lifecycle.hotplug import PCI
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.spec import BridgeKind, BridgeSpec, FunctionSpec, LabSpec, RootSpec
from devmodel.models.plain import PlainBar, PlainSpec, plain_model
from devmodel.pci.barkind import BarKind
from devmodel.pci.bridge import BridgeReg, Window
from devmodel.pci.regs import CapId, Command, ExtCapId, Reg
from tests.unit.test_bridge import decoded
from tests.unit.test_lab import Recorder

GIB = 1 << 30
CARD = plain_model(
    PlainSpec(
        bars=(
            PlainBar(0, 1 << 20),
            PlainBar(2, 64 * GIB, BarKind.MEM64_PREFETCH),
            PlainBar(4, 128, BarKind.IO),
        ),
        capabilities=("pm", "express"),
    )
)
OLD = plain_model(PlainSpec(bars=(PlainBar(0, 4096), PlainBar(1, 64, BarKind.IO))))


def bridge(
    address: str, kind: str, secondary: int, subordinate: int | None = None, driver: str | None = PCIEPORT
) -> FunctionSpec:
    spec = BridgeSpec(BridgeKind(kind), secondary, subordinate)
    return FunctionSpec(address, None, driver, bridge=spec)


MACHINE = (
    bridge("0000:00:01.0", "root-port", 0x01),
    bridge("0000:01:00.0", "switch-upstream", 0x02),
    bridge("0000:02:00.0", "switch-downstream", 0x03),
    bridge("0000:02:01.0", "switch-downstream", 0x04, 0x07),
    FunctionSpec("0000:03:00.0", CARD, "card"),
    FunctionSpec("0000:03:00.1", CARD, "card", serial=0x1122334455667788),
    FunctionSpec("0000:04:00.0", CARD, "card"),
    bridge("0000:00:1c.0", "root-port", 0x10),
    bridge("0000:10:00.0", "pci", 0x11, driver=None),
    FunctionSpec("0000:11:01.0", OLD, "old"),
    FunctionSpec("0000:11:02.0", OLD, "old"),
    FunctionSpec("0000:81:00.0", CARD, "card"),
    FunctionSpec("0000:80:02.0", OLD, "old", numa_node=0),
)
ROOTS = (RootSpec("0000:80", numa_node=1),)


@pytest.fixture
def lab() -> Iterator[Lab]:
    recorder = Recorder()
    recorder.lab = made = Lab(LabSpec((), functions=MACHINE, roots=ROOTS), recorder)
    yield made
    made.close()


def test_each_bus_is_below_its_bridge(lab: Lab) -> None:
    assert {bus: each.name for bus, each in lab.ports.items()} == {
        "0000:01": "0000:00:01.0",
        "0000:02": "0000:01:00.0",
        "0000:03": "0000:02:00.0",
        "0000:04": "0000:02:01.0",
        "0000:10": "0000:00:1c.0",
        "0000:11": "0000:10:00.0",
        "0000:81": "0000:80:01.0",
    }
    found = lab.drivers.functions
    above = {name: each.upstream and each.upstream.name for name, each in found.items()}
    assert above["0000:03:00.1"] == "0000:02:00.0" and above["0000:02:01.0"] == "0000:01:00.0"
    assert above["0000:80:02.0"] is None and above["0000:81:00.0"] == "0000:80:01.0"
    assert lab.hotplug.buses.roots == ("0000:00", "0000:80")


def test_bus_numbers_of_a_switch(lab: Lab) -> None:
    assert [bytes(each.device.config.read(0x18, 3)).hex() for each in lab.ports.values()] == [
        *("000107", "010207", "020303", "020407", "001011", "101111", "808181"),
    ]


def test_kinds_of_ports(lab: Lab) -> None:
    def kind(bridge: Bridge) -> int:
        config = bridge.device.config
        return config.value(config.find(CapId.EXP) + 2, 2) >> 4 & 0xF

    assert [kind(each) for each in lab.ports.values()] == [4, 5, 6, 6, 4, 7, 4]
    acs = [each.device.config.has_extended(ExtCapId.ACS) for each in lab.ports.values()]
    assert acs == [True, False, True, True, True, False, True]
    assert [each.driver for each in lab.ports.values()] == [PCIEPORT] * 5 + [None, PCIEPORT]


def test_windows_cover_everything_below_and_no_more(lab: Lab) -> None:
    def ranges(bridge: Bridge) -> list[Window]:
        return [window for window in decoded(bridge.device) if window]

    for bridge in lab.ports.values():
        below = {each.name for each in bridge.functions}
        for name, function in lab.drivers.functions.items():
            for row in function.device.resource_rows()[:13]:
                inside = any(each.first <= row.start and row.end <= each.last for each in ranges(bridge))
                assert not row.flags or inside == (name in below), (bridge.name, name)
    prefetch = decoded(lab.ports["0000:01"].device).prefetch
    assert prefetch is not None and prefetch.last + 1 - prefetch.first >= 3 * 64 * GIB
    assert prefetch.first % (64 * GIB) == 0


def test_devices_of_several_functions_say_so(lab: Lab) -> None:
    kinds = {
        name: each.device.config.value(Reg.HEADER_TYPE, 1) for name, each in lab.drivers.functions.items()
    }
    assert {name for name, kind in kinds.items() if kind & 0x80} == {"0000:03:00.0", "0000:03:00.1"}


def test_a_serial_number(lab: Lab) -> None:
    config = lab.drivers.find("0000:03:00.1").device.config
    assert config.value(config.extended(ExtCapId.DSN) + 4, 8) == 0x1122334455667788
    assert not lab.drivers.find("0000:03:00.0").device.config.has_extended(ExtCapId.DSN)


def test_nodes_are_those_of_what_is_above(lab: Lab) -> None:
    nodes = {name: each.core.numa_node for name, each in lab.drivers.functions.items()}
    assert {name for name, node in nodes.items() if node == 1} == {"0000:80:01.0", "0000:81:00.0"}
    assert nodes["0000:80:02.0"] == 0 and nodes["0000:03:00.0"] == -1


def test_a_bus_reset_reaches_all_buses_below(lab: Lab) -> None:
    names = ("0000:02:00.0", "0000:03:00.0", "0000:04:00.0", "0000:11:01.0")
    configs = [lab.drivers.find(name).device.config for name in names]
    for config in configs:
        config.write(Reg.INTERRUPT_LINE, b"\x0b")
    lab.ports["0000:02"].device.write(7, BridgeReg.BRIDGE_CONTROL, b"\x40\0")
    assert [config.value(Reg.INTERRUPT_LINE, 1) for config in configs] == [0, 0, 0, 0x0B]


def test_removal_goes_down_and_a_rescan_comes_up(lab: Lab) -> None:
    recorder = lab.observer
    assert isinstance(recorder, Recorder)
    before = {name: each.device.resource_rows() for name, each in lab.drivers.functions.items()}
    port = lab.ports["0000:01"]
    assert [each.name for each in lab.hotplug.going(port)] == [
        *("0000:04:00.0", "0000:02:01.0", "0000:03:00.1", "0000:03:00.0", "0000:02:00.0"),
        *("0000:01:00.0", "0000:00:01.0"),
    ]
    lab.hotplug.remove(port)
    assert list(lab.ports) == ["0000:10", "0000:11", "0000:81"]
    lab.hotplug.rescan("0000:03")
    assert "0000:03:00.0" not in lab.drivers.functions
    lab.hotplug.rescan(PCI)
    found = list(lab.drivers.functions)[-7:]
    assert found == [
        *("0000:00:01.0", "0000:01:00.0", "0000:02:00.0", "0000:02:01.0"),
        *("0000:03:00.0", "0000:03:00.1", "0000:04:00.0"),
    ]
    assert {name: each.device.resource_rows() for name, each in lab.drivers.functions.items()} == before
    assert lab.drivers.find("0000:04:00.0").upstream is lab.ports["0000:04"]
    assert lab.drivers.find("0000:04:00.0").driver == "card"


def test_what_is_not_plugged_is_not_found() -> None:
    recorder = Recorder()
    absent = FunctionSpec("0000:05:00.0", CARD, "card", slot="7", plugged=False)
    recorder.lab = lab = Lab(
        LabSpec((), functions=(bridge("0000:00:01.0", "root-port", 5), absent)), recorder
    )
    assert list(lab.drivers.functions) == ["0000:00:01.0"]
    lab.hotplug.rescan(PCI)
    assert list(lab.drivers.functions) == ["0000:00:01.0"]
    window = decoded(lab.ports["0000:05"].device).prefetch
    assert window is not None and window.last - window.first >= 64 * GIB - 1
    (slot,) = lab.hotplug.slots.by_bus.values()
    lab.cards.plug(slot)
    assert lab.drivers.find(absent.name).driver == "card"
    lab.close()


def test_a_bridge_with_ids_and_bars_of_its_own() -> None:
    model = plain_model(
        PlainSpec(
            vendor=0x1000,
            device=0xC010,
            subsystem_vendor=0,
            subsystem_device=0,
            bars=(PlainBar(0, 1 << 18),),
            capabilities=("pm", "msi:1", "express", "aer"),
        )
    )
    spec = FunctionSpec(
        "0000:10:00.0", model, PCIEPORT, bridge=BridgeSpec(BridgeKind.UPSTREAM, 0x11), serial=7
    )
    recorder = Recorder()
    recorder.lab = lab = Lab(LabSpec((), functions=(spec, FunctionSpec("0000:11:00.0", CARD))), recorder)
    device = lab.ports["0000:11"].device
    config = device.config
    assert config.read(0, 4) == b"\0\x10\x10\xc0" and config.value(Reg.CLASS_REVISION, 4) >> 8 == 0x060400
    assert config.value(config.find(CapId.EXP) + 2, 2) >> 4 & 0xF == 5
    assert [cap.id for cap in device.caps].count(CapId.EXP) == 1 and config.find(CapId.MSI)
    assert not config.find(CapId.SSVID) and config.has_extended(ExtCapId.AER)
    assert config.value(config.extended(ExtCapId.DSN) + 4, 8) == 7
    row = device.resource_rows()[0]
    above = decoded(lab.ports["0000:10"].device).memory
    assert above is not None and above.first <= row.start and row.end <= above.last
    assert config.value(Reg.BASE_ADDRESS_0, 4) == row.start
    config.write(Reg.BASE_ADDRESS_0, b"\xff" * 4)
    assert config.value(Reg.BASE_ADDRESS_0, 4) == 0x1_0000_0000 - (1 << 18)
    lab.close()


@pytest.mark.parametrize(
    ("command", "driver"),
    [(0, None), (Command.MASTER | Command.SERR, None), (0x7 | Command.INTX_DISABLE, PCIEPORT)],
)
def test_a_captured_bridge_is_as_it_was_but_for_its_place(command: int, driver: str | None) -> None:
    recorder = Recorder()
    old = FunctionSpec("0000:11:01.0", OLD, "old")
    recorder.lab = lab = Lab(
        LabSpec((), functions=(bridge("0000:00:03.0", "root-port", 0x11), old)), recorder
    )
    image = lab.ports["0000:11"].device.config.read(0, 4096)
    lab.close()
    image = image[: Reg.COMMAND] + command.to_bytes(2, "little") + image[Reg.COMMAND + 2 :]
    model = plain_model(PlainSpec(config=image))
    spec = FunctionSpec("0000:00:01.0", model, driver, bridge=BridgeSpec(BridgeKind.ROOT_PORT, 0x20, 0x2F))
    recorder.lab = lab = Lab(LabSpec((), functions=(spec,)), recorder)
    device = lab.ports["0000:20"].device
    shown = device.config.read(0, 4096)
    assert shown[0x18:0x1B] == b"\0\x20\x2f"
    assert shown[:0x18] + shown[0x1B:] == image[:0x18] + image[0x1B:]
    windows = decoded(device)
    assert windows.memory is not None and windows.io is not None
    assert [row[:2] for row in device.resource_rows()[13:15]] == [windows.io, windows.memory]
    device.config.write(BridgeReg.MEMORY_BASE, b"\xf0\xff\0\0")
    assert decoded(device).memory is None
    device.config.reset()
    assert device.config.read(0, 4096) == shown
    lab.close()


def test_a_captured_endpoint_is_no_bridge() -> None:
    model = plain_model(PlainSpec(config=bytes(range(1, 15)) + bytes(242)))
    spec = FunctionSpec("0000:00:01.0", model, bridge=BridgeSpec(BridgeKind.ROOT_PORT, 0x20))
    with pytest.raises(ValueError, match=r"not that of a bridge \(leave `bridge` out\)"):
        Lab(LabSpec((), functions=(spec,)), Recorder())


def test_a_bridge_has_room_for_two_bars() -> None:
    model = plain_model(PlainSpec(bars=(PlainBar(2, 4096),)))
    spec = FunctionSpec("0000:00:01.0", model, bridge=BridgeSpec(BridgeKind.ROOT_PORT, 0x20))
    with pytest.raises(
        ValueError, match="a bridge has no BAR 2 of this kind: BARs 0 and 1, or one of 64 bits"
    ):
        Lab(LabSpec((), functions=(spec,)), Recorder())
