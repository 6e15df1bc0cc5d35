# SPDX-License-Identifier: Apache-2.0
"""The built-in models: who they are, what their BARs hold, and what a client can do to them."""

import struct

import pytest

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.models.mdpy import Mdpy
from devmodel.models.mtty import Mtty
from devmodel.models.registry import MODELS, PHYSICAL
from devmodel.pci.config import Aperture
from vfsfuse.testing import Bench

MIB = 1 << 20
CONFIG = PciRegion.CONFIG


def make(name: str, memory: int = 0, **options: int) -> PciDevice:
    return {**MODELS, **PHYSICAL}[name]("it", memory, options)


@pytest.mark.parametrize(
    ("model", "memory", "ids", "subsystem", "revision_class", "pin"),
    [
        ("gpu", 256 * MIB, "3412f086", "f41a0011", "01000003", 1),
        ("vgpu", 64 * MIB, "34121111", "f41a0011", "02008003", 0),
        ("mbochs", 4 * MIB, "34121111", "f41a0011", "02008003", 0),
        ("mdpy", 0, "361b0f00", "f41a0011", "00008003", 0),
        ("mtty", 0, "48435332", "48435332", "10020007", 1),
    ],
)
def test_identities(model: str, memory: int, ids: str, subsystem: str, revision_class: str, pin: int) -> None:
    device = make(model, memory)
    assert device.read(CONFIG, 0x00, 4).hex() == ids
    assert device.read(CONFIG, 0x2C, 4).hex() == subsystem
    assert device.read(CONFIG, 0x08, 4).hex() == revision_class
    assert device.read(CONFIG, 0x3D, 1)[0] == pin
    assert device.irqs[0] and device.irqs[0].count == bool(pin)
    device.close()


@pytest.mark.parametrize("model", sorted(MODELS))
def test_models_say_why_an_option_is_wrong(model: str) -> None:
    memory = 4 * MIB
    with pytest.raises(ValueError, match="no option 'colour'"):
        MODELS[model].validate(memory, {"colour": 1})
    for key, option in MODELS[model].OPTIONS.items():
        for value in (option.least - 1, option.most + 1):
            with pytest.raises(ValueError, match=key):
                MODELS[model]("it", memory, {key: value})


@pytest.mark.parametrize(
    ("model", "memory"),
    [("vgpu", 0), ("vgpu", 3 * MIB + 4096), ("mbochs", 4096), ("vgpu", 2**32), ("gpu", 0)],
)
def test_displays_say_why_a_memory_size_is_wrong(model: str, memory: int) -> None:
    with pytest.raises(ValueError, match="video memory"):
        make(model, memory)


@pytest.mark.parametrize(("model", "registers"), [("vgpu", 8192), ("mbochs", 4096)])
def test_bochs_displays_have_their_memory_and_dispi_registers(model: str, registers: int) -> None:
    with Bench(MODELS[model], memory=16 * MIB) as bench:
        video, own = bench.device.region(0), bench.device.region(2)
        assert (video.size, video.mappable, own.size, own.mappable) == (16 * MIB, True, registers, False)
        assert (bench["ID"], bench.read(2, 0x514, 2)) == (0xB0C5, (16 * MIB // 65536).to_bytes(2, "little"))
        bench.write(2, 0x500, struct.pack("<4H", 0, 1024, 768, 32))
        assert [bench[name] for name in ("ID", "XRES", "YRES", "BPP")] == [0xB0C5, 1024, 768, 32]
        bench.reset()
        assert [bench[name] for name in ("XRES", "YRES", "BPP")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("width", "height", "size"), [(640, 480, 2 * MIB), (1024, 768, 4 * MIB), (1920, 1080, 8 * MIB)]
)
def test_mdpy_declares_its_mode_and_rounds_its_framebuffer(width: int, height: int, size: int) -> None:
    with Bench(Mdpy, options={"width": width, "height": height}) as bench:
        assert bench.device.region(0).size == size
        assert (bench["VNDR_CAP_LIST_ID"], bench["VNDR_LENGTH"]) == (0x09, 16)
        offset = bench["CAPABILITY_LIST"]
        capability = bench.read(CONFIG, offset, 16)
        assert struct.unpack("<4sII", capability[4:]) == (b"XR24", width, height)
        bench.write(CONFIG, offset, b"\xff" * 16)
        assert bench.read(CONFIG, offset, 16) == capability


def test_the_physical_gpu_shows_its_memory_in_a_64_bit_bar() -> None:
    gpu = PHYSICAL["gpu"]("0000:86:00.0", 192 * MIB, {}, Aperture())
    assert gpu.region(0).size == 256 * MIB
    assert struct.unpack("<I", gpu.read(2, 8, 4)) == (192,)
    assert gpu.read(2, 0, 4) == b"VGPU"
    assert gpu.resource_rows()[0].flags & 0x100000
    gpu.close()


@pytest.mark.parametrize(("ports", "bars"), [(1, [0]), (2, [0, 1])])
def test_mtty_has_an_io_bar_of_8_bytes_for_each_port(ports: int, bars: list[int]) -> None:
    with Bench(Mtty, options={"ports": ports}) as bench:
        assert [index for index in range(6) if bench.device.regions[index]] == bars
        for index in bars:
            assert bench.device.region(index).size == 8
            bench[f"CONFIG.BAR{index}"] = 0xFFFFFFFF
            assert bench[f"CONFIG.BAR{index}"] == 0xFFFFFFF9
