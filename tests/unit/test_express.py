# SPDX-License-Identifier: Apache-2.0
"""The PCI Express capability, and what a function can be reset by."""

import errno
from collections.abc import Callable

import pytest

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.lifecycle.binding import function_of
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import LabSpec, ParentSpec
from devmodel.models.gpu import PhysicalGpu
from devmodel.pci import regs
from devmodel.pci.capability import Capability, power_management
from devmodel.pci.config import Aperture
from devmodel.pci.express import LinkSpeed, as_integrated, express
from devmodel.pci.fields import Bar, Identity
from devmodel.pci.regs import CapId
from devmodel.region.region import Memory
from tests.unit.fakes import fails, gpu_parent
from tests.unit.test_lab import Recorder
from tests.unit.test_sriov import GPU


class Plain(PciDevice):
    """A function with power management, and without PCI Express."""

    __slots__ = ()
    identity = Identity(0x1234, 0x1000, 0, 0, class_code=0xFF0000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        return {0: Bar(Memory(4096))}

    def capabilities(self) -> list[Capability]:
        return [power_management()]


class Slow(Plain):
    """A PCI Express function that has no reset, at the end of a slow link."""

    __slots__ = ()

    def capabilities(self) -> list[Capability]:
        return [express(LinkSpeed.GT_5, 4, flr=False)]


def spec(name: str, model: type[PciDevice] = PhysicalGpu) -> ParentSpec:
    return gpu_parent(name, GPU.types, GPU.memory, model=model)


def functions(*specs: ParentSpec) -> list[PhysicalFunction]:
    lab = Lab(LabSpec(specs), Recorder())
    return [function_of(lab.parents[each.name]) for each in specs]


def with_vfs() -> tuple[Lab, PhysicalFunction]:
    recorder = Recorder()
    recorder.lab = lab = Lab(LabSpec((GPU,)), recorder)
    return lab, function_of(lab.parents[GPU.name])


def register(device: PciDevice, offset: int, width: int = 2) -> int:
    place = device.config.find(CapId.EXP)
    return int.from_bytes(device.read(PciRegion.CONFIG, place + offset, width), "little")


def test_an_endpoint_tells_one_story() -> None:
    gpu = PhysicalGpu("gpu", 1 << 20, aperture=Aperture())
    assert register(gpu, 0x02) == 0x0002  # version 2, an endpoint
    devcap = register(gpu, 0x04, 4)
    assert devcap & 0x8000 and devcap & 0x10000000 and devcap & 7 == 1  # RBER, FLR, 256 bytes
    assert register(gpu, 0x08) == 0x2910
    assert register(gpu, 0x0C, 4) & 0x3FF == register(gpu, 0x12) & 0x3FF == 0x104  # 16 GT/s, x16
    assert register(gpu, 0x2C, 4) == 0b11110 and register(gpu, 0x30) & 0xF == 4


@pytest.mark.parametrize("speed", LinkSpeed)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 12, 16, 32])
def test_a_model_chooses_its_link(speed: LinkSpeed, width: int) -> None:
    body = express(speed, width).body
    lnkcap, lnksta = (int.from_bytes(body[at : at + 2], "little") for at in (10, 16))
    assert lnkcap & 0x3FF == lnksta & 0x3FF == speed | width << 4
    assert body[42] == ((1 << speed) - 1) << 1 and body[46] == speed


@pytest.mark.parametrize("width", [0, 3, 24, 64])
def test_no_link_has_such_a_width(width: int) -> None:
    with pytest.raises(ValueError, match="lanes"):
        express(width=width)


@pytest.mark.parametrize(
    ("offset", "width", "written", "kept"),
    [
        (0x02, 2, 0xFFFF, 0x0002),
        (0x08, 2, 0x281F, 0x281F),
        (0x08, 2, 0x7FFF, 0x79FF),
        (0x0A, 2, 0xFFFF, 0x0000),
        (0x10, 2, 0xFFFF, 0x00CB),
        (0x12, 2, 0xFFFF, 0x1104),
        (0x28, 2, 0xFFFF, 0x001F),
        (0x30, 2, 0xFFF3, 0x0003),
    ],
)
def test_what_is_written_is_kept_where_it_may_be(offset: int, width: int, written: int, kept: int) -> None:
    gpu = PhysicalGpu("gpu", 1 << 20)
    gpu.write(PciRegion.CONFIG, gpu.config.find(CapId.EXP) + offset, written.to_bytes(width, "little"))
    assert register(gpu, offset, width) == kept


def test_a_function_on_bus_0_is_an_integrated_endpoint_without_a_link() -> None:
    (gpu,) = functions(spec("0000:00:05.0"))
    assert register(gpu.device, 0x02) == 0x0092 and register(gpu.device, 0x04, 4) & 0x10000000
    for offset, width in ((0x0C, 4), (0x10, 2), (0x12, 2), (0x2C, 4), (0x30, 2), (0x32, 2)):
        gpu.device.write(PciRegion.CONFIG, gpu.device.config.find(CapId.EXP) + offset, b"\xff" * width)
        assert register(gpu.device, offset, width) == 0
    assert as_integrated(power_management()) == power_management()


def test_a_virtual_function_has_its_physical_ones_control_but_for_the_reset() -> None:
    lab, gpu = with_vfs()
    lab.sriov.set_count(gpu, 1)
    device = gpu.vfs[0].device
    assert [register(device, at, 4) for at in (0x04, 0x0C, 0x2C)] == [
        register(gpu.device, at, 4) for at in (0x04, 0x0C, 0x2C)
    ]
    assert [register(device, at) for at in (0x08, 0x10, 0x12, 0x28, 0x30, 0x32)] == [0] * 6
    assert gpu.vfs[0].reset_methods == ("flr",) and gpu.reset_methods == ("flr", "bus")
    lab.close()


# ---- resets ----


@pytest.mark.parametrize(
    ("names", "models", "methods"),
    [
        (["0000:86:00.0"], [PhysicalGpu], [("flr", "bus")]),
        (["0000:86:00.0", "0000:86:00.1"], [PhysicalGpu] * 2, [("flr",)] * 2),
        (["0000:86:00.0", "0000:87:00.0"], [PhysicalGpu, Plain], [("flr", "bus"), ("bus",)]),
        (["0000:86:00.0", "0000:86:01.0"], [Plain, Slow], [(), ()]),
        (["0000:86:00.0", "0001:86:00.0"], [Slow, Slow], [("bus",)] * 2),
        (["0000:00:05.0"], [PhysicalGpu], [("flr",)]),
        (["0000:00:05.0"], [Plain], [()]),
    ],
)
def test_what_a_function_can_be_reset_by(
    names: list[str], models: list[type[PciDevice]], methods: list[tuple[str, ...]]
) -> None:
    made = functions(*map(spec, names, models))
    assert [function.reset_methods for function in made] == methods
    for function in made:
        function.first_opened()
        assert function.resettable is bool(function.reset_methods)
        if function.resettable:
            function.reset()
        else:
            fails(errno.ENOTTY, function.reset)


def test_methods_can_be_chosen() -> None:
    (gpu,) = functions(spec("0000:86:00.0"))
    gpu.choose_resets(["bus", "flr"])
    assert gpu.reset_methods == ("bus", "flr") and gpu.supported_resets == ("flr", "bus")
    for refused in (["pm"], ["flr", "af_flr"], [""]):
        fails(errno.EINVAL, gpu.choose_resets, refused)
    assert gpu.reset_methods == ("bus", "flr")
    gpu.choose_resets([])
    gpu.first_opened()
    assert not gpu.resettable
    fails(errno.ENOTTY, gpu.reset)
    gpu.choose_resets(None)
    assert gpu.reset_methods == ("flr", "bus")


def test_a_bus_with_virtual_functions_is_not_reset_for_one() -> None:
    lab, gpu = with_vfs()
    gpu.choose_resets(["bus"])
    gpu.reset()
    lab.sriov.set_count(gpu, 1)
    fails(errno.ENOTTY, gpu.reset)
    lab.close()


@pytest.mark.parametrize(("name", "there"), [("0000:86:00.0", True), ("0000:00:05.0", False)])
def test_only_a_bus_below_a_port_is_reset(name: str, there: bool) -> None:
    (gpu,) = functions(spec(name))
    check: Callable[[], None] = gpu.check_bus_reset
    assert gpu.below_port is there
    if there:
        check()
    else:
        fails(errno.ENODEV, check)


def test_the_reset_bit_resets_and_reads_0() -> None:
    gpu = PhysicalGpu("gpu", 1 << 20, aperture=Aperture())
    place = gpu.config.find(CapId.EXP) + regs.EXP_DEVCTL
    gpu.write(2, 0x0C, b"mine")
    gpu.write(0, 0, b"kept")
    gpu.write(PciRegion.CONFIG, place, b"\x0f\x28")
    assert gpu.read(2, 0x0C, 4) == b"mine"
    gpu.write(PciRegion.CONFIG, place, b"\x0f\xa8")
    assert gpu.read(2, 0x0C, 4) == bytes(4) and gpu.read(0, 0, 4) == b"kept"
    assert register(gpu, regs.EXP_DEVCTL) == 0x2910


def test_the_reset_bit_reads_0_where_there_is_no_reset() -> None:
    slow = Slow("slow")
    slow.write(PciRegion.CONFIG, slow.config.find(CapId.EXP) + regs.EXP_DEVCTL, b"\xff\xff")
    assert register(slow, 0x08) == 0x79FF and not slow.has_flr
