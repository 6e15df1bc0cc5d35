# SPDX-License-Identifier: Apache-2.0
"""What every VFIO device has: regions, interrupts, DMA, tasks, and the lock that its state is under.

State: everything in a device is under ``Device.lock``; its tasks run on the trio thread
(devmodel.device.tasks).
Source: <linux/vfio.h> (VFIO_DEVICE_GET_INFO and what follows it).
"""

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Protocol

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from devmodel.device.attribute import DeviceAttribute
from devmodel.device.dma import DmaPort
from devmodel.device.hooks import Hooks
from devmodel.device.listened import ListenedDma, interrupt_point
from devmodel.device.migration import Migration
from devmodel.device.tasks import CODE_FAILED, Coroutine, Tasks, check_current, log_failure
from devmodel.iommu.api import DmaUser
from devmodel.iommu.dmaspace import DmaSpace
from devmodel.iommu.driver import Iommu
from devmodel.iommu.space import IoAddressSpace
from devmodel.irq.eventfd import Eventfd
from devmodel.irq.ioeventfd import IoEventfds
from devmodel.irq.irqs import IrqIndex, Irqs
from devmodel.irq.kinds import PciIrq
from devmodel.region.backing import Backing
from devmodel.region.region import Memory, Region, StoredBytes

Hide = Callable[[frozenset[int]], None]
_NONE: frozenset[int] = frozenset()
NO_LAB = CallPoint()
"""Of devices that are in no lab: nobody listens."""


class DriverAccess(Protocol):
    """The regions of a device, as the driver of the device gives them to clients. :class:`Device` is one such
    access, and says what each method does."""

    def read(self, index: int, offset: int, size: int) -> bytes: ...
    def write(self, index: int, offset: int, data: bytes) -> int: ...
    def stored(self, index: int) -> StoredBytes | None: ...
    def hole(self, index: int) -> tuple[int, int] | None: ...


class Device(Hooks):
    """Base of every VFIO device. Nothing in it calls out while holding :attr:`lock`.

    A region whose index is in :attr:`undecoded` is not decoded: it reads all ones, and drops writes.
    """

    __slots__ = (
        "_backing",
        "_closed",
        "_hide",
        "_in_use",
        "_present",
        "_space",
        "_vanished",
        "dma",
        "ioeventfds",
        "irq",
        "lock",
        "migration",
        "name",
        "regions",
        "tasks",
        "undecoded",
    )
    is_pci: ClassVar[bool] = False
    resettable: ClassVar[bool] = True
    ATTRIBUTES: ClassVar[Sequence[DeviceAttribute]] = ()
    """For models: the files that the device's directory in sysfs has besides those of every device."""

    def __init__(self, name: str, regions: Sequence[Region | None], irqs: Sequence[IrqIndex | None]) -> None:
        """``regions`` and ``irqs`` are in the order of VFIO's indexes, None for an index that is not there.

        :attr:`irqs` describes the interrupts, :attr:`irq` is their state, through which a model interrupts.
        """
        self.lock = threading.Lock()
        self.undecoded = _NONE
        self._hide: Hide | None = None
        self.name = name
        self.regions = tuple(regions)
        self.irq = Irqs(irqs)
        self.ioeventfds = IoEventfds(self._write_signalled)
        self.tasks = Tasks()
        self.dma = DmaPort(self.tasks, self.may_dma)
        self._space: IoAddressSpace | None = None
        self._in_use = False
        self.migration: Migration | None = None
        """How far a client has migrated it, None while it has not begun. Under :attr:`lock`."""
        self._closed = self._vanished = False
        self._present = {index: region for index, region in enumerate(regions) if region is not None}
        memory = {index: region for index, region in enumerate(regions) if isinstance(region, Memory)}
        self._backing = Backing({index: region.backed for index, region in memory.items()})
        for index, region in memory.items():
            region.bind(self._backing, index)

    @property
    def irqs(self) -> tuple[IrqIndex | None, ...]:
        """What the interrupt indexes are. Any thread."""
        return self.irq.indexes

    @property
    def calls(self) -> CallPoint:
        """The call point of the device's lab. Any thread."""
        return NO_LAB if self.tasks.host is None else self.tasks.host.calls

    @property
    def backing(self) -> Backing:
        """The memory behind the mappable regions. Its memfd is made on first use."""
        return self._backing

    def region(self, index: int) -> Region:
        """The region with this index. Raises ``OSError(EINVAL)`` when there is none."""
        region = self.regions[index] if 0 <= index < len(self.regions) else None
        if region is None:
            raise OSError(errno.EINVAL, f"{self.name} has no region {index}")
        return region

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read up to ``size`` bytes at ``offset`` of region ``index``, from any thread.

        Fewer bytes come back at the end of the region. Raises ``OSError``: EINVAL for no such region, for one
        that cannot be read and for an offset beyond its end, ENODEV once the device is gone.
        """
        with self.lock:
            region = self._present.get(index) or self.present_region(index)
            if not region.readable:
                raise OSError(errno.EINVAL, f"region {index} cannot be read")
            taken = region.clip(offset, size)
            if index in self.undecoded:
                return b"\xff" * taken
            return region.read(offset, taken)

    def write(self, index: int, offset: int, data: bytes) -> int:
        """Write ``data`` at ``offset`` of region ``index``, from any thread. Returns how many bytes were
        taken. ``OSError`` as :meth:`read`."""
        with self.lock:
            region = self._present.get(index) or self.present_region(index)
            if not region.writable:
                raise OSError(errno.EINVAL, f"region {index} cannot be written")
            taken = region.clip(offset, len(data))
            if index in self.undecoded:
                return taken
            region.write(offset, data if taken == len(data) else data[:taken])
            return taken

    def _write_signalled(self, index: int, offset: int, data: bytes, wanted: Callable[[], bool]) -> int:
        """As :meth:`write`, for an ioeventfd: no call of the client's says that it is done. A listener may
        delay it, and it is not made if it is not ``wanted`` any more."""
        calls = self.calls
        if not calls.attended:
            return self.write(index, offset, data)
        told = {"region": index, "offset": offset, "size": len(data), "data": data}
        call = Call(CallKind.REGION, self.name, "write", told, device=self)

        def write(data: bytes) -> int:
            with self.ioeventfds.lock:
                return self.write(index, offset, data) if wanted() else 0

        calls.signal(call, write, data)
        return len(data)

    def present_region(self, index: int) -> Region:
        """As :meth:`region`, and ``OSError(ENODEV)`` once the device is closed. Under :attr:`lock`."""
        if self._closed:
            raise OSError(errno.ENODEV, f"{self.name} is gone")
        return self.region(index)

    def stored(self, index: int) -> StoredBytes | None:
        """What a front end may access of region ``index`` without calling :meth:`read` and :meth:`write`."""
        return self.region(index).stored

    def hole(self, index: int) -> tuple[int, int] | None:
        """The offsets, first and end, of what a front end must not access by itself in region ``index``. None
        when there is no such range."""
        return None

    # ---- its life: opened, reset, released, gone ----

    def reset(self, kept: Region | None = None) -> None:
        """Function reset. The tasks end, and :meth:`run` starts again if a client has the device open.

        ``kept`` is a region that is not reset: the one who resets saves and restores it. Raises ``OSError``:
        EINVAL when the device has no reset, ENODEV once it is gone.
        """
        if not self.resettable:
            raise OSError(errno.EINVAL, f"{self.name} cannot be reset")
        with self.lock:
            self.check_present()
            self.reset_now(kept)

    def reset_now(self, kept: Region | None = None) -> None:
        """As :meth:`reset`, under :attr:`lock`, also for a device that is not resettable."""
        calls = self.calls
        if calls.observers:
            calls.tell(
                Call(CallKind.RESET, self.name, "reset", device=self), partial(self._reset_regions, kept)
            )
        else:
            self._reset_regions(kept)

    def _reset_regions(self, kept: Region | None) -> None:
        self.pause()
        self._end_migration()
        for region in self.regions:
            if region is not None and region is not kept:
                region.reset()
        self.after_reset()
        self.sync_intx()
        self.resume()

    def pause(self) -> None:
        """End the tasks, and have the model's own threads let go. Under :attr:`lock`."""
        self.tasks.stop()
        self.stopped()

    def resume(self) -> None:
        """Do again by itself what it does while a client has it open. Under :attr:`lock`."""
        if self._in_use:
            self._run()

    def _end_migration(self) -> None:
        if self.migration is not None:
            self.migration.end_stream()
            self.migration = None

    def opened(self, iommu: Iommu | None) -> None:
        """A client has opened the device. ``iommu`` is that of its group's container, None without one."""
        with self.lock:
            if not self._in_use:
                self.calls.join(self._attend)
            if self._space is None and iommu is not None:
                self._space = iommu.space
                self._connect(self._space)
                if self._space is not None and self._unpins and self._space.mediated is not None:
                    self._space.register(self)
            if not self._in_use:
                self._in_use = True
                self._run()

    def connect(self, space: DmaSpace | None) -> None:
        """Do DMA through ``space`` from now on, through none with None. Any thread.

        A call point that somebody listens to now hears of the DMA. DMA that has begun goes on where it began
        (:meth:`DmaPort.settle`)."""
        with self.lock:
            self._connect(space)

    @property
    def dma_user(self) -> DmaUser:
        """Who has to be told of unmaps of pages that are pinned for the device."""
        return self

    def unpin_all(self) -> None:
        """Have the model unpin all its pages. Any thread, without a lock."""
        if self._unpins:
            self._tell(self.dma_unmap, 0, 2**64)

    def route_interrupt(self, index: PciIrq, vector: int, eventfd: Eventfd) -> None:
        """Have the interrupts that ``eventfd`` signals pass the lab's call point, if somebody attends to that
        now. Under ``irq.lock``."""
        point = interrupt_point(self, index, vector) if self.calls.attended else None
        eventfd.send_through(point, self.irq.lock)

    def released(self) -> None:
        """The last client has closed the device: end its tasks, DMA, interrupts and ioeventfds."""
        with self.lock:
            self.tasks.stop()
            self._tell(self.stopped)
            self._end_migration()
            space, self._space, self._in_use = self._space, None, False
            self.calls.leave(self._attend)
            self.dma.connect(None)
            self.dma.abandon()
        if space is not None and self._unpins:
            self.unpin_all()
            space.unregister(self)
        self.ioeventfds.release()
        self.irq.release()
        self.irqs_set()

    def tell_error(self) -> None:
        """Tell the client by ERR of an error that was not corrected, if the device has that interrupt. Any
        thread."""
        self.irq.trigger(PciIrq.ERR)

    def vanish(self) -> None:
        """The device is gone, although a client may have it open: surprise removal.

        It does nothing by itself any more, reads are all ones, and writes are dropped. The client is told by
        REQ, and by ERR if the device has that. What the client has mapped stays mapped.
        """
        with self.lock:
            if self._closed or self._vanished:
                return
            self._vanished = True
            self.tasks.stop()
            self._tell(self.stopped)
            self.irq.set_level(False)
            self._decode_nothing()
        for notice in (PciIrq.ERR, PciIrq.REQ):
            self.irq.trigger(notice)

    @property
    def vanished(self) -> bool:
        """Whether the device is gone by surprise. Any thread."""
        return self._vanished

    def check_present(self) -> None:
        """Raise ``OSError(ENODEV)`` once the device is gone. Any thread."""
        if self._closed or self._vanished:
            raise OSError(errno.ENODEV, f"{self.name} is gone")

    def close(self) -> None:
        """Let go of everything. Later accesses raise ``OSError(ENODEV)``. May be called twice."""
        self.released()
        with self.lock:
            if not self._closed:
                self._tell(self.closed)
            self._closed = True
            self._present = {}
            self._decode_nothing()  # a front end answers nothing by itself any more
            self._hide = None  # its owner has our memory mapped: drop it now, not at a garbage collection
            for region in filter(None, self.regions):
                region.close()
            self._backing.close()

    def _tell(self, hook: Callable[..., None], *arguments: int) -> None:
        """Call a hook by which the model learns that it has to let go. A model that fails there keeps neither
        its device nor the client's group."""
        try:
            hook(*arguments)
        except CODE_FAILED as error:
            failed = log_failure if self.tasks.host is None else self.tasks.host.failed
            failed(f"{self.name}: {hook.__name__}() failed", error)

    # ---- address decoding (PCI 3.0, 6.2.2: Memory Space and I/O Space of the command register) ----

    def hide_by(self, hide: Hide) -> None:
        """For a front end that reads and writes regions by itself (:attr:`Region.stored`): call ``hide`` with
        the indexes of the regions that are not decoded, now and at each change. It is called under
        :attr:`lock`."""
        with self.lock:
            self._hide = hide
            hide(self.undecoded)

    def set_undecoded(self, undecoded: frozenset[int]) -> None:
        """Stop decoding these regions, and decode all others. Under :attr:`lock`."""
        if undecoded != self.undecoded:
            self.undecoded = undecoded
            if self._hide is not None:
                self._hide(undecoded)

    def _decode_nothing(self) -> None:
        self.set_undecoded(frozenset(range(len(self.regions))))

    # ---- for models ----

    def start(self, function: Coroutine, *arguments: object) -> None:
        """Start another task like :meth:`run`; a reset ends it too. Any thread, also in a hook."""
        self.tasks.start(function, *arguments)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For tasks: :attr:`lock`. Raises :class:`TaskStopped` when the device was reset or released."""
        with self.lock:
            check_current()
            yield

    @property
    def _unpins(self) -> bool:
        return type(self).dma_unmap is not Hooks.dma_unmap

    def _connect(self, space: DmaSpace | None) -> None:
        """Use ``space``, by the call point if somebody attends to it now."""
        calls = self.calls
        with calls.lock:
            self.dma.watch = watch = partial(ListenedDma, self) if calls.attended else None
            self.dma.connect(space if space is None or watch is None else watch(space))

    def _attend(self) -> None:
        """An observer has come or gone (:meth:`CallPoint.join`): DMA and interrupts that are set up pass the
        call point, or pass it no longer. Without :attr:`lock`, which a model may hold for long."""
        space = self.dma.connected
        self._connect(None if space is None else space.plain)
        self.irq.each_eventfd(self.route_interrupt)

    def _run(self) -> None:
        if type(self).run is not Hooks.run and self.tasks.served:
            self.tasks.start(self.run)
