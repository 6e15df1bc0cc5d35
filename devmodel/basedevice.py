# SPDX-License-Identifier: Apache-2.0
"""What every VFIO device has: regions, interrupts, and the lock under which the device lane touches them.

State: everything in a device is under ``Device.lock``. Source: <linux/vfio.h> (VFIO_DEVICE_GET_INFO and what
follows it).
"""

import errno
import threading
from collections.abc import Sequence
from typing import ClassVar

from devmodel.backing import Backing
from devmodel.ioeventfd import IoEventfds
from devmodel.irq import IrqIndex, Irqs
from devmodel.region import Memory, Region, clip


class Device:
    """Base of every VFIO device. Nothing in it calls out while holding :attr:`lock`."""

    __slots__ = ("_backing", "_closed", "ioeventfds", "irq", "irqs", "lock", "name", "regions")
    is_pci: ClassVar[bool] = False
    resettable: ClassVar[bool] = True

    def __init__(self, name: str, regions: Sequence[Region | None], irqs: Sequence[IrqIndex | None]) -> None:
        """``regions`` and ``irqs`` are by VFIO index; None is an index without anything.

        :attr:`irqs` says what there is, :attr:`irq` is the live state through which a model interrupts.
        """
        self.name = name
        self.regions = tuple(regions)
        self.irqs = tuple(irqs)
        self.irq = Irqs(self.irqs)
        self.ioeventfds = IoEventfds(self.write)
        self.lock = threading.Lock()
        self._closed = False
        memory = {index: region for index, region in enumerate(regions) if isinstance(region, Memory)}
        self._backing = Backing({index: region.size for index, region in memory.items()})
        for index, region in memory.items():
            region.bind(self._backing, index)

    @property
    def backing(self) -> Backing:
        """The memory behind the mappable regions; its memfd comes into being when first asked for."""
        return self._backing

    def region(self, index: int) -> Region:
        """The region at ``index``; ``OSError(EINVAL)`` when there is none."""
        region = self.regions[index] if 0 <= index < len(self.regions) else None
        if region is None:
            raise OSError(errno.EINVAL, f"{self.name} has no region {index}")
        return region

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read up to ``size`` bytes at ``offset`` of region ``index``, from any thread.

        Shorter than asked at the end of the region. Raises ``OSError``: EINVAL for no such region (or
        one that cannot be read) or an offset beyond its end, ENODEV once the device is gone.
        """
        with self.lock:
            region = self._open_region(index)
            if not region.readable:
                raise OSError(errno.EINVAL, f"region {index} cannot be read")
            return region.read(offset, clip(region.size, offset, size))

    def write(self, index: int, offset: int, data: bytes) -> int:
        """Write ``data`` at ``offset`` of region ``index``, from any thread; returns the bytes taken.

        Raises ``OSError`` as :meth:`read` does.
        """
        with self.lock:
            region = self._open_region(index)
            if not region.writable:
                raise OSError(errno.EINVAL, f"region {index} cannot be written")
            taken = clip(region.size, offset, len(data))
            region.write(offset, data if taken == len(data) else data[:taken])
            return taken

    def reset(self) -> None:
        """Function reset. ``OSError(EINVAL)`` when the device has none, ENODEV once it is gone."""
        if not self.resettable:
            raise OSError(errno.EINVAL, f"{self.name} cannot be reset")
        with self.lock:
            self._check_open()
            for region in filter(None, self.regions):
                region.reset()
            self.after_reset()
            self.sync_intx()

    def sync_intx(self) -> None:
        """After a reset, under :attr:`lock`: what the registers say of the interrupt line is what it is."""

    def released(self) -> None:
        """The last client has closed the device: interrupts and ioeventfds are gone. Takes no device lock."""
        self.ioeventfds.release()
        self.irq.release()

    def after_reset(self) -> None:
        """For models: what a reset does besides resetting each region. Runs under :attr:`lock`."""

    def close(self) -> None:
        """Let go of everything; accesses from now on raise ``OSError(ENODEV)``. May be called twice."""
        self.released()
        with self.lock:
            self._closed = True
            for region in filter(None, self.regions):
                region.close()
            self._backing.close()

    def _open_region(self, index: int) -> Region:
        self._check_open()
        return self.region(index)

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.ENODEV, f"{self.name} is gone")
