# SPDX-License-Identifier: Apache-2.0
"""Root ports: where they are, what their configuration space says of the buses below, and who drives them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from devmodel.device.bridge import BridgeDevice
from devmodel.device.pci import PciDevice, PciRegion
from devmodel.lifecycle.binding import function_of
from devmodel.lifecycle.bridge import PCIEPORT, Bridge, place_functions
from devmodel.lifecycle.function import VFIO_PCI
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import LabSpec, ParentSpec, TypeSpec, VfSpec
from devmodel.models.gpu import Vgpu
from devmodel.pci.bridge import BridgeReg, Window, Windows
from devmodel.pci.ids import parse_pci_id
from devmodel.pci.regs import CapId, IoResource, Reg
from tests.unit.fakes import fails, function_spec, gpu_parent
from tests.unit.test_lab import MIB, Recorder
from vfsfuse.labfile.reader import LabFileError, load

TYPES = (TypeSpec("vgpu-4", "a quarter", Vgpu, memory=4 * MIB),)
EMPTY = (0, 0, 0)


def at(name: str, vfs: int = 0, iommu: bool = True) -> ParentSpec:
    vf = VfSpec(vfs, Vgpu) if vfs else None
    return gpu_parent(name, TYPES, 16 * MIB, vf=vf, iommu=iommu)


SPECS = (
    at("0000:86:00.0", 4),
    at("0000:03:00.0"),
    at("0000:00:01.0"),
    at("0000:86:00.1"),
    at("0001:90:1f.0", 8, iommu=False),
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    recorder = Recorder()
    recorder.lab = made = Lab(LabSpec(SPECS), recorder)
    yield made
    made.close()


@pytest.fixture
def port(lab: Lab) -> Bridge:
    return lab.ports["0000:86"]


def places(*specs: ParentSpec) -> dict[str, tuple[str, int, int, bool]]:
    buses = place_functions([function_spec(spec) for spec in specs]).buses
    return {
        bus: (str(each.address), *each.buses[1:], buses.multifunction(each.address))
        for bus, each in buses.bridges.items()
    }


# ---- places ----


def test_a_port_for_each_bus_but_bus_0() -> None:
    assert places(at("0000:00:02.0"), at("0000:00:1f.0", 4)) == {}
    assert places(at("0000:86:00.0"), at("0000:03:00.0"), at("0000:86:01.0"), at("0000:00:02.0")) == {
        "0000:03": ("0000:00:01.0", 3, 3, False),
        "0000:86": ("0000:00:03.0", 0x86, 0x86, False),
    }


def test_domains_have_ports_of_their_own() -> None:
    assert places(at("0001:01:00.0"), at("0000:01:00.0")) == {
        "0000:01": ("0000:00:01.0", 1, 1, False),
        "0001:01": ("0001:00:01.0", 1, 1, False),
    }


def test_a_port_reaches_the_last_virtual_function() -> None:
    assert places(at("0000:86:1f.0", 8), at("0000:86:00.0", 4)) == {
        "0000:86": ("0000:00:01.0", 0x86, 0x87, False)
    }


def test_virtual_functions_on_bus_0_are_no_place_for_a_port() -> None:
    assert places(at("0000:00:00.7", 2), at("0000:01:00.0"))["0000:01"][0] == "0000:00:02.0"


def test_a_domain_has_room_for_248_ports() -> None:
    most = [at(f"0000:{bus:02x}:00.0") for bus in range(1, 249)]
    found = places(*most)
    assert len({place[0] for place in found.values()}) == 248
    assert found["0000:20"] == ("0000:00:01.1", 32, 32, True)
    assert [place[3] for place in places(*most[:32]).values()] == [True, *[False] * 30, True]
    with pytest.raises(ValueError, match="no room on bus 0000:00 for a root port above bus f9"):
        places(*most, at("0000:f9:00.0"))


def test_a_lab_file_with_too_many_buses(tmp_path: Path) -> None:
    types = 'types.own = { memory = "1M", description = "of the GPU" }'
    gpus = (
        f'[parents."0000:{bus:02x}:00.0"]\nkind = "gpu"\ndriver = "vgpu"\nmemory = "1M"\n{types}\n'
        for bus in range(1, 250)
    )
    (tmp_path / "lab.toml").write_text("".join(gpus))
    with pytest.raises(LabFileError, match="parents: no room on bus 0000:00 for a root port above bus f9"):
        load(tmp_path / "lab.toml")


# ---- configuration space ----


def test_windows_are_the_narrowest_that_cover_everything() -> None:
    assert Windows.around([], []) == (None, None, None)
    memory = [
        Window(0x8010_0000, 0x8010_0FFF),
        Window(1 << 38, (1 << 38) + 5),
        Window(0x8030_0000, 0x8040_0000),
    ]
    assert Windows.around([Window(0xC008, 0xC00F)], memory) == (
        Window(0xC000, 0xCFFF),
        Window(0x8010_0000, 0x804F_FFFF),
        Window(1 << 38, (1 << 38) + 0xF_FFFF),
    )


def decoded(device: PciDevice) -> Windows:
    """The windows as a client computes them from the registers."""
    value = device.config.value
    io, io_limit = value(BridgeReg.IO_BASE, 1) & 0xF0, value(BridgeReg.IO_BASE + 1, 1) & 0xF0
    base, limit = value(BridgeReg.MEMORY_BASE, 2), value(BridgeReg.MEMORY_BASE + 2, 2)
    low, high = value(BridgeReg.PREF_MEMORY_BASE, 2), value(BridgeReg.PREF_MEMORY_BASE + 2, 2)
    assert low & 0xF == high & 0xF == 1
    first = value(BridgeReg.PREF_BASE_UPPER32, 4) << 32 | (low & 0xFFF0) << 16
    last = value(BridgeReg.PREF_LIMIT_UPPER32, 4) << 32 | (high & 0xFFF0) << 16 | 0xF_FFFF
    return Windows(
        Window(io << 8, io_limit << 8 | 0xFFF) if io <= io_limit else None,
        Window(base << 16, limit << 16 | 0xF_FFFF) if base <= limit else None,
        Window(first, last) if first <= last else None,
    )


def test_a_port_forwards_the_bars_below_it_and_no_others(lab: Lab) -> None:
    taken: list[range] = []
    for bus, port in lab.ports.items():
        device = port.device
        assert isinstance(device, BridgeDevice)
        windows = decoded(device)
        assert windows == device.below.windows and windows.io is None
        ranges = [range(window.first, window.last + 1) for window in windows if window]
        assert len(ranges) == 2
        assert all(one.stop <= two.start or two.stop <= one.start for one in ranges for two in taken)
        taken += ranges
        for function in (function_of(parent) for parent in lab.parents.values()):
            for row in function.device.resource_rows():
                inside = any(row.start in window and row.end in window for window in ranges)
                assert not row.flags or inside == (function.address.bus_name == bus)


def test_header_of_a_bridge(port: Bridge) -> None:
    config = port.device.config
    assert config.size == 4096 and config.value(0x0E, 1) == 1
    assert [config.value(0x18 + index, 1) for index in range(4)] == [0, 0x86, 0x86, 0]
    assert config.value(Reg.CLASS_REVISION, 4) == 0x06040000
    assert config.command == 7
    before = config.read(0, 4096)
    config.reset()
    assert config.read(0, 4096) == before


def test_writable_bits_of_a_bridge(port: Bridge) -> None:
    for offset, width, expected in (
        *((0x04, 2, 0x0547), (0x0E, 1, 0x01), (0x10, 8, 0), (0x18, 4, 0x00FFFFFF), (0x1C, 2, 0xF1F1)),
        *((0x1E, 2, 0), (0x20, 4, 0xFFF0FFF0), (0x24, 4, 0xFFF1FFF1), (0x28, 8, (1 << 64) - 1)),
        *((0x30, 4, 0xFFFFFFFF), (0x38, 4, 0), (0x3D, 1, 0), (0x3E, 2, 0x6B)),
    ):
        port.device.config.write(offset, b"\xff" * width)
        assert port.device.config.value(offset, width) == expected, hex(offset)


def test_a_port_of_several_in_one_device_says_so() -> None:
    recorder = Recorder()
    specs = tuple(at(f"0000:{bus:02x}:00.0") for bus in range(1, 33))
    recorder.lab = lab = Lab(LabSpec(specs), recorder)
    assert [port.device.config.value(0x0E, 1) for port in lab.ports.values()] == [0x81, *[1] * 30, 0x81]
    lab.close()


def test_lines_of_resource(port: Bridge) -> None:
    rows = port.device.resource_rows()
    assert len(rows) == 17 and rows[:14] == [EMPTY] * 14 and rows[16] == EMPTY
    assert [row.flags for row in rows[14:16]] == [0x200, 0x102201]


def capability(function: PhysicalFunction | Bridge, offset: int, width: int) -> int:
    """A register of the PCI Express capability."""
    config = function.device.config
    place = config.value(Reg.CAPABILITY_LIST, 1)
    while config.value(place, 1) != CapId.EXP:
        place = config.value(place + 1, 1)
    return config.value(place + offset, width)


def test_both_ends_of_the_link_say_the_same(lab: Lab, port: Bridge) -> None:
    gpu = function_of(lab.parents["0000:86:00.0"])
    assert capability(port, 0x02, 2) == 0x42  # a root port, version 2
    assert capability(port, 0x0C, 4) & 0x3FF == capability(gpu, 0x0C, 4) & 0x3FF
    assert capability(port, 0x12, 2) & 0x3FF == capability(gpu, 0x12, 2) & 0x3FF


def test_a_bus_reset_resets_what_is_below_once(lab: Lab, port: Bridge) -> None:
    below = [function_of(lab.parents[name]).device for name in ("0000:86:00.0", "0000:86:00.1")]
    other = function_of(lab.parents["0000:03:00.0"]).device
    line = Reg.INTERRUPT_LINE

    def after(control: int) -> list[int]:
        """The interrupt lines of all three, which were 11, when the bridge control register is written."""
        for device in (*below, other):
            device.write(PciRegion.CONFIG, line, b"\x0b")
        port.device.write(PciRegion.CONFIG, BridgeReg.BRIDGE_CONTROL, control.to_bytes(2, "little"))
        return [device.config.value(line, 1) for device in (*below, other)]

    assert after(0x02) == [11, 11, 11]
    assert after(0x42) == [0, 0, 11]
    assert after(0x42) == [11, 11, 11]  # held in reset already
    assert after(0x02) == [11, 11, 11]
    assert after(0x40) == [0, 0, 11]


# ---- the lab ----


def test_groups_of_parents_come_first(lab: Lab) -> None:
    """Two of them are functions of one device, without ACS."""
    assert [function_of(parent).group.number for parent in lab.parents.values()] == [0, 1, 2, 0, 3]
    assert [(str(port.address), port.group.number, port.group.noiommu) for port in lab.ports.values()] == [
        ("0000:00:02.0", 4, False),
        ("0000:00:03.0", 5, False),
        ("0001:00:01.0", 6, True),
    ]
    assert list(lab.parents) == [spec.name for spec in SPECS]


def test_functions_know_the_port_above_them(lab: Lab) -> None:
    above = {name: function_of(parent).upstream for name, parent in lab.parents.items()}
    assert {name: port and port.name for name, port in above.items()} == {
        "0000:86:00.0": "0000:00:03.0",
        "0000:03:00.0": "0000:00:02.0",
        "0000:00:01.0": None,
        "0000:86:00.1": "0000:00:03.0",
        "0001:90:1f.0": "0001:00:01.0",
    }
    edge = function_of(lab.parents["0001:90:1f.0"])
    lab.sriov.set_count(edge, 8)
    assert {vf.address.bus for vf in edge.vfs} == {0x90, 0x91}
    assert {vf.upstream for vf in edge.vfs} == {edge.upstream}


def driver(port: Bridge) -> str | None:
    return port.driver


def test_vfio_pci_takes_no_bridge(lab: Lab, port: Bridge) -> None:
    assert driver(port) == PCIEPORT
    port.driver_override = VFIO_PCI
    lab.drivers.unbind(port, PCIEPORT)
    fails(errno.ENODEV, lab.drivers.bind, port, PCIEPORT)
    fails(errno.EINVAL, lab.drivers.bind, port, VFIO_PCI)
    lab.drivers.attach(port)  # a driver that refuses it is no error
    assert driver(port) is None and port.vfio_minor is None and not port.group.devices
    port.driver_override = None
    lab.drivers.add_id(VFIO_PCI, parse_pci_id("1b36 000c"))
    assert driver(port) is None
    lab.drivers.remove_id(VFIO_PCI, parse_pci_id("1b36 000c"))
    lab.drivers.attach(port)
    assert driver(port) == PCIEPORT


def test_a_lab_without_pci_functions_has_no_ports() -> None:
    mtty = ParentSpec("mtty", "virtual", "mtty", TYPES, 16 * MIB)
    assert Lab(LabSpec((mtty,)), Recorder()).ports == {}


def test_windows_of_a_port_have_the_flags_of_resources(port: Bridge) -> None:
    memory, prefetch = port.device.resource_rows()[14:16]
    assert not memory.flags & IoResource.PREFETCH and memory.end < 1 << 32
    assert prefetch.flags & IoResource.PREFETCH and prefetch.start >= 1 << 32
