# SPDX-License-Identifier: Apache-2.0
"""An attribute of a model whose text is another one each time: one open shows no mixture, as in sysfs.

Source: Documentation/filesystems/sysfs.rst and seq_file.rst of the kernel.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.commands import run
from tests.labs import described
from tests.waiting import wait_for

MODEL = """\
from devmodel.sdk import Bar, DeviceAttribute, Identity, Memory, PciDevice

def turn(device):
    device.turn += 1
    if device.turn == 30:
        raise OSError(5, "no more")
    return str(device.turn % 10) * device.turn

class Turning(PciDevice):
    __slots__ = ("turn",)
    identity = Identity(0x1234, 0x5EEE, 0x1AF4, 0x1100, class_code=0x088000)
    ATTRIBUTES = (DeviceAttribute("turn", turn),)

    def bars(self):
        self.turn = 0
        return {0: Bar(Memory(4096))}
"""
LAB = """
[models]
turning = "turning.py:Turning"

[parents.box]
kind = "virtual"
driver = "box"
model = "turning"
slots = 1
types.one = { description = "one" }
"""
LAST = 30


def text(turn: int) -> bytes:
    return str(turn % 10).encode() * turn + b"\n"


@pytest.fixture
def turn(tmp_path: Path) -> Iterator[Path]:
    """The attribute."""
    (tmp_path / "turning.py").write_text(MODEL)
    with described(tmp_path, LAB) as lab, lab.create("one", "box") as vgpu:
        yield vgpu.path / "turn"


def test_each_open_shows_one_text_to_its_end(turn: Path) -> None:
    assert [run(["cat", str(turn)]).stdout.encode() for _ in range(3)] == [text(1), text(2), text(3)]
    with turn.open("rb", buffering=0) as file:
        parts = list(iter(lambda: file.read(1), b""))
        assert b"".join(parts) == text(4) and len(parts) == 5
        assert file.read(10) == b""
        file.seek(0)
        assert file.read(3) + file.read(100) + file.read(100) == text(5)


def test_a_read_from_the_start_shows_it_anew(turn: Path) -> None:
    fd = os.open(turn, os.O_RDONLY)
    try:
        assert [os.pread(fd, 100, 0) for _ in range(3)] == [text(1), text(2), text(3)]
        assert os.pread(fd, 2, 0) == text(4)[:2] and os.pread(fd, 100, 2) == text(4)[2:]
        assert os.pread(fd, 100, 3) == text(5)[3:]  # elsewhere: what is true now
        assert os.read(fd, 100) == text(6)  # at a position of its own, 0
        assert os.pread(fd, 100, 1 << 40) == b""
    finally:
        os.close(fd)


def test_an_error_comes_through_and_changes_nothing(turn: Path) -> None:
    fd = os.open(turn, os.O_RDONLY)
    try:
        for _ in range(1, LAST):
            os.pread(fd, 1, 0)
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, 100, 0)
        assert os.pread(fd, 100, 0) == text(LAST + 1)
    finally:
        os.close(fd)


def test_many_readers_at_once_each_get_whole_texts(turn: Path) -> None:
    def read() -> list[bytes]:
        found = []
        for _ in range(20):
            fd = os.open(turn, os.O_RDONLY)
            try:
                found.append(b"".join(iter(partial(os.read, fd, 7), b"")))
            except OSError:
                found.append(b"")  # one of them
            finally:
                os.close(fd)
        return found

    with ThreadPoolExecutor(6) as pool:
        texts = [each for future in [pool.submit(read) for _ in range(6)] for each in future.result()]
    assert texts.count(b"") == 1
    assert all(each == text(len(each) - 1) for each in texts if each)
    assert len(set(texts)) == len(texts) == 120


def test_a_text_that_the_lab_changes_meanwhile(tmp_path: Path) -> None:
    """While a store is under way, the pump leaves reads to the trio thread."""
    (tmp_path / "turning.py").write_text(MODEL)
    with described(tmp_path, LAB.replace("slots = 1\n", "slots = 10\n")) as lab:
        free = lab.parent("box") / "mdev_supported_types/one/available_instances"
        found: list[bytes] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                with free.open("rb", buffering=0) as file:
                    found.append(b"".join(iter(lambda: file.read(1), b"")))

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            try:
                for _ in range(100):
                    lab.create("one", "box").remove()

                def both() -> bool:
                    """Another life; whether the reader has come in the middle of one, and between two."""
                    lab.create("one", "box").remove()
                    return len(set(found)) > 1 or reading.done()

                wait_for(both)
            finally:
                done.set()
            reading.result()
    assert set(found) == {b"10\n", b"9\n"}
