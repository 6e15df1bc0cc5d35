# SPDX-License-Identifier: Apache-2.0
"""A recording: devices as VFIO describes them, and what a program did with them, in the order of its calls.

State: a Recording belongs to its maker, and to one thread at a time.  Sources: <linux/vfio.h> for
flags, indexes and structs.  docs/recording.md describes the file that it is written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

LAB, HOST = "lab", "host"
SOURCES = (LAB, HOST)

READ, WRITE, IOCTL, INTERRUPT, DMA = "read", "write", "ioctl", "interrupt", "dma"
RESET, OPEN, CLOSE, MMAP = "reset", "open", "close", "mmap"
KINDS = (READ, WRITE, IOCTL, INTERRUPT, DMA, RESET, OPEN, CLOSE, MMAP)

NO_DEVICE = -1
"""`Event.device` of a call on a container, a group or an iommufd."""
CONTAINER, GROUP, IOMMUFD = "container", "group", "iommufd"
FILES = (CONTAINER, GROUP, IOMMUFD)
"""What such a call is on."""

CONFIG_REGION = 7
REGIONS = (*(f"BAR{bar}" for bar in range(6)), "ROM", "config", "VGA")
"""Names of the regions of a PCI device by index; others are called region9 and so on."""
INTERRUPTS = ("INTX", "MSI", "MSIX", "ERR", "REQ")
"""Names of its interrupt indexes; others are called irq5 and so on."""

MOST_DATA = 4 << 20
"""Bytes of one access or DMA that are recorded."""
MOST_TOTAL = 256 << 20
"""Bytes of data of all events of a recording."""
MOST_EVENTS = 2_000_000
MOST_DEVICES = 256
MOST_INDEXES = 256
"""Regions and interrupt indexes of a device."""
MOST_CONFIG = 4096
MOST_NAMES = 65_536
MOST_SIZE = 1 << 40
"""Bytes of a region: its place in the file of a device has that much room."""
MOST_STRUCT = 1 << 16
"""Bytes of the struct of an ioctl, or of the capabilities of a region."""


RESETS = ("VFIO_DEVICE_RESET", "VFIO_DEVICE_PCI_HOT_RESET")
"""Ioctls that reset a device, if they succeed."""
TAKE_NUMBERS = frozenset({"VFIO_CHECK_EXTENSION", "VFIO_SET_IOMMU"})
"""Ioctls whose argument is a number, not a pointer."""


class RecordingError(Exception):
    """A recording cannot be made, read or written.  str() is one line for the user: of a file that is wrong,
    FILE:LINE and what to mend."""


@dataclass(slots=True)
class Region:
    """A region as GET_REGION_INFO describes it.

    `flags` are VFIO_REGION_INFO_FLAG_* of the device itself, also where the recorder hides
    FLAG_MMAP from the program.  `capabilities` is the chain behind the struct, as bytes; the offsets in it
    count from the beginning of the struct (32 bytes before the chain).  Empty without FLAG_CAPS."""

    index: int
    size: int
    flags: int
    capabilities: bytes = b""


@dataclass(slots=True)
class Irq:
    """An interrupt index as GET_IRQ_INFO describes it.  `flags` are VFIO_IRQ_INFO_*."""

    index: int
    count: int
    flags: int


@dataclass(slots=True)
class RecordedDevice:
    """A device.  `name` is its PCI address or the UUID of a mediated device; `flags` are
    VFIO_DEVICE_FLAGS_*.

    `num_regions` and `num_irqs` are those of GET_INFO.  `regions` and `irqs` have those that the device
    answers for; an absent BAR has size 0.  `config` is configuration space as the program finds it when it
    first opens the device.  `group` is the IOMMU group, None if it is not known.  `names` are those of
    registers, by (region, offset, size in bytes); those of configuration space follow from `config`."""

    name: str
    flags: int = 0
    num_regions: int = 0
    num_irqs: int = 0
    group: int | None = None
    regions: dict[int, Region] = field(default_factory=dict)
    irqs: dict[int, Irq] = field(default_factory=dict)
    config: bytes = b""
    names: dict[tuple[int, int, int], str] = field(default_factory=dict)

    @property
    def is_mediated(self) -> bool:
        """Whether it is a mediated device, whose name is a UUID."""
        return len(self.name) == _UUID_LENGTH and self.name.count("-") == _UUID_DASHES


_UUID_LENGTH, _UUID_DASHES = 36, 4


@dataclass(slots=True)
class Event:
    """One call, interrupt or DMA.  Fields that a kind does not have keep their default.

    ========= ====================================================================================
    kind      fields
    ========= ====================================================================================
    read      region, offset, size (as asked for), data (as given: fewer bytes at the region's end)
    write     region, offset, size, data, result (bytes taken)
    ioctl     name ("VFIO_DEVICE_RESET", or a number such as "0x3b99"), argument (an ioctl that takes a
              number), before and after (the struct with what is behind it), result.  The result of one that
              gives a descriptor is 0
    interrupt name of the index ("MSIX"), vector
    dma       name ("read", "write", "pin"), iova, size, data: what the device read or wrote, 4 MiB at most
    reset     a reset of the device that no ioctl, open or close of the program made
    open      name: the path ("/dev/vfio/5")
    close     name: the path, empty where there is none
    mmap      region, size: the program has mapped so much of it, and accesses through it are not recorded
    ========= ====================================================================================

    `time` is in seconds since the recording began, in whole microseconds.  `device` is an index in
    `Recording.devices`, or NO_DEVICE; then `file` is one of FILES.  `errno` is that of a call that failed,
    else 0; a failed call has the result 0.  `line` is that of the file from which the event was read, else 0;
    it makes no difference to equality."""

    time: float
    device: int
    kind: str
    name: str = ""
    file: str = ""
    region: int = 0
    offset: int = 0
    size: int = 0
    data: bytes = b""
    argument: int = 0
    before: bytes = b""
    after: bytes = b""
    result: int = 0
    errno: int = 0
    vector: int = 0
    iova: int = 0
    line: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        self.time = round(self.time, 6)


@dataclass(slots=True)
class Recording:
    """What a program did with its VFIO devices.

    `source` is "lab", or "host": a recording of a real machine, which has no DMA.  `command` is the argv.
    `shows_mmap` is whether the program was told that regions can be mapped: it may have accessed
    them without a trace then.  `origin` is the file that it was read from, for messages."""

    source: str = LAB
    command: tuple[str, ...] = ()
    shows_mmap: bool = False
    devices: list[RecordedDevice] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    origin: str = field(default="", compare=False)

    def of_device(self, device: int) -> Iterator[Event]:
        """The events of one device, in order."""
        return (event for event in self.events if event.device == device)

    def device_named(self, name: str) -> RecordedDevice:
        """The device with this name.  Raises KeyError, whose text lists what there is."""
        for device in self.devices:
            if device.name == name:
                return device
        there = ", ".join(device.name for device in self.devices) or "none"
        raise KeyError(f"{name} is not in this recording (there is {there})")


def region_name(index: int) -> str:
    """BAR0 to BAR5, ROM, config, VGA; region9 and so on."""
    return REGIONS[index] if 0 <= index < len(REGIONS) else f"region{index}"


def irq_name(index: int) -> str:
    """INTX, MSI, MSIX, ERR, REQ; irq5 and so on."""
    return INTERRUPTS[index] if 0 <= index < len(INTERRUPTS) else f"irq{index}"


def register_at(names: Mapping[tuple[int, int, int], str], region: int, offset: int, size: int) -> str:
    """The name of the register that an access is to, empty if it is not to exactly one."""
    return names.get((region, offset, size), "")


def check(recording: Recording) -> None:
    """Raises RecordingError for a recording that is longer than what can be read again."""
    if len(recording.events) > MOST_EVENTS:
        raise RecordingError(f"{len(recording.events)} events are too many: {MOST_EVENTS} can be read")
    total = sum(len(event.data) for event in recording.events)
    if total > MOST_TOTAL:
        raise RecordingError(f"{total} bytes of data are too many: {MOST_TOTAL} can be read")
