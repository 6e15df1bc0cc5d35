# SPDX-License-Identifier: Apache-2.0
"""Records of a trace become a recording: their order and devices, what is left out, and what no lab says."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from vfsfuse.recording import recording as kinds
from vfsfuse.recording.collecting import Collector
from vfsfuse.recording.recording import Event, RecordingError
from vfsfuse.recording.writing import lines
from vfsfuse.trace.record import DEVICE, Record, from_line

CARD = "0000:01:00.0"
DESCRIBED: dict[str, Any] = {
    **{"flags": 3, "num_regions": 9, "num_irqs": 5, "group": 1, "config": "f41a"},
    **{"regions": [[0, 4096, 3, ""]], "irqs": [[0, 1, 7]], "registers": [[0, 4, 4, "CTRL"]]},
}


def record(number: int, kind: str, name: str, subject: str = CARD, **more: Any) -> Record:
    known = {"duration": 0.5, "errno": 0, "result": None, "time": float(number)}
    said = {key: more.pop(key, default) for key, default in known.items()}
    return from_line(Record(number, said.pop("time"), kind, subject, name, more, **said).to_line())


def described(number: int = 0, subject: str = CARD, **more: Any) -> Record:
    return record(number, DEVICE, "describe", subject, **{**DESCRIBED, **more})


def write(number: int, **more: Any) -> Record:
    return record(number, "region", "write", region=0, offset=4, size=4, data=b"abcd", result=4, **more)


def collected(*records: Record) -> list[Event]:
    made = Collector()
    for each in records:
        made.add(each)
    return made.recording().events


def shape(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.name) for event in events]


def test_events_are_in_the_order_in_which_they_began() -> None:
    found = collected(
        described(),
        record(3, "interrupt", "MSIX", vector=2),
        write(2),
        record(4, "dma", "read", iova=1, size=1),
    )
    assert shape(found) == [("write", ""), ("interrupt", "MSIX"), ("dma", "read")]
    assert [event.time for event in found] == [0.0, 1.0, 2.0]
    assert (found[0].data, found[0].result, found[1].vector) == (b"abcd", 4, 2)


def test_a_device_is_described_once_and_before_or_after_its_events() -> None:
    made = Collector(["./driver"])
    for each in (write(5), described(1), described(9, flags=0), write(10)):
        made.add(each)
    first = made.recording()
    assert [device.flags for device in first.devices] == [3] and len(first.events) == 2
    assert made.recording() == first  # it can be asked for again
    assert first.devices[0].names == {(0, 4, 4): "CTRL"} and first.command == ("./driver",)
    made.add(write(2))
    assert [event.time for event in made.recording().events] == [0.0, 3.0, 8.0]
    assert [event.time for event in first.events] == [0.0, 5.0]


def test_what_is_no_part_of_the_dialogue() -> None:
    found = collected(
        described(),
        write(1, subject="0000:02:00.0"),
        record(2, "region", "read", region=7, offset=0, size=4, sysfs=True, data=b"1234"),
        record(3, "ioctl", "0x5401", sysfs=True, arg=1, errno=25),
        record(4, "open", "open", path=f"sys/bus/pci/devices/{CARD}/config"),
        record(5, "open", "close", path=f"sys/bus/pci/devices/{CARD}/config"),
        record(6, "open", "open", path=".device-abc"),
        record(7, "store", "unbind", "pci/drivers/x", data=b"x"),
        write(8, duration=None),
    )
    assert found == []


def test_a_reset_within_a_call_is_that_call() -> None:
    found = collected(
        described(),
        record(2, "reset", "reset"),  # within the open, which ends later
        record(1, "open", "open", path=".device-abc"),
        record(4, "reset", "reset"),
        record(3, "ioctl", "VFIO_DEVICE_RESET", arg=0, result=0),
        record(5, "reset", "reset"),  # of somebody else
        record(7, "reset", "reset"),
        record(6, "open", "close", path=".device-abc"),
    )
    assert shape(found) == [("ioctl", "VFIO_DEVICE_RESET"), ("reset", ""), ("close", "")]


def test_files_have_their_kinds() -> None:
    found = collected(
        record(1, "open", "open", "container", path="dev/vfio/vfio"),
        record(2, "open", "open", "group 7", path="dev/vfio/7"),
        record(3, "open", "open", "dev/vfio/noiommu-0", path="dev/vfio/noiommu-0", errno=errno.EPERM),
        record(4, "open", "open", "iommufd", path="dev/iommu"),
        record(5, "ioctl", "VFIO_SET_IOMMU", "container", arg=3, result=0),
        record(6, "ioctl", "VFIO_GROUP_SET_CONTAINER", "group 7", arg=4096, before=b"\4\0\0\0", result=0),
    )
    assert [event.file for event in found] == ["container", "group", "group", "iommufd", "container", "group"]
    assert found[2].errno == errno.EPERM and found[2].name == "/dev/vfio/noiommu-0"
    assert (found[4].argument, found[5].argument, found[5].after) == (3, 0, b"\4\0\0\0")


def test_lost_records_leave_no_recording() -> None:
    made = Collector()
    made.add(record(0, "lost", "", "", count=3))
    with pytest.raises(RecordingError, match=r"^3 records are missing: the calls came faster"):
        made.recording()


def test_a_device_without_a_description_is_named() -> None:
    made = Collector()
    for each in (write(1), write(2)):
        made.add(each)
    assert made.unknown == [CARD] and made.recording().events == []


@pytest.mark.parametrize(
    "wrong",
    [
        record(1, "region", "read", region=0, offset=-1, size=4),
        record(1, "region", "read", offset=0, size=4),
        record(1, "region", "write", region=0, offset=0, size=4),
        record(1, "interrupt", "MSIX", vector="1"),
        record(1, "dma", "read", iova=None, size=4),
        record(1, "mmap", "mmap", region=0),
        described(regions=[[0, 1, 2]]),
        described(config="xyz"),
        described(registers=[["a", 0, 0, "b"]]),
        described(flags="3"),
    ],
)
def test_a_record_that_no_lab_makes_is_an_error(wrong: Record) -> None:
    with pytest.raises(RecordingError, match=r"^the lab "):
        Collector().add(wrong)


def test_every_kind_of_event_can_be_written() -> None:
    made = Collector()
    for each in (
        described(),
        write(1),
        record(2, "mmap", "mmap", region=0, size=4096),
        record(3, "dma", "pin", iova=4096, size=4096),
        record(4, "reset", "reset"),
    ):
        made.add(each)
    found = made.recording()
    assert {event.kind for event in found.events} == {kinds.WRITE, kinds.MMAP, kinds.DMA, kinds.RESET}
    assert len(list(lines(found))) > len(found.events)
