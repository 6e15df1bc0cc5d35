# SPDX-License-Identifier: Apache-2.0
"""What iommufd pins, who pays for it, and what copies share."""

import errno
import random
import threading
from contextlib import suppress

import pytest

from devmodel.iommu.accounts import ContextMemory, LockedMemory
from devmodel.iommu.api import PAGE_SIZE, DmaFault, MustWait, Prot
from devmodel.iommufd.context import Context
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.sharing import (
    change_process,
    check_copy,
    check_file,
    copy,
    map_file,
    set_rlimit_mode,
    source,
)
from tests.unit.clients import Call, Unhurried
from tests.unit.fakes import TOP, FakeClient, fails
from tests.unit.test_iommufd import APERTURE, FIXED, READABLE, RW, Attached, PinUser

LAST = TOP - 1


class FramePages:
    """Pinned frames of a :class:`Remapping` client."""

    def __init__(self, frames: list[bytearray]) -> None:
        self.frames = frames

    def read(self, offset: int, size: int) -> bytes:
        return b"".join(self.frames)[offset : offset + size]

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.read(offset, len(view))

    def write_from(self, offset: int, view: memoryview) -> None:
        for byte in view:
            self.frames[offset // PAGE_SIZE][offset % PAGE_SIZE] = byte
            offset += 1


class Remapping(FakeClient):
    """A process that may map other memory at an address: what is pinned stays what it was."""

    def __init__(self, tgid: int = 1, memlock: int = TOP, privileged: bool = False, user: int = 1000) -> None:
        super().__init__(tgid, memlock=memlock, privileged=privileged)
        self.user = user
        self.frames: dict[int, bytearray] = {}
        self.ended = False

    def frame(self, page: int) -> bytearray:
        if self.ended:
            raise OSError(errno.ESRCH, "the process has ended")
        return self.frames.setdefault(page, bytearray(PAGE_SIZE))

    def read(self, vaddr: int, size: int) -> bytes:
        return bytes(self.frame(at // PAGE_SIZE)[at % PAGE_SIZE] for at in range(vaddr, vaddr + size))

    def write(self, vaddr: int, data: bytes) -> None:
        for at, byte in enumerate(data, vaddr):
            self.frame(at // PAGE_SIZE)[at % PAGE_SIZE] = byte

    def pin(self, vaddr: int, size: int, write: bool) -> FramePages:  # type: ignore[override]
        first = vaddr // PAGE_SIZE
        return FramePages([self.frame(page) for page in range(first, first + size // PAGE_SIZE)])

    def remap(self) -> None:
        """Other memory at each address."""
        self.frames = {}


@pytest.fixture
def locked() -> LockedMemory:
    return LockedMemory()


@pytest.fixture
def context(locked: LockedMemory) -> Context:
    return Context(locked)


@pytest.fixture
def client() -> Remapping:
    return Remapping()


def ioas_of(context: Context) -> Ioas:
    made = Ioas(context.locked)
    context.objects.add(made)
    return made


def pages_at(ioas: Ioas, client: FakeClient, iova: int, pages: int, va: int, flags: int = RW) -> None:
    ioas.map(client, FIXED | flags, va, pages * PAGE_SIZE, iova)


def copied(
    dst: Ioas, src: Ioas, src_iova: int, length: int, dst_iova: int | None = None, flags: int = RW
) -> int:
    flags |= 0 if dst_iova is None else FIXED
    return copy(dst, source(src, src_iova, length), flags, dst_iova or 0)


# ---- copies ----


def test_a_copy_is_the_memory_of_its_source_and_survives_it(context: Context, client: Remapping) -> None:
    src, dst = ioas_of(context), ioas_of(context)
    pages_at(src, client, 0x10000, 4, 0x40000)
    assert copied(dst, src, 0x11000, 2 * PAGE_SIZE, 0x50000) == 0x50000
    assert copied(dst, src, 0x10000, 4 * PAGE_SIZE) == 0x4000  # aligned as the address, up to the size
    src.space.dma_write(0x12FFF, b"ab"[:1])
    assert dst.space.dma_read(0x51FFF, 1) == dst.space.dma_read(0x6FFF, 1) == b"a"
    src.unmap(0, LAST)
    dst.space.dma_write(0x50000, b"later")
    assert client.read(0x41000, 5) == b"later"
    fails(errno.EFAULT, src.space.dma_read, 0x10000, 1)


def test_a_copy_of_several_areas_is_unmapped_in_pieces(context: Context, client: Remapping) -> None:
    src, dst = ioas_of(context), ioas_of(context)
    pages_at(src, client, 0x10000, 2, 0x40000)
    pages_at(src, client, 0x12000, 1, 0x80000)
    copied(dst, src, 0x11000, 2 * PAGE_SIZE, 0)
    assert [(one.iova, one.size, one.vaddr) for one in dst.space.mappings] == [
        (0, PAGE_SIZE, 0x41000),
        (PAGE_SIZE, PAGE_SIZE, 0x80000),
    ]
    assert dst.unmap(PAGE_SIZE, PAGE_SIZE) == PAGE_SIZE
    src.unmap(0x10000, 3 * PAGE_SIZE)
    assert dst.space.dma_read(0, 4) == bytes(4)


def test_a_copy_within_one_ioas_and_of_bytes(context: Context, client: Remapping) -> None:
    ioas = ioas_of(context)
    ioas.map(client, FIXED | RW, 0x40001, 10, 5)
    assert copied(ioas, ioas, 7, 3, 100) == 100
    ioas.space.dma_write(100, b"xyz")
    assert client.read(0x40003, 3) == b"xyz"
    fails(errno.EEXIST, copied, ioas, ioas, 7, 3, 98)
    assert copied(ioas, ioas, 100, 3, 97) == 97  # of a copy


def test_the_errnos_of_a_copy(context: Context, client: Remapping) -> None:
    src, dst = ioas_of(context), ioas_of(context)
    pages_at(src, client, 0x10000, 2, 0x40000)
    pages_at(src, client, 0x13000, 1, 0x40000, flags=READABLE)
    fails(errno.EOPNOTSUPP, check_copy, 8 | RW, PAGE_SIZE, 0, 0)
    for numbers in ((LAST, 0, 0), (1, LAST, 0), (1, 0, LAST)):
        fails(errno.EOVERFLOW, check_copy, RW, *numbers)
    fails(errno.EINVAL, check_copy, FIXED, PAGE_SIZE, 0, 0)
    fails(errno.EINVAL, source, src, 0x10000, 0)
    fails(errno.EOVERFLOW, source, src, LAST - 1, 0x1000)
    for iova, length in ((0xF000, 0x2000), (0x10000, 0x2001), (0x10000, 0x4000), (0x12000, 1), (0, LAST - 1)):
        fails(errno.ENOENT, source, src, iova, length)
    fails(errno.EPERM, copied, dst, src, 0x13000, PAGE_SIZE, 0)
    copied(dst, src, 0x13000, PAGE_SIZE, 0, flags=READABLE)
    fails(errno.EPERM, copied, dst, dst, 0, PAGE_SIZE, 0x1000)
    copied(dst, src, 0x10000, PAGE_SIZE, 0x8000, flags=READABLE)
    copied(dst, dst, 0x8000, PAGE_SIZE, 0x9000)  # the first mapping allows writes
    dst.space.dma_write(0x9000, b"x")
    fails(errno.EFAULT, dst.space.dma_write, 0x8000, b"x")
    dst.set_huge_pages(0)
    fails(errno.EINVAL, copied, dst, src, 0x10001, 2, 0x20000)


def test_copies_of_pinned_memory_reach_the_same_pages(context: Context, client: Remapping) -> None:
    """Whoever pins: domains on both sides, an access on the other, or nobody there."""
    src, dst, seen = ioas_of(context), ioas_of(context), ioas_of(context)
    pages_at(src, client, 0, 4, 0x40000)
    src.add_domain(Attached(1))
    client.remap()
    src.space.dma_write(PAGE_SIZE, b"pinned")
    dst.add_domain(Attached(2))
    copied(dst, src, PAGE_SIZE, PAGE_SIZE, 0)
    copied(seen, src, PAGE_SIZE, PAGE_SIZE, 0)
    assert dst.space.dma_read(0, 6) == seen.space.dma_read(0, 6) == b"pinned"
    assert client.read(0x41000, 6) == bytes(6)
    user = PinUser()
    seen.add_access(Attached(3, emulated=True), user)
    pin = seen.space.pin_pages(0, 1, Prot.READ | Prot.WRITE)
    src.unmap(0, LAST)
    dst.unmap(0, LAST)
    assert pin.read(0, 6) == b"pinned"
    copied(dst, seen, 0, PAGE_SIZE, 0x5000)
    assert dst.space.dma_read(0x5000, 6) == b"pinned"
    pin.release()
    assert dst.space.dma_read(0x5000, 6) == b"pinned"
    dst.unmap(0, LAST)
    assert seen.space.dma_read(0, 6) == bytes(6)  # nobody holds the old page
    assert context.locked.of_user(1000) == 0


def test_a_copy_is_pinned_with_what_others_have_pinned_of_it(context: Context, client: Remapping) -> None:
    """A source that is pinned in part: the other pages are those that the process has now."""
    src, dst = ioas_of(context), ioas_of(context)
    pages_at(src, client, 0, 3, 0x40000)
    copied(dst, src, 0, 3 * PAGE_SIZE, 0)
    src.add_access(Attached(3, emulated=True), PinUser())
    pin = src.space.pin_pages(PAGE_SIZE, 1, Prot.READ | Prot.WRITE)
    client.remap()
    dst.add_domain(Attached(1))
    assert context.locked.of_user(1000) == 3
    pin.write(0, b"old page")
    client.write(0x42000, b"new page")
    assert dst.space.dma_read(PAGE_SIZE, 8) == b"old page"
    assert dst.space.dma_read(2 * PAGE_SIZE, 8) == b"new page"
    assert dst.space.dma_read(0, 3 * PAGE_SIZE)[PAGE_SIZE : PAGE_SIZE + 8] == b"old page"
    dst.space.dma_write(PAGE_SIZE - 2, b"over two pages")
    assert pin.read(0, 12) == b"er two pages" and client.read(0x40FFE, 2) == b"ov"
    pin.release()
    assert context.locked.of_user(1000) == 3


def test_a_copy_that_fails_leaves_nothing(context: Context) -> None:
    client = Remapping(memlock=3 * PAGE_SIZE)
    src, dst = ioas_of(context), ioas_of(context)
    pages_at(src, client, 0, 2, 0x40000)
    pages_at(src, client, 0x2000, 2, 0x80000)
    dst.add_domain(Attached(1))
    fails(errno.ENOMEM, copied, dst, src, 0, 4 * PAGE_SIZE, 0)
    assert not len(dst.space.mappings) and context.locked.of_user(1000) == 0
    with pytest.raises(MustWait):
        copy(dst, source(src, 0, PAGE_SIZE), RW, 0, may_wait=False)
    copied(dst, src, 0, 3 * PAGE_SIZE, 0)
    assert context.locked.of_user(1000) == 3
    client.ended = True
    fails(errno.EFAULT, copied, dst, src, 0x3000, PAGE_SIZE, 0x10000)
    assert context.locked.of_user(1000) == 3


def test_a_domain_beyond_the_aperture_of_the_ioas_is_refused_for_copies_too(
    context: Context, client: Remapping
) -> None:
    src, dst = ioas_of(context), ioas_of(context)
    pages_at(src, client, APERTURE, 1, 0x40000)
    dst.add_domain(Attached(1))
    fails(errno.EINVAL, copied, dst, src, APERTURE, PAGE_SIZE, APERTURE)
    copied(dst, src, APERTURE, PAGE_SIZE, 0)


def test_a_copy_waits_for_its_client_under_no_lock(context: Context) -> None:
    client = Unhurried()
    client.watched = [context.locked.lock]
    src, dst = ioas_of(context), ioas_of(context)
    client.watched += [src.space.lock, dst.space.lock]
    pages_at(src, client, 0, 2, 0x40000)
    dst.add_domain(Attached(1))
    client.hold("pin")
    held = Call(lambda: copied(dst, src, 0, 2 * PAGE_SIZE, 0))
    assert client.begun.wait(60)
    assert src.unmap(0, LAST) == 2 * PAGE_SIZE  # the source goes
    fails(errno.ENOENT, source, dst, 0, PAGE_SIZE)  # the copy is not there yet
    fails(errno.EEXIST, dst.map, FakeClient(2), FIXED | RW, 0, PAGE_SIZE, 0)
    client.answer()
    held.result()
    assert context.locked.of_user(1000) == 2
    dst.space.dma_write(0, b"x")
    dst.unmap(0, LAST)
    assert context.locked.of_user(1000) == 0


# ---- accounts ----


def test_memory_is_charged_once_for_all_copies_and_domains(context: Context, client: Remapping) -> None:
    first, second = ioas_of(context), ioas_of(context)

    def count() -> int:
        return context.locked.of_user(1000)

    pages_at(first, client, 0, 4, 0x40000)
    for number, ioas in enumerate((first, second)):
        ioas.add_domain(Attached(number))
    assert count() == 4
    first.add_domain(Attached(5))
    copied(second, first, 0x1000, 2 * PAGE_SIZE, 0)
    copied(first, second, 0, PAGE_SIZE, 0x20000)
    assert count() == 4
    pages_at(first, client, 0x30000, 4, 0x40000)  # the same address in another call is other memory
    assert count() == 8
    first.unmap(0, 4 * PAGE_SIZE)
    assert count() == 6
    first.unmap(0x20000, PAGE_SIZE)
    assert count() == 6
    second.unmap(0, LAST)
    assert count() == 4
    first.unmap(0, LAST)
    assert count() == 0


def test_a_user_pays_for_all_of_its_processes_and_a_process_for_itself(locked: LockedMemory) -> None:
    first, second = Remapping(1, memlock=3 * PAGE_SIZE), Remapping(2, memlock=3 * PAGE_SIZE)
    other = Remapping(3, memlock=3 * PAGE_SIZE, user=1001)
    by_user, also = Context(locked), Context(locked)
    one, another = ioas_of(by_user), ioas_of(also)
    for number, ioas in enumerate((one, another)):
        ioas.add_domain(Attached(number))
    pages_at(one, first, 0, 2, 0x40000)
    fails(errno.ENOMEM, pages_at, another, second, 0, 2, 0x40000)
    pages_at(another, second, 0, 1, 0x40000)
    pages_at(another, other, 0x10000, 3, 0x40000)
    assert (by_user.locked.of_user(1000), also.locked.of_user(1001)) == (3, 3)
    assert locked.of(first) == 0
    by_process = Context(locked)
    set_rlimit_mode(by_process, 1, resource=True)
    third = ioas_of(by_process)
    third.add_domain(Attached(2))
    pages_at(third, first, 0, 3, 0x40000)
    assert locked.of(first) == 3
    fails(errno.ENOMEM, pages_at, third, first, 0x10000, 1, 0x40000)


def test_a_process_with_the_capability_pays_nothing(context: Context) -> None:
    privileged, plain = Remapping(1, memlock=0, privileged=True), Remapping(2, memlock=2 * PAGE_SIZE)
    ioas = ioas_of(context)
    ioas.add_domain(Attached(1))
    pages_at(ioas, privileged, 0, 64, 0x40000)
    assert context.locked.of_user(1000) == 0
    privileged.privileged = False  # it counts when the first page is pinned
    pages_at(ioas, privileged, 0x100000, 1, 0x40000)
    pages_at(ioas, plain, 0x200000, 2, 0x40000)
    ioas.unmap(0, LAST)
    assert context.locked.of_user(1000) == 0
    fails(errno.ENOMEM, pages_at, ioas, privileged, 0, 1, 0x40000)


def test_memory_that_is_not_there_is_efault_before_the_limit_is_enomem(context: Context) -> None:
    client = Remapping(memlock=0)
    ioas = ioas_of(context)
    pages_at(ioas, client, 0, 2, 0x40000)
    client.ended = True
    fails(errno.EFAULT, ioas.add_domain, Attached(1))
    client.ended = False
    fails(errno.ENOMEM, ioas.add_domain, Attached(1))
    client.memlock = 2 * PAGE_SIZE
    ioas.add_domain(Attached(1))
    assert context.locked.of_user(1000) == 2


def test_the_option_of_the_limit(context: Context) -> None:
    assert [context.locked.by_user] == [True]
    fails(errno.EPERM, set_rlimit_mode, context, 7, resource=False)
    fails(errno.EINVAL, set_rlimit_mode, context, 2, resource=True)
    set_rlimit_mode(context, 1, resource=True)
    assert [context.locked.by_user] == [False]
    ioas_of(context)
    fails(errno.EBUSY, set_rlimit_mode, context, 2, resource=True)
    fails(errno.EBUSY, set_rlimit_mode, context, 0, resource=True)
    fails(errno.EPERM, set_rlimit_mode, context, 0, resource=False)


# ---- files ----


def test_memory_of_a_file_has_another_payer_later(locked: LockedMemory) -> None:
    context = Context(locked)
    set_rlimit_mode(context, 1, resource=True)
    old, new, file = Remapping(1), Remapping(2, memlock=4 * PAGE_SIZE), Remapping(99)
    change_process(context, new)  # nothing to change
    ioas, other = ioas_of(context), ioas_of(context)
    check_file(0, PAGE_SIZE)
    fails(errno.EINVAL, check_file, 0, 0)
    fails(errno.EOVERFLOW, check_file, LAST, 2)
    assert map_file(ioas, file, old, RW, 0x3000, 3 * PAGE_SIZE, 0) == 0x1000
    ioas.add_domain(Attached(1))
    copied(other, ioas, 0x2000, PAGE_SIZE, 0)
    other.add_domain(Attached(2))
    assert (locked.of(old), locked.of(new)) == (3, 0)
    change_process(context, new)
    assert (locked.of(old), locked.of(new)) == (0, 3)
    change_process(context, new)
    assert locked.of(new) == 3
    other.space.dma_write(0, b"page 4")
    assert file.read(0x4000, 6) == b"page 4"
    map_file(ioas, file, new, FIXED | READABLE, 0x8000, PAGE_SIZE, 0x90000)
    poor = Remapping(3, memlock=3 * PAGE_SIZE)
    fails(errno.ENOMEM, change_process, context, poor)
    assert (locked.of(new), locked.of(poor)) == (4, 0)
    mapped = ioas_of(context)
    pages_at(mapped, new, 0x20000, 1, 0)
    fails(errno.EINVAL, change_process, context, old)
    for each in (ioas, other, mapped):
        each.unmap(0, LAST)
    assert (locked.of(old), locked.of(new)) == (0, 0)
    fails(errno.EFAULT, ioas.space.dma_write, 0x90000, b"x")


def test_the_account_of_a_context_is_that_of_the_lab(locked: LockedMemory) -> None:
    client = Remapping(memlock=4 * PAGE_SIZE)
    mode = ContextMemory(locked, by_user=False)
    mode.charge(client, [(0, 3)])
    assert locked.of(client) == 3
    locked.charge(client, [(0, 1)])
    fails(errno.ENOMEM, locked.charge, client, [(7, 8)])
    mode.discharge(client, [(0, 3)])
    assert locked.of(client) == 1


# ---- accesses ----


def test_an_access_pins_as_iommufd_says(context: Context, client: Remapping) -> None:
    ioas = ioas_of(context)
    pages_at(ioas, client, 0, 2, 0x40000, flags=READABLE)
    user = PinUser()
    ioas.add_access(Attached(1, emulated=True), user)
    assert context.locked.of_user(1000) == 0
    fails(errno.EPERM, ioas.space.pin_pages, 0, 1, Prot.WRITE)
    pin = ioas.space.pin_pages(0, 2, Prot.READ)
    assert context.locked.of_user(1000) == 2
    client.remap()
    fails(errno.EDEADLOCK, ioas.unmap, 0, LAST)
    assert len(user.seen) == 10 and set(user.seen) == {(0, 2 * PAGE_SIZE)}
    pin.release()
    with pytest.raises(DmaFault):
        pin.read(0, 1)
    assert context.locked.of_user(1000) == 0
    fails(errno.ENOENT, ioas.space.pin_pages, PAGE_SIZE, 2, Prot.READ)
    ioas.unmap(0, LAST)


def test_pins_of_one_page_are_one_page(context: Context, client: Remapping) -> None:
    """Also those that came before the copy."""
    src, dst = ioas_of(context), ioas_of(context)
    pages_at(src, client, 0, 2, 0x40000)
    src.add_access(Attached(1, emulated=True), PinUser())
    dst.add_access(Attached(2, emulated=True), PinUser())
    first = src.space.pin_pages(0, 1, Prot.READ | Prot.WRITE)
    client.remap()
    second = src.space.pin_pages(0, 2, Prot.READ | Prot.WRITE)
    copied(dst, src, 0, PAGE_SIZE, 0)
    third = dst.space.pin_pages(0, 1, Prot.READ | Prot.WRITE)
    first.write(0, b"one page")
    assert second.read(0, 8) == third.read(0, 8) == src.space.dma_read(0, 8) == b"one page"
    assert client.read(0x40000, 8) == bytes(8)
    assert context.locked.of_user(1000) == 2
    for pin in (first, second):
        pin.release()
    assert third.read(0, 8) == dst.space.dma_read(0, 8) == src.space.dma_read(0, 8) == b"one page"
    third.release()
    assert src.space.dma_read(0, 8) == bytes(8) and context.locked.of_user(1000) == 0


@pytest.mark.parametrize("seed", range(3))
def test_threads_that_share_memory_leave_nothing_charged(context: Context, seed: int) -> None:
    """Attachments, copies, unmaps, pins and another payer, all at once."""
    client = Remapping(memlock=64 * PAGE_SIZE)
    spaces = [ioas_of(context) for _ in range(3)]
    user = PinUser()
    spaces[2].add_access(Attached(99, emulated=True), user)
    map_file(spaces[0], client, client, FIXED | RW, 0x40000, 8 * PAGE_SIZE, 0)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        choose = random.Random(seed * 10 + number)
        try:
            for _ in range(150):
                step(choose, number)
        except BaseException as error:
            failed.append(error)

    def step(choose: random.Random, number: int) -> None:
        src, dst = choose.choice(spaces), choose.choice(spaces)
        page = choose.randrange(8) * PAGE_SIZE
        kind = choose.randrange(5)
        with suppress(OSError):
            if kind == 0:
                domain = Attached(number)
                spaces[0].add_domain(domain)
                spaces[0].remove_domain(domain)
            elif kind == 1:
                copied(dst, src, page, choose.randrange(1, 4) * PAGE_SIZE, page)
            elif kind == 2:
                dst.unmap(page, choose.randrange(1, 4) * PAGE_SIZE)
            elif kind == 3:
                spaces[2].space.pin_pages(page, choose.randrange(1, 4), Prot.READ).release()
            else:
                change_process(context, client)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    for ioas in spaces:
        ioas.unmap(0, LAST)
    assert context.locked.of_user(1000) == 0
