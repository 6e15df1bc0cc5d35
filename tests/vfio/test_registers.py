# SPDX-License-Identifier: Apache-2.0
"""Registers through a mount, where the pump does what it can by itself, against the same model in this
process, where devmodel does it all: the same bytes, errnos and hooks."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import DEVICE_RESET, fails, ioctl
from tests.vfio.devices import opener
from tests.vfio.models.registers import LAYOUT, Zoo

LAB = f"""\
[models]
zoo = "{Path(__file__).parent}/models/registers.py:Zoo"

[parents.zoos]
kind = "virtual"
driver = "zoo"
slots = 8
types.zoo-1 = {{ description = "registers" }}
"""
END = 0x68
"""Behind the last register."""
OWN, WRONG, CONFIG = 1 << 40, 2 << 40, 7 << 40
COMMAND, MEMORY = 4, 2
NOTE, PLAIN8, SEEN, REFUSED, BROKEN, FORGETFUL = 0x20, 0x08, 0x18, 0x30, 0x34, 0x38


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("zoo"), LAB) as mounted:
        yield mounted
        mounted.log_path.write_text("")  # of bugs asked for: a log is looked through at the end


@pytest.fixture
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    made = lab.create("zoo-1", "zoos")
    yield made
    with contextlib.suppress(FileNotFoundError):  # taken away by surprise
        made.remove()


@pytest.fixture
def device(vgpu: Vgpu) -> Iterator[int]:
    with opened(vgpu) as fd:
        yield fd


@contextlib.contextmanager
def opened(vgpu: Vgpu) -> Iterator[int]:
    fd = vgpu.open()
    try:
        yield fd
    finally:
        os.close(fd)


def get(fd: int, offset: int, size: int = 4) -> int:
    return int.from_bytes(os.pread(fd, size, offset), "little")


def put(fd: int, offset: int, value: int, size: int = 4) -> None:
    assert os.pwrite(fd, value.to_bytes(size, "little"), offset) == size


class Mounted:
    """The device behind a descriptor, with what its accesses end with."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, offset: int, size: int) -> bytes | int:
        try:
            return os.pread(self.fd, size, offset)
        except OSError as error:
            return error.errno or 0

    def write(self, offset: int, data: bytes) -> int:
        try:
            return os.pwrite(self.fd, data, offset)
        except OSError as error:
            return -(error.errno or 0)


class InProcess:
    """The same without a mount."""

    def __init__(self) -> None:
        self.device = Zoo("oracle")

    def read(self, offset: int, size: int) -> bytes | int:
        try:
            return self.device.read(0, offset, size)
        except OSError as error:
            return error.errno or 0
        except Exception:
            return errno.EIO

    def write(self, offset: int, data: bytes) -> int:
        try:
            return self.device.write(0, offset, data)
        except OSError as error:
            return -(error.errno or 0)
        except Exception:
            return -errno.EIO


places = st.tuples(st.integers(0, END), st.sampled_from([1, 2, 3, 4, 5, 8, 16])) | st.sampled_from(
    [(register.offset, register.width) for register in LAYOUT.registers]
)
accesses = st.lists(st.tuples(places, st.none() | st.binary(min_size=16, max_size=16)), max_size=30)


@given(accesses)
@settings(max_examples=100, deadline=None)
def test_every_access_is_as_without_a_mount(
    lab: MountedLab, accesses: list[tuple[tuple[int, int], bytes | None]]
) -> None:
    with lab.create("zoo-1", "zoos") as vgpu, opened(vgpu) as fd:
        mounted, expected = Mounted(fd), InProcess()
        for (offset, size), data in accesses:
            if data is None:
                assert mounted.read(offset, size) == expected.read(offset, size)
            else:
                assert mounted.write(offset, data[:size]) == expected.write(offset, data[:size])
        assert mounted.read(0, 0x18) == expected.read(0, 0x18)
        assert mounted.read(SEEN, 4) == expected.read(SEEN, 4)


@pytest.mark.parametrize(
    ("offset", "number"), [(REFUSED, errno.ENOSPC), (BROKEN, errno.EIO), (FORGETFUL, errno.EIO)]
)
def test_a_hook_that_raises_fails_that_access_alone(device: int, offset: int, number: int) -> None:
    fails(number, os.pread, device, 4, offset)
    put(device, NOTE, 7)  # the device's lock is free again
    assert get(device, SEEN) == 7


def test_what_a_hook_refuses_has_been_stored(device: int) -> None:
    fails(errno.ENOSPC, os.pwrite, device, b"\1\2\3\4", REFUSED)
    with_neighbour = os.pread(device, 3, PLAIN8)  # by the device's read(), which sees the same bytes
    assert with_neighbour == b"\1\0\0"


def test_a_bug_in_a_hook_is_logged(lab: MountedLab, device: int) -> None:
    before = lab.log.count("\nLookupError: a bug\n")
    fails(errno.EIO, os.pread, device, 4, BROKEN)
    fails(errno.EIO, os.pwrite, device, bytes(4), BROKEN)
    assert lab.log.count("\nLookupError: a bug\n") == before + 2


def test_a_model_with_a_read_and_a_write_of_its_own_is_asked(device: int) -> None:
    assert os.pread(device, 4, OWN + PLAIN8) == bytes([PLAIN8]) * 4
    put(device, OWN + NOTE, 5)
    assert os.pread(device, 8, OWN + PLAIN8) == bytes([PLAIN8]) * 8
    assert get(device, SEEN) == 0  # NOTE's hook was not its write()


@pytest.mark.parametrize("offset", [0, 512, 1000, 4095])
def test_what_is_no_answer_is_eio(device: int, offset: int) -> None:
    """The kernel takes no errno from 512 on: the client would wait for ever."""
    fails(errno.EIO, os.pread, device, 4, WRONG + offset)
    fails(errno.EIO, os.pwrite, device, bytes(4), WRONG + offset)


def test_so_is_what_is_no_errno_of_an_attribute(vgpu: Vgpu) -> None:
    fails(errno.EIO, (vgpu.path / "wrong").read_text)
    fails(errno.EIO, (vgpu.path / "wrong").write_text, "1")


def test_registers_that_are_not_decoded_read_all_ones_and_drop_writes(device: int) -> None:
    put(device, PLAIN8, 0x55, 8)
    enabled = get(device, CONFIG + COMMAND, 2)
    put(device, CONFIG + COMMAND, enabled & ~MEMORY, 2)
    put(device, PLAIN8, 0x66, 8)
    put(device, NOTE, 1)
    assert [get(device, offset) for offset in (PLAIN8, SEEN, REFUSED)] == [0xFFFF_FFFF] * 3
    put(device, CONFIG + COMMAND, enabled, 2)
    assert (get(device, PLAIN8, 8), get(device, SEEN)) == (0x55, 0)


def test_a_reset_is_seen(device: int) -> None:
    put(device, PLAIN8, 0x55, 8)
    put(device, NOTE, 1)
    ioctl(device, DEVICE_RESET)
    assert (get(device, PLAIN8, 8), get(device, SEEN)) == (1 << 63 | 1, 0)


def test_a_device_taken_away_by_surprise_reads_all_ones(vgpu: Vgpu, device: int) -> None:
    (vgpu.path / "surprise_remove").write_text("1")
    put(device, NOTE, 1)
    assert [get(device, offset) for offset in (PLAIN8, SEEN, CONFIG)] == [0xFFFF_FFFF] * 3


def test_all_opens_of_a_device_see_the_same_registers(vgpu: Vgpu) -> None:
    with opener(vgpu.lab, vgpu.group, vgpu.name) as use, use() as one, use() as other:
        put(one.fd, PLAIN8, 0x77, 8)
        put(other.fd, NOTE, 3)
        assert (get(other.fd, PLAIN8, 8), get(one.fd, SEEN)) == (0x77, 3)


def test_threads_that_write_and_read_never_see_half_a_register(device: int) -> None:
    values = (0x1111_1111_1111_1111, 0xEEEE_EEEE_EEEE_EEEE)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            for value in values:
                put(device, PLAIN8, value, 8)

    put(device, PLAIN8, values[0], 8)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {get(device, PLAIN8, 8) for _ in range(5000)} <= set(values)
    finally:
        ended.set()
        writer.join()
