# SPDX-License-Identifier: Apache-2.0
"""The file `log` of a mount: what goes wrong in the server, a record a read(2)."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT
from tests.failing import DIVIDED, LINE, failing_lab
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import Container, Group, fails
from tests.waiting import wait_for
from vfsfuse.observe.logfile import MOST_OPEN, MOST_RECORDS

ROOM = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with failing_lab(tmp_path_factory.mktemp("log")) as mounted:
        yield mounted


@pytest.fixture
def card(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create("one", "pool") as made:
        yield made


@contextmanager
def listening(lab: MountedLab, flags: int = os.O_NONBLOCK) -> Iterator[int]:
    fd = os.open(lab.path / "log", os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def fail(card: Vgpu, name: str = "divided") -> None:
    with pytest.raises(OSError) as caught:
        (card.path / name).read_text()
    assert caught.value.errno == errno.EIO


def refused(number: int, fd: int) -> None:
    with pytest.raises(OSError) as caught:
        os.read(fd, ROOM)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def test_a_hook_that_fails_is_one_line_and_the_rest_is_continued(lab: MountedLab, card: Vgpu) -> None:
    with listening(lab) as fd:
        refused(errno.EAGAIN, fd)
        fail(card)
        fail(card)
        record = os.read(fd, ROOM).decode()
        assert os.read(fd, ROOM).decode() == record
        refused(errno.EAGAIN, fd)
    first, *rest = record.splitlines()
    assert first == f"{card.name}: {DIVIDED}"
    assert all(line.startswith(" ") for line in rest)
    assert rest[0] == " show failed" and rest[1] == " Traceback (most recent call last):"
    assert f'card.py", line {LINE}, in quotient' in record and "    return 1 // by" in record


def test_the_log_of_the_server_has_the_same_line(lab: MountedLab, card: Vgpu) -> None:
    fail(card)
    assert f" ERROR vfsfuse.kernfs.errors: show failed: {card.name}: {DIVIDED}\n" in lab.log


def test_a_hook_of_a_register(lab: MountedLab, card: Vgpu) -> None:
    device = card.open()
    try:
        with listening(lab) as fd, pytest.raises(OSError):
            os.pread(device, 4, 0)
        with listening(lab) as fd:
            with pytest.raises(OSError):
                os.pread(device, 4, 0)
            assert os.read(fd, ROOM).decode().startswith(f"{card.name}: {DIVIDED}\n")
    finally:
        os.close(device)


def test_a_task(lab: MountedLab, card: Vgpu) -> None:
    device = card.open()
    try:
        with listening(lab, 0) as fd:
            os.pwrite(device, b"\1\0\0\0", 0)
            first = os.read(fd, ROOM).decode().partition("\n")[0]
        assert first.startswith(f"{card.name}: Card.task raised LookupError: no such thing (card.py:")
    finally:
        os.close(device)


def test_a_text_of_several_lines_and_with_escapes_is_one_plain_line(lab: MountedLab, card: Vgpu) -> None:
    with listening(lab) as fd:
        fail(card, "spoken")
        first = os.read(fd, ROOM).decode().partition("\n")[0]
    assert first.startswith(rf"{card.name}: Card.speak raised ValueError: first \x1b[31msecond (card.py:")


def test_an_exception_without_a_text(lab: MountedLab, card: Vgpu) -> None:
    """Its str() ends interpreters."""
    with listening(lab) as fd:
        fail(card, "mute")
        assert os.read(fd, ROOM).decode().startswith(f"{card.name}: mute raised Mute: (no text) (card.py:")


def test_a_read_with_little_room_is_continued_by_the_next(lab: MountedLab, card: Vgpu) -> None:
    with listening(lab) as whole, listening(lab) as parts:
        fail(card)
        record = os.read(whole, ROOM)
        read = b""
        while len(read) < len(record):
            read += os.read(parts, 7)
        assert read == record
        refused(errno.EAGAIN, parts)


def test_each_reader_gets_what_is_logged_from_its_open_on(lab: MountedLab, card: Vgpu) -> None:
    with listening(lab) as early:
        fail(card)
        with listening(lab) as late:
            refused(errno.EAGAIN, late)
            fail(card, "spoken")
            assert b"Card.speak" in os.read(late, ROOM)
        assert b"Card.divided" in os.read(early, ROOM) and b"Card.speak" in os.read(early, ROOM)


def test_poll_and_a_read_that_waits(lab: MountedLab, card: Vgpu) -> None:
    with listening(lab, 0) as fd:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == []
        woken: list[object] = []
        thread = threading.Thread(target=lambda: woken.append(poll.poll(20_000)))
        thread.start()
        fail(card)
        thread.join()
        assert woken == [[(fd, select.POLLIN)]]
        os.read(fd, ROOM)
        assert poll.poll(0) == []
        reader = threading.Thread(target=lambda: woken.append(os.read(fd, ROOM)))
        reader.start()
        fail(card, "spoken")
        reader.join()
        assert isinstance(woken[1], bytes) and b"Card.speak" in woken[1]


def test_a_signal_ends_a_read_that_waits(lab: MountedLab) -> None:
    code = "import os, sys; fd = os.open(sys.argv[1], 0); print('up', flush=True); os.read(fd, 1)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lab.path / "log")], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "up\n"
        reader.send_signal(signal.SIGKILL)
        assert reader.wait(20) == -signal.SIGKILL


def test_the_first_records_of_a_flood_are_kept_and_the_others_counted(lab: MountedLab, card: Vgpu) -> None:
    with listening(lab) as fd:
        fail(card, "spoken")
        for _ in range(MOST_RECORDS + 9):
            fail(card)
        assert b"Card.speak" in os.read(fd, ROOM)
        for _ in range(MOST_RECORDS - 1):
            assert b"Card.divided" in os.read(fd, ROOM)
        assert os.read(fd, ROOM) == b"10 records are lost: they came faster than they were read\n"
        refused(errno.EAGAIN, fd)
        fail(card)
        assert b"Card.divided" in os.read(fd, ROOM)


def test_a_warning_has_one_line(lab: MountedLab) -> None:
    """GROUP_GET_DEVICE_FD on the bare mount."""
    with lab.create("one", "pool") as made, listening(lab) as fd:
        with Group(lab.path, made.group) as group, Container(lab.path) as container:
            group.set_container(container)
            container.set_iommu()
            fails(errno.EOPNOTSUPP, group.device_fd, made.name)
        record = os.read(fd, ROOM).decode()
    comm = Path("/proc/thread-self/comm").read_text().rstrip()
    why = "only `vfsfuse run` can put a descriptor into a program: run it there"
    who = f"{comm} (thread {threading.get_native_id()})"
    assert record == f"VFIO_GROUP_GET_DEVICE_FD fails in {who}: {why}\n"


def test_it_cannot_be_written_and_has_so_many_readers(lab: MountedLab) -> None:
    path = lab.path / "log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(PermissionError):
            os.open(path, flags)
    opened = [os.open(path, os.O_RDONLY) for _ in range(MOST_OPEN)]
    with pytest.raises(OSError) as caught:
        os.open(path, os.O_RDONLY)
    assert caught.value.errno == errno.EMFILE
    for fd in opened:
        os.close(fd)

    def opens() -> bool:
        try:
            os.close(os.open(path, os.O_RDONLY))
        except OSError:
            return False
        return True

    wait_for(opens)  # the kernel tells of a close a moment later


@needs.root("acting as another user takes root")
def test_it_is_for_the_labs_user_alone(lab: MountedLab) -> None:
    command = [sys.executable, "-m", "tests.ordinary_user", "cat", str(lab.path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode and "Permission denied" in done.stderr


def test_a_listing_has_it(lab: MountedLab) -> None:
    assert {"log", "uevents", "trace", "counters"} <= set(os.listdir(Path(lab.path)))
