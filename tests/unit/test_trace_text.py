# SPDX-License-Identifier: Apache-2.0
"""Records of a trace as lines of text and as objects of JSON, also records of a hostile server."""

from __future__ import annotations

import json
import math
import re
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsfuse.trace.asjson import as_json
from vfsfuse.trace.record import KINDS, Record
from vfsfuse.trace.telling import TELLERS
from vfsfuse.trace.text import Lines, line

VGPU = "vgpu0"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def record(kind: str, name: str, arguments: dict[str, Any] | None = None, **fields: Any) -> Record:
    client = {"pid": 12, "tid": 12, "comm": "qemu"} if kind not in ("dma", "interrupt", "lifecycle") else {}
    said = {"number": 1, "time": 1_700_000_000.25, "subject": VGPU, "duration": 0.000012, **client}
    return Record(kind=kind, name=name, arguments=arguments or {}, **{**said, **fields})


STATUS = {"arg": 5, "before": struct.pack("II", 8, 0), "after": struct.pack("II", 8, 1)}
CTRL = {"region": 0, "offset": 0, "size": 4, "register": "CTRL", "data": b"\1\0\0\0"}
LINES = [
    (
        record("ioctl", "VFIO_GROUP_GET_STATUS", STATUS, subject="group 7", result=0),
        "qemu[12] group-7 VFIO_GROUP_GET_STATUS {argsz=8} => {flags=VFIO_GROUP_FLAGS_VIABLE} = 0",
    ),
    (
        record("ioctl", "VFIO_GROUP_GET_STATUS", STATUS, result=0, fault="slow", delayed=True),
        "qemu[12] vgpu0 VFIO_GROUP_GET_STATUS {argsz=8} => {flags=VFIO_GROUP_FLAGS_VIABLE} = 0 "
        "(DELAYED slow)",
    ),
    (
        record("region", "read", CTRL, errno=5, fault="first,a\nb"),
        "qemu[12] vgpu0 BAR0 read CTRL (0x0, 4 bytes) = -1 EIO (Input/output error) (INJECTED first,a\\x0ab)",
    ),
    (
        record("interrupt", "MSIX", {"vector": 1}, fault="lost"),
        "- vgpu0 interrupt MSIX vector 1 (INJECTED lost)",
    ),
    (
        record("ioctl", "VFIO_CHECK_EXTENSION", {"arg": 3}, subject="container", result=1),
        "qemu[12] container VFIO_CHECK_EXTENSION VFIO_TYPE1v2_IOMMU = 1",
    ),
    (
        record("ioctl", "0x3b99", {"arg": 5}, errno=25, tid=14),
        "qemu[12/14] vgpu0 _IOC(_IOC_NONE, 0x3b, 0x99, 0x0) 0x5 = -1 ENOTTY (Inappropriate ioctl for device)",
    ),
    (
        record("region", "read", {**CTRL, "offset": 24, "register": "STATUS"}, result=4),
        "qemu[12] vgpu0 BAR0 read STATUS (0x18, 4 bytes) = 0x1",
    ),
    (
        record("region", "read", {"region": 9, "offset": 24, "size": 1}, result=b"\xff"),
        "qemu[12] vgpu0 region9 read 0x18 (1 byte) = 0xff",
    ),
    (record("region", "write", CTRL, result=4), "qemu[12] vgpu0 BAR0 write CTRL (0x0, 4 bytes) = 0x1"),
    (
        record("region", "write", CTRL, errno=5, error="ZeroDivisionError: division by zero (copier.py:31)"),
        "qemu[12] vgpu0 BAR0 write CTRL (0x0, 4 bytes) = 0x1 = -1 EIO (Input/output error): "
        "ZeroDivisionError: division by zero (copier.py:31)",
    ),
    (
        record("region", "read", {"region": 7, "offset": 0, "size": 256, "data": bytes(64)}, result=256),
        f"qemu[12] vgpu0 config read 0x0 (256 bytes) = {'00 ' * 16}..",
    ),
    (
        record("region", "read", {"region": 6, "offset": 0, "size": 3, "data": b"\x55\xaa\0"}, result=3),
        "qemu[12] vgpu0 ROM read 0x0 (3 bytes) = 55 aa 00",
    ),
    (
        record("dma", "write", {"iova": 0x1000, "size": 4, "data": b"\x0d\xf0\xad\x0b"}),
        "- vgpu0 DMA write 4 bytes at 0x1000 = 0xbadf00d",
    ),
    (
        record("dma", "read", {"iova": 0x1000, "size": 8192}, errno=14, error="no mapping"),
        "- vgpu0 DMA read 8192 bytes at 0x1000 = -1 EFAULT (Bad address): no mapping",
    ),
    (record("dma", "pin", {"iova": 0, "size": 4096}), "- vgpu0 DMA pin 4096 bytes at 0x0"),
    (record("interrupt", "MSIX", {"vector": 3}), "- vgpu0 interrupt MSIX vector 3"),
    (
        record("store", "remove", {"data": b"1\n"}, subject="sys/class/vgpu/vgpu0", result=2),
        'qemu[12] sys/class/vgpu/vgpu0 store remove "1\\n" = 2',
    ),
    (
        record("lifecycle", "create", {"arguments": ["vgpu-4", "x=1"]}, subject="0000:86:00.0"),
        "- 0000:86:00.0 create vgpu-4 x=1",
    ),
    (record("open", "open", {"path": "dev/vfio/12"}), 'qemu[12] vgpu0 open "dev/vfio/12"'),
    (record("open", "close", comm=""), "[12] vgpu0 close"),
    (record("reset", "reset"), "qemu[12] vgpu0 reset"),
    (
        record("mmap", "mmap", {"region": 2, "size": 1 << 24}),
        "qemu[12] vgpu0 mmap BAR2 (0x1000000 bytes): loads and stores through this mapping are not shown",
    ),
    (record("reset", "reset", error="RuntimeError: no"), "qemu[12] vgpu0 reset = failed: RuntimeError: no"),
    (record("reset", "reset", errno=9999), "qemu[12] vgpu0 reset = -1 errno 9999"),
    (record("dream", "of\nsheep", result=3), "qemu[12] vgpu0 dream of\\x0asheep = 3"),
]


@pytest.mark.parametrize(("said", "expected"), LINES, ids=[f"{each.kind}-{each.name}" for each, _ in LINES])
def test_the_line_of_a_record(said: Record, expected: str) -> None:
    clock, _, rest = line(said).partition(" ")
    assert clock == "22:13:20.250000"
    assert rest == expected + (" <0.000012>" if said.kind != "mmap" else "")


def test_every_kind_has_a_teller_and_a_line() -> None:
    assert TELLERS.keys() == set(KINDS)
    assert {said.kind for said, _ in LINES} >= set(KINDS) - {"lost"}


def test_the_line_of_lost_records() -> None:
    said = [record("lost", "lost", {"count": count}, subject="", pid=0, tid=0) for count in (1204, 1)]
    assert [line(each).partition(" ")[2] for each in said] == [
        "... 1,204 records are lost here: the reader was slow",
        "... 1 record is lost here: the reader was slow",
    ]


def test_a_call_that_is_under_way_is_told_as_unfinished_and_resumed() -> None:
    begun = record("ioctl", "VFIO_DEVICE_RESET", {"arg": 0}, duration=None, number=9)
    ended = record("ioctl", "VFIO_DEVICE_RESET", {"arg": 0}, duration=1.5, number=9, result=0)
    lines = Lines()
    assert [lines.line(each).partition(" ") for each in (begun, ended, ended)] == [
        ("22:13:20.250000", " ", "qemu[12] vgpu0 VFIO_DEVICE_RESET <unfinished ...>"),
        ("22:13:21.750000", " ", "qemu[12] vgpu0 <... resumed> VFIO_DEVICE_RESET = 0 <1.500000>"),
        ("22:13:20.250000", " ", "qemu[12] vgpu0 VFIO_DEVICE_RESET = 0 <1.500000>"),
    ]


def test_a_call_that_hangs_is_told_with_its_rule() -> None:
    stuck = record("store", "remove", {"data": b"1"}, duration=None, fault="stuck", delayed=True)
    assert line(stuck).endswith('store remove "1" (DELAYED stuck) <unfinished ...>')


def test_unfinished_calls_that_never_end_do_not_add_up() -> None:
    lines = Lines()
    for number in range(20_000):
        lines.line(record("reset", "reset", duration=None, number=number))
    assert "resumed" not in lines.line(record("reset", "reset", number=0))
    assert "resumed" in lines.line(record("reset", "reset", number=19_999))


def test_colours_are_for_what_is_done_and_what_has_failed() -> None:
    failed = record("ioctl", "VFIO_DEVICE_RESET", {"arg": 0}, errno=25)
    assert line(failed, colours=True).partition(" vgpu0 ")[2] == (
        "\x1b[36mVFIO_DEVICE_RESET\x1b[0m = \x1b[31m-1 ENOTTY (Inappropriate ioctl for device)\x1b[0m "
        "<0.000012>"
    )
    hit = record("interrupt", "MSIX", {"vector": 1}, fault="lost")
    assert "\x1b[31m(INJECTED lost)\x1b[0m <" in line(hit, colours=True)
    for said, _ in LINES:
        plain = re.sub(r"\x1b\[(?:3[1-6]|0)m", "", line(said, colours=True))
        assert plain == line(said)


def test_text_of_clients_reaches_no_terminal_unescaped() -> None:
    evil = "\x1b[2J \u202e\\\n\ud800é"
    escaped = "\\x1b[2J\\x20\\u202e\\\\\\x0a\\ud800é"
    said = record(
        "store", evil, {"data": evil.encode("utf-8", "replace")}, subject=evil, comm=evil, error=evil
    )
    shown = line(said)
    assert shown.isprintable()
    assert shown.split(" ")[1:3] == [f"{escaped}[12]", escaped.replace("\\x20", "-")]
    assert shown.split(" ")[4] == escaped
    assert line(record("open", "open", {"path": 'a"b' * 99})).count('\\"') == 21


def test_a_time_that_cannot_be_is_question_marks() -> None:
    for when in (math.inf, math.nan, 1e300, -1e300, 10**400):
        assert line(record("reset", "reset", time=when)).startswith("??:??:??.?????? qemu[12]")
    assert line(record("reset", "reset", duration=10**400)).endswith("reset <inf>")


def test_a_record_as_json() -> None:
    said = as_json(record("ioctl", "VFIO_GROUP_GET_STATUS", STATUS, errno=22))
    assert json.loads(json.dumps(said)) == {
        **{"number": 1, "time": 1_700_000_000.25, "duration": 0.000012, "kind": "ioctl", "subject": VGPU},
        **{"name": "VFIO_GROUP_GET_STATUS", "pid": 12, "tid": 12, "comm": "qemu", "result": None},
        **{"errno": 22, "errno_name": "EINVAL", "error": "", "fault": "", "delayed": False},
        "arguments": {"arg": 5, "before": "0800000000000000", "after": "0800000001000000"},
        "before": {"argsz": 8},
        "after": {"flags": ["VFIO_GROUP_FLAGS_VIABLE"]},
    }
    said = as_json(record("region", "read", CTRL, result=b"\1\0\0\0"))
    assert (said["region"], said["value"], said["result"]) == ("BAR0", 1, "01000000")
    assert as_json(record("dma", "read", {"iova": 0, "size": 3, "data": b"abc"}))["value"] is None
    assert as_json(record("mmap", "mmap", {"region": 8, "size": 1}))["region"] == "VGA"


# ---- records that nobody should send ----

VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=12)
    | st.lists(st.integers() | st.text(max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.floats(), max_size=2)
)
ARGUMENTS = st.dictionaries(
    st.sampled_from(
        [
            *("arg", "before", "after", "region", "offset", "size", "data", "register", "iova", "vector"),
            *("path", "count", "arguments", "name"),
        ]
    )
    | st.text(max_size=4),
    VALUES,
    max_size=8,
)
RECORDS = st.builds(
    Record,
    number=st.integers(),
    time=st.floats() | st.integers(),
    kind=st.sampled_from(KINDS) | st.text(max_size=4),
    subject=st.text(max_size=8),
    name=st.sampled_from(["read", "write", "VFIO_DEVICE_GET_INFO"]) | st.text(max_size=8),
    arguments=ARGUMENTS,
    duration=st.none() | st.floats() | st.integers(),
    pid=st.integers(),
    tid=st.integers(),
    comm=st.text(max_size=8),
    result=st.none() | st.integers() | st.text(max_size=8) | st.binary(max_size=8),
    errno=st.integers(-1, 200) | st.integers(),
    error=st.text(max_size=8),
    fault=st.text("a,\n\x1b ", max_size=8) | st.text(max_size=8),
    delayed=st.booleans(),
)


@given(RECORDS)
def test_no_record_makes_it_raise(said: Record) -> None:
    assert line(said).isprintable()
    assert line(said, resumed=True).isprintable()
    json.dumps(as_json(said), allow_nan=False)
