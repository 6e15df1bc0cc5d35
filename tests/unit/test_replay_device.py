# SPDX-License-Identifier: Apache-2.0
"""The model of a replayed device (vfsfuse/replay/model.py): its regions, interrupts, DMA, resets."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from vfsfuse.recording.recording import Event, Irq, RecordedDevice, Recording, Region
from vfsfuse.replay.model import ReplayDevice, replay_model
from vfsfuse.replay.replayed import Replay
from vfsfuse.testing.bench import Bench

READ, WRITE, MMAP, CAPS = 1, 2, 4, 8
NAME = "0000:05:00.0"
EXPRESS = 0x40


def config() -> bytes:
    """A function with a BAR of memory, INTA, and PCI Express with a function level reset."""
    space = bytearray(4096)
    struct.pack_into("<HHHHI", space, 0, 0x1234, 0xC0F1, 2, 0x10, 0x08800001)
    space[0x34], space[0x3D] = EXPRESS, 1
    struct.pack_into("<BBHI", space, EXPRESS, 0x10, 0, 2, 1 << 28)
    return bytes(space)


def capability(identity: int, body: bytes) -> bytes:
    return struct.pack("<HHI", identity, 1, 0) + body


def recording(*events: Event, regions: tuple[Region, ...] = (), shows_mmap: bool = False) -> Recording:
    """A second lies between events."""
    there = {region.index: region for region in (Region(0, 4096, READ | WRITE), Region(7, 4096, 3), *regions)}
    device = RecordedDevice(
        NAME,
        flags=3,
        num_regions=max(9, *(index + 1 for index in there)),
        num_irqs=5,
        regions=there,
        irqs={0: Irq(0, 1, 7), 3: Irq(3, 1, 9), 4: Irq(4, 1, 9)},
        config=config(),
    )
    for line, event in enumerate(events, 1):
        event.line, event.time = line, float(line)
    return Recording(devices=[device], events=list(events), shows_mmap=shows_mmap)


def read(offset: int, value: int, region: int = 0) -> Event:
    return Event(0, 0, "read", region=region, offset=offset, size=4, data=value.to_bytes(4, "little"))


def write(offset: int, value: int, region: int = 0) -> Event:
    return Event(
        0, 0, "write", region=region, offset=offset, size=4, data=value.to_bytes(4, "little"), result=4
    )


def model(found: Recording) -> type[ReplayDevice]:
    return replay_model(Replay.of(found, "x.rec").device(""))


@contextmanager
def opened(found: Recording) -> Iterator[ReplayDevice]:
    """The device, which a client has open."""
    device = model(found)("device")
    try:
        device.opened(None)
        yield device
    finally:
        device.close()


def told(device: ReplayDevice) -> list[str]:
    return device.PLAYED.replay.divergences.lines


def word(device: ReplayDevice, offset: int, region: int = 0) -> int:
    return int.from_bytes(device.read(region, offset, 4), "little")


def put(device: ReplayDevice, offset: int, value: int, region: int = 0) -> None:
    device.write(region, offset, value.to_bytes(4, "little"))


# ---- regions ----


def test_the_flags_of_regions_are_the_recorded_ones() -> None:
    more = Region(1, 4096, READ), Region(2, 4096, WRITE), Region(8, 0xC0000, READ | WRITE)
    with opened(recording(read(0, 5, 1), regions=more)) as device:
        assert word(device, 0, 1) == 5
        for call in (lambda: put(device, 0, 1, 1), lambda: word(device, 0, 2)):
            with pytest.raises(OSError, match=r"region . cannot be") as caught:
                call()
            assert caught.value.errno == errno.EINVAL
        put(device, 0, 1, 2)
        assert device.region(8).size == 0xC0000


def test_regions_with_a_type() -> None:
    typed = Region(9, 8192, READ | WRITE | CAPS, capability(2, struct.pack("<II", 0x80008086, 1)))
    with opened(recording(read(0, 7, 9), regions=(typed,))) as device:
        assert word(device, 0, 9) == 7
        assert [(own.type, own.subtype) for own in device.own_regions] == [(0x80008086, 1)]


def test_memory_that_a_client_may_map() -> None:
    """Only if the recorded client was told so.  What the recording does not read is what was written."""
    area = capability(1, struct.pack("<IIQQ", 1, 0, 0, 4096))
    memory = Region(2, 8192, READ | WRITE | MMAP | CAPS, area)
    with opened(recording(read(0, 7, 2), regions=(memory,))) as device:
        assert not device.region(2).mappable
    with opened(recording(read(0, 7, 2), regions=(memory,), shows_mmap=True)) as device:
        assert device.region(2).mappable
        assert device.region(2).areas == ((0, 4096),)
        put(device, 0x100, 9, 2)
        assert (word(device, 0, 2), word(device, 0x100, 2)) == (7, 9)


@pytest.mark.parametrize(
    "capabilities",
    [
        capability(1, struct.pack("<II", 5, 0)),
        capability(1, struct.pack("<IIQQ", 1, 0, 0, 1 << 40)),
        capability(1, struct.pack("<IIQQ", 1, 0, 8, 4096)),
        struct.pack("<HHI", 3, 1, 32) + bytes(16),
    ],
)
def test_capabilities_that_cannot_be_are_one_line(capabilities: bytes) -> None:
    memory = Region(2, 8192, READ | WRITE | MMAP | CAPS, capabilities)
    with pytest.raises(ValueError, match="BAR2 "):
        model(recording(regions=(memory,), shows_mmap=True))


# ---- interrupts, DMA ----


def test_intx_comes_as_often_as_it_was_recorded() -> None:
    """Unmasking it does not repeat it, and it waits until it is unmasked."""
    intx = [Event(0, 0, "interrupt", "INTX"), Event(0, 0, "interrupt", "INTX")]
    found = recording(write(0, 1), intx[0], write(0, 2), intx[1])
    found.devices[0].names[0, 0, 4] = "COMMAND"
    with Bench(model(found), interrupts="INTX") as bench:
        bench["COMMAND"] = 1
        assert bench.interrupts.count() == 1
        bench["COMMAND"] = 2
        assert bench.interrupts.count() == 1
        bench.interrupts.unmask()
        bench.advance(0.5)
        assert bench.interrupts.count() == 2
        bench.interrupts.unmask()
        bench.advance(0.5)
        assert bench.interrupts.count() == 2


def test_an_interrupt_that_is_not_set_up_diverges() -> None:
    with opened(recording(write(0, 1), Event(0, 0, "interrupt", "MSI"))) as device:
        put(device, 0, 1)
        assert told(device) == [
            "x.rec:2: expected interrupt MSI 0, got no such interrupt, because the client has not set it up"
        ]


def test_notices_come() -> None:
    with opened(recording(write(0, 1), Event(0, 0, "interrupt", "ERR"))) as device:
        put(device, 0, 1)
        assert told(device) == []


# ---- resets ----


@pytest.mark.parametrize("how", ["reset", "ioctl", "flr"])
def test_a_reset_by_any_way_begins_the_next_part(how: str) -> None:
    events = {
        "reset": Event(0, 0, "reset"),
        "ioctl": Event(0, 0, "ioctl", "VFIO_DEVICE_PCI_HOT_RESET"),
        "flr": write(EXPRESS + 8, 0x8000, 7),
    }
    found = recording(write(0, 1), read(4, 1), events[how], read(4, 2), write(0, 3))
    with opened(found) as device:
        put(device, 0, 1)
        assert word(device, 4) == 1
        if how == "flr":
            device.write(7, EXPRESS + 8, b"\0\x80")
        else:
            device.reset()
        assert word(device, 4) == 2
        put(device, 0, 3)
        assert told(device) == []


# ---- anything ----


@pytest.mark.parametrize("seed", range(30))
def test_no_client_makes_it_fail(seed: int) -> None:
    random_ = random.Random(seed)

    def event() -> Event:
        offset, value = random_.randrange(0, 64, 4), random_.randrange(4)
        return random_.choice(
            [
                read(offset, value),
                write(offset, value),
                Event(0, 0, "interrupt", random_.choice(["ERR", "INTX", "irq9"])),
            ]
        )

    with opened(recording(*(event() for _ in range(100)))) as device:
        acts: list[Callable[[], object]] = [
            lambda: word(device, random_.randrange(0, 64, 4)),
            lambda: device.read(0, random_.randrange(4096), random_.randrange(1, 64)),
            lambda: put(device, random_.randrange(0, 64, 4), random_.randrange(4)),
            lambda: device.write(0, random_.randrange(4096), bytes(random_.randrange(1, 64))),
            lambda: device.irqs_asked(random_.randrange(64), random_.randrange(6), 0, 1),
        ]
        for _ in range(300):
            random_.choice(acts)()
            if not random_.randrange(50):
                device.reset()
            if not random_.randrange(50):
                device.released()
                device.opened(None)


def test_a_read_of_a_rom_that_is_longer_than_any_takes_no_memory() -> None:
    far = Event(0, 0, "read", region=6, offset=(1 << 40) - 4, size=4, data=b"far!")
    near = Event(0, 0, "read", region=6, offset=2, size=4, data=b"near")
    played = Replay.of(recording(near, far), "x.rec").device("")
    assert played.rom == b"\xff\xffnear"
