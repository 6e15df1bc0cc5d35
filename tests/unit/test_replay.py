# SPDX-License-Identifier: Apache-2.0
"""Replayed dialogues (vfsfuse/replay): where in a recording a client is, and what the device answers."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest

from vfsfuse.recording.recording import Event, RecordedDevice, Recording
from vfsfuse.replay.dialogue import Dialogue
from vfsfuse.replay.divergences import MOST_TOLD, Divergences
from vfsfuse.replay.script import IrqSet, Place, script_of
from vfsfuse.replay.sparse import SparseBytes
from vfsfuse.replay.state import Learned
from vfsfuse.replay.translation import Range, Translation, mapped, recorded_maps, unmapped

COMMAND, STATUS, DATA, IDENTITY = 0x14, 0x18, 0x20, 0x24
NAMES = {(0, COMMAND, 4): "COMMAND", (0, STATUS, 4): "STATUS", (0, DATA, 4): "DATA"}
NONE, EVENTFD, TRIGGER = 1, 4, 32


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "little")


def read(offset: int, value: int, **more: object) -> Event:
    return Event(0, 0, "read", offset=offset, size=4, data=number(value), **more)  # type: ignore[arg-type]


def write(offset: int, value: int) -> Event:
    return Event(0, 0, "write", offset=offset, size=4, data=number(value), result=4)


def interrupt(vector: int = 0, name: str = "MSIX") -> Event:
    return Event(0, 0, "interrupt", name, vector=vector)


def dma(name: str, iova: int, data: bytes) -> Event:
    return Event(0, 0, "dma", name, iova=iova, size=len(data), data=data)


def irqs(flags: int, index: int = 2, start: int = 0, count: int = 1) -> Event:
    before = struct.pack("<IIIII", 20, flags, index, start, count)
    return Event(0, 0, "ioctl", "VFIO_DEVICE_SET_IRQS", before=before, after=before)


def ioctl(name: str, before: bytes = b"") -> Event:
    return Event(0, -1 if "IOMMU" in name else 0, "ioctl", name, before=before, after=before)


OPEN, CLOSE, RESET = Event(0, 0, "open"), Event(0, 0, "close"), Event(0, 0, "ioctl", "VFIO_DEVICE_RESET")


class Client:
    """A client of a replayed device.  Events are a second apart, and their lines are 1, 2, 3 and so on."""

    def __init__(self, *events: Event, apart: float = 1.0, opened: bool = True) -> None:
        self.recording = Recording(devices=[RecordedDevice("0000:05:00.0", names=NAMES)], origin="x.rec")
        for line, event in enumerate(events, 1):
            event = Event(**{name: getattr(event, name) for name in Event.__slots__})
            event.line, event.time = line, line * apart
            self.recording.events.append(event)
        self.script = script_of(self.recording, 0)
        self.divergences = Divergences("x.rec")
        self.translation = Translation(recorded_maps(self.recording))

        def report(line: int, expected: str, got: str, at: object = None) -> None:
            self.divergences.add("device", line, expected, got, at)

        self.progress = self.divergences.of_device("device", self.script.total)
        learned = Learned(self.script)
        self.dialogue = Dialogue(self.script, learned, report, NAMES, self.translation, self.progress)
        self.now = 100.0
        if opened:
            self.dialogue.opened(self.now)

    @property
    def told(self) -> list[str]:
        return self.divergences.told

    def read(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.dialogue.read(Place(0, offset, size), self.now), "little")

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.dialogue.write(Place(0, offset, size), number(value, size), self.now)

    def deeds(self) -> list[str]:
        """What the device does now, by itself."""
        found = []
        while (deed := self.dialogue.peek(self.now).deed) is not None:
            self.dialogue.begin()
            self.dialogue.done(deed, self.now)
            found.append(
                f"{deed.kind} {deed.name} {deed.vector}" if deed.kind == "interrupt" else f"dma {deed.name}"
            )
        return found


# ---- answers ----


def test_an_exact_client_gets_all_that_was_recorded() -> None:
    client = Client(
        OPEN, read(IDENTITY, 7), write(COMMAND, 1), read(STATUS, 0), read(STATUS, 1), write(STATUS, 1), CLOSE
    )
    assert client.read(IDENTITY) == 7
    client.write(COMMAND, 1)
    assert [client.read(STATUS) for _ in range(2)] == [0, 1]
    client.write(STATUS, 1)
    client.dialogue.closed()
    assert client.told == []
    assert client.progress.replayed == client.script.total == 5


def test_the_last_value_of_a_poll_repeats() -> None:
    client = Client(write(COMMAND, 1), read(STATUS, 0), read(STATUS, 0), read(STATUS, 1))
    client.write(COMMAND, 1)
    assert [client.read(STATUS) for _ in range(6)] == [0, 0, 1, 1, 1, 1]
    assert client.told == []


def test_a_poll_that_is_cut_short_ends_with_the_next_write() -> None:
    client = Client(
        write(COMMAND, 1), *[read(STATUS, 0)] * 5, read(STATUS, 1), write(DATA, 3), read(STATUS, 2)
    )
    client.write(COMMAND, 1)
    assert client.read(STATUS) == 0
    client.write(DATA, 3)
    assert client.read(STATUS) == 2
    assert client.told == []


def test_a_register_holds_what_was_read_after_what_was_written() -> None:
    client = Client(
        read(DATA, 5), write(DATA, 9), read(DATA, 1), write(COMMAND, 1), write(DATA, 8), read(DATA, 2)
    )
    client.write(DATA, 9)
    assert client.read(DATA) == 1
    client.write(COMMAND, 1)
    assert client.read(DATA) == 1  # in a stage without a read of it: as before
    client.write(DATA, 8)
    assert client.read(DATA) == 2


def test_a_register_that_is_only_written_gives_what_was_written_and_is_told_once() -> None:
    client = Client(write(COMMAND, 1), read(IDENTITY, 7))
    client.write(COMMAND, 1)
    assert [client.read(COMMAND), client.read(COMMAND), client.read(0x40)] == [1, 1, 0]
    ending = "which the recording never reads"
    assert client.told == [
        f"x.rec:2: expected BAR0 read 0x24/4 = 0x7, got BAR0 read COMMAND = 0x1, {ending}",
        f"x.rec:2: expected BAR0 read 0x24/4 = 0x7, got BAR0 read 0x40/4 = 0x0, {ending}",
    ]


def test_what_never_changes_is_known_from_the_start() -> None:
    client = Client(write(COMMAND, 1), read(IDENTITY, 7), read(STATUS, 1), write(STATUS, 1), read(STATUS, 0))
    assert client.read(IDENTITY) == 7
    assert client.read(STATUS) == 0  # it changes, and how it was at first is not known
    assert client.told == []


def test_parts_of_registers_are_answered_by_their_bytes() -> None:
    client = Client(read(DATA, 0x44332211), write(COMMAND, 1))
    assert client.read(DATA, 2) == 0x2211
    assert client.read(DATA + 2, 1) == 0x33
    client.write(DATA, 0xAA, 1)
    assert client.read(DATA) == 0x443322AA


# ---- what the device does by itself ----


def test_an_interrupt_comes_right_after_the_write() -> None:
    client = Client(write(COMMAND, 1), interrupt(3), read(STATUS, 1))
    assert client.deeds() == []
    client.write(COMMAND, 1)
    assert client.deeds() == ["interrupt MSIX 3"]
    assert client.read(STATUS) == 1


def test_an_interrupt_comes_after_the_same_reads() -> None:
    client = Client(write(COMMAND, 1), read(STATUS, 0), read(STATUS, 0), interrupt(), read(STATUS, 1))
    client.write(COMMAND, 1)
    for expected in ([], ["interrupt MSIX 0"]):
        assert client.read(STATUS) == 0
        assert client.deeds() == expected
    assert client.read(STATUS) == 1


def test_an_interrupt_comes_in_time_without_the_reads() -> None:
    client = Client(write(COMMAND, 1), read(STATUS, 0), read(STATUS, 0), interrupt(), read(STATUS, 1))
    client.write(COMMAND, 1)
    assert client.dialogue.peek(client.now).seconds == pytest.approx(3)
    client.now += 2.9
    assert client.deeds() == []
    client.now += 0.2
    assert client.deeds() == ["interrupt MSIX 0"]
    assert client.read(STATUS) == 1  # the reads before it are past


def test_a_client_that_is_still_reading_holds_the_time_back() -> None:
    client = Client(write(COMMAND, 1), read(DATA, 1), read(DATA, 2), read(DATA, 3), interrupt())
    client.write(COMMAND, 1)
    for value in (1, 2):
        client.now += 3.5
        assert client.read(DATA) == value
        assert client.deeds() == []


def test_deeds_in_a_row_keep_their_distance() -> None:
    client = Client(write(COMMAND, 1), interrupt(0), interrupt(1), interrupt(2))
    client.write(COMMAND, 1)
    assert client.deeds() == ["interrupt MSIX 0"]
    assert client.dialogue.peek(client.now).seconds == pytest.approx(1)
    client.now += 1
    assert client.deeds() == ["interrupt MSIX 1"]
    client.now += 1
    assert client.deeds() == ["interrupt MSIX 2"]


def test_deeds_that_are_left_come_before_those_of_the_next_write() -> None:
    events = write(COMMAND, 1), read(STATUS, 0), interrupt(0), write(COMMAND, 2), interrupt(1)
    client = Client(*events, apart=0.0001)
    client.write(COMMAND, 1)
    client.write(COMMAND, 2)
    assert client.deeds() == ["interrupt MSIX 0", "interrupt MSIX 1"]


def test_a_status_stays_until_the_dma_before_it_is_done() -> None:
    client = Client(
        read(STATUS, 0), write(COMMAND, 1), dma("write", 0x1000, b"abcd"), interrupt(), read(STATUS, 1)
    )
    assert client.read(STATUS) == 0
    client.write(COMMAND, 1)
    assert [client.read(STATUS) for _ in range(3)] == [0, 0, 0]
    assert client.deeds()[0] == "dma write"
    assert client.read(STATUS) == 1


def test_nothing_overtakes_a_dma_under_way() -> None:
    client = Client(write(COMMAND, 1), dma("read", 0x1000, b"abcd"), interrupt(), apart=0.0001)
    client.write(COMMAND, 1)
    deed = client.dialogue.peek(client.now).deed
    assert deed is not None and deed.name == "read"
    client.dialogue.begin()
    assert client.dialogue.peek(client.now) == (None, None)
    client.dialogue.done(deed, client.now)
    assert client.deeds() == ["interrupt MSIX 0"]


def test_a_reset_ends_what_the_device_does() -> None:
    client = Client(write(COMMAND, 1), dma("read", 0x1000, b"abcd"), interrupt(), RESET, write(COMMAND, 2))
    client.write(COMMAND, 1)
    deed = client.dialogue.peek(client.now).deed
    assert deed is not None
    client.dialogue.begin()
    client.dialogue.reset(client.now)
    client.dialogue.done(deed, client.now)
    assert client.deeds() == []
    client.write(COMMAND, 2)
    assert client.told == []


def test_interrupts_that_set_irqs_fires_itself_are_not_the_devices() -> None:
    fire = irqs(NONE | TRIGGER, start=1)
    for around in ([fire, interrupt(1)], [interrupt(1), fire]):
        client = Client(write(COMMAND, 1), *around, interrupt(0))
        kinds = [event.kind for _, event in client.script.events()]
        assert kinds == ["write", "ioctl", "interrupt"]


# ---- divergences ----


def test_another_value_is_told_with_its_line() -> None:
    client = Client(read(IDENTITY, 7), write(COMMAND, 1), read(STATUS, 1), write(DATA, 5), read(STATUS, 2))
    client.read(IDENTITY)
    client.write(COMMAND, 3)
    assert client.told == ["x.rec:2: expected BAR0 write COMMAND = 0x1, got BAR0 write COMMAND = 0x3"]
    assert client.read(STATUS) == 1  # it is at that place all the same
    client.write(DATA, 5)
    assert client.read(STATUS) == 2
    assert len(client.told) == 1


def test_a_client_that_leaves_something_out_is_found_again() -> None:
    client = Client(
        write(COMMAND, 1), write(DATA, 1), write(DATA, 2), read(STATUS, 6), write(COMMAND, 2), read(STATUS, 7)
    )
    client.write(COMMAND, 1)
    client.write(DATA, 2)
    assert client.told == ["x.rec:2: expected BAR0 write DATA = 0x1, got BAR0 write DATA = 0x2"]
    assert client.read(STATUS) == 6
    client.write(COMMAND, 2)
    assert client.read(STATUS) == 7
    assert len(client.told) == 1


def test_writes_in_another_order_are_told_once() -> None:
    client = Client(write(DATA, 1), interrupt(1), write(COMMAND, 1), interrupt(2), write(STATUS, 1))
    client.write(COMMAND, 1)
    client.write(DATA, 1)  # late, with what the device does then
    client.write(STATUS, 1)
    client.now += 5
    assert sorted(client.deeds()) == ["interrupt MSIX 1", "interrupt MSIX 2"]
    assert client.told == ["x.rec:1: expected BAR0 write DATA = 0x1, got BAR0 write COMMAND = 0x1"]


def test_a_write_that_fits_nowhere_is_answered_by_state() -> None:
    client = Client(write(COMMAND, 1), read(STATUS, 1), CLOSE)
    client.write(DATA, 5)
    client.write(COMMAND, 1)
    assert client.read(STATUS) == 1
    assert client.read(DATA) == 5
    client.write(COMMAND, 1)
    assert client.told == [
        "x.rec:1: expected BAR0 write COMMAND = 0x1, got BAR0 write DATA = 0x5",
        "x.rec:3: expected close, got BAR0 read DATA = 0x5, which the recording never reads",
        "x.rec:3: expected close, got BAR0 write COMMAND = 0x1",
    ]


def test_a_dialogue_without_anything_to_play_has_a_line() -> None:
    refused = replace(irqs(0x24), errno=errno.ENOMEM)
    client = Client(OPEN, refused, CLOSE)
    client.write(DATA, 5)
    assert client.told == ["x.rec:3: expected the end of the recording, got BAR0 write DATA = 0x5"]


def test_a_write_that_is_missing_at_the_end_is_told() -> None:
    client = Client(write(COMMAND, 1), read(STATUS, 1), write(STATUS, 1), CLOSE)
    client.write(COMMAND, 1)
    client.dialogue.closed()
    assert client.told == ["x.rec:3: expected BAR0 write STATUS = 0x1, got close"]
    client = Client(write(COMMAND, 1), RESET, write(COMMAND, 2))
    client.read(STATUS)
    client.dialogue.reset(client.now)
    assert client.told[-1] == "x.rec:1: expected BAR0 write COMMAND = 0x1, got reset"


def test_no_more_than_so_many_places_are_told() -> None:
    events = [write(DATA, value) for value in range(3 * MOST_TOLD)]
    client = Client(*events)
    for value in range(3 * MOST_TOLD):
        client.write(DATA, value + 1000)
    assert len(client.told) == MOST_TOLD + 1
    assert "no others are told" in client.told[-1]
    assert client.divergences.count == 3 * MOST_TOLD


def test_interrupts_that_are_set_up_otherwise_are_told() -> None:
    client = Client(irqs(TRIGGER | EVENTFD, count=2), write(COMMAND, 1), interrupt(1))
    client.dialogue.set_irqs(IrqSet(TRIGGER | EVENTFD, 1, 0, 1), client.now)
    client.write(COMMAND, 1)
    assert client.told == [
        "x.rec:1: expected SET_IRQS MSIX 0-1 trigger eventfd, got SET_IRQS MSI 0 trigger eventfd"
    ]
    assert client.deeds() == ["interrupt MSIX 1"]


def test_interrupts_that_are_set_up_earlier_lead_past_nothing() -> None:
    setup = irqs(TRIGGER | EVENTFD)
    client = Client(write(DATA, 1), read(STATUS, 4), setup, write(COMMAND, 1), read(STATUS, 5))
    client.dialogue.set_irqs(IrqSet(TRIGGER | EVENTFD, 2, 0, 1), client.now)
    client.write(DATA, 1)
    assert client.read(STATUS) == 4
    client.write(COMMAND, 1)
    assert client.read(STATUS) == 5
    assert len(client.told) == 1


# ---- parts ----


def test_each_open_plays_its_part_and_then_the_first_one_again() -> None:
    client = Client(
        OPEN, write(COMMAND, 1), read(STATUS, 1), CLOSE, OPEN, write(COMMAND, 2), read(STATUS, 2), CLOSE
    )
    for value in (1, 2, 1, 2):
        client.write(COMMAND, value)
        assert client.read(STATUS) == value
        client.dialogue.closed()
        client.dialogue.opened(client.now)
    assert client.told == []


def test_an_open_that_does_nothing_takes_no_part() -> None:
    client = Client(OPEN, write(COMMAND, 1), CLOSE, OPEN, write(COMMAND, 2), CLOSE)
    client.dialogue.closed()
    client.dialogue.opened(client.now)
    client.write(COMMAND, 1)
    assert client.told == []


def test_a_reset_begins_a_new_part() -> None:
    client = Client(
        OPEN, RESET, read(STATUS, 0), write(COMMAND, 1), read(STATUS, 1), RESET, read(STATUS, 0), RESET
    )
    client.dialogue.reset(client.now)
    assert client.read(STATUS) == 0
    client.write(COMMAND, 1)
    assert client.read(STATUS) == 1
    client.dialogue.reset(client.now)
    assert client.read(STATUS) == 0
    client.dialogue.reset(client.now)
    assert client.told == []


def test_a_reset_that_was_not_recorded_brings_the_first_state_back() -> None:
    client = Client(OPEN, read(DATA, 3), write(DATA, 4), read(DATA, 4), CLOSE)
    client.read(DATA)
    client.write(DATA, 4)
    client.dialogue.reset(client.now)
    assert client.read(DATA) in (3, 4)
    assert client.told == []


def test_several_opens_at_a_time_are_one_part() -> None:
    client = Client(
        OPEN, OPEN, write(COMMAND, 1), CLOSE, write(COMMAND, 2), CLOSE, OPEN, write(COMMAND, 3), CLOSE
    )
    assert [part.opens for part in client.script.parts] == [True, True]


# ---- addresses ----


def type1_map(iova: int, size: int) -> Event:
    return ioctl("VFIO_IOMMU_MAP_DMA", struct.pack("<IIQQQ", 32, 3, 0x7F0000000000, iova, size))


def test_addresses_are_those_of_the_client() -> None:
    client = Client(
        type1_map(0x10000, 0x2000), type1_map(0x40000, 0x4000), write(DATA, 0x11000), write(COMMAND, 0x40)
    )
    client.translation.map(Range(0x5_0000_0000, 0x2000))
    client.translation.map(Range(0x80000, 0x4000))
    client.write(DATA, 0x1000)  # the lower half
    client.write(COMMAND, 0x80)  # a page number
    assert client.told == []
    assert client.translation.iova(0x41000) == 0x81000
    assert client.translation.iova(0x99000) == 0x99000
    recorded = struct.pack("<QQ", 0x10010, 5)
    assert client.translation.alike_data(recorded, struct.pack("<QQ", 0x5_0000_0010, 5))
    assert not client.translation.alike_data(recorded, struct.pack("<QQ", 0x5_0000_0010, 6))
    client.translation.unmap(Range(0x80000, 0x4000))
    assert client.translation.iova(0x41000) == 0x41000


def test_maps_are_found_in_both_apis() -> None:
    before = struct.pack("<IIQQQ", 32, 3, 7, 0x1000, 0x2000)
    assert mapped("VFIO_IOMMU_MAP_DMA", before) == (0x1000, 0x2000)
    assert mapped("IOMMU_IOAS_MAP", struct.pack("<IIIIQQQ", 40, 7, 1, 0, 9, 0x3000, 0x8000)) == (
        0x8000,
        0x3000,
    )
    assert mapped("VFIO_IOMMU_MAP_DMA", b"\0") is None
    assert unmapped("VFIO_IOMMU_UNMAP_DMA", struct.pack("<IIQQ", 24, 0, 1, 2)) == (1, 2)
    assert unmapped("VFIO_IOMMU_UNMAP_DMA", struct.pack("<IIQQ", 24, 2, 0, 0)) == (0, 1 << 64)
    assert unmapped("IOMMU_IOAS_UNMAP", struct.pack("<IIQQ", 24, 0, 1, 2)) == (1, 2)


# ---- anything ----


def test_sparse_bytes() -> None:
    known = SparseBytes()
    known.put(1020, b"abcdefgh")
    known.add(1022, b"XXXXXXXXXX")
    into, missing = bytearray(16), bytearray(b"\1") * 16
    known.fill(1018, into, missing)
    assert bytes(into) == b"\0\0abcdefghXXXX\0\0"
    assert bytes(missing) == b"\1\1" + bytes(12) + b"\1\1"
    assert known.knows(1031, 5) and not known.knows(1032, 5)


def _anything(random_: random.Random) -> Event:
    offset, value = random_.choice([COMMAND, STATUS, DATA, 0xFFC, 1]), random_.randrange(3)
    return random_.choice(
        [
            *[read(offset, value), write(offset, value)] * 6,
            *[interrupt(value), dma("write", 0x1000, b"1"), dma("read", 0x2000, b"22")],
            *[irqs(TRIGGER | EVENTFD, value), irqs(TRIGGER | NONE, value), OPEN, CLOSE, RESET],
            Event(0, 0, "ioctl", "VFIO_DEVICE_SET_IRQS", before=b"short"),
            Event(0, 0, "reset"),
            Event(0, 0, "read", offset=5, size=4, errno=5),
            Event(0, 0, "write", offset=5, size=4, data=b"1234", result=2),
            Event(0, 0, "mmap", size=4096),
            type1_map(value << 12, 0x1000),
        ]
    )


def _play(client: Client, random_: random.Random) -> None:
    offset, size = random_.choice([COMMAND, STATUS, DATA, 0xFFC, 1]), random_.choice([1, 2, 4, 8, 24])
    dialogue = client.dialogue
    acts: Sequence[object] = (
        *[lambda: client.read(offset, size), lambda: client.write(offset, random_.randrange(3), size)] * 6,
        lambda: client.read(offset),
        lambda: client.write(offset, random_.randrange(3)),
        lambda: dialogue.set_irqs(IrqSet(TRIGGER | EVENTFD, random_.randrange(3), 0, 1), client.now),
        lambda: dialogue.reset(client.now),
        dialogue.closed,
        lambda: dialogue.opened(client.now),
        client.deeds,
        dialogue.begin,
        lambda: client.translation.map(Range(random_.randrange(4) << 12, 0x1000)),
        lambda: client.translation.unmap(Range(random_.randrange(4) << 12, 0x1000)),
    )
    act = random_.choice(acts)
    assert callable(act)
    act()
    client.now += random_.choice([0, 0.5, 3])


@pytest.mark.parametrize("seed", range(60))
def test_no_client_and_no_recording_makes_it_fail(seed: int) -> None:
    random_ = random.Random(seed)
    client = Client(*(_anything(random_) for _ in range(random_.randrange(200))), opened=bool(seed % 2))
    for _ in range(600):
        _play(client, random_)
    assert client.divergences.summary


@pytest.mark.parametrize("seed", range(40))
def test_the_recorded_client_never_diverges(seed: int) -> None:
    random_ = random.Random(seed)
    events = [_anything(random_) for _ in range(random_.randrange(200))]
    plain = [each for each in events if each.kind in ("read", "write", "interrupt", "dma") and not each.errno]
    client = Client(*plain)
    for event in client.recording.events:
        client.now += 1
        client.deeds()
        if event.kind == "read":
            assert client.read(event.offset) == int.from_bytes(event.data, "little")
        elif event.kind == "write":
            client.dialogue.write(
                Place(0, event.offset, event.result), event.data[: event.result], client.now
            )
    client.now += 100
    client.deeds()
    assert client.told == []
    assert client.progress.replayed == client.script.total
