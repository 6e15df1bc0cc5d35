# SPDX-License-Identifier: Apache-2.0
"""uevents: their form, their numbers, and what becomes of those who are slow to listen."""

from __future__ import annotations

import errno

from hypothesis import given, settings
from hypothesis import strategies as st

from devmodel.lifecycle.uevents import BACKLOG, UeventListener, Uevents
from tests.unit.fakes import fails


def emit(hub: Uevents, count: int = 1) -> None:
    for _ in range(count):
        hub.emit("change", "/devices/x", "pci", {})
    hub.deliver(hub.take())


def number(event: bytes | None) -> int:
    assert event is not None
    return int(event.rstrip(b"\0").rsplit(b"SEQNUM=", 1)[1])


def quiet() -> None:
    pass


def test_an_event_is_a_datagram_of_the_kernels() -> None:
    hub = Uevents()
    listener = hub.listen(quiet)
    hub.emit("add", "/devices/pci/0", "pci", {"PCI_CLASS": "30000", "MODALIAS": "pci:v"}, {"SYNTH_UUID": "0"})
    hub.deliver(hub.take())
    assert listener.take() == (
        b"add@/devices/pci/0\0ACTION=add\0DEVPATH=/devices/pci/0\0SUBSYSTEM=pci\0SYNTH_UUID=0\0"
        b"PCI_CLASS=30000\0MODALIAS=pci:v\0SEQNUM=1\0"
    )


def test_nothing_is_heard_before_it_is_delivered_nor_twice() -> None:
    hub = Uevents()
    woken = []
    listener = hub.listen(lambda: woken.append(listener.ready))
    hub.emit("add", "/x", "pci", {})
    assert not listener.ready and listener.take() is None
    events = hub.take()
    assert hub.take() == [] and woken == []
    hub.deliver(events)
    hub.deliver([])
    assert woken == [True] and number(listener.take()) == 1 and listener.take() is None


def test_who_has_closed_hears_nothing() -> None:
    hub = Uevents()
    listener, other = hub.listen(quiet), hub.listen(quiet)
    listener.close()
    listener.close()
    emit(hub)
    assert not listener.ready and other.ready and hub.listeners == {other}


def test_what_is_put_back_is_the_oldest_again() -> None:
    hub = Uevents()
    listener = hub.listen(quiet)
    emit(hub, 3)
    first = listener.take()
    assert first is not None
    listener.put_back(first)
    assert [number(listener.take()) for _ in range(3)] == [1, 2, 3]


def test_what_is_put_back_into_a_full_queue_is_lost() -> None:
    hub = Uevents()
    listener = hub.listen(quiet)
    emit(hub)
    first = listener.take()
    assert first is not None
    emit(hub, BACKLOG)
    listener.put_back(first)
    fails(errno.ENOBUFS, listener.take)
    assert number(listener.take()) == 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.integers(1, BACKLOG + 5), st.none()), max_size=8))
def test_a_slow_listener_loses_the_oldest_and_is_told_once(steps: list[int | None]) -> None:
    """A number is that many events, None is reading all there is."""
    hub = Uevents()
    listener = hub.listen(quiet)
    expected, last = 0, 0
    for step in (*steps, None):
        if step is not None:
            emit(hub, step)
            last += step
            continue
        if last - expected > BACKLOG:
            fails(errno.ENOBUFS, listener.take)
            expected = last - BACKLOG
        heard = drain(listener)
        assert heard == list(range(expected + 1, last + 1))
        expected = last


def drain(listener: UeventListener) -> list[int]:
    heard = []
    while listener.ready:
        heard.append(number(listener.take()))
    return heard
