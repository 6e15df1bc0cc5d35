# SPDX-License-Identifier: Apache-2.0
"""VFIO devices that are PCI functions: the base class of device models.

State: everything in a device is under ``Device.lock``. Source: <linux/vfio.h> (the VFIO_PCI_*_INDEX
enumerations), the behaviour of vfio-pci.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from devmodel.device.base import Device
from devmodel.device.options import Option, TextOption
from devmodel.irq.irqs import IrqIndex, MessageVectors
from devmodel.irq.kinds import PciIrq
from devmodel.pci import regs
from devmodel.pci.capability import Capability, ExtendedCapability
from devmodel.pci.config import Aperture, ConfigSpace
from devmodel.pci.fields import Bar, Identity
from devmodel.pci.image import ImageSpace
from devmodel.pci.regs import CapId, Command, IoResource, Reg
from devmodel.region.region import Region

RESOURCE_ROWS = 13
"""Lines of sysfs ``resource`` for a type 0 function: 6 BARs, the ROM and 6 of SR-IOV."""


class PciRegion(IntEnum):
    """Region indexes of vfio-pci; BARs are 0 to 5."""

    BAR0 = 0
    ROM = 6
    CONFIG = 7
    VGA = 8
    COUNT = 9


class DeviceRegion(NamedTuple):
    """A region from index 9 on. Its ``type`` and ``subtype`` (VFIO_REGION_TYPE_*) say what it is."""

    region: Region
    type: int
    subtype: int


class MsixTable(NamedTuple):
    """Where the MSI-X table is: BAR index, offset and size in bytes."""

    bar: int
    offset: int
    size: int


class ResourceRow(NamedTuple):
    """A line of sysfs ``resource``: first and last address, and IORESOURCE_* flags. All are 0 for no BAR."""

    start: int
    end: int
    flags: int


_NO_TEXTS: Mapping[str, str] = MappingProxyType({})


class _MessageBits(NamedTuple):
    """Bits of a message control register: whether it is on, and where it has how many messages are used."""

    enable: int
    size: int


_MESSAGES = (
    (CapId.MSI, PciIrq.MSI, _MessageBits(regs.MSI_ENABLE, regs.MSI_QSIZE)),
    (CapId.MSIX, PciIrq.MSIX, _MessageBits(regs.MSIX_ENABLE, 0)),
)


class PciDevice(Device):
    """A PCI function. A model declares :attr:`identity`, :attr:`OPTIONS` and :attr:`TEXTS`, and overrides
    :meth:`bars`.

    ``memory`` is the video or device memory in bytes that its type gives it; ``options`` are the type's, with
    the defaults of :attr:`OPTIONS`, and ``texts`` those that are texts, with the defaults of :attr:`TEXTS`.
    A model without texts need not take that argument. The BARs are decoded from the start. With an
    ``aperture`` they have addresses and the device is bus master, as firmware and a host driver leave a
    physical function. Without one they are at 0 and it is not bus master, like a mediated device of the
    kernel's samples.
    """

    __slots__ = (
        "_intx",
        "_messages",
        "_places",
        "_undecoded",
        "bar_map",
        "caps",
        "config",
        "extended_caps",
        "memory",
        "options",
        "own_regions",
        "power_state",
        "texts",
    )
    is_pci: ClassVar[bool] = True
    identity: ClassVar[Identity]
    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    TEXTS: ClassVar[Mapping[str, TextOption]] = {}
    vpd: ClassVar[bytes | None] = None
    """For models: the vital product data, None without that capability."""
    interrupt_line: ClassVar[int] = 0
    """For models: the interrupt of the host that INTx of a captured function led to."""
    vf_addresses: ClassVar[Mapping[int, int]] = MappingProxyType({})
    """For models: where the BARs of a captured function's first virtual function are to be, by index."""
    DECODED: ClassVar[Command] = Command(0)
    """What is decoded, whatever the command register says."""

    def __init__(
        self,
        name: str,
        memory: int = 0,
        options: Mapping[str, int] | None = None,
        aperture: Aperture | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Raises ValueError when :meth:`validate` or :meth:`validate_texts` would."""
        self.memory = memory
        self.options = self.with_defaults(options or {})
        self.validate(memory, self.options)
        self.texts: Mapping[str, str] = _NO_TEXTS
        if self.TEXTS or texts:
            self.texts = {key: text.default for key, text in self.TEXTS.items()} | dict(texts or {})
            self.validate_texts(texts or {})
        self.bar_map = dict(self.bars())
        self.caps = tuple(self.capabilities())
        self.own_regions = tuple(self.device_regions())
        self._intx = False
        self._messages: PciIrq | None = None
        self.power_state = 0
        """The D state that the function is in: 0, or 3 for D3hot."""
        self.extended_caps = tuple(self.extended_capabilities())
        self.config = self._config_space()
        self._places: dict[int, int] = {}
        if aperture is not None:
            self._place_bars(aperture)
        self._undecoded = _undecoded_bars(self.bar_map)
        self._enable_from_reset(0 if aperture is None else Command.MASTER)
        super().__init__(name, self._region_table(), self._irq_table())
        self.config.watch(Reg.COMMAND, 2, self._command_written)
        self._command_written(self.config.command)
        if self.has_flr:
            self.config.watch(self.config.find(CapId.EXP) + regs.EXP_DEVCTL, 2, self._device_control_written)
        power = self.config.find(CapId.PM)
        if power:
            self.config.watch(power + regs.PM_CTRL, 2, self._power_written)

    @classmethod
    def with_defaults(cls, options: Mapping[str, int]) -> dict[str, int]:
        """``options``, and for options that it lacks their defaults."""
        return {key: option.default for key, option in cls.OPTIONS.items()} | dict(options)

    @classmethod
    def validate(cls, memory: int, options: Mapping[str, int]) -> None:
        """Raise ValueError with the reason when a type cannot have this memory or these options."""
        for key, value in options.items():
            option = cls.OPTIONS.get(key)
            if option is None:
                raise ValueError(f"no option {key!r} (known: {', '.join(cls.OPTIONS) or 'none'})")
            if not option.least <= value <= option.most:
                raise ValueError(f"option {key!r} is {value}, not in {option.least} to {option.most}")

    @classmethod
    def validate_texts(cls, texts: Mapping[str, str]) -> None:
        """Raise ValueError with the reason when a function cannot have these options that are texts."""
        for key, value in texts.items():
            text = cls.TEXTS.get(key)
            if text is None:
                raise ValueError(
                    f"no option {key!r} that is a text (known: {', '.join(cls.TEXTS) or 'none'})"
                )
            text.check(key, value)

    def bars(self) -> Mapping[int, Bar]:
        """For models: the BARs by index, 6 for the ROM. Called once, in ``__init__``."""
        return {}

    def capabilities(self) -> Sequence[Capability]:
        """For models: the capabilities, in the order of their list. Called once, in ``__init__``."""
        return ()

    def extended_capabilities(self) -> Sequence[ExtendedCapability]:
        """For models of PCI Express functions: those from offset 256 on. Called once, in ``__init__``."""
        return ()

    def device_regions(self) -> Sequence[DeviceRegion]:
        """For models: regions from index 9 on. Called once, in ``__init__``."""
        return ()

    def attach_parent(self, parent: "PciDevice | None") -> None:
        """For models of vGPUs: ``parent`` is the physical function that this is a vGPU of, None for a virtual
        parent. Called once, before a client can reach the device."""

    @property
    def msix_table(self) -> MsixTable | None:
        """Where the MSI-X table is, None without MSI-X."""
        for cap in self.caps:
            if cap.id == CapId.MSIX:
                place = int.from_bytes(cap.body[2:6], "little")
                return MsixTable(place & 7, place & ~7, cap.vectors * regs.MSIX_ENTRY_SIZE)
        return None

    @property
    def msix_vectors(self) -> int:
        """How many entries the MSI-X table has, 0 without MSI-X."""
        return self.irq.count(PciIrq.MSIX)

    def size_msix(self, vectors: int) -> None:
        """Give the MSI-X table this many entries, at most as many as the model has declared; a reset keeps
        it. For a function that no client has open. Takes :attr:`lock`."""
        with self.lock:
            place = self.config.find(CapId.MSIX) + regs.MSI_FLAGS
            control = self.config.value(place, 2) & ~regs.MSIX_QSIZE | vectors - 1
            self.config.preset(place, 2, control)
            self.caps = tuple(
                replace(cap, body=control.to_bytes(2, "little") + cap.body[2:], vectors=vectors)
                if cap.id == CapId.MSIX
                else cap
                for cap in self.caps
            )
            self.irq.resize(PciIrq.MSIX, vectors)

    @property
    def has_flr(self) -> bool:
        """Whether the PCI Express capability offers a function level reset."""
        place = self.config.find(CapId.EXP)
        return bool(place and self.config.value(place + regs.EXP_DEVCAP, 4) & regs.EXP_DEVCAP_FLR)

    def set_intx(self, asserted: bool) -> None:
        """For models, under :attr:`lock`: drive INTx. The status register shows the level."""
        self._intx = asserted
        status = self.config.value(Reg.STATUS, 2) & ~regs.STATUS_INTERRUPT
        self.config.store(Reg.STATUS, 2, status | (regs.STATUS_INTERRUPT if asserted else 0))
        self.irq.set_level(asserted)

    def interrupt(self, vector: int = 0) -> None:
        """For models, under :attr:`lock`: send message ``vector`` if the client has set up MSI or MSI-X, or
        else assert INTx. The model deasserts INTx (:meth:`set_intx`) when its reason is gone."""
        if not self.irq.raise_message(vector) and self.identity.irq_pin:
            self.set_intx(True)

    @property
    def messages(self) -> MessageVectors | None:
        """The interrupts by message that a client has set up, None while it has not. Any thread."""
        return self.irq.message_vectors()

    def enable_for_host(self, command: int = 0) -> None:
        """Decode every BAR and let INTx through, as pci_enable_device() does for the host. ``command`` has
        more bits of the command register that are to be set."""
        with self.lock:
            command = self._with_decoding(self.config.command | command)
            if self.identity.irq_pin:
                command &= ~Command.INTX_DISABLE
            self.config.store(Reg.COMMAND, 2, command)
            self._command_written(command)

    def clear_master(self) -> None:
        """Make the function no bus master, until its client makes it one again."""
        with self.lock:
            self.config.store(Reg.COMMAND, 2, self.config.command & ~Command.MASTER)

    def may_dma(self) -> bool:
        return bool(self.config.command & Command.MASTER) and not self.power_state

    @property
    def memory_enabled(self) -> bool:
        """Whether memory BARs answer: their decoding is on, and the function is in D0."""
        return bool((self.config.command | self.DECODED) & Command.MEMORY) and not self.power_state

    def sync_intx(self) -> None:
        self.set_intx(False)
        power = self.config.find(CapId.PM)
        self.power_state = (
            self.config.value(power + regs.PM_CTRL, 2) & regs.PM_CTRL_STATE_MASK if power else 0
        )
        self._command_written(self.config.command)
        self._show_messages()

    def power_up(self) -> None:
        """Bring the function to D0, whatever state a client has left it in. Under :attr:`lock`."""
        power = self.config.find(CapId.PM)
        if power and self.power_state:
            control = self.config.value(power + regs.PM_CTRL, 2) & ~regs.PM_CTRL_STATE_MASK
            self.config.store(power + regs.PM_CTRL, 2, control)
            self._enter(0)

    def irqs_set(self) -> None:
        if self.irq.active is not self._messages:
            with self.lock:
                self._show_messages()

    def _show_messages(self) -> None:
        """Have the capabilities say whether MSI or MSI-X is on, and MSI with how many messages."""
        self._messages = self.irq.active
        for identity, kind, bits in _MESSAGES:
            place = self.config.find(identity)
            if place:
                control = self.config.value(place + regs.MSI_FLAGS, 2) & ~bits.enable
                if self._messages is kind:
                    control = control & ~bits.size | bits.enable
                    control |= (self.irq.allocated - 1).bit_length() << 4 & bits.size
                self.config.store(place + regs.MSI_FLAGS, 2, control)
        self.irq.send_messages(True)

    def _command_written(self, value: int) -> None:
        self.irq.disable_intx(bool(value & Command.INTX_DISABLE))
        decoded = 0 if self.power_state else value | self.DECODED
        self.set_undecoded(self._undecoded[bool(decoded & Command.IO), bool(decoded & Command.MEMORY)])

    def _power_written(self, value: int) -> None:
        """A state that the function does not have is not entered."""
        state = value & regs.PM_CTRL_STATE_MASK
        if state in (regs.PM_CTRL_STATE_D0, regs.PM_CTRL_STATE_D3HOT):
            self._enter(state)
        else:
            control = value & ~regs.PM_CTRL_STATE_MASK | self.power_state
            self.config.store(self.config.find(CapId.PM) + regs.PM_CTRL, 2, control)

    def _enter(self, state: int) -> None:
        self.power_state = state
        self._command_written(self.config.command)

    def _device_control_written(self, value: int) -> None:
        if value & regs.EXP_DEVCTL_BCR_FLR:
            self.reset_now()  # the register too: its bit reads 0

    def resource_rows(self) -> list[ResourceRow]:
        """The lines of sysfs ``resource``. A BAR that firmware did not place has IORESOURCE_UNSET."""
        rows = [ResourceRow(0, 0, 0)] * RESOURCE_ROWS
        for index, bar in self.bar_map.items():
            start = self._places.get(index)
            unset = IoResource.UNSET if start is None else 0
            readonly = IoResource.READONLY if index == regs.ROM_BAR else 0
            start = start or 0
            rows[index] = ResourceRow(start, start + bar.size - 1, bar.resource_flags | readonly | unset)
        return rows

    def _config_space(self) -> ConfigSpace:
        express = any(cap.id == CapId.EXP for cap in self.caps)
        size = regs.CFG_SPACE_EXP_SIZE if express else regs.CFG_SPACE_SIZE
        return ConfigSpace(self.identity, self.bar_map, self.caps, size, self.extended_caps)

    def wanted_address(self, index: int) -> int:
        """For models: where BAR ``index`` is to be if nothing else is there, 0 for anywhere."""
        return 0

    def _place_bars(self, aperture: Aperture) -> None:
        for index, bar in self.bar_map.items():
            self._places[index] = aperture.take(bar, 1, self.wanted_address(index))
            self.config.place_bar(index, self._places[index])

    def _enable_from_reset(self, command: int) -> None:
        """Have the command register be ``command`` from power-on, with decoding on for every BAR."""
        self.config.preset(Reg.COMMAND, 2, self._with_decoding(command))

    def _with_decoding(self, command: int) -> int:
        for bar in self.bar_map.values():
            command |= Command.IO if bar.io else Command.MEMORY
        return command

    def _region_table(self) -> list[Region | None]:
        table: list[Region | None] = [None] * PciRegion.COUNT
        for index, bar in self.bar_map.items():
            table[index] = bar.region
        table[PciRegion.CONFIG] = self.config
        return [*table, *(own.region for own in self.own_regions)]

    def _irq_table(self) -> list[IrqIndex | None]:
        vectors = {cap.id: cap.vectors for cap in self.caps}
        pins = 1 if self.identity.irq_pin else 0
        return [
            IrqIndex(pins, maskable=True, automasked=True),
            IrqIndex(vectors.get(CapId.MSI, 0), noresize=True),
            IrqIndex(vectors.get(CapId.MSIX, 0)),
            IrqIndex(1, noresize=True) if CapId.EXP in vectors else None,  # only PCI Express reports errors
            IrqIndex(1, noresize=True),
        ]


def show_multifunction(device: PciDevice) -> None:
    """Have the header of a device, which was just made, say that it has other functions as well. A captured
    header stays as it is."""
    if isinstance(device.config, ImageSpace):
        return
    kind = device.config.value(Reg.HEADER_TYPE, 1)
    device.config.preset(Reg.HEADER_TYPE, 1, kind | regs.HEADER_TYPE_MULTIFUNCTION)


def _undecoded_bars(bars: Mapping[int, Bar]) -> Mapping[tuple[bool, bool], frozenset[int]]:
    """The BARs that are not decoded, by whether the command register has I/O and memory decoding on.

    The ROM is always decoded: vfio-pci enables it for each read.
    """
    kinds = {index: bar.io for index, bar in bars.items() if index != regs.ROM_BAR}
    return {
        (io, memory): frozenset(index for index, is_io in kinds.items() if not (io if is_io else memory))
        for io in (False, True)
        for memory in (False, True)
    }
