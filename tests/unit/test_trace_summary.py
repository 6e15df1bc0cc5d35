# SPDX-License-Identifier: Apache-2.0
"""What a trace adds up to."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given

from tests.unit.test_trace_text import RECORDS
from vfsfuse.trace.record import Record
from vfsfuse.trace.summary import Summary


def record(kind: str, name: str, arguments: dict[str, Any] | None = None, **fields: Any) -> Record:
    said = {"number": 1, "time": 0.0, "subject": "vgpu0", "duration": 0.0, "pid": 12, **fields}
    return Record(kind=kind, name=name, arguments=arguments or {}, **said)


def access(name: str, register: str, **fields: Any) -> Record:
    said = {"region": 0, "offset": 0, "size": 4, "data": bytes(4), "register": register}
    return record("region", name, {key: value for key, value in said.items() if value != ""}, **fields)


def summed(*records: Record) -> Summary:
    summary = Summary()
    for each in records:
        summary.add(each)
    return summary


DIALOGUE = (
    record("ioctl", "VFIO_DEVICE_RESET", {"arg": 0}, duration=0.5, result=0),
    record("ioctl", "VFIO_DEVICE_RESET", {"arg": 0}, duration=0.25, errno=25),
    *(access("read", "STATUS", duration=0.05) for _ in range(4)),
    access("write", "CTRL", duration=0.05),
    access("write", ""),
    record("dma", "read", {"iova": 0, "size": 4096}),
    record("dma", "write", {"iova": 0, "size": 100}),
    record("dma", "write", {"iova": 0, "size": 100}, errno=14, error="no mapping"),
    *(record("interrupt", "MSIX", {"vector": vector}) for vector in (1, 1, 0)),
    record("store", "remove", {"data": b"1"}, subject="sys/class/vgpu/vgpu0"),
    record("mmap", "mmap", {"region": 2, "size": 4096}, duration=None),
    record("open", "close", duration=None, number=7),
    record("open", "close", number=7),
    record("ioctl", "VFIO_DEVICE_RESET", {"arg": 0}, duration=None, number=8),
    record("open", "open", fault="slow,late", delayed=True, duration=None, number=9),
    record("open", "open", fault="slow,late", delayed=True, number=9),
    record("open", "open", fault="slow", errno=13),
    record("lost", "lost", {"count": 1204}, duration=None, subject=""),
)
TABLE = """\
% time  seconds usecs/call  calls errors call
------ -------- ---------- ------ ------ -----------------
 75.00 0.750000     375000      2      1 VFIO_DEVICE_RESET
 20.00 0.200000      50000      4        BAR0 read
  5.00 0.050000      25000      2        BAR0 write
  0.00 0.000000          0      3        interrupt MSIX
  0.00 0.000000          0      2      1 DMA write
  0.00 0.000000          0      2      1 open
  0.00 0.000000          0      1        DMA read
  0.00 0.000000          0      1        close
  0.00 0.000000          0      1        mmap
  0.00 0.000000          0      1        store remove
------ -------- ---------- ------ ------ -----------------
100.00 1.000000      52632     19      3 total

 reads writes register
------ ------ -----------------
     4      0 vgpu0 BAR0 STATUS
     0      1 vgpu0 BAR0 CTRL

DMA read DMA written faults device
-------- ----------- ------ ------
    4096         100      1 vgpu0

interrupts vector
---------- ------------
         2 vgpu0 MSIX 1
         1 vgpu0 MSIX 0

  hits fault rule
------ ----------
     2 slow
     1 late

calls still under way: 1

1,204 records were lost and are not counted: the reader was slow"""


def test_the_sums_as_text() -> None:
    assert summed(*DIALOGUE).table() == TABLE


def test_the_sums_as_json() -> None:
    said = json.loads(json.dumps(summed(*DIALOGUE).as_json()))
    assert said["calls"][0] == {"name": "VFIO_DEVICE_RESET", "calls": 2, "errors": 1, "seconds": 0.75}
    assert said["registers"][0] == {
        **{"subject": "vgpu0", "region": "BAR0", "register": "STATUS", "reads": 4, "writes": 0}
    }
    assert said["interrupts"][0] == {"subject": "vgpu0", "name": "MSIX", "vector": 1, "count": 2}
    assert said["devices"][0] == {
        **{"subject": "vgpu0", "calls": 18, "errors": 3, "dma_read_bytes": 4096, "dma_write_bytes": 100},
        **{"dma_faults": 1, "interrupts": 3},
    }
    assert said["faults"] == [{"rule": "slow", "hits": 2}, {"rule": "late", "hits": 1}]
    assert (said["lost"], said["unfinished"]) == (1204, 1)


def test_nothing_adds_up_to_a_table_too() -> None:
    assert summed().table().splitlines()[-1] == "100.00 0.000000          0      0        total"


def test_a_client_that_makes_up_names_fills_no_memory() -> None:
    summary = summed(*(record("ioctl", f"{number:#x}", {"arg": 0}) for number in range(20_000)))
    said = summary.as_json()["calls"]
    assert len(said) == 10_001
    assert max(row["calls"] for row in said) == 10_000
    rules = summed(*(record("reset", "reset", fault=f"r{number}") for number in range(20_000))).faults
    assert len(rules) == 10_001
    assert {row["name"] for row in said if row["calls"] > 1} == {"(others)"}


def test_times_that_cannot_be_add_nothing() -> None:
    whole = (record("reset", "reset", duration=took) for took in (math.inf, math.nan, 10**400, 0.5))
    assert summed(*whole).as_json()["calls"][0] == {"name": "reset", "calls": 4, "errors": 0, "seconds": 0.5}


def test_times_that_add_up_to_infinity_are_counted_as_far_as_they_go() -> None:
    said = summed(*(record("reset", "reset", duration=1e308) for _ in range(2))).as_json()["calls"][0]
    assert (said["calls"], said["seconds"]) == (2, 1e308)


def test_the_registers_that_are_used_most_are_shown() -> None:
    table = summed(*(access("read", f"R{i}") for i in range(30)), access("read", "R29")).table()
    assert "     2      0 vgpu0 BAR0 R29\n     1      0 vgpu0 BAR0 R0\n" in table
    assert table.endswith("... and 10 more")


@given(RECORDS)
def test_no_record_makes_it_raise(said: Record) -> None:
    summary = summed(said, said)
    assert all(each.isprintable() for each in summary.table().splitlines())
    json.dumps(summary.as_json(), allow_nan=False)
