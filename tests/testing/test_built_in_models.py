# SPDX-License-Identifier: Apache-2.0
"""Every model of vfsfuse, and that of the examples, on a bench: as a driver uses it."""

from __future__ import annotations

import os
import struct

import pytest

from devmodel.models.gpu import GPU_MAGIC, PhysicalGpu, Vgpu
from devmodel.models.mbochs import Mbochs
from devmodel.models.mdpy import Mdpy
from devmodel.models.mtty import Mtty
from devmodel.models.plain import PlainBar, PlainSpec, plain_model
from devmodel.models.registry import MODELS, PHYSICAL
from devmodel.models.vendorvf import VendorVf
from devmodel.pci.barkind import BarKind
from devmodel.sdk import PciDevice
from examples.copier import COPY, DONE, Copier
from tests.testing.toys import Timer
from tests.unit.fakes import fails
from tests.vfio.gpu_client import DONE as FENCED
from tests.vfio.gpu_client import ENABLE, ERROR, IDLE, SYSTEM, VALID, WRITABLE, fence, fill, wait
from vfsfuse.testing import Bench, Physical, VfSpec

MIB, PAGE = 1 << 20, 4096
IOVA = 1 << 32
DATA, IER, MCR, LSR = 0, 1, 4, 5


def test_all_models_are_tested_here() -> None:
    assert set(MODELS.values()) | set(PHYSICAL.values()) == {Vgpu, Mbochs, Mdpy, Mtty, PhysicalGpu}


@pytest.mark.parametrize("kind", ["vgpu", "function"])
def test_the_copier_as_a_vgpu_and_as_a_function(kind: str) -> None:
    with Bench(Copier, kind=kind) as bench:  # type: ignore[arg-type] # one of two
        bench.memory.map(IOVA, PAGE)
        bench.memory.write(IOVA, b"copied")
        bench["SOURCE"], bench["TARGET"], bench["SIZE"], bench["COMMAND"] = IOVA, IOVA + 64, 6, COPY
        bench.wait_interrupt(0)
        assert bench["STATUS"] == DONE and bench.memory.read(IOVA + 64, 6) == b"copied"


# ---- the GPU ----


def start_engine(bench: Bench[Vgpu]) -> None:
    """Give the engine two pages of system memory, the first of them as its ring."""
    bench.memory.map(IOVA, 2 * PAGE)
    bench.write(1, 0, struct.pack("<QQ", IOVA | VALID | WRITABLE, (IOVA + PAGE) | VALID | WRITABLE))
    bench["RING_BASE"], bench["RING_SIZE"], bench["CONTROL"] = SYSTEM, PAGE, ENABLE


def execute(bench: Bench[Vgpu], *packets: bytes) -> None:
    """Put packets into the ring, and ring the doorbell."""
    tail = bench["RING_TAIL"]
    for packet in packets:
        bench.memory.write(IOVA + tail, packet)
        tail += len(packet)
    bench["RING_TAIL"] = tail


@pytest.mark.parametrize("parent", [None, Physical(PhysicalGpu, 64 * MIB)])
def test_a_vgpu_draws_and_interrupts(parent: Physical | None) -> None:
    with Bench(Vgpu, memory=8 * MIB, parent=parent) as bench:
        start_engine(bench)
        execute(bench, fill(0x1000, 16, 0x11223344), fence(SYSTEM + PAGE, 7, interrupt=True))
        bench.wait_interrupt(0)
        assert bench.read(0, 0x1000, 16) == struct.pack("<I", 0x11223344) * 4
        assert bench.memory.read(IOVA + PAGE, 8) == (7).to_bytes(8, "little")
        assert (bench["FENCE"], bench["STATUS"]) == (7, IDLE | FENCED)
        assert bench.attribute("faults") == "0" and bench.attribute("queue_depth") == "0"
        execute(bench, fill(1 << 41, 4, 0))
        bench.wait_interrupt(1)
        assert bench["STATUS"] & ERROR and bench.attribute("faults") == "1"
        bench.set_attribute("engine_timeout_ms", "5")
        with pytest.raises(ValueError, match="milliseconds"):
            bench.set_attribute("engine_timeout_ms", "0")


def test_a_reset_stops_the_engine() -> None:
    with Bench(Vgpu, memory=8 * MIB) as bench:
        start_engine(bench)
        execute(bench, wait(SYSTEM + PAGE, 1), fence(SYSTEM + PAGE + 8, 5, interrupt=True))
        bench.settle()
        bench.reset()
        bench.memory.write(IOVA + PAGE, (1).to_bytes(8, "little"))
        bench.advance(1)
        assert not bench.interrupts.log and bench.memory.read(IOVA + PAGE + 8, 8) == bytes(8)
        assert bench["CONTROL"] == 0 and bench["STATUS"] == IDLE


def test_the_physical_gpu_by_vfio_pci() -> None:
    with Bench(PhysicalGpu, memory=16 * MIB, kind="function", options={"vectors": 4}) as bench:
        assert (bench["MAGIC"], bench["MEMORY_MIB"]) == (GPU_MAGIC, 16)
        bench["SCRATCH"] = 5
        assert bench["CONFIG.COMMAND"] & 7 == 6
        bench["CONFIG.COMMAND"] = 0
        fails(5, bench.read, 2, 0, 4)  # EIO: vfio-pci does not let clients at memory that is not decoded
        bench["CONFIG.COMMAND"] = 6
        bench.reset()
        assert bench["SCRATCH"] == 0
        bench["PM_CTRL"] = 3  # D3hot
        fails(5, bench.read, 2, 0, 4)
        bench["PM_CTRL"] = 0
        assert bench["MAGIC"] == GPU_MAGIC


def test_a_virtual_function_by_vfio_pci() -> None:
    with Bench(Vgpu, memory=4 * MIB, kind="vf", parent=Physical(PhysicalGpu, 16 * MIB)) as bench:
        assert bench.read(7, 0, 4) == b"\x34\x12\x11\x11"
        start_engine(bench)
        execute(bench, fence(SYSTEM + PAGE, 3, interrupt=True))
        bench.wait_interrupt(0)
        assert bench["FENCE"] == 3


def test_a_physical_function_with_virtual_functions() -> None:
    spec = VfSpec(4, Timer)
    with Bench(PhysicalGpu, memory=16 * MIB, kind="function", vf=spec) as bench:
        first, second = bench.enable_vfs(2)
        assert isinstance(first, Timer) and first.name != second.name
        fails(16, bench.enable_vfs, 3)  # EBUSY
        fails(34, bench.enable_vfs, 5)  # ERANGE
        assert bench.enable_vfs(0) == ()


def test_a_function_gives_its_registers_back() -> None:
    """vfio-pci resets a function for each client, and puts its configuration space back."""
    with Bench(Timer, kind="function", texts={"serial": "12"}) as bench:
        assert bench.device.texts == {"serial": "12"}
        bench.advance(0.35)
        bench["BAR0.SCRATCH"], bench["INTERRUPT_LINE"] = 1, 9
        bench.close_device()
        bench.open_device()
        assert (bench["COUNT"], bench["BAR0.SCRATCH"], bench["INTERRUPT_LINE"]) == (0, 7, 0)
        bench.advance(0.35)
        assert bench["COUNT"] == 3


def test_the_driver_of_nvidias_framework_takes_a_virtual_function() -> None:
    with Bench(VendorVf, kind="vf", parent=Physical(PhysicalGpu, 16 * MIB)) as bench:
        assert bench["CONFIG.VENDOR_ID"] == VendorVf.identity.vendor


def test_a_plain_function_with_virtual_functions() -> None:
    bars = (PlainBar(0, MIB), PlainBar(4, 128, BarKind.IO))
    card = plain_model(PlainSpec(0x1234, 0x1592, class_code=0x020000, bars=bars))
    with Bench(card, kind="function", vf=VfSpec(2, Copier)) as bench:
        assert (bench["VENDOR_ID"], bench["CLASS_DEVICE"], bench["SRIOV_TOTAL_VF"]) == (0x1234, 0x0200, 2)
        bench.write(0, MIB - 4, b"last")
        bench.write(4, 124, b"port")
        bench.reset()
        assert (bench.read(0, MIB - 4, 8), bench.read(4, 124, 8)) == (b"last", b"port")
        assert [isinstance(vf, Copier) for vf in bench.enable_vfs(2)] == [True, True]


# ---- displays ----


@pytest.mark.parametrize("model", [Vgpu, Mbochs])
def test_bochs_displays_show_a_picture(model: type[PciDevice]) -> None:
    with Bench(model, memory=4 * MIB) as bench:
        fails(61, bench.picture)  # ENODATA
        bench["XRES"], bench["YRES"], bench["BPP"], bench["ENABLE"] = 640, 480, 32, 0x41
        bench.write(0, 4 * (640 * 2 + 1), bytes((10, 20, 30, 0)))
        picture = bench.picture()
        assert picture.size == (640, 480) and picture.getpixel((1, 2)) == (30, 20, 10)
        bench.reset()
        fails(61, bench.picture)


def test_mdpy_shows_a_picture() -> None:
    with Bench(Mdpy, options={"width": 800, "height": 600}) as bench:
        bench.write(0, 0, b"\x01\x02\x03\0")
        picture = bench.picture()
        assert picture.size == (800, 600) and picture.getpixel((0, 0)) == (3, 2, 1)


def test_a_device_without_a_display() -> None:
    with Bench(Mtty) as bench:
        fails(19, bench.picture)  # ENODEV


# ---- the serial card ----


def test_mtty_with_a_loopback_plug() -> None:
    with Bench(Mtty, options={"ports": 2}) as bench:
        assert bench.attribute("port1") == "loopback"
        bench.write(1, MCR, b"\x0b")
        bench.write(1, IER, b"\1")
        bench.write(1, DATA, b"A")
        assert bench.wait_interrupt().kind.name == "INTX"
        assert bench.read(1, LSR, 1)[0] & 1 and bench.read(1, DATA, 1) == b"A"
        bench.interrupts.unmask()
        assert not bench.interrupts.asserted and bench.interrupts.count() == 1


def test_mtty_with_a_pseudo_terminal() -> None:
    """A terminal is no part of virtual time: what is typed comes when the kernel brings it."""
    with Bench(Mtty) as bench:
        bench.set_attribute("port0", "pty")
        terminal = os.open(bench.attribute("port0"), os.O_RDWR | os.O_NOCTTY)
        try:
            bench.write(0, MCR, b"\x0b")
            for byte in b"typed":
                os.write(terminal, bytes([byte]))
                bench.wait(lambda: bench.read(0, LSR, 1)[0] & 1, what="a byte")
                assert bench.read(0, DATA, 1)[0] == byte
            bench.write(0, DATA, b"!")
            bench.settle()
            assert os.read(terminal, 8) == b"!"
        finally:
            os.close(terminal)
