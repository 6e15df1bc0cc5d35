# SPDX-License-Identifier: Apache-2.0
"""The states of a device that migrates, without a mount: what a change waits for, what it leaves behind."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from devmodel.device import dma
from devmodel.device.migration import DeviceState, StateStream
from devmodel.vfio.migration import change_state, state_of
from tests.unit.fakes import fails
from tests.vfio.counter import STATE, Counter
from tests.waiting import wait_for
from vfsfuse.testing import Bench

STOP, RUNNING, STOP_COPY, RESUMING = (
    DeviceState.STOP,
    DeviceState.RUNNING,
    DeviceState.STOP_COPY,
    DeviceState.RESUMING,
)


@pytest.fixture
def bench() -> Iterator[Bench[Counter]]:
    with Bench(Counter) as made:
        yield made


def test_a_stop_waits_for_the_dma_under_way(bench: Bench[Counter]) -> None:
    counter = bench.device
    with ThreadPoolExecutor(1) as client:
        with counter.dma.under_way():
            stopping = client.submit(change_state, counter, STOP_COPY)
            wait_for(lambda: counter.dma.waiting)
            assert state_of(counter) is STOP and not stopping.done()
        stream = stopping.result()
    assert stream is not None and len(stream.read(99)) == STATE.size and state_of(counter) is STOP_COPY


def test_a_dma_that_does_not_end(bench: Bench[Counter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma, "DRAIN_SECONDS", 0.05)
    with bench.device.dma.under_way():
        fails(errno.EBUSY, change_state, bench.device, STOP)
    assert state_of(bench.device) is RUNNING
    before = bench["COUNT"]
    bench.advance(0.1)
    assert bench["COUNT"] > before, "it runs as before"


def test_a_reset_meanwhile(bench: Bench[Counter]) -> None:
    counter = bench.device
    with ThreadPoolExecutor(1) as client:
        with counter.dma.under_way():
            stopping = client.submit(change_state, counter, STOP_COPY)
            wait_for(lambda: counter.dma.waiting)
            bench.reset()
        fails(errno.EBUSY, stopping.result)
    assert state_of(counter) is RUNNING


def test_all_ways(bench: Bench[Counter]) -> None:
    """From each state to each other; those that give a stream, once."""
    counter = bench.device
    for before in (STOP, RUNNING, STOP_COPY, RESUMING):
        for after in (STOP, RUNNING, STOP_COPY, RESUMING):
            stream = change_state(counter, before)
            if stream is not None and stream.writable:
                stream.write(STATE.pack(b"cnt1", 3, 4))
            given = change_state(counter, after)
            assert state_of(counter) is after
            assert (given is not None) == (after != before and after in (STOP_COPY, RESUMING))
            if given is not None and given.writable:
                given.write(STATE.pack(b"cnt1", 5, 6))
    for wanted in (0, 5, 6, 7, 8, 2**32 - 1):
        fails(errno.EINVAL, change_state, counter, wanted)


def test_a_stream_has_a_limit_and_an_end() -> None:
    stream = StateStream(limit=8)
    fails(errno.EBADF, stream.read, 1)
    assert stream.write(b"abc") == 3
    fails(errno.ENOMEM, stream.write, bytes(6))
    assert stream.write(bytes(5)) == 5
    assert stream.end() == b"abc" + bytes(5)
    fails(errno.ENODEV, stream.write, b"d")
