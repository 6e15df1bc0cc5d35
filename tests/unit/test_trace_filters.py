# SPDX-License-Identifier: Apache-2.0
"""Which records a filter lets through, and what the server does with the options of a reader."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.unit.fakes import fails
from vfsfuse.observe.clients import Client
from vfsfuse.observe.feed import MOST_BYTES, MOST_OPTIONS, Feed, Options
from vfsfuse.observe.told import Told, cut
from vfsfuse.trace.filters import EVERYTHING, MOST_KEPT, Filter, is_about
from vfsfuse.trace.record import DEVICE, KINDS, Record, TraceError

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e02"
GPU = "0000:86:00.0"


def record(kind: str = "region", subject: str = UUID, **fields: Any) -> Record:
    return Record(1, 0.0, kind, subject, "read", **fields)


@pytest.mark.parametrize(
    ("subject", "name", "about"),
    [
        (UUID, UUID, True),
        (UUID, UUID.upper(), True),
        (f"{UUID}-0", UUID, True),
        (f"{UUID}-0", f"{UUID}-0", True),
        (f"{UUID}-0", f"{UUID}-1", False),
        (f"{UUID}-0", UUID[:-1], False),
        (GPU, "86:00.0", True),
        (GPU, GPU, True),
        ("0001:86:00.0", "86:00.0", False),
        ("group 1", "group 1", True),
        ("group 11", "group 1", False),
        ("container", "container", True),
        ("iommufd", "container", False),
        (f"sys/devices/pci0000:00/{GPU}/{UUID}", UUID, True),
        (f"sys/devices/pci0000:00/{GPU}/{UUID}", GPU, True),
        (f"sys/devices/pci0000:00/{GPU}/{UUID}", "0000:87:00.0", False),
        ("", UUID, False),
    ],
)
def test_a_subject_is_about_a_device_by_its_names(subject: str, name: str, about: bool) -> None:
    assert is_about(subject, name) is about


@pytest.mark.parametrize(
    ("filter", "found", "matches"),
    [
        (EVERYTHING, record(), True),
        (Filter(devices=[UUID]), record(), True),
        (Filter(devices=[GPU, UUID]), record(), True),
        (Filter(devices=[GPU]), record(), False),
        (Filter(devices=[UUID]), record("lifecycle", "vgpu-4", arguments={"arguments": [UUID]}), True),
        (Filter(devices=[GPU]), record("lifecycle", "vgpu-4", arguments={"arguments": [UUID]}), False),
        (Filter(devices=[UUID]), record("store", "sys/a", arguments={"data": f"{UUID}\n".encode()}), True),
        (Filter(devices=[UUID]), record("store", "sys/a", arguments={"data": f"{UUID}:0:x".encode()}), True),
        (Filter(devices=["86:00.0"]), record("store", "sys/a", arguments={"data": GPU.encode()}), True),
        (Filter(devices=[GPU]), record("store", "sys/a", arguments={"data": b"\xff" * 99}), False),
        (Filter(devices=[UUID]), record("region", "x", arguments={"data": UUID.encode()}), False),
        (Filter(kinds=["region"]), record(), True),
        (Filter(kinds=["dma"]), record(), False),
        (Filter(kinds=["dma"]), record("lost"), True),
        (Filter(pids=[7]), record(pid=7), True),
        (Filter(pids=[7]), record(pid=8), False),
        (Filter(pids=[0]), record("dma"), True),
        (Filter(errnos=["any"]), record(), False),
        (Filter(errnos=["any"]), record(errno=22), True),
        (Filter(errnos=["EINVAL"]), record(errno=22), True),
        (Filter(errnos=["EPERM", "EINVAL"]), record(errno=22), True),
        (Filter(errnos=["EPERM"]), record(errno=22), False),
        (Filter(registers=["CTRL"]), record(), False),
        (Filter(registers=["CTRL"]), record(arguments={"register": "CTRL"}), True),
        (Filter(registers=["CTRL"]), record(arguments={"register": "CTRL+2"}), True),
        (Filter(registers=["CTRL"]), record(arguments={"register": "A+2..CTRL"}), True),
        (Filter(registers=["C*"]), record(arguments={"register": "CTRL"}), True),
        (Filter(registers=["c*"]), record(arguments={"register": "CTRL"}), False),
        (Filter(registers=["STATUS", "?TRL"]), record(arguments={"register": "CTRL"}), True),
        (Filter(registers=["CTRL"]), record(arguments={"register": 7}), False),
        (Filter(kinds=["region"], pids=[7]), record(pid=8), False),
    ],
)
def test_a_filter_lets_through_what_matches_all_of_it(filter: Filter, found: Record, matches: bool) -> None:
    assert filter.matches(found) is matches


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kinds": ["ioctls"]}, "ioctls: there is no such kind"),
        ({"errnos": ["EWHAT"]}, "EWHAT: there is no such errno"),
        ({"errnos": ["errorcode"]}, "errorcode: there is no such errno"),
    ],
)
def test_a_filter_says_what_is_wrong(wrong: Mapping[str, Any], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        Filter(**wrong)


def told(subject: str = UUID, kind: str = "region", pid: int = 7, size: int = 800, fault: str = "") -> Told:
    what = (1, kind, subject, "read", Client(pid, pid, "it"), 0.0, 1.0)
    return Told(*what, {}, b"", b"", None, None, 0, "", None, size, fault)


def options(**said: object) -> Options:
    return Options.parse(json.dumps(said).encode())


def test_the_server_understands_what_a_filter_says() -> None:
    wanted = Filter({UUID}, {"region", "dma"}, errnos=["any"], pids=(7,), injected=["slow*"])
    parsed = Options.parse(wanted.server_side(5).encode())
    assert parsed.kinds == frozenset({"region", "dma"}) and parsed.pids == frozenset({7})
    assert (parsed.devices, parsed.keep, parsed.injected) == ((UUID,), 5, ("slow*",))
    nothing = Options.parse(EVERYTHING.server_side().encode())
    assert (nothing.devices, nothing.kinds, nothing.pids, nothing.injected) == (None, None, None, None)


@pytest.mark.parametrize(
    ("patterns", "fault", "is_seen"),
    [
        (["any"], "", False),
        (["any"], "slow", True),
        (["slow"], "slow", True),
        (["slow"], "slower", False),
        (["slow*"], "slower", True),
        (["lost", "slow"], "first,slow", True),
        (["first,slow"], "first,slow", False),
        ([], "", True),
        ([], "slow", True),
    ],
)
def test_a_call_that_a_rule_has_hit_is_seen_by_its_name(
    patterns: list[str], fault: str, is_seen: bool
) -> None:
    wanted = Filter(injected=patterns)
    assert wanted.matches(record(fault=fault)) is is_seen
    feed = Feed()
    feed.begin(Options.parse(wanted.server_side().encode()))
    assert feed.put(told(fault=fault)) is is_seen


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"7",
        b"[1]",
        b"null",
        b"\xff",
        b'{"keep": 0}',
        b'{"keep": true}',
        b'{"keep": 1.5}',
        b'{"keep": %d}' % (MOST_KEPT + 1),
        b'{"kinds": "dma"}',
        b'{"kinds": ["dmas"]}',
        b'{"kinds": [7]}',
        b'{"devices": [7]}',
        b'{"devices": {"a": 1}}',
        b'{"pids": ["7"]}',
        b'{"pids": [true]}',
        b'{"record": 1}',
        b'{"hide_mmap": "yes"}',
        b'{"what": 1}',
        b"[" * 60000,
        b'{"devices": ["' + b"x" * MOST_OPTIONS + b'"]}',
    ],
)
def test_other_options_are_refused(line: bytes) -> None:

    fails(errno.EINVAL, Options.parse, line)


def test_only_a_reader_that_records_gets_descriptions_of_devices() -> None:
    described = told(kind=DEVICE, pid=0)
    for said, is_wanted in (({}, False), ({"record": True}, True), ({"record": False}, False)):
        assert options(**said).wants(described) is is_wanted
    assert options(record=True, kinds=["region"], pids=[7], devices=[UUID]).wants(described)
    assert not options(record=True, devices=["0000:00:00.0"]).wants(described)
    assert not options(record=True, kinds=["region"]).wants(told(kind="dma"))


def test_a_reader_that_does_not_record_gets_the_beginning() -> None:
    long = told(kind="dma")._replace(data=bytes(5000), size=5600)
    assert len(cut(long).data or b"") == 64 and cut(long).size < long.size
    struct = told(kind="ioctl")._replace(before=bytes(5000), after=bytes(5000), size=9600)
    assert (len(cut(struct).before), len(cut(struct).after)) == (1024, 1024)
    for short in (told(), long._replace(data=b"x"), told(kind="store")._replace(data=bytes(1000))):
        assert cut(short) is short


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_asked_for(kind: str) -> None:
    assert options(kinds=[kind]).wants(told(kind=kind))


def test_a_feed_keeps_the_last_calls_and_counts_the_others() -> None:
    feed = Feed()
    feed.begin(options(keep=3, devices=[UUID]))
    assert not feed.ready and feed.take() is None
    assert not feed.put(told(subject=GPU))
    assert [feed.put(told(pid=pid)) for pid in range(10)] == [True] * 10
    assert feed.take() == 7
    found = [feed.take() for _ in range(3)]
    assert [each.client.pid for each in found if isinstance(each, Told)] == [7, 8, 9]
    assert feed.take() is None


def test_a_feed_takes_no_more_memory_than_it_may() -> None:
    feed = Feed()
    half = MOST_BYTES // 2
    for _ in range(5):
        feed.put(told(size=half))
    assert feed.take() == 3
    assert isinstance(feed.take(), Told) and isinstance(feed.take(), Told)
    assert feed.put(told(size=MOST_BYTES))
    assert isinstance(feed.take(), Told)


def test_a_feed_that_begins_anew_has_lost_nothing() -> None:
    feed = Feed()
    feed.begin(options(keep=1))
    for _ in range(3):
        feed.put(told())
    feed.begin(options())
    assert not feed.ready


@pytest.mark.parametrize("keep", [0, -1, MOST_KEPT + 1])
def test_a_reader_that_keeps_too_much_or_nothing_is_told_so(keep: int) -> None:
    with pytest.raises(TraceError, match="cannot be kept"):
        EVERYTHING.server_side(keep)
