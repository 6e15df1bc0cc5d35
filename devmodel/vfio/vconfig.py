# SPDX-License-Identifier: Apache-2.0
"""Configuration space as a client of vfio-pci has it: some bits are the hardware's, others are virtual.

Virtual bits keep what the client writes, and the hardware never gets it: BARs, the interrupt line, the MSI
message, sizes of PCI Express packets. Bits of the hardware can be written where vfio-pci lets writes through.

State: under the device's lock. Source: the PCI capabilities of <linux/pci_regs.h>; the behaviour of vfio-pci,
which decides bit by bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from devmodel.device.pci import PciDevice
from devmodel.irq.kinds import PciIrq
from devmodel.pci import regs
from devmodel.pci.capability import Capability
from devmodel.pci.regs import CapId, Command, ExtCapId, Reg
from devmodel.region.region import StoredBytes

ALL = -1


class Permission(NamedTuple):
    """A field: which of its bits are ``virtual``, which of those that the hardware lets write a client may
    write, and which it may write although the hardware does not have them (``added``). ``offset`` counts from
    the beginning of the header or capability."""

    offset: int
    width: int
    virtual: int
    writable: int = 0
    added: int = 0


_OWN_CONTROL = regs.EXP_DEVCTL_BCR_FLR | regs.EXP_DEVCTL_PAYLOAD | regs.EXP_DEVCTL_READRQ
HEADER = (
    Permission(Reg.VENDOR_ID, 4, ALL),
    Permission(Reg.CACHE_LINE_SIZE, 2, 0, ALL),
    Permission(Reg.BASE_ADDRESS_0, 4 * regs.STD_NUM_BARS, ALL, ALL),
    Permission(Reg.ROM_ADDRESS, 4, ALL, ALL),
    Permission(Reg.CAPABILITY_LIST, 1, ALL),
    Permission(Reg.INTERRUPT_LINE, 1, ALL, ALL),
    Permission(Reg.INTERRUPT_PIN, 1, ALL),
)
CAPABILITIES: Mapping[int, Sequence[Permission]] = {
    CapId.PM: (
        Permission(regs.PM_PMC, 2, regs.PM_CAP_PME_MASK),
        Permission(regs.PM_CTRL, 2, regs.PM_CTRL_PME, ~regs.PM_CTRL_PME),
    ),
    CapId.EXP: (
        Permission(regs.EXP_DEVCTL, 2, _OWN_CONTROL, ~regs.EXP_DEVCTL_PHANTOM, _OWN_CONTROL),
        Permission(regs.EXP_DEVCTL2, 2, 0, ~regs.EXP_DEVCTL2_ARI),
    ),
    CapId.VPD: (Permission(regs.VPD_ADDR, 2, 0, ALL), Permission(regs.VPD_DATA, 4, 0, ALL)),
    CapId.MSIX: (),
}
"""Of each kind of capability but MSI, whose size varies. A vendor's can be written as the hardware allows,
any other only be read."""
EXTENDED: Mapping[int, Sequence[Permission]] = {
    ExtCapId.AER: (Permission(regs.AER_UNCOR_STATUS, regs.AER_CAP - regs.AER_UNCOR_STATUS, 0, ALL),),
}
"""The same for extended capabilities."""
RAW = (CapId.VNDR,)
EXTENDED_RAW = (ExtCapId.VNDR, ExtCapId.DVSEC)


class VirtualConfig:
    """What the clients of one function see of its configuration space, from the first open to the last
    close."""

    __slots__ = (
        "_config",
        "_data",
        "_device",
        "_express",
        "_flr",
        "_msi",
        "_power",
        "_virtual",
        "_writable",
        "stored",
    )

    def __init__(self, device: PciDevice, flr: Callable[[], None]) -> None:
        """``flr`` is called, under the device's lock, when a client writes the bit that resets the
        function."""
        self._device, self._config, self._flr = device, device.config, flr
        size = self._config.size
        self._data = bytearray(size)
        self.stored = StoredBytes(self._data, b"\1" * size)
        """For front ends: a read gives what is stored."""
        self._virtual, self._writable = bytearray(size), bytearray(size)
        self._msi, self._express = self._config.find(CapId.MSI), self._config.find(CapId.EXP)
        self._power = self._config.find(CapId.PM)
        for field in _permissions(device):
            bits = (1 << 8 * field.width) - 1
            end = field.offset + field.width
            self._virtual[field.offset : end] = (field.virtual & bits).to_bytes(field.width, "little")
            place = field.offset, field.width
            hardware = self._config.write_mask(*place) | self._config.clear_mask(*place)
            taken = (field.writable & hardware | field.added) & bits
            self._writable[field.offset : end] = taken.to_bytes(field.width, "little")

    def start(self, bars: Mapping[int, int]) -> None:
        """The first client opens the function: it sees the hardware's values, but ``bars`` (offset and value)
        in the registers of BARs, and all decoding on."""
        self._data[:] = self._config.save()
        for offset, value in bars.items():
            self._put(offset, 4, value)
        self._put(Reg.COMMAND, 2, self._get(Reg.COMMAND, 2) | self._device.DECODED)
        if self._power:  # power management events go to the host
            for place, bits in ((regs.PM_PMC, regs.PM_CAP_PME_MASK), (regs.PM_CTRL, regs.PM_CTRL_PME)):
                self._put(self._power + place, 2, self._get(self._power + place, 2) & ~bits)
        self._config.mirror = self._refresh

    def stop(self) -> None:
        """The last client has closed the function."""
        self._config.mirror = None

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``, which are in range."""
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data``, which is in range, as aligned accesses of 4, 2 and 1 bytes."""
        for place, width in _pieces(offset, len(data)):
            self._write(place, width, int.from_bytes(data[place - offset : place - offset + width], "little"))

    def _write(self, offset: int, width: int, value: int) -> None:
        writable, virtual = (
            int.from_bytes(bits[offset : offset + width], "little")
            for bits in (self._writable, self._virtual)
        )
        if writable & virtual:
            kept = self._get(offset, width) & ~(writable & virtual)
            self._put(offset, width, kept | value & writable & virtual)
        if writable & ~virtual:
            passed = writable & ~virtual
            value_there = self._config.value(offset, width) & ~passed
            self._config.write(offset, (value_there | value & passed).to_bytes(width, "little"))
        if self._express and offset <= self._express + regs.EXP_DEVCTL + 1 < offset + width:
            self._device_control_written()
        if self._msi and offset <= self._msi + regs.MSI_FLAGS < offset + width:
            shift = 8 * (self._msi + regs.MSI_FLAGS - offset)
            self._message_control_written(bool(value >> shift & regs.MSI_ENABLE))

    def _message_control_written(self, wanted: bool) -> None:
        """MSI is on while a client has set it up, and it has not switched it off here meanwhile. There are no
        more messages than were set up."""
        place = self._msi + regs.MSI_FLAGS
        irq = self._device.irq
        on = irq.active is PciIrq.MSI
        most = (irq.allocated - 1).bit_length() << 4 if on else 0
        control = self._get(place, 2)
        if control & regs.MSI_QSIZE > most:
            control = control & ~regs.MSI_QSIZE | most
            self._put(place, 2, control)
        enabled = on and wanted
        self._config.store(place, 2, control & ~regs.MSI_ENABLE | (regs.MSI_ENABLE if enabled else 0))
        if on:
            irq.send_messages(enabled)

    def _device_control_written(self) -> None:
        """The reset bit resets, and reads 0. Reads of the function are never shorter than its packets."""
        place = self._express + regs.EXP_DEVCTL
        control = self._get(place, 2)
        if control & regs.EXP_DEVCTL_BCR_FLR:
            self._put(place, 2, control & ~regs.EXP_DEVCTL_BCR_FLR)
            if self._device.has_flr:
                self._flr()
        hardware = self._config.value(place, 2)
        payload = (hardware & regs.EXP_DEVCTL_PAYLOAD) << 7
        request = max(control & regs.EXP_DEVCTL_READRQ, payload)
        if self._config.write_mask(place, 2) & regs.EXP_DEVCTL_READRQ:
            self._config.store(place, 2, hardware & ~regs.EXP_DEVCTL_READRQ | request)

    def _refresh(self, offset: int, width: int) -> None:
        """The hardware's bytes have changed."""
        virtual = int.from_bytes(self._virtual[offset : offset + width], "little")
        shown = self._config.value(offset, width) & ~virtual | self._get(offset, width) & virtual
        self._put(offset, width, shown)

    def _get(self, offset: int, width: int) -> int:
        return int.from_bytes(self._data[offset : offset + width], "little")

    def _put(self, offset: int, width: int, value: int) -> None:
        self._data[offset : offset + width] = value.to_bytes(width, "little")


def _permissions(device: PciDevice) -> Iterator[Permission]:
    """Those of the function's configuration space, with offsets from its beginning."""
    yield from HEADER
    own = device.DECODED if device.identity.irq_pin else device.DECODED | Command.INTX_DISABLE
    yield Permission(Reg.COMMAND, 2, own, ALL, own)
    place = device.config.value(Reg.CAPABILITY_LIST, 1)
    for cap in device.caps:
        yield Permission(place + 1, 1, ALL)
        for field in _capability(cap):
            yield field._replace(offset=place + field.offset)
        place = device.config.value(place + 1, 1)
    for extended in device.extended_caps:
        if extended.id in EXTENDED_RAW:
            yield Permission(device.config.extended(extended.id) + 4, len(extended.body), 0, ALL)
        for field in EXTENDED.get(extended.id, ()):
            yield field._replace(offset=device.config.extended(extended.id) + field.offset)


def _capability(cap: Capability) -> Sequence[Permission]:
    if cap.id in RAW:
        return (Permission(2, len(cap.body), 0, ALL),)
    return _msi(cap) if cap.id == CapId.MSI else CAPABILITIES.get(cap.id, ())


def _msi(cap: Capability) -> Sequence[Permission]:
    """MSI has an address of 32 or 64 bits, and mask bits or none."""
    control = int.from_bytes(cap.body[:2], "little")
    wide = 4 if control & regs.MSI_64BIT else 0
    fields = (
        Permission(regs.MSI_FLAGS, 2, 0xFFFF & ~regs.MSI_ENABLE, regs.MSI_QSIZE),
        Permission(regs.MSI_ADDRESS_LO, 4 + wide, ALL, ALL),
        Permission(regs.MSI_DATA_64 - 4 + wide, 2, ALL, ALL),
    )
    masks = Permission(regs.MSI_MASK_64 - 4 + wide, 4, 0, ALL)
    return (*fields, masks) if control & regs.MSI_MASKBIT else fields


def _pieces(offset: int, size: int) -> Iterator[tuple[int, int]]:
    """The aligned accesses of 4, 2 and 1 bytes, offset and width, that an access is made of."""
    end = offset + size
    while offset < end:
        width = next(each for each in (4, 2, 1) if not offset % each and offset + each <= end)
        yield offset, width
        offset += width
