# SPDX-License-Identifier: Apache-2.0
"""The physical GPU and the vGPUs made of it.

State: in each device, under its lock. The physical function has its whole video memory in a 64-bit BAR 0 and
its registers in BAR 2. A vGPU is a display for bochs drivers, with its type's share of the memory. Its
command engine (devmodel.gpu) takes turns with those of other vGPUs on the engine of the physical function.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from devmodel.device.attribute import DeviceAttribute
from devmodel.device.options import Option
from devmodel.device.pci import PciDevice
from devmodel.gpu.engine import Engine
from devmodel.gpu.gtt import Gtt
from devmodel.gpu.registers import ENGINE, REGISTERS_SIZE
from devmodel.gpu.scheduler import Scheduler
from devmodel.models.bochs import BochsDisplay
from devmodel.pci.capability import MAX_MSIX_VECTORS, Capability, msi, power_management
from devmodel.pci.config import Aperture
from devmodel.pci.express import express
from devmodel.pci.fields import Bar, Identity
from devmodel.pci.msix import MsixBar
from devmodel.region.region import Memory
from devmodel.region.registers import Layout, Register, Registers

GPU_MAGIC = 0x55504756  # "VGPU" in memory order
MIN_GPU_MEMORY = 1 << 20
MAX_GPU_MEMORY = 1 << 40
"""The most bytes of a region, because of the room between regions in VFIO's file offsets."""
MSIX_BAR = 4
GTT_BAR = 1
DEFAULT_VECTORS, DEFAULT_WEIGHT, MOST_WEIGHT = 4, 16, 1000


def _memory_mib(gpu: PciDevice) -> int:
    return gpu.memory >> 20


class PhysicalGpu(PciDevice):
    """A display controller for its host driver. With option ``vectors`` it has MSI-X in BAR 4."""

    __slots__ = ("registers", "scheduler")
    OPTIONS: ClassVar[Mapping[str, Option]] = {"vectors": Option(0, 0, MAX_MSIX_VECTORS)}
    ATTRIBUTES: ClassVar[Sequence[DeviceAttribute]] = (
        DeviceAttribute(
            "engine_time_us",
            lambda gpu: gpu.scheduler.used // 1000,
            doc="Engine time in microseconds that all vGPUs have used.",
        ),
    )
    identity = Identity(0x1234, 0x86F0, 0x1AF4, 0x1100, class_code=0x030000, revision=1, irq_pin=1)
    LAYOUT: ClassVar[Layout] = Layout(
        4096,
        [
            Register(0x00, 4, "MAGIC", GPU_MAGIC, rw_mask=0),
            Register(0x04, 4, "REVISION", 1, rw_mask=0),
            Register(0x08, 4, "MEMORY_MIB", rw_mask=0, on_read=_memory_mib),
            Register(0x0C, 4, "SCRATCH"),
        ],
    )

    @classmethod
    def validate(cls, memory: int, options: Mapping[str, int]) -> None:
        super().validate(memory, options)
        if not MIN_GPU_MEMORY <= memory <= MAX_GPU_MEMORY:
            raise ValueError(f"video memory is {memory} bytes, not in 1M to 1T")

    def bars(self) -> Mapping[int, Bar]:
        self.registers = Registers(self.LAYOUT, self)
        self.scheduler = Scheduler()
        decoded = 1 << (self.memory - 1).bit_length()
        own = {0: Bar(Memory(decoded), mem64=True, prefetch=True), 2: Bar(self.registers)}
        return own | _msix_bar(self.options, excluded=False)

    def capabilities(self) -> Sequence[Capability]:
        return (power_management(), msi(1), express(), *_msix_capability(self.bar_map))


class Vgpu(BochsDisplay):
    """A virtual GPU: a bochs-compatible display in its type's share of the physical video memory, and an
    engine that draws.

    The GTT is BAR 1. The engine's registers are behind the display's in BAR 2. With option ``vectors`` it has
    MSI-X in BAR 4; without it, no interrupt. A client may map BAR 4 except the table.
    """

    __slots__ = ("engine", "gtt")
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        **BochsDisplay.OPTIONS,
        "vectors": Option(DEFAULT_VECTORS, 0, MAX_MSIX_VECTORS),
        "weight": Option(DEFAULT_WEIGHT, 1, MOST_WEIGHT),
    }
    ATTRIBUTES: ClassVar[Sequence[DeviceAttribute]] = (
        DeviceAttribute(
            "engine_time_us",
            lambda vgpu: vgpu.engine.share.used // 1000,
            doc="Engine time in microseconds that the vGPU has used.",
        ),
        DeviceAttribute(
            "engine_timeout_ms",
            lambda vgpu: vgpu.engine.timeout_ms,
            lambda vgpu, text: vgpu.engine.set_timeout(text),
            doc="How many milliseconds a slice or a WAIT may take.",
            store_doc="Sets it, for slices to come: 1 to 60000. EINVAL: another text.",
        ),
        DeviceAttribute(
            "engine_weight",
            lambda vgpu: vgpu.engine.share.weight,
            doc="The share of the engine, relative to those of other vGPUs.",
        ),
        DeviceAttribute("faults", lambda vgpu: vgpu.engine.faults, doc="The number of commands that failed."),
        DeviceAttribute(
            "gtt_stats",
            lambda vgpu: vgpu.engine.shadow.stats(),
            doc="Counts of the shadow GTT: `hits N misses N invalidations N ranges N`.",
        ),
        DeviceAttribute(
            "queue_depth",
            lambda vgpu: vgpu.engine.queue_depth,
            doc="The number of packets in the ring, with the one in execution.",
        ),
    )
    LAYOUT: ClassVar[Layout] = Layout(REGISTERS_SIZE, [*BochsDisplay.LAYOUT.registers, *ENGINE])
    MONITOR: ClassVar[str] = "vgpu"

    def __init__(
        self,
        name: str,
        memory: int = 0,
        options: Mapping[str, int] | None = None,
        aperture: Aperture | None = None,
    ) -> None:
        super().__init__(name, memory, options, aperture)
        vectors, weight = self.options["vectors"], self.options["weight"]
        self.engine = Engine(self, self.registers, self.gtt, vectors, weight)

    def attach_parent(self, parent: PciDevice | None) -> None:
        if isinstance(parent, PhysicalGpu):
            self.engine.scheduler = parent.scheduler

    def bars(self) -> Mapping[int, Bar]:
        self.gtt = Gtt()
        return {**super().bars(), GTT_BAR: Bar(self.gtt), **_msix_bar(self.options, excluded=True)}

    def stopped(self) -> None:
        self.engine.reset()
        self.gtt.reset()
        self.engine.shadow.forget()

    def capabilities(self) -> Sequence[Capability]:
        return tuple(_msix_capability(self.bar_map))


def _msix_bar(options: Mapping[str, int], excluded: bool) -> dict[int, Bar]:
    vectors = options["vectors"]
    return {MSIX_BAR: Bar(MsixBar(vectors, excluded))} if vectors else {}


def _msix_capability(bars: Mapping[int, Bar]) -> Iterator[Capability]:
    for index, bar in bars.items():
        if isinstance(bar.region, MsixBar):
            yield bar.region.capability(index)
