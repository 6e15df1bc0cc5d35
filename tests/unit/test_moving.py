# SPDX-License-Identifier: Apache-2.0
"""A memory region on its way between two memfds: the content at each step, holes, and what fails half-way."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devmodel.device.base import Device
from devmodel.region import moving
from devmodel.region.backing import Backing, is_used_elsewhere, region_offset
from devmodel.region.moving import PIECE
from devmodel.region.region import Memory
from tests.unit.fakes import fails

PAGE = 4096
INDEX = 2
PIECES = 6
SIZE = PIECES * PIECE
ACCESSES = st.lists(
    st.tuples(
        st.sampled_from(["write", "out", "back", "read"]),
        st.integers(0, SIZE - 1),
        st.integers(1, 3 * PAGE),
        st.binary(min_size=1, max_size=8),
    ),
    max_size=30,
)


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device("toy", [Memory(PAGE), None, Memory(SIZE)], [])
    yield made
    made.close()


def step_out(device: Device) -> bool:
    with device.lock:
        device.backing.own_fd(INDEX, SIZE)
        return device.backing.take_piece(INDEX)


def step_back(device: Device) -> bool:
    with device.lock:
        return device.backing.give_piece(INDEX)


def move_out(device: Device) -> None:
    while not step_out(device):
        pass


def move_back(device: Device) -> None:
    while not step_back(device):
        pass


@settings(deadline=None)
@given(ACCESSES)
def test_each_byte_has_one_place_at_each_step(accesses: list[tuple[str, int, int, bytes]]) -> None:
    """Also when a move turns round half-way."""
    device, expected = Device("toy", [Memory(PAGE), None, Memory(SIZE)], []), bytearray(SIZE)
    for what, offset, size, pattern in accesses:
        if what == "out":
            step_out(device)
        elif what == "back" and device.backing.away:
            step_back(device)
        elif what == "write":
            data = (pattern * size)[: min(size, SIZE - offset)]
            assert device.write(INDEX, offset, data) == len(data)
            expected[offset : offset + len(data)] = data
        assert device.read(INDEX, offset, size) == expected[offset : offset + size]
    assert device.read(INDEX, 0, SIZE) == expected
    device.close()


def test_holes_stay_holes_in_both_files(device: Device) -> None:
    for page in (0, 100, SIZE // PAGE - 1):
        device.write(INDEX, page * PAGE, b"data")
    for _ in range(2):
        move_out(device)
        with device.lock:
            own = device.backing.own_fd(INDEX, SIZE)
        assert os.fstat(own).st_blocks * 512 == 3 * PAGE == device.backing.allocated
        assert os.fstat(device.backing.fd).st_blocks == 0
        move_back(device)
        assert os.fstat(device.backing.fd).st_blocks * 512 == 3 * PAGE == device.backing.allocated
    assert device.read(INDEX, 100 * PAGE, 4) == b"data"


def test_a_region_that_is_away_is_at_the_start_of_its_own_file(device: Device) -> None:
    device.write(INDEX, 8, b"here")
    move_out(device)
    with device.lock:
        place = device.backing.place(INDEX)
    assert place is not None and place.offset == 0 and place.fd != device.backing.fd
    assert os.pread(place.fd, 4, 8) == b"here"
    fails(errno.EPERM, os.ftruncate, place.fd, 0)
    assert device.backing.away == {INDEX}
    move_back(device)
    assert device.backing.away == frozenset()
    with device.lock:
        assert device.backing.place(INDEX) == (device.backing.fd, region_offset(INDEX))


def test_what_others_stored_in_the_holes_is_not_brought_in(device: Device) -> None:
    """A client that maps what it was told not to map stores there."""
    move_out(device)
    os.pwrite(device.backing.fd, b"stray", region_offset(INDEX) + 5 * PAGE)
    assert device.read(INDEX, 5 * PAGE, 5) == bytes(5)
    move_back(device)
    assert device.read(INDEX, 5 * PAGE, 5) == bytes(5)
    assert device.backing.allocated == 0


@pytest.mark.parametrize("step", [step_out, step_back])
def test_a_step_that_fails_moves_nothing(
    device: Device, step: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(SIZE)
    device.write(INDEX, 0, data)
    step_out(device)
    step_out(device)
    copies = iter(range(3))

    def copy(*arguments: moving.Place | int) -> None:
        if next(copies) < 2:
            raise OSError(errno.ENOSPC, "no page left")
        monkeypatch.undo()
        moving._copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(moving, "_copy", copy)
    assert callable(step)
    for _ in range(2):
        fails(errno.ENOSPC, step, device)
        assert device.read(INDEX, 0, SIZE) == data
        assert device.backing.allocated == SIZE
    move_out(device)
    assert device.read(INDEX, 0, SIZE) == data
    move_back(device)
    assert device.read(INDEX, 0, SIZE) == data


def test_accesses_beside_a_move_lose_nothing(device: Device) -> None:
    """Threads count, each in a place of its own, while the region goes to and fro."""
    ended, counts = threading.Event(), [0] * 3

    def count(number: int) -> None:
        place = number * 2 * PIECE + PIECE - 4  # across the edge of two pieces
        while not ended.is_set():
            value = int.from_bytes(device.read(INDEX, place, 8), "little")
            assert value == counts[number]
            device.write(INDEX, place, (value + 1).to_bytes(8, "little"))
            counts[number] += 1

    threads = [threading.Thread(target=count, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        move_out(device)
        move_back(device)
    ended.set()
    for thread in threads:
        thread.join()
    for number, value in enumerate(counts):
        assert value and device.read(INDEX, number * 2 * PIECE + PIECE - 4, 8) == value.to_bytes(8, "little")


def test_a_region_that_its_model_has_mapped_stays(device: Device) -> None:
    with device.lock, device.backing.map(INDEX, PAGE) as memory:
        assert not device.backing.can_move(INDEX) and device.backing.can_move(0)
        memory[:4] = b"here"
    fails(errno.EBUSY, step_out, device)
    assert device.read(INDEX, 0, 4) == b"here"


def test_a_model_does_not_map_a_region_that_is_half_way(device: Device) -> None:
    device.write(INDEX, 0, bytes([1]) * SIZE)
    step_out(device)
    with device.lock:
        fails(errno.EBUSY, device.backing.map, INDEX, PAGE)
    move_out(device)
    with device.lock, device.backing.map(INDEX, PAGE) as memory:
        assert memory[:2] == b"\1\1"


def test_a_closed_device_moves_nothing(device: Device) -> None:
    step_out(device)
    device.close()
    fails(errno.ENODEV, step_out, device)
    fails(errno.ENODEV, step_back, device)
    assert device.backing.allocated == 0


def test_who_else_uses_a_memfd_is_seen() -> None:
    backing = Backing({0: PAGE})
    assert not is_used_elsewhere(backing.fd)
    with backing.map(0, PAGE):
        assert not is_used_elsewhere(backing.fd), "our own mapping"
    for flags in (os.O_RDWR, os.O_RDONLY):
        other = os.open(f"/proc/self/fd/{backing.fd}", flags)
        assert is_used_elsewhere(backing.fd)
        os.close(other)
        assert not is_used_elsewhere(backing.fd)
    backing.close()
