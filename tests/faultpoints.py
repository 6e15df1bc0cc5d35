# SPDX-License-Identifier: Apache-2.0
"""The points of the dialogue at which a fault rule can act, each with a call that passes there.

A call is made on files and devices that are open before the rule is added.  It leaves behind how often it
took effect, so that a test knows whether it was made.
"""

from __future__ import annotations

import errno
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.commands import one_write
from tests.faultrules import Faults
from tests.iommufd.client import Cdev, Iommufd
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import DEVICE_RESET, PAGE, Container, Group, Memory, ioctl
from tests.vfio.devices import INTX, MSIX, NONE, TRIGGER, UNMASK, eventfd, function_dir
from tests.vfio.models import counted
from tests.waiting import wait_for

FUNCTION = "0000:86:00.0"
HOST = "counted"
MODELS = Path(__file__).parent / "vfio/models"
LAB = f"""\
[models]
counted = "{MODELS}/counted.py:Counted"

[parents.counters]
kind = "virtual"
driver = "counted"
slots = 8
types.counted-1 = {{ description = "counts" }}

[functions."{FUNCTION}"]
driver = "{HOST}"
capabilities = ["express", "aer"]
bars = {{ 0 = {{ size = "4K" }} }}
"""
TYPE = "counted-1"
SET, SETS, GET, GETS, IOVA, DATA, START, DONE, ERROR, LET_GO = (
    0x00, 0x04, 0x08, 0x0C, 0x10, 0x18, 0x1C, 0x20, 0x24, 0x28
)  # fmt: skip
GONE = 0xFFFFFFFF
"""What a device reads as that was removed by surprise."""
WRITTEN = 0x11223344
"""What calls that write data write, 32 bits."""
CACHE_LINE = 0x0C
"""A byte of configuration space that a client can write."""


@dataclass
class Point:
    """A point: the rule's `where`, and the call.  ``key`` is the key of the table that says which kind it
    is.  ``made`` says how often the last call took effect, ``data`` what came through: what it read, or what
    was written."""

    key: str
    where: str
    call: Callable[[], object]
    made: Callable[[], int]
    data: Callable[[], int] | None = None
    reads: bool = False
    """Whether data come to the program, or device."""
    debt: bool = False
    """Whether it is made at once, and only the answer waits."""
    told: bool = True
    """Whether its caller gets the errno of the rule itself."""
    on: str = ""
    """The device for actions, if the call is on none."""


@dataclass
class Setting:
    """A device that is open and can do DMA, by iommufd; another one that nobody has open."""

    lab: MountedLab
    faults: Faults
    vgpu: Vgpu
    other: Vgpu
    device: Cdev
    iommufd: Iommufd
    memory: Memory
    message: int
    """The eventfd of MSI-X vector 0, or of INTx."""
    stack: ExitStack = field(default_factory=ExitStack)

    def read(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(os.pread(self.device.fd, size, offset), "little")

    def write(self, offset: int, value: int, size: int = 4) -> None:
        assert os.pwrite(self.device.fd, value.to_bytes(size, "little"), offset) == size

    def command(self, what: int) -> None:
        """Have the device do DMA, and wait.  Raises OSError with the error that it found."""
        done = self.read(DONE)
        self.write(START, what)
        wait_for(lambda: self.read(DONE) != done)
        if error := self.read(ERROR):
            raise OSError(errno.ENODEV if error == GONE else error, "DMA")

    @property
    def function(self) -> Path:
        return function_dir(self.lab, FUNCTION)


@contextmanager
def prepared(lab: MountedLab) -> Iterator[Setting]:
    """A setting of new devices.  The function has its host driver before and after."""
    faults = Faults(lab)
    with ExitStack() as stack:
        stack.callback(as_before, lab)
        iommufd = stack.enter_context(Iommufd(lab.path))
        vgpu, other = lab.create(TYPE, "counters"), lab.create(TYPE, "counters")
        device = Cdev(vgpu.cdev)
        stack.callback(device.close)
        device.bind(iommufd)
        device.set_config(4, 6)  # COMMAND: decode memory, be bus master
        memory = Memory(PAGE)
        stack.callback(memory.close)
        ioas = iommufd.ioas()
        iommufd.map(ioas, memory.address, PAGE, PAGE)
        device.attach(ioas)
        event = stack.enter_context(eventfd())
        made = Setting(lab, faults, vgpu, other, device, iommufd, memory, event, stack)
        made.write(IOVA, PAGE, 8)
        yield made


def as_before(lab: MountedLab) -> None:
    """No rule, no vGPU, and the function with its host driver."""
    one_write(lab.path / "faults", "clear")
    for name in os.listdir(lab.mdevs):
        with suppress(OSError):  # gone by surprise
            one_write(lab.mdevs / name / "remove", "1")
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    function = function_dir(lab, FUNCTION)
    wait_for((function / "driver_override").exists)
    if (function / "driver").exists() and (function / "driver").resolve().name != HOST:
        one_write(function / "driver/unbind", FUNCTION)
    if not (function / "driver").exists():
        (function / "driver_override").write_text("\n")
        one_write(lab.path / "sys/bus/pci/drivers_probe", FUNCTION)


# ---- ioctls ----


def device_ioctl(own: Setting) -> Point:
    def call() -> None:
        own.write(SET, 1)
        ioctl(own.device.fd, DEVICE_RESET)

    return Point("ioctl", "ioctl=VFIO_DEVICE_RESET", call, lambda: int(own.read(SETS) == 0))


def iommufd_ioctl(own: Setting) -> Point:
    made: list[int] = []

    def call() -> None:
        made.clear()
        made.append(own.iommufd.ioas())

    return Point("ioctl", "ioctl=IOMMU_IOAS_ALLOC", call, lambda: int(any(made)), on=own.vgpu.name)


def container_ioctl(own: Setting) -> Point:
    container = own.stack.enter_context(Container(own.lab.path))
    group = own.stack.enter_context(Group(own.lab.path, own.other.group))
    group.set_container(container)
    container.set_iommu()

    def call() -> None:
        container.unmap(PAGE, PAGE)
        container.map(PAGE, own.memory.address, PAGE)

    where = "ioctl=VFIO_IOMMU_MAP_*"
    return Point("ioctl", where, call, lambda: int(container.unmap(PAGE, PAGE) == PAGE), on=own.vgpu.name)


# ---- regions ----


def _written(own: Setting, where: str, key: str) -> Point:
    before: list[int] = []

    def call() -> None:
        before[:] = [own.read(SETS)]
        own.write(SET, WRITTEN)

    return Point(key, where, call, lambda: own.read(SETS) - before[0], lambda: own.read(SET))


def _got(own: Setting, where: str, key: str) -> Point:
    before, found = [0], [0]

    def call() -> None:
        before[:], found[:] = [own.read(GETS)], [0]
        found[:] = [own.read(GET)]

    return Point(key, where, call, lambda: own.read(GETS) - before[0], lambda: found[0], reads=True)


def register_write(own: Setting) -> Point:
    return _written(own, "register=SET access=write", "register")


def register_read(own: Setting) -> Point:
    return _got(own, "register=GET region=BAR0 access=read", "register")


def region_write(own: Setting) -> Point:
    return _written(own, "region=BAR0 range=0 access=write", "region")


def region_read(own: Setting) -> Point:
    return _got(own, "region=0 range=0x8-0xb access=read", "region")


def config_write(own: Setting) -> Point:
    def call() -> None:
        os.pwrite(own.device.fd, bytes(1), 7 << 40 | CACHE_LINE)
        os.pwrite(own.device.fd, WRITTEN.to_bytes(4, "little"), 7 << 40 | CACHE_LINE)

    def data() -> int:
        return own.device.config(CACHE_LINE, 1)

    where = "region=config range=0x0d-0x0f access=write"
    return Point("region", where, call, lambda: int(data() != 0), data)


def sysfs_config_read(own: Setting) -> Point:
    file = os.open(own.function / "config", os.O_RDONLY)
    own.stack.callback(os.close, file)
    found = [0]

    def call() -> None:
        found[:] = [0]
        found[:] = [int.from_bytes(os.pread(file, 2, 0), "little")]

    where = f"device={FUNCTION} register=VENDOR_ID access=read"
    return Point("register", where, call, lambda: int(found[0] != 0), lambda: found[0], reads=True)


# ---- DMA and interrupts ----


def dma_read(own: Setting) -> Point:
    def call() -> None:
        own.write(DATA, 0)
        own.memory.write(struct.pack("<I", WRITTEN))
        own.command(counted.LOAD)

    return Point(
        "dma",
        "dma=read iova=0x1000",
        call,
        lambda: int(own.read(DATA) != 0),
        lambda: own.read(DATA),
        reads=True,
        told=False,
    )


def dma_write(own: Setting) -> Point:
    def found() -> int:
        return int.from_bytes(own.memory.read(0, 4), "little")

    def call() -> None:
        own.write(DATA, WRITTEN)
        own.memory.write(bytes(4))
        own.command(counted.STORE)

    return Point("dma", "dma=write", call, lambda: int(found() != 0), found, told=False)


def dma_pin(own: Setting) -> Point:
    done: list[int] = []

    def call() -> None:
        done.clear()
        own.command(counted.PIN)
        done.append(1)

    return Point("dma", "dma=pin", call, lambda: len(done), told=False)


def _interrupt(own: Setting, index: int, command: int, where: str) -> Point:
    own.device.eventfds(index, TRIGGER, 0, own.message)

    def tear_down() -> None:
        with suppress(OSError):  # gone by surprise
            own.device.tear_down(index)

    own.stack.callback(tear_down)
    os.set_blocking(own.message, False)
    count = [0]

    def call() -> None:
        made()
        count[0] = 0
        own.write(LET_GO, 1)
        if index == INTX:
            own.device.irqs(INTX, NONE | UNMASK, 0, 1)
        own.write(START, command)

    def made() -> int:
        with suppress(BlockingIOError):
            count[0] += os.eventfd_read(own.message)
        return count[0]

    return Point("interrupt", where, call, made)


def message(own: Setting) -> Point:
    return _interrupt(own, MSIX, counted.MSIX, "interrupt=MSIX vector=0")


def line(own: Setting) -> Point:
    return _interrupt(own, INTX, counted.INTX, "interrupt=any")


# ---- sysfs ----


def store(own: Setting) -> Point:
    override = own.function / "driver_override"
    file = os.open(override, os.O_WRONLY)
    own.stack.callback(os.close, file)

    before = [""]

    def call() -> None:
        before[0] = override.read_text()
        os.pwrite(file, f"{uuid.uuid4()}\n".encode(), 0)

    where = f"device={FUNCTION} store=driver_override"
    return Point("store", where, call, lambda: int(override.read_text() != before[0]))


def creation(own: Setting) -> Point:
    name = str(uuid.uuid4())
    types = own.lab.parent("counters") / "mdev_supported_types"

    def call() -> None:
        with suppress(OSError):
            one_write(own.lab.mdevs / name / "remove", "1")
        one_write(types / TYPE / "create", name)

    return Point(
        "create", f"create={TYPE}", call, lambda: int((own.lab.mdevs / name).exists()), debt=True, on=name
    )


def _bound(own: Setting, key: str, where: str, *, debt: bool) -> Point:
    def call() -> None:
        if (own.function / "driver").exists():
            one_write(own.function / "driver/unbind", FUNCTION)
        (own.function / "driver_override").write_text("vfio-pci\n")
        one_write(own.lab.path / "sys/bus/pci/drivers/vfio-pci/bind", FUNCTION)

    return Point(key, where, call, lambda: int((own.function / "driver").exists()), debt=debt, on=FUNCTION)


def bind(own: Setting) -> Point:
    return _bound(own, "bind", "bind=vfio-pci", debt=False)


def probe(own: Setting) -> Point:
    return _bound(own, "probe", f"device={FUNCTION} probe=vfio-*", debt=True)


# ---- opens ----


def _opened(own: Setting, path: Path, where: str, on: str = "") -> Point:
    files: list[int] = []

    def close() -> None:
        while files:
            os.close(files.pop())

    own.stack.callback(close)

    def call() -> None:
        close()
        files.append(os.open(path, os.O_RDWR))

    return Point("open", where, call, lambda: len(files), on=on)


def open_container(own: Setting) -> Point:
    return _opened(own, own.lab.path / "dev/vfio/vfio", "open=vfio/vfio", own.vgpu.name)


def open_iommufd(own: Setting) -> Point:
    return _opened(own, own.lab.path / "dev/iommu", "open=dev/iommu", own.vgpu.name)


def open_group(own: Setting) -> Point:
    number = own.other.group
    return _opened(own, own.lab.path / "dev/vfio" / number, f"device={own.other.name} open=vfio/{number}")


def open_device(own: Setting) -> Point:
    return _opened(own, own.other.cdev, f"device={own.other.name} open=vfio/devices/*")


def open_config(own: Setting) -> Point:
    return _opened(own, own.function / "config", f"device={FUNCTION} open=sys/*/config")


# ---- by the kind of call ----


def any_ioctl(own: Setting) -> Point:
    point = device_ioctl(own)
    point.key, point.where = "call", f"device={own.vgpu.name} call=ioctl"
    return point


def any_open(own: Setting) -> Point:
    point = open_device(own)
    point.key, point.where = "call", f"process={os.getpid()} device={own.other.name}"
    return point


POINTS = (
    device_ioctl,
    iommufd_ioctl,
    container_ioctl,
    register_write,
    register_read,
    region_write,
    region_read,
    config_write,
    sysfs_config_read,
    dma_read,
    dma_write,
    dma_pin,
    message,
    line,
    store,
    creation,
    bind,
    probe,
    open_container,
    open_iommufd,
    open_group,
    open_device,
    open_config,
    any_ioctl,
    any_open,
)
REFUSED = errno.ENODATA
"""An errno that no call of these gives by itself."""
