# SPDX-License-Identifier: Apache-2.0
"""The file of a recording: an exact round trip, and an error with file and line for each kind of mistake."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest

from vfsfuse.recording import recording as kinds
from vfsfuse.recording.reading import parse, read
from vfsfuse.recording.recording import (
    NO_DEVICE,
    Event,
    Irq,
    RecordedDevice,
    Recording,
    RecordingError,
    Region,
)
from vfsfuse.recording.writing import FIRST, lines, write

UUID = "11111111-2222-3333-4444-555555555555"
INFO = bytes.fromhex("14000000") + bytes(16)
ANSWER = bytes.fromhex("1400000003000000090000000500000000000000")


def card() -> RecordedDevice:
    return RecordedDevice(
        *(UUID, 3, 9, 5, 2),
        {0: Region(0, 4096, 3), 4: Region(4, 4096, 7, bytes(range(16))), 7: Region(7, 256, 3)},
        {2: Irq(2, 2, 9), 0: Irq(0, 1, 7)},
        bytes.fromhex("f41a0011") + bytes(252),
        {(0, 0x14, 4): "COMMAND", (7, 0, 2): "vendor id, # of it"},
    )


def events() -> list[Event]:
    """One event of each shape that a line has."""
    mapping = Event(0.5, NO_DEVICE, kinds.IOCTL, "VFIO_CHECK_EXTENSION", "container", argument=3, result=1)
    return [
        Event(0.0, NO_DEVICE, kinds.OPEN, "/dev/vfio/2", kinds.GROUP),
        Event(0.000125, NO_DEVICE, kinds.OPEN, 'a path "with" \n#\u202e\udcff', kinds.IOMMUFD, errno=2),
        mapping,
        Event(1, 0, kinds.IOCTL, "VFIO_DEVICE_GET_INFO", before=INFO, after=ANSWER),
        Event(1, 0, kinds.IOCTL, "VFIO_DEVICE_RESET", errno=19),
        Event(1, 0, kinds.IOCTL, "0x3b99", before=b"\x01", after=b"", result=-7),
        Event(1, 0, kinds.READ, region=0, offset=0x18, size=4, data=b"\1\0\0\0"),
        Event(1, 0, kinds.READ, region=0, offset=0xFFC, size=8, data=b"\1\0\0\0"),
        Event(1, 0, kinds.READ, region=9, offset=0, size=100, data=bytes(100)),
        Event(1, 0, kinds.READ, region=0, offset=4096, size=4, errno=22),
        Event(1, 0, kinds.WRITE, region=0, offset=0x14, size=4, data=b"\1\0\0\0", result=4),
        Event(1, 0, kinds.WRITE, region=0, offset=0x14, size=70, data=bytes(range(70)), result=64),
        Event(1, 0, kinds.WRITE, region=0, offset=0x14, size=8, data=bytes(8), errno=4000),
        Event(1, 0, kinds.INTERRUPT, "MSIX", vector=1),
        Event(1, 0, kinds.DMA, "read", iova=1 << 63, size=300, data=b"x" * 200 + bytes(range(100))),
        Event(1, 0, kinds.DMA, "write", iova=0, size=9 << 20, data=b"y" * kinds.MOST_DATA),
        Event(1, 0, kinds.DMA, "pin", iova=4096, size=8192, errno=14),
        Event(1, 0, kinds.RESET),
        Event(1, 0, kinds.MMAP, region=4, size=4096),
        Event(123456.789012, 0, kinds.CLOSE),
    ]


@functools.cache
def written() -> tuple[str, ...]:
    return tuple(lines(whole()))


def whole() -> Recording:
    devices = [card(), RecordedDevice("0000:86:00.0")]
    return Recording("host", ("./driver", "", "-v 2", "#"), True, devices, events())


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a recording"
    write(whole(), path)
    found = read(path)
    assert found == whole()
    assert found.origin == str(path)
    assert list(lines(found)) == path.read_text().splitlines()


def test_each_event_knows_its_line(tmp_path: Path) -> None:
    text = written()
    for event in parse(text).events:
        assert f" {event.kind}" in text[event.line - 1]


@pytest.mark.parametrize("seed", range(20))
def test_random_data_survive(seed: int) -> None:
    chosen = random.Random(seed)
    size = chosen.choice((0, 1, 2, 3, 4, 8, 31, 33, 63, 64, 65, 500))
    data = b"".join(bytes([chosen.randrange(256)]) * chosen.choice((1, 1, 63, 64, 65)) for _ in range(size))
    event = Event(0, 0, kinds.DMA, "read", size=len(data), data=data)
    made = Recording(devices=[card()], events=[event])
    assert parse(lines(made)) == made


@pytest.mark.parametrize("seed", range(40))
def test_any_device_can_be_written_and_read(seed: int) -> None:
    """Whatever is in its configuration space, in its capabilities and in the structs of ioctls."""
    chosen = random.Random(seed)
    size = chosen.choice((0, 63, 64, 128, 256, 300, 4096))
    config = chosen.choice(
        (chosen.randbytes(size), bytes(chosen.choices((0, 0, 1, 5, 9, 16, 64, 255), k=size)))
    )
    made = RecordedDevice("x", chosen.getrandbits(32), 255, 5, None, {}, {}, config)
    made.regions = {
        index: Region(index, 4096, chosen.getrandbits(4), chosen.randbytes(40)) for index in range(9)
    }
    made.names = {(7, chosen.randrange(300), chosen.choice((1, 3, 8, 100))): "N" for _ in range(4)}
    calls = (
        "VFIO_DEVICE_GET_REGION_INFO",
        "VFIO_DEVICE_SET_IRQS",
        "VFIO_DEVICE_FEATURE",
        "IOMMU_HWPT_ALLOC",
        "0x1",
    )
    ioctls = [
        Event(0, 0, kinds.IOCTL, name, before=chosen.randbytes(size), after=chosen.randbytes(size))
        for name in calls
        for size in range(0, 60, 7)
    ]
    reads = [
        Event(0, 0, kinds.READ, region=7, offset=offset, size=4, data=chosen.randbytes(4))
        for offset in range(0, 300, 4)
    ]
    recording = Recording(devices=[made], events=[*ioctls, *reads])
    assert parse(lines(recording)) == recording


def test_lines_say_what_they_mean() -> None:
    text = "\n".join(written())
    for line in (
        "region BAR0 size=0x1000 flags=0x3  # READ|WRITE",
        "device 0 11111111-2222-3333-4444-555555555555 flags=0x3 regions=9 irqs=5 group=2  # RESET|PCI",
        "irq MSIX count=2 flags=0x9  # EVENTFD|NORESIZE",
        "register BAR0 0x14 4 COMMAND",
        "1.000000 0 write BAR0 0x14 4 = 0x1  # COMMAND",
        "1.000000 0 read BAR0 0x18 4 = 0x1",
        "1.000000 0 read region9 0x0 100 = 00*100",
        "1.000000 0 read BAR0 0x1000 4 ! EINVAL",
        "1.000000 0 interrupt MSIX 1",
        "0.500000 container ioctl VFIO_CHECK_EXTENSION argument=0x3 = 1  # VFIO_TYPE1v2_IOMMU",
    ):
        assert f"{line}\n" in text, line
    assert "num_regions=9" in text


def test_comments_blanks_and_order_of_options_do_not_matter() -> None:
    head = [FIRST, "# a comment", "  source   host # so", "", "device 0 x irqs=1 regions=1"]
    found = parse([*head, "irq INTX flags=7 count=1", "dialogue", "  0.000001  0  reset  # done"])
    assert found.source == "host"
    assert found.devices[0].irqs == {0: Irq(0, 1, 7)}
    assert found.events == [Event(0.000001, 0, kinds.RESET)]


HEAD = [FIRST, "device 0 x regions=9 irqs=5"]
ROWS = {
    "sauce lab": "sauce is not known here",
    "source moon": "moon is none of lab, host",
    "mmap": "0 values in place of 1",
    "device 2 y": "this is device 1, not 2",
    "device 1 x": "two devices x",
    "device 1 y regions=257": "257 is too much",
    "device 1 y colour=red": "colour=red is not known here",
    "region BAR9 size=1": "BAR9 is no region",
    "region region3 size=1": "region3 is no region",
    "region region9 size=1": "the device has not so many regions",
    "region BAR0 size=-1": "-1 is no number",
    "region BAR0 size=0x10000000001": "too much",
    "region BAR0 capabilities=123": "123 is no data",
    "irq MSIX count=65537": "too much",
    "config 0x010 00": "begins at 0x0",
    "config 0x000 " + "00" * 4097: "more data than 4096 bytes",
    'register BAR0 0 4 "a': "no quoted text",
    "register BAR0 0 4": "3 values in place of 4",
    "dialogue 1": "1 is too much here",
    "0.000000 0 reset": "0.000000 is not known here",
}
EVENTS = {
    "0 0 reset": "0 is no time",
    "0.5 0 reset": "0.5 is no time",
    "-0.500000 0 reset": "is no time",
    "0.000000 1 reset": "there is no device 1",
    "0.000000 moon reset": "moon is no number",
    "0.000000 0": "the line ends too early",
    "0.000000 0 dance": "dance is no kind of event",
    "0.000000 0 reset now": "now is too much here",
    "0.000000 0 read BAR0": "the line ends too early",
    "0.000000 0 read BAR0 0x0 4 = 0x100000000": "is no value of 4 bytes",
    "0.000000 0 read BAR0 0x0 3 = 0x1": "is no value of 3 bytes",
    "0.000000 0 read BAR0 0x0 3 = 00112233": "4 bytes of data for 3",
    "0.000000 0 read BAR0 0x0 4 = 0x1 0x2": "2 values in place of 1",
    "0.000000 0 read BAR0 0x0 4 ! EMOON": "EMOON is no errno",
    "0.000000 0 dma read 0x0 99999999 = 00*99999999": "more data than",
    "0.000000 0 dma read 0x10000000000000000 4": "is no number",
    "0.000000 0 dma dance 0x0 4": "dance is none of",
    "0.000000 0 ioctl X": "an ioctl has a result",
    "0.000000 0 ioctl X = 0 ! EINVAL": "an ioctl has a result",
    "0.000000 0 ioctl X before=0 = 0": "0 is no data",
    "0.000000 0 interrupt MSIX 65537": "too much",
    "| 00": "no event with data comes before",
}


@pytest.mark.parametrize(("row", "says"), ROWS.items())
def test_a_wrong_row_is_an_error_with_its_place(row: str, says: str) -> None:
    with pytest.raises(RecordingError, match=r"^a\.rec:3: ") as caught:
        parse([*HEAD, row], "a.rec")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("line", "says"), EVENTS.items())
def test_a_wrong_event_is_an_error_with_its_place(line: str, says: str) -> None:
    with pytest.raises(RecordingError, match=r"^a\.rec:4: ") as caught:
        parse([*HEAD, "dialogue", line], "a.rec")
    assert says in str(caught.value)


def test_what_is_no_recording_says_so() -> None:
    for text, says in ((["#!/bin/sh"], "a.rec:1: this is no recording"), ([], "a.rec: the file is empty")):
        with pytest.raises(RecordingError) as caught:
            parse(text, "a.rec")
        assert says in str(caught.value)
    with pytest.raises(RecordingError, match="ends before its line 'dialogue'"):
        parse(HEAD, "a.rec")


def test_rows_of_data_end_with_the_size() -> None:
    event = "0.000000 0 dma read 0x0 4"
    with pytest.raises(RecordingError, match=r":6: the event has 4 bytes"):
        parse([*HEAD, "dialogue", event, "| 00112233", "| 44"], "a.rec")
    with pytest.raises(RecordingError, match=r":5: the event has 4 bytes"):
        parse([*HEAD, "dialogue", f"{event} = 0x1", "| 44"], "a.rec")


def test_what_a_file_makes_of_memory_is_bounded() -> None:
    """A short file that says that it has many data."""
    row = f"0.000000 0 dma read 0x0 {kinds.MOST_DATA} = 00*{kinds.MOST_DATA}"
    count = kinds.MOST_TOTAL // kinds.MOST_DATA
    with pytest.raises(RecordingError, match=rf":{4 + count}: .* bytes of data"):
        parse([*HEAD, "dialogue", *[row] * (count + 1)], "a.rec")


@pytest.mark.parametrize("seed", range(50))
def test_a_damaged_file_is_read_or_refused(seed: int) -> None:
    """Whatever becomes of the text, nothing else than RecordingError is raised."""
    chosen = random.Random(seed)
    text = bytearray("\n".join(line[:200] for line in written()), "utf-8", "replace")
    for _ in range(chosen.randrange(1, 8)):
        at = chosen.randrange(len(FIRST), len(text))
        text[at : at + chosen.randrange(3)] = chosen.randbytes(chosen.randrange(3))
    try:
        parse(text.decode(errors="replace").splitlines(), "a.rec")
    except RecordingError as error:
        assert str(error).startswith("a.rec:")
