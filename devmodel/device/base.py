# SPDX-License-Identifier: Apache-2.0
"""What every VFIO device has: regions, interrupts, and the lock under which the device lane touches them.

State: everything in a device is under ``Device.lock``; its tasks run on the trio thread
(devmodel.device.tasks).
Source: <linux/vfio.h> (VFIO_DEVICE_GET_INFO and what follows it).
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from devmodel.device.attribute import DeviceAttribute
from devmodel.device.decode import AddressDecode
from devmodel.device.dma import DmaPort
from devmodel.device.tasks import Coroutine, Tasks, check_current
from devmodel.iommu import Iommu, Type1
from devmodel.irq.ioeventfd import IoEventfds
from devmodel.irq.irqs import IrqIndex, Irqs
from devmodel.irq.line import PciIrq
from devmodel.region.backing import Backing
from devmodel.region.region import Memory, Region


class Device(AddressDecode):
    """Base of every VFIO device. Nothing in it calls out while holding :attr:`lock`."""

    __slots__ = (
        "_backing",
        "_closed",
        "_in_use",
        "_iommu",
        "_present",
        "_vanished",
        "dma",
        "ioeventfds",
        "irq",
        "irqs",
        "name",
        "regions",
        "tasks",
    )
    is_pci: ClassVar[bool] = False
    resettable: ClassVar[bool] = True
    ATTRIBUTES: ClassVar[Sequence[DeviceAttribute]] = ()
    """For models: what its directory in sysfs has besides what every device has."""

    def __init__(self, name: str, regions: Sequence[Region | None], irqs: Sequence[IrqIndex | None]) -> None:
        """``regions`` and ``irqs`` are by VFIO index; None is an index without anything.

        :attr:`irqs` says what there is, :attr:`irq` is the live state through which a model interrupts.
        """
        super().__init__()
        self.name = name
        self.regions = tuple(regions)
        self.irqs = tuple(irqs)
        self.irq = Irqs(self.irqs)
        self.ioeventfds = IoEventfds(self.write)
        self.tasks = Tasks()
        self.dma = DmaPort(self.tasks, self.may_dma)
        self._iommu: Iommu | None = None
        self._in_use = False
        self._closed = self._vanished = False
        self._present = {index: region for index, region in enumerate(regions) if region is not None}
        memory = {index: region for index, region in enumerate(regions) if isinstance(region, Memory)}
        self._backing = Backing({index: region.backed for index, region in memory.items()})
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
            region = self._present.get(index) or self._open_region(index)
            if not region.readable:
                raise OSError(errno.EINVAL, f"region {index} cannot be read")
            taken = region.clip(offset, size)
            if index in self.undecoded:
                return b"\xff" * taken
            return region.read(offset, taken)

    def write(self, index: int, offset: int, data: bytes) -> int:
        """Write ``data`` at ``offset`` of region ``index``, from any thread; returns the bytes taken.

        Raises ``OSError`` as :meth:`read` does.
        """
        with self.lock:
            region = self._present.get(index) or self._open_region(index)
            if not region.writable:
                raise OSError(errno.EINVAL, f"region {index} cannot be written")
            taken = region.clip(offset, len(data))
            if index in self.undecoded:
                return taken
            region.write(offset, data if taken == len(data) else data[:taken])
            return taken

    def reset(self, kept: Region | None = None) -> None:
        """Function reset: its tasks end, and :meth:`run` starts anew while a client has the device.

        ``kept`` is a region that whoever resets puts back as it was, so it stays. ``OSError(EINVAL)`` when
        the device has no reset, ENODEV once it is gone.
        """
        if not self.resettable:
            raise OSError(errno.EINVAL, f"{self.name} cannot be reset")
        with self.lock:
            self.check_present()
            self.tasks.stop()
            self.stopped()
            for region in self.regions:
                if region is not None and region is not kept:
                    region.reset()
            self.after_reset()
            self.sync_intx()
            if self._in_use:
                self._run()

    def opened(self, iommu: Iommu | None) -> None:
        """A client has opened the device, through a group whose container has this IOMMU, or without one."""
        with self.lock:
            if self._iommu is None and iommu is not None:
                self._iommu = iommu
                self._connect(iommu)
            if not self._in_use:
                self._in_use = True
                self._run()

    def sync_intx(self) -> None:
        """After a reset, under :attr:`lock`: what the registers say of the interrupt line is what it is."""

    def released(self) -> None:
        """The last client has closed the device: its tasks, interrupts and ioeventfds are gone."""
        with self.lock:
            self.tasks.stop()
            self.stopped()
            iommu, self._iommu, self._in_use = self._iommu, None, False
            self.dma.connect(None)
        if isinstance(iommu, Type1) and self._unpins:
            self.dma_unmap(0, 2**64)
            iommu.unregister(self)
        self.ioeventfds.release()
        self.irq.release()

    # ---- for models ----

    async def run(self) -> None:
        """For models: what the device does by itself. Trio thread, from when a first client has opened the
        device until the last one lets go; a reset ends it and starts it again."""

    def stopped(self) -> None:
        """For models with threads of their own: they must touch nothing of the device from now on, because it
        is being reset or the last client has closed it. Runs under :attr:`lock`, at the same time as tasks
        end; must not wait for the threads."""

    def after_reset(self) -> None:
        """For models: what a reset does besides resetting each region. Runs under :attr:`lock`."""

    def closed(self) -> None:
        """For models: let go of what the model holds; the device is gone. Runs once, under :attr:`lock`."""

    def dma_unmap(self, iova: int, size: int) -> None:
        """For models that pin pages: unpin whatever of this range is pinned, before returning.

        Called on the device lane or its worker, with no lock held, so it must not wait for a DMA.
        """

    def start(self, function: Coroutine, *arguments: object) -> None:
        """Start another task as :meth:`run` is one, which a reset ends too. Any thread, hooks included."""
        self.tasks.start(function, *arguments)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """:attr:`lock`, for tasks: ends the task when the device was reset or released meanwhile."""
        with self.lock:
            check_current()
            yield

    def may_dma(self) -> bool:
        """Whether the device may do DMA now. Any thread."""
        return True

    @property
    def _unpins(self) -> bool:
        return type(self).dma_unmap is not Device.dma_unmap

    def _connect(self, iommu: Iommu) -> None:
        if isinstance(iommu, Type1):
            self.dma.connect(iommu)
            if self._unpins and iommu.mediated is not None:
                iommu.register(self)

    def _run(self) -> None:
        if type(self).run is not Device.run and self.tasks.served:
            self.tasks.start(self.run)

    def vanish(self) -> None:
        """The device is gone, although a client has it: it does nothing by itself any more, reads are all
        ones and writes are dropped, and the client is told by ERR, if the device has that, and REQ. What the
        client has mapped stays mapped."""
        with self.lock:
            if self._closed or self._vanished:
                return
            self._vanished = True
            self.tasks.stop()
            self.stopped()
            self.irq.set_level(False)
            self.decode_nothing(len(self.regions))
        for notice in (PciIrq.ERR, PciIrq.REQ):
            self.irq.trigger(notice)

    def check_present(self) -> None:
        """Raise ``OSError(ENODEV)`` once the device is gone. Any thread."""
        if self._closed or self._vanished:
            raise OSError(errno.ENODEV, f"{self.name} is gone")

    def close(self) -> None:
        """Let go of everything; accesses from now on raise ``OSError(ENODEV)``. May be called twice."""
        self.released()
        with self.lock:
            if not self._closed:
                self.closed()
            self._closed = True
            self._present = {}
            self.decode_nothing(len(self.regions))  # nobody answers in our place any more
            self.unhide()  # what it belongs to has mapped our memory: let that go now, not when collected
            for region in filter(None, self.regions):
                region.close()
            self._backing.close()

    def _open_region(self, index: int) -> Region:
        if self._closed:
            raise OSError(errno.ENODEV, f"{self.name} is gone")
        return self.region(index)
