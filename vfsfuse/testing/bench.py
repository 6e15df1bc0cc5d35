# SPDX-License-Identifier: Apache-2.0
"""A bench: a device model without a mount, for unit tests of the model.

The device is made as in a lab, and opened as a client of VFIO opens it: through its group, a container with a
type1v2 IOMMU, and vfio-pci if it is a PCI function. Only the client, its memory and its eventfds are the
bench's own, and the clock of the device's tasks. docs/models.md ("Testing a model") explains it.

State: a bench belongs to the thread that makes it. Its two threads are in vfsfuse.testing.threads.
Source: Documentation/driver-api/vfio.rst, <linux/vfio.h>.
"""

from __future__ import annotations

import errno
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from devmodel.device.attribute import DeviceAttribute
from devmodel.device.base import DriverAccess
from devmodel.device.pci import PciDevice, PciRegion
from devmodel.iommu.api import Extension
from devmodel.irq.kinds import PciIrq
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import VfSpec
from devmodel.pci.regs import Command, Reg
from devmodel.vfio.container import Container
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Assignable
from devmodel.vfio.groupfile import GroupFile, open_group
from devmodel.vfio.vfio_pci import reset
from vfsfuse.sysfs import screen
from vfsfuse.testing.calls import Calls
from vfsfuse.testing.clock import VirtualClock
from vfsfuse.testing.errors import BenchError, BenchTimeout
from vfsfuse.testing.faults import BenchFaults, DmaRule
from vfsfuse.testing.interrupts import Interrupt, Interrupts
from vfsfuse.testing.ioeventfds import Doorbell
from vfsfuse.testing.memory import BenchMemory
from vfsfuse.testing.pages import Pages
from vfsfuse.testing.registers import NamedRegisters
from vfsfuse.testing.rig import (
    NO_OPTIONS,
    Kind,
    OptionValue,
    Physical,
    Wanted,
    check_model,
    make_device,
    make_lab,
    split_options,
)
from vfsfuse.testing.threads import PAUSE

if TYPE_CHECKING:
    from PIL.Image import Image

M = TypeVar("M", bound=PciDevice)
T = TypeVar("T")
PATIENCE = 10.0
"""Real seconds that one call of a model's code may take."""


class Bench(Generic[M]):
    """One device of a model, on a bench. For ``with``; :meth:`close` ends it, too.

    A client has opened the device. It has made it bus master, and has set up its interrupts. The device's
    tasks run only within :meth:`settle`, :meth:`advance`, :meth:`wait` and :meth:`wait_interrupt`, in virtual
    time, so the same calls always have the same results. Between two calls nothing happens.

    - ``bench["STATUS"]`` reads a register, ``bench["STATUS"] = 1`` writes it; see :class:`NamedRegisters`.
    - :attr:`memory` is what the device reaches by DMA, :attr:`interrupts` is what it has sent, :attr:`pages`
      what it asks for by page requests. :attr:`faults` makes DMA fail or move other data.
    - An exception of a hook is raised by the call that runs the hook. That of a task is the cause of a
      :class:`ModelFailed`, which the call raises in which the task runs.
    - Code of the model that does not come to an end is a :class:`ModelHangs` after :attr:`patience` seconds.
    """

    def __init__(
        self,
        model: type[M],
        *,
        memory: int = 0,
        options: Mapping[str, OptionValue] = NO_OPTIONS,
        texts: Mapping[str, str] = NO_OPTIONS,  # type: ignore[assignment] # it is empty
        kind: Kind = "vgpu",
        parent: Physical | None = None,
        vf: VfSpec | None = None,
        bus_master: bool = True,
        interrupts: PciIrq | str | None = "best",
        faults: Sequence[DmaRule] = (),
        patience: float = PATIENCE,
    ) -> None:
        """``memory`` in bytes and ``options`` are what a lab file gives the type or function; ``texts`` are
        further options that are texts.

        ``kind`` is "vgpu" for a mediated device, of a virtual parent or of the physical function ``parent``;
        "function" for a physical function, which can have virtual functions as ``vf`` says; "vf" for the
        first virtual function of ``parent``. A client of a function has it through vfio-pci.

        ``bus_master`` and ``interrupts`` ("best", "MSIX", "MSI", "INTX" or None) are what the client sets up
        whenever it opens the device. ``faults`` are fault rules about its DMA, which :attr:`faults` has from
        the start. ``patience`` is in real seconds.

        Raises ValueError as a lab file is refused: what the model's ``validate`` says, an option that it does
        not have. Raises what the model raises when a device is made.
        """
        check_model(model)
        numbers, more = split_options(model, options)
        self._wanted = Wanted(model, memory, numbers, {**more, **texts}, kind, parent, vf)
        self._bus_master, self._carrier = bus_master, interrupts
        self._closed = False
        self._opened: DeviceFile | None = None
        self._doorbells: list[Doorbell] = []
        self._clock = VirtualClock()
        self._lab = make_lab(self._wanted)
        self._calls = Calls(model, self._lab.tasks, self._clock, patience)
        try:
            self._assignable: Assignable = self._calls.on_trio(lambda: make_device(self._lab, self._wanted))
            self._container = Container(self._lab.vfio)
            self._group_file = self._calls.on_lane(self._open_group)
            self.interrupts = Interrupts(lambda: self._clock.now, self._calls.on_lane)
            self.memory = BenchMemory(self._container.type1, self._calls.on_lane, lambda: self.device)
            self.pages = Pages()
            self.faults = BenchFaults(self._lab)
            for rule in faults:
                self.faults.add(**rule)
            self.open_device()
            self._names = NamedRegisters(self.device)
        except BaseException:
            self._end()
            raise

    # ---- what is on the bench ----

    @property
    def device(self) -> M:
        """The device itself, to look at. What a client does, it does by the methods of the bench."""
        return cast(M, self._assignable.device)

    @property
    def patience(self) -> float:
        """Real seconds that one call of a model's code may take, from the next call on."""
        return self._calls.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self._calls.patience = seconds

    @property
    def time(self) -> float:
        """Virtual seconds since the bench was made; what ``trio.current_time()`` is in the device's tasks."""
        return self._clock.now

    # ---- registers and regions ----

    def __getitem__(self, name: str) -> int:
        """Read the register ``name`` by one access of its width."""
        place = self._names.find(name)
        return int.from_bytes(self.read(place.region, place.offset, place.width), "little")

    def __setitem__(self, name: str, value: int) -> None:
        """Write the register ``name`` by one access of its width. Raises ValueError when the value does not
        fit."""
        place = self._names.find(name)
        if not 0 <= value < 1 << 8 * place.width:
            raise ValueError(f"{name} has {place.width} bytes: {value:#x} does not fit")
        self.write(place.region, place.offset, value.to_bytes(place.width, "little"))

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read from a region, as a client does by pread(2). A read across the region's end is short.

        Raises ``OSError`` as a lab: EINVAL for a region that is not there, or an offset beyond it; with
        vfio-pci EIO for memory that is not decoded; ENODEV after the client has closed the device.
        """
        return self._calls.on_lane(lambda: self._access().read(region, offset, size))

    def write(self, region: int, offset: int, data: bytes) -> int:
        """Write to a region, as a client does by pwrite(2). Returns how many bytes were taken. ``OSError`` as
        :meth:`read`."""
        return self._calls.on_lane(lambda: self._access().write(region, offset, bytes(data)))

    # ---- time ----

    def settle(self) -> None:
        """Let the device work until nothing more happens without time passing: its tasks wait for a moment to
        come, or for somebody else, and its DMA is done."""
        self._calls.order(self._calls.trio.settle)

    def advance(self, seconds: float) -> None:
        """Let so much virtual time pass: the device does what it does in that time, each thing at its moment.
        It stops at the moment at which a task fails."""
        end = self._clock.now + _checked(seconds)
        self._calls.order(lambda: self._calls.trio.advance(end, lambda: self._calls.has_failed))

    def wait(
        self, condition: Callable[[], object], timeout: float = 1.0, what: str = "what the test waits for"
    ) -> None:
        """Let the device work, and virtual time pass, until ``condition()`` is true.

        It is looked at whenever something has happened. Raises :class:`BenchTimeout` when it is not true
        after ``timeout`` virtual seconds. Threads of the model's own do not know virtual time, and neither
        do descriptors that its tasks wait for. While there are some, real time passes as well, up to
        :attr:`patience` seconds.
        """
        end, begun = self._clock.now + _checked(timeout), time.monotonic()
        self.settle()
        while not condition():
            if self._calls.has_threads or self._calls.order(self._calls.trio.waits_outside):
                goes_on = self._pass_together(end, begun)
            else:
                goes_on = self._calls.order(lambda: self._calls.trio.step(end))
            if not goes_on and not condition():
                came = f"interrupts so far: {self.interrupts}"
                raise BenchTimeout(f"{what} has not come in {timeout:g} s of virtual time ({came})")

    def wait_interrupt(
        self, vector: int = 0, timeout: float = 1.0, kind: PciIrq | str | None = None
    ) -> Interrupt:
        """Let the device work, and virtual time pass, until it interrupts by this vector, and return the
        interrupt. Each interrupt is returned once; one that came earlier is returned at once.

        ``kind`` is that which is set up unless given. Raises :class:`BenchTimeout` as :meth:`wait`.
        """
        found: list[Interrupt] = []

        def came() -> bool:
            taken = self.interrupts.take(vector, kind)
            if taken is not None:
                found.append(taken)
            return taken is not None

        self.wait(came, timeout, f"an interrupt by {self.interrupts.kind_of(kind).name} {vector}")
        return found[0]

    # ---- what else a client and an administrator do ----

    def open_device(self) -> None:
        """Open the device, which is closed: ``run`` begins, at the next call that lets the device work."""
        if self._opened is not None:
            raise BenchError("the client has the device open already")
        self._calls.on_lane(self._open)

    def close_device(self) -> None:
        """Close the device: its tasks end. Its memory stays mapped for the next open."""
        if self._opened is None:
            raise BenchError("the client has closed the device already")
        self._calls.on_lane(self._close_device)

    def reset(self) -> None:
        """Reset the device, as VFIO_DEVICE_RESET does: its tasks end, and ``run`` begins again.

        Raises ``OSError(EINVAL)`` for a device that has no reset."""
        self._calls.on_lane(lambda: reset(self._file()))

    def vanish(self) -> None:
        """Take the device away at once, as a surprise removal does. The client is told by REQ, and by ERR."""
        self._calls.on_trio(self._assignable.vanish)

    def enable_vfs(self, count: int) -> tuple[PciDevice, ...]:
        """Enable so many virtual functions of the physical function on the bench, with 0 none, and return
        their devices. ``OSError`` as a write to sriov_numvfs."""
        function = self._assignable
        if not isinstance(function, PhysicalFunction) or function.layout is None:
            raise BenchError("the device has no virtual functions (kind='function' and vf=VfSpec(...))")
        self._calls.on_trio(lambda: self._lab.sriov.set_count(function, count))
        return self._calls.on_lane(lambda: tuple(vf.device for vf in function.vfs))

    def attribute(self, name: str) -> str:
        """Read an attribute of the model, without the newline at its end. Raises what the model raises."""
        found = self._attribute(name)
        return str(self._calls.on_trio(lambda: found.show(self.device)))

    def set_attribute(self, name: str, text: str) -> None:
        """Write ``text`` to an attribute of the model. Raises what the model raises: a ValueError is EINVAL
        in a lab."""
        found = self._attribute(name)
        store = found.store
        if store is None:
            raise BenchError(f"the attribute {name!r} cannot be written")
        self._calls.on_trio(lambda: store(self.device, text))

    def picture(self) -> Image:
        """What the display of the device shows, as a Pillow image. Raises ``OSError``: ENODEV when it has no
        display, ENODATA when it shows nothing."""
        from PIL import Image

        return Image.open(io.BytesIO(self._calls.on_lane(lambda: screen.picture(self.device))))

    def ioeventfd(self, name: str, value: int) -> Doorbell:
        """Have the register ``name`` be written with ``value`` whenever the doorbell is signalled, as
        VFIO_DEVICE_IOEVENTFD does. Raises ``OSError`` as that: ENOTTY for a mediated device, EINVAL for a
        place outside the BARs, EEXIST for one that is there already."""
        place = self._names.find(name)
        failed = self._lab.tasks.failed
        made = self._calls.on_lane(lambda: Doorbell(self._file(), place, value, self._calls.on_lane, failed))
        self._doorbells.append(made)
        return made

    # ---- its end ----

    def close(self) -> None:
        """Close and remove the device, and end the bench. Raises :class:`ModelFailed` for failures of the
        model that no call has raised yet. May be called twice."""
        if self._closed:
            return
        self._end()
        self._calls.raise_failures()

    def __enter__(self) -> Bench[M]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BenchError as late:
            if error is None:
                raise
            error.add_note(f"At the end of the bench: {late}")

    def _end(self) -> None:
        self._closed = True
        self._calls.end(self._close_all, self._lab.close)

    # ---- on the lane ----

    def _open_group(self) -> GroupFile:
        file = open_group(self._assignable.group)
        file.set_container(self._container)
        self._container.set_iommu(Extension.TYPE1V2)
        return file

    def _open(self) -> None:
        name = self._assignable.name
        self._opened = file = DeviceFile.named(self._group_file, name)
        if self._bus_master:
            access = self._assignable.access
            command = int.from_bytes(access.read(PciRegion.CONFIG, Reg.COMMAND, 2), "little") | Command.MASTER
            access.write(PciRegion.CONFIG, Reg.COMMAND, command.to_bytes(2, "little"))
        self.interrupts.opened(file.device, self._carrier)
        self.pages.opened(file.device)

    def _close_all(self) -> None:
        self._close_device()
        for doorbell in self._doorbells:
            doorbell.end()

    def _close_device(self) -> None:
        file, self._opened = self._opened, None
        self.interrupts.closed()
        if file is not None:
            self.pages.closed(file.device)
            file.close()

    def _file(self) -> DeviceFile:
        if self._opened is None:
            raise OSError(errno.ENODEV, "the client has closed the device (bench.open_device opens it)")
        return self._opened

    def _access(self) -> DriverAccess:
        return self._file().assignable.access

    # ---- short ways ----

    def _pass_together(self, end: float, begun: float) -> bool:
        """Let real time and virtual time pass, for a model with threads of its own. False when both are
        over."""
        self._calls.order(self._calls.trio.pause)
        now = min(end, self._clock.now + PAUSE)
        self._calls.order(lambda: self._calls.trio.advance(now, lambda: self._calls.has_failed))
        return self._clock.now < end or time.monotonic() - begun < self.patience

    def _attribute(self, name: str) -> DeviceAttribute:
        device = self.device
        present = [each for each in device.ATTRIBUTES if each.when is None or each.when(device.options)]
        found = next((each for each in present if each.name == name), None)
        if found is None:
            names = ", ".join(each.name for each in present) or "none"
            raise BenchError(f"{device.name} has no attribute {name!r} (there is {names})")
        return found


def _checked(seconds: float) -> float:
    """A span of time. Raises ValueError for what is none."""
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{seconds!r} seconds cannot pass")
    return seconds
