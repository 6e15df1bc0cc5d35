# SPDX-License-Identifier: Apache-2.0
"""TraceReader: what it gives, how it ends, and that no server makes it wait or grow beyond what was asked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import open_files
from tests.labs import MountedLab, described
from tests.tracefile import open_config
from tests.vfio.copiers import LAB
from tests.waiting import settled, stop, wait_for
from vfsfuse.trace.filters import EVERYTHING, Filter
from vfsfuse.trace.reader import MOST_LINE, TraceReader
from vfsfuse.trace.record import Record, TraceError, from_line

PATIENCE = 2.0
LINE = Record(1, 2.0, "store", "sys", "online", {"data": b"1"}).to_line()
OPTIONS = EVERYTHING.server_side()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("reader"), LAB) as mounted:
        yield mounted


@pytest.fixture
def config(machine: MountedLab) -> Iterator[int]:
    """The open configuration space of a copier."""
    with open_config(machine) as fd:
        yield fd


def test_a_reader_gives_what_it_was_asked_for(machine: MountedLab, config: int) -> None:
    wanted = Filter(kinds=["region"], registers=["STAT*"])
    with TraceReader(machine.path, wanted) as reader:
        assert reader.drain() == [] and reader.next(0.01) is None and not reader.ended
        os.pread(config, 2, 4)
        os.pread(config, 2, 6)
        found = reader.next()
        assert found is not None and found.arguments["register"] == "STATUS"
        os.pread(config, 4, 4)
        assert [each.arguments["register"] for each in reader.drain()] == ["COMMAND..STATUS"]
        poll = select.poll()
        poll.register(reader.fileno(), select.POLLIN)
        assert poll.poll(0) == []
        os.pread(config, 2, 6)
        assert poll.poll() == [(reader.fileno(), select.POLLIN)]
        assert len(reader.drain()) == 1 and reader.drain() == []


def test_a_reader_that_keeps_little_is_told_what_it_lost(machine: MountedLab, config: int) -> None:
    with TraceReader(machine.path / "trace", Filter(kinds=["region"]), keep=3) as reader:
        for _ in range(10):
            os.pread(config, 4, 0)
        lost, *kept = reader.drain()
    assert (lost.kind, lost.arguments, len(kept)) == ("lost", {"count": 7}, 3)


def test_a_descriptor_is_taken_over(machine: MountedLab, config: int) -> None:
    before, own = settled(lambda: open_files(machine.pid)), len(os.listdir("/proc/self/fd"))
    fd = os.open(machine.path / "trace", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with TraceReader(fd) as reader:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        os.pread(config, 4, 0)
        assert [each.name for each in reader.drain()] == ["read"]
    wait_for(lambda: open_files(machine.pid) == before)
    assert len(os.listdir("/proc/self/fd")) == own


def test_a_reader_ends_with_the_lab(tmp_path: Path) -> None:
    with MountedLab(tmp_path, umount=False) as lab, TraceReader(lab.path) as reader:
        with lab.create():
            pass
        found = [reader.next(), *reader.drain()]
        os.kill(lab.pid, signal.SIGTERM)
        assert list(reader) == []
        assert reader.ended and reader.drain() == [] and reader.next() is None
    assert [each.name for each in found if each is not None] == [
        "probe",
        "create",
        "create",
        "remove",
        "remove",
    ]


def test_several_threads_have_readers(machine: MountedLab, config: int) -> None:
    """A reader forks by exec alone, so that threads do no harm."""
    found: list[int] = []

    def read() -> None:
        with TraceReader(machine.path, Filter(kinds=["region"])) as reader:
            ready.wait()
            done.wait()
            found.append(len(reader.drain()))

    ready, done = threading.Barrier(5), threading.Event()
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    os.pread(config, 4, 0)
    done.set()
    for thread in threads:
        thread.join()
    assert found == [1] * 4


# ---- servers that are no help ----


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("", "no lab with a trace is mounted there"),
        ("nothing", "no lab with a trace is mounted there"),
        ("\0", "null"),
    ],
)
def test_where_there_is_no_lab_one_line_says_so(tmp_path: Path, place: str, says: str) -> None:
    with pytest.raises(TraceError, match=says) as caught:
        TraceReader(tmp_path / place)
    assert "\n" not in str(caught.value)


def test_a_stopped_server_costs_the_patience_and_no_more(tmp_path: Path) -> None:
    with described(tmp_path, LAB) as lab, TraceReader(lab.path, patience=PATIENCE) as reader:
        stop(lab.pid)
        try:
            with pytest.raises(TraceError, match="does not answer"):
                TraceReader(lab.path, patience=PATIENCE)
            with pytest.raises(TraceError, match="does not answer"):
                reader.drain()
            assert reader.next(PATIENCE) is None
        finally:
            os.kill(lab.pid, signal.SIGCONT)
        assert reader.drain() == []


@contextlib.contextmanager
def server() -> Iterator[tuple[TraceReader, socket.socket]]:
    """A reader, and the other end of what it takes for a file `trace`."""
    ours, theirs = socket.socketpair()
    with ours, TraceReader(theirs.detach(), patience=PATIENCE, keep=10) as reader:
        assert json.loads(ours.recv(1 << 16)) == {**json.loads(OPTIONS), "keep": 10}
        yield reader, ours


def test_what_is_no_record_is_an_error_of_one_line() -> None:
    for line in (b"{}", b"\xff\xfe", b"[" * 1000, LINE.encode()[:-1], b""):
        with server() as (reader, ours):
            ours.sendall(LINE.encode() + b"\n" + line + b"\n")
            assert reader.next() is not None
            with pytest.raises(TraceError) as caught:
                reader.next()
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    with server() as (reader, ours):

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    ours.sendall(b"x" * 65536)

        sending = threading.Thread(target=send)
        sending.start()
        with pytest.raises(TraceError, match=f"longer than {MOST_LINE} bytes"):
            reader.next()
        reader.close()
        sending.join()


def test_lines_without_an_end_are_not_all_drained() -> None:
    with server() as (reader, ours):
        many = (LINE.encode() + b"\n") * 1000

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    ours.sendall(many)

        sending = threading.Thread(target=send)
        sending.start()
        wait_for(lambda: len(reader.drain()) >= 10)
        assert reader.next() is not None
        reader.close()
        sending.join()


def test_records_that_nobody_wants_hold_nobody_up() -> None:
    """The descriptor's position tells how much has been taken of a trace that goes on and on."""
    trace = os.memfd_create("trace")
    wanted, other = Filter(kinds=["dma"]), f"{LINE}\n".encode()
    assert not wanted.matches(from_line(LINE))
    os.pwrite(trace, other * ((64 << 20) // len(other)), len(wanted.server_side(10)))
    position = os.dup(trace)
    try:
        with TraceReader(trace, wanted, keep=10) as reader:
            assert not reader.drain() and not reader.ended
            assert os.lseek(position, 0, os.SEEK_CUR) < 32 << 20
    finally:
        os.close(position)


def test_half_a_line_waits_for_its_end() -> None:
    with server() as (reader, ours):
        half = len(LINE) // 2
        ours.sendall(LINE.encode()[:half])
        assert reader.next(0.05) is None
        ours.sendall(LINE.encode()[half:] + b"\n")
        found = reader.next()
        assert found is not None and found.to_line() == LINE
        ours.close()
        assert list(reader) == [] and reader.ended
