# SPDX-License-Identifier: Apache-2.0
"""Dirty tracking on a real mount: what a physical function writes is in the client's bitmap, page for page.

The function is examples/copier.py. What is checked is the client's own memory: its bitmaps, and what the
device has copied.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import needs
from tests.iommufd.client import (
    DIRTY_BITMAP_NO_CLEAR,
    HWPT_DIRTY_TRACKING,
    HWPT_PASID,
    MAP_READABLE,
    GetDirtyBitmap,
    Iommufd,
    SetDirtyTracking,
)
from tests.iommufd.functions import LAB, SECOND, Function, memory, opened
from tests.labs import MountedLab, described
from tests.vfio.client import PAGE, Memory, fails
from tests.vfio.copiers import DONE, FAULT
from tests.vfio.gpu_client import StoppedMemory
from tests.waiting import wait_for

PAGES = 600
IOVA = 0x40000
SOURCE = 0x8000_0000


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("dirty"), LAB) as mounted:
        yield mounted


@dataclass
class Tracking:
    """A function that is attached to an HWPT with DIRTY_TRACKING. What it copies is mapped at SOURCE, and
    `memory`, of PAGES pages, at IOVA."""

    iommufd: Iommufd
    function: Function
    ioas: int
    hwpt: int
    memory: Memory
    source: Memory

    def write(self, *pages: int, size: int = 1, offset: int = 0) -> None:
        """Have the device write to each of these pages."""
        for page in pages:
            assert self.function.copy(SOURCE, IOVA + page * PAGE + offset, size) == DONE

    def dirty(self, first: int = 0, pages: int = PAGES, flags: int = 0, hwpt: int = 0) -> set[int]:
        """The pages that are reported of a range, counted from IOVA."""
        start = IOVA + first * PAGE
        found = self.iommufd.dirty_pages(hwpt or self.hwpt, start, pages * PAGE, PAGE, flags)
        return {(iova - IOVA) // PAGE for iova in found}

    def ask(self, bitmap: int, **fields: int) -> None:
        """GET_DIRTY_BITMAP of all pages at an address, with other fields."""
        asked = {"hwpt_id": self.hwpt, "iova": IOVA, "length": PAGES * PAGE, "page_size": PAGE, **fields}
        self.iommufd.call(GetDirtyBitmap(data=bitmap, **asked))


@pytest.fixture
def tracking(machine: MountedLab) -> Iterator[Tracking]:
    with (
        memory(PAGES * PAGE) as target,
        memory(32 * PAGE) as source,
        Iommufd(machine.path) as iommufd,
        opened(machine, iommufd) as function,
    ):
        ioas = iommufd.ioas()
        iommufd.map(ioas, source.address, source.size, SOURCE)
        iommufd.map(ioas, target.address, target.size, IOVA)
        hwpt = iommufd.hwpt(function.id, ioas, HWPT_DIRTY_TRACKING)
        assert function.cdev.attach(hwpt) == hwpt
        iommufd.set_dirty_tracking(hwpt)
        yield Tracking(iommufd, function, ioas, hwpt, target, source)


def changed(before: bytes, after: bytes) -> set[int]:
    return {page for page in range(PAGES) if before[page * PAGE :][:PAGE] != after[page * PAGE :][:PAGE]}


def test_what_a_device_writes_is_seen_page_for_page(tracking: Tracking) -> None:
    """At random places and in random sizes. The client's own memory says what was written."""
    chance, value = random.Random(14), 0
    assert tracking.dirty() == set()
    for _ in range(4):
        before, written = tracking.memory.read(), set[int]()
        for _ in range(25):
            value += 1
            tracking.source.write(bytes([value]) * tracking.source.size)
            start = chance.randrange(PAGES * PAGE)
            size = min(chance.choice([1, 8, PAGE, 3 * PAGE + 1, 32 * PAGE]), PAGES * PAGE - start)
            assert tracking.function.copy(SOURCE, IOVA + start, size) == DONE
            written.update(range(start // PAGE, (start + size - 1) // PAGE + 1))
        assert changed(before, tracking.memory.read()) == written
        assert tracking.dirty(flags=DIRTY_BITMAP_NO_CLEAR) == written
        assert tracking.dirty() == written
        assert tracking.dirty() == set()


def test_parts_are_reported_and_the_rest_stays_dirty(tracking: Tracking) -> None:
    """Bit 0 is the first page of the range, wherever that begins."""
    tracking.write(3, 4, 64, 100, 599)
    assert tracking.dirty(4, 61) == {4, 64}
    assert tracking.dirty(5, 595) == {100, 599}
    assert tracking.dirty() == {3}


@pytest.mark.parametrize(
    ("page_size", "bits"),
    [
        (1, set(range(8 * PAGE, 9 * PAGE)) | set(range(21 * PAGE, 22 * PAGE))),
        (512, set(range(64, 72)) | set(range(168, 176))),
        (2 * PAGE, {4, 10}),
        (8 * PAGE, {1, 2}),
        (0x3000, {8, 21}),
    ],
)
def test_pages_of_other_sizes(tracking: Tracking, page_size: int, bits: set[int]) -> None:
    """A bit of a larger page says that any of it is dirty. A dirty page has all of its smaller ones dirty.
    Of a number that is no power of two the lowest bit counts."""
    tracking.write(8, 21)
    array = (ctypes.c_uint8 * (32 * PAGE))()
    tracking.ask(ctypes.addressof(array), length=32 * PAGE, page_size=page_size)
    found = int.from_bytes(bytes(array), "little")
    assert found == sum(1 << bit for bit in bits)


def test_bits_are_added_to_what_the_bitmap_has(tracking: Tracking) -> None:
    """It may be at any address. No word is written in which nothing is to be set."""
    tracking.write(9, 130)
    with memory(2 * PAGE) as bits:
        at = PAGE - 13
        bits.write(b"\x81" * 90, at)
        tracking.ask(bits.address + at)
        expected = bytearray(b"\x81" * 90)
        expected[1] |= 1 << 1
        expected[16] |= 1 << 2
        assert bits.read(at, 90) == expected
        assert not any(bits.read(0, at)) and not any(bits.read(at + 90, 100))
    assert tracking.dirty() == set()


def test_a_bitmap_whose_memory_is_too_short(tracking: Tracking) -> None:
    """Pages whose bits cannot be stored stay dirty. The call works all the same, as in Linux."""
    tracking.write(1, 599)
    with memory(2 * PAGE) as bits, memory(PAGE, prot=0, address=bits.address + PAGE):
        tracking.ask(bits.address + PAGE - 64)
        assert bits.read(PAGE - 64, 64) == (1 << 1).to_bytes(64, "little")
    assert tracking.dirty() == {599}


@pytest.mark.parametrize("address", [0, 1, 0xFFFF_8000_0000_0000, 2**64 - 8])
def test_a_bitmap_that_cannot_be_written_loses_nothing(tracking: Tracking, address: int) -> None:
    tracking.write(0, 599)
    tracking.ask(address)
    with memory(PAGE, prot=mmap.PROT_READ) as bits:
        tracking.ask(bits.address)
    assert tracking.dirty() == {0, 599}


def test_nothing_is_dirty_before_tracking_begins(tracking: Tracking) -> None:
    tracking.iommufd.set_dirty_tracking(tracking.hwpt, False)
    tracking.write(1)
    assert tracking.dirty() == set()
    tracking.iommufd.set_dirty_tracking(tracking.hwpt)
    assert tracking.dirty() == set()
    tracking.write(2)
    tracking.iommufd.set_dirty_tracking(tracking.hwpt)
    assert tracking.dirty() == set(), "a start is a new one"
    tracking.write(3)
    tracking.iommufd.set_dirty_tracking(tracking.hwpt, False)
    assert tracking.dirty() == set()


def test_reads_and_refused_writes_are_not_dirty(tracking: Tracking) -> None:
    with memory(PAGE) as only_read:
        tracking.iommufd.map(tracking.ioas, only_read.address, PAGE, 2 * SOURCE, flags=MAP_READABLE)
        assert tracking.function.copy(IOVA, SOURCE, 5 * PAGE) == DONE
        assert tracking.function.copy(SOURCE, 2 * SOURCE, 1) == FAULT
        assert tracking.function.copy(SOURCE, IOVA + PAGES * PAGE - 1, 2) == FAULT
        assert tracking.dirty() == set()
        found = tracking.iommufd.dirty_pages(tracking.hwpt, SOURCE, 32 * PAGE)
        assert found == [SOURCE + page * PAGE for page in range(5)]
        assert tracking.iommufd.dirty_pages(tracking.hwpt, 2 * SOURCE, PAGE) == []


def test_the_report_ends_at_a_hole(tracking: Tracking) -> None:
    end = PAGES * PAGE
    with memory(2 * PAGE) as more:
        tracking.iommufd.map(tracking.ioas, more.address, PAGE, IOVA + end)
        tracking.iommufd.map(tracking.ioas, more.address, PAGE, IOVA + end + 2 * PAGE)
        tracking.write(PAGES - 1, PAGES, PAGES + 2)
        assert tracking.dirty(-1, PAGES + 5) == set(), "the first page is not mapped"
        assert tracking.dirty(0, PAGES + 5) == {PAGES - 1, PAGES}
        assert tracking.dirty(PAGES + 2, 1) == {PAGES + 2}


def test_all_iovas_at_once(tracking: Tracking) -> None:
    """A length of 0 at iova 0 is all of them."""
    with memory(PAGE) as first, memory(PAGE) as bits:
        tracking.iommufd.map(tracking.ioas, first.address, PAGE, 0)
        tracking.write(-(IOVA // PAGE))
        tracking.ask(bits.address, iova=0, length=0)
        assert bits.read(0, 8) == (1).to_bytes(8, "little")


def test_an_unmap_takes_dirty_pages_with_it(tracking: Tracking) -> None:
    tracking.write(0, 1)
    assert tracking.iommufd.unmap(tracking.ioas, IOVA, PAGES * PAGE) == PAGES * PAGE
    assert tracking.dirty() == set()
    tracking.iommufd.map(tracking.ioas, tracking.memory.address, PAGES * PAGE, IOVA)
    assert tracking.dirty() == set()
    tracking.write(1)
    assert tracking.dirty() == {1}


def test_two_hwpts_of_an_ioas_keep_their_pages_apart(tracking: Tracking, machine: MountedLab) -> None:
    iommufd = tracking.iommufd
    with opened(machine, iommufd, SECOND) as other:
        hwpt = iommufd.hwpt(other.id, tracking.ioas, HWPT_DIRTY_TRACKING | HWPT_PASID)
        other.cdev.attach(hwpt)
        iommufd.set_dirty_tracking(hwpt)
        tracking.write(1)
        assert other.copy(SOURCE, IOVA + 2 * PAGE, 1) == DONE
        assert (tracking.dirty(hwpt=hwpt), tracking.dirty()) == ({2}, {1})
        other.cdev.attach(tracking.ioas)
        assert other.copy(SOURCE, IOVA + 3 * PAGE, 1) == DONE
        assert (tracking.dirty(hwpt=hwpt), tracking.dirty()) == (set(), set()), "that one has no tracking"
        other.cdev.attach(tracking.hwpt)
        assert other.copy(SOURCE, IOVA + 4 * PAGE, 1) == DONE
        tracking.write(5)
        assert (tracking.dirty(hwpt=hwpt), tracking.dirty()) == (set(), {4, 5})
        other.cdev.detach()
        iommufd.destroy(hwpt)


def test_dirty_pages_outlive_the_attachment(tracking: Tracking) -> None:
    tracking.write(7)
    tracking.function.cdev.detach()
    assert tracking.function.copy(SOURCE, IOVA, 1) == FAULT
    assert tracking.dirty() == {7}


def test_nothing_is_lost_while_a_device_writes(tracking: Tracking) -> None:
    """Bitmaps are read as fast as can be while the device writes; together they have every page."""
    found: set[int] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found.update(tracking.dirty())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        tracking.write(*range(300))
    finally:
        done.set()
        reader.join()
    assert found | tracking.dirty() == set(range(300))


@needs.userfaultfd
def test_a_bitmap_that_waits_holds_up_nobody_and_loses_nothing(tracking: Tracking) -> None:
    """What is written meanwhile is for another report."""
    tracking.write(1, 2)
    with StoppedMemory(PAGE) as bits:
        held = threading.Thread(target=tracking.ask, args=(bits.address,))
        held.start()
        wait_for(lambda: bits.touched)
        tracking.write(2, 3)
        assert tracking.dirty() == {2, 3}
        with memory(PAGE) as other:
            tracking.iommufd.map(tracking.ioas, other.address, PAGE, 2 * SOURCE)
            assert tracking.iommufd.unmap(tracking.ioas, 2 * SOURCE, PAGE) == PAGE
        tracking.iommufd.set_dirty_tracking(tracking.hwpt, False)
        assert held.is_alive()
        bits.let_go()
        held.join()
        assert bits.read(0, 8) == (0b110).to_bytes(8, "little")
    assert tracking.dirty() == set()


# ---- errors ----


def test_hwpts_without_dirty_tracking(tracking: Tracking) -> None:
    iommufd = tracking.iommufd
    plain = iommufd.hwpt(tracking.function.id, tracking.ioas)
    tracking.function.cdev.detach()
    automatic = tracking.function.cdev.attach(tracking.ioas)
    for hwpt in (plain, automatic):
        fails(errno.EOPNOTSUPP, iommufd.set_dirty_tracking, hwpt)
        fails(errno.EOPNOTSUPP, iommufd.set_dirty_tracking, hwpt, False)
        fails(errno.EOPNOTSUPP, tracking.dirty, hwpt=hwpt)
        fails(errno.EINVAL, tracking.ask, 0, hwpt_id=hwpt, page_size=0)


def test_errors_of_set_dirty_tracking(tracking: Tracking) -> None:
    iommufd, function = tracking.iommufd, tracking.function
    for flags in (2, 3, 1 << 31):
        fails(errno.EOPNOTSUPP, iommufd.call, SetDirtyTracking(hwpt_id=99, flags=flags))
    for number in (0, 99, tracking.ioas, function.id, 2**32 - 1):
        fails(errno.ENOENT, iommufd.set_dirty_tracking, number)
    iommufd.call(SetDirtyTracking(hwpt_id=tracking.hwpt, flags=1, reserved=7))


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"flags": 2, "hwpt_id": 99}, errno.EOPNOTSUPP),
        ({"flags": 1 << 31}, errno.EOPNOTSUPP),
        ({"reserved": 1, "hwpt_id": 99}, errno.EOPNOTSUPP),
        ({"hwpt_id": 99, "page_size": 0}, errno.ENOENT),
        ({"hwpt_id": 0}, errno.ENOENT),
        ({"length": 0}, errno.EOVERFLOW),
        ({"length": 2**64 - PAGE}, errno.EOVERFLOW),
        ({"iova": 2**64 - 1, "length": 2, "page_size": 0}, errno.EOVERFLOW),
        ({"iova": IOVA + 512, "page_size": 512}, errno.EINVAL),
        ({"length": PAGE + 512, "page_size": 512}, errno.EINVAL),
        ({"page_size": 0}, errno.EINVAL),
        ({"page_size": 2**63}, errno.EINVAL),
        ({"iova": IOVA + PAGE, "length": PAGE, "page_size": 2 * PAGE}, errno.EINVAL),
        ({"length": PAGE, "page_size": 2 * PAGE}, errno.EINVAL),
    ],
)
def test_errors_of_get_dirty_bitmap(tracking: Tracking, fields: dict[str, int], number: int) -> None:
    tracking.write(0)
    with memory(PAGE) as bits:
        fails(number, tracking.ask, bits.address, **fields)
        assert not any(bits.read())
    assert tracking.dirty() == {0}
