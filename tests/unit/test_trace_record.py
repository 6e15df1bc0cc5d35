# SPDX-License-Identifier: Apache-2.0
"""A record of a trace is the same after its way through a line of JSON; any other line is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsfuse.trace.record import KINDS, Record, TraceError, from_line

TEXT = st.text(max_size=12)
NUMBER = st.integers(0, 2**64 - 1)
SECONDS = st.floats(0, 1e10)
RECORDS = st.builds(
    Record,
    number=NUMBER,
    time=SECONDS,
    kind=st.sampled_from(KINDS),
    subject=TEXT,
    name=TEXT,
    arguments=st.fixed_dictionaries({"arg": NUMBER}, optional={"before": st.binary(), "register": TEXT}),
    duration=st.none() | SECONDS,
    pid=NUMBER,
    tid=NUMBER,
    comm=TEXT,
    result=st.none() | NUMBER | TEXT | st.binary(),
    errno=st.integers(0, 133),
    error=TEXT,
)


@given(RECORDS)
def test_a_record_is_the_same_after_its_way_through_a_line(record: Record) -> None:
    line = record.to_line()
    assert "\n" not in line
    assert from_line(line) == from_line(line.encode()) == record


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "null", "17", "{}", b"\xff", "[" * 100000),
        '{"number":1,"time":2,"kind":"ioctl","subject":"a","name":"b"}',
        '{"number":"1","time":2,"kind":"ioctl","subject":"a","name":"b","arguments":{}}',
        '{"number":1,"time":2,"kind":"ioctl","subject":"a","name":"b","arguments":{"data":"xyz"}}',
        '{"number":1,"time":2,"kind":"ioctl","subject":"a","name":"b","arguments":{"data":7}}',
        '{"number":1,"time":2,"kind":"ioctl","subject":"a","name":"b","arguments":{},"result":{}}',
        '{"number":1,"time":2,"kind":"ioctl","subject":"a","name":"b","arguments":{},"more":1}',
    ],
)
def test_a_line_that_is_no_record_is_refused(line: str | bytes) -> None:
    with pytest.raises(TraceError):
        from_line(line)
