# SPDX-License-Identifier: Apache-2.0
"""What a client of vfio-pci reads and writes: the regions of a function, as vfio-pci lets it at them.

Configuration space is virtual in part. Memory that is not decoded is EIO, so that a client notices; the
device itself would read all ones. The MSI-X table is the kernel's: it reads all ones, and drops writes.

State: under the device's lock. Source: <linux/vfio.h>, the behaviour of vfio-pci.
"""

import errno
from collections.abc import Callable

from devmodel.device.pci import MsixTable, PciDevice, PciRegion
from devmodel.pci import regs
from devmodel.pci.fields import bar_place
from devmodel.pci.regs import ExtCapId
from devmodel.region.region import Region, StoredBytes
from devmodel.vfio.vconfig import VirtualConfig


class FunctionAccess:
    """The regions of a function that vfio-pci drives. It takes the place of the device itself, whose methods
    of the same names are those of a mediated device."""

    __slots__ = ("_config", "_device", "_saved", "_table")

    def __init__(self, device: PciDevice, flr: Callable[[], None]) -> None:
        """``flr`` is as for :class:`VirtualConfig`."""
        self._device = device
        self._config = VirtualConfig(device, flr)
        self._table = _place_of(device.msix_table)
        self._saved = b""

    def start(self, own_bars: bool) -> None:
        """The first client opens the function. ``own_bars`` is whether the hardware has the registers of the
        BARs; those of a virtual function are its physical function's."""
        device = self._device
        self._table = _place_of(device.msix_table)  # which may have another size than before
        with device.lock:
            self._saved = device.config.save()
            bars = {} if own_bars else dict(self._unplaced())
            self._config.start(bars)

    def stop(self) -> None:
        """The last client has closed the function: its registers are again what they were before."""
        device = self._device
        with device.lock:
            self._config.stop()
            device.config.restore(self._saved)
            if device.config.has_extended(ExtCapId.SRIOV):  # the host may have enabled functions meanwhile
                place = device.config.extended(ExtCapId.SRIOV)
                for register in (regs.SRIOV_CTRL, regs.SRIOV_NUM_VF):
                    device.config.renew(place + register, 2)
            device.sync_intx()

    def read(self, index: int, offset: int, size: int) -> bytes:
        """As :meth:`devmodel.device.base.Device.read`, and ``OSError(EIO)`` for memory that is not decoded or
        while the function is not in D0."""
        device = self._device
        with device.lock:
            region, taken = self._region(index, offset, size)
            if not region.readable:
                raise OSError(errno.EINVAL, f"region {index} cannot be read")
            first, end = self._hidden(index, offset, taken)
            if first < end:
                parts = (self._read(region, index, offset, first), b"\xff" * (end - first))
                return b"".join((*parts, self._read(region, index, end, offset + taken)))
            return self._read(region, index, offset, offset + taken)

    def write(self, index: int, offset: int, data: bytes) -> int:
        """As :meth:`devmodel.device.base.Device.write`, and ``OSError(EIO)`` as :meth:`read`."""
        device = self._device
        with device.lock:
            region, taken = self._region(index, offset, len(data))
            if not region.writable:
                raise OSError(errno.EINVAL, f"region {index} cannot be written")
            first, end = self._hidden(index, offset, taken)
            if first < end:
                self._write(region, index, offset, data[: first - offset])
                self._write(region, index, end, data[end - offset : taken])
            else:
                self._write(region, index, offset, data[:taken])
            return taken

    def stored(self, index: int) -> StoredBytes | None:
        """As :meth:`devmodel.device.base.Device.stored`."""
        return self._config.stored if index == PciRegion.CONFIG else self._device.stored(index)

    def hole(self, index: int) -> tuple[int, int] | None:
        """The MSI-X table, if it is in the region."""
        return self._table[1:] if self._table is not None and self._table[0] == index else None

    def _region(self, index: int, offset: int, size: int) -> tuple[Region, int]:
        region = self._device.present_region(index)
        return region, region.clip(offset, size)

    def _hidden(self, index: int, offset: int, size: int) -> tuple[int, int]:
        """First and end of the bytes of an access that are the MSI-X table's; the end is not behind the first
        when there are none."""
        if self._table is None or self._table[0] != index:
            return offset, offset
        return max(offset, self._table[1]), min(offset + size, self._table[2])

    def _read(self, region: Region, index: int, offset: int, end: int) -> bytes:
        size = end - offset
        if not size or not self._answers(index):
            return b"\xff" * size
        return self._config.read(offset, size) if index == PciRegion.CONFIG else region.read(offset, size)

    def _write(self, region: Region, index: int, offset: int, data: bytes) -> None:
        if not data or not self._answers(index):
            return
        if index == PciRegion.CONFIG:
            self._config.write(offset, data)
        else:
            region.write(offset, data)

    def _answers(self, index: int) -> bool:
        """Whether the region is decoded. Raises ``OSError(EIO)`` for memory that is not: I/O ports, and a
        device that has gone, read all ones."""
        device = self._device
        bar = device.bar_map.get(index)
        if bar is not None and not bar.io and not device.memory_enabled and not device.vanished:
            raise OSError(errno.EIO, f"memory of {device.name} is not decoded")
        return index not in device.undecoded

    def _unplaced(self) -> dict[int, int]:
        """The registers of BARs, by their offset, when nothing is in them but the kinds of the BARs."""
        found = {regs.Reg.BASE_ADDRESS_0 + 4 * index: 0 for index in range(regs.STD_NUM_BARS)}
        for index, bar in self._device.bar_map.items():
            found[bar_place(index, bar)[0]] = bar.flags
        return dict(found)


def _place_of(table: MsixTable | None) -> tuple[int, int, int] | None:
    """Where an MSI-X table is: its BAR, its first offset and its end. None without one."""
    return None if table is None else (table.bar, table.offset, table.offset + table.size)
