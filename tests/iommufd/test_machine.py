# SPDX-License-Identifier: Apache-2.0
"""iommufd beside a plain dictionary of pages, on a real mount: whatever the order of MAP, MAP_FILE, COPY,
UNMAP, HWPT_ALLOC, attach, detach, DMA, pins and dirty bitmaps, and whatever memory the process has by then.

The memory is pages of one memfd, the *frames*. The process has some of them at its addresses, and may have
others there later. A page that is pinned stays the frame that it was; any other page is the frame that the
process has at its address now.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.commands import ROOT
from tests.iommufd.client import HWPT_DIRTY_TRACKING, MAP_READABLE, MAP_WRITEABLE, Iommufd
from tests.iommufd.devices import Copier, Holder, cdev_of
from tests.iommufd.functions import FIRST, LAB, SECOND
from tests.iommufd.world import FRAMES, VAS, Area, Domain, Held, Shared, Space, World
from tests.labs import MountedLab, described
from tests.vfio.client import PAGE, fails
from tests.vfio.copiers import DONE, FAULT, PIN, STORE
from tests.vfio.devices import bound

HOLDERS = """
[parents.holders]
kind = "virtual"
driver = "holder"
slots = 8
types.holder-1 = { description = "holds" }
"""
IOVAS = 24
"""How many pages of iovas of an IOAS are used."""
MAX_IOASES, MAX_HWPTS = 3, 4
BOTH = MAP_READABLE | MAP_WRITEABLE
PROTS = st.sampled_from([BOTH, BOTH, BOTH, MAP_READABLE, MAP_WRITEABLE])
VA_PAGES = st.integers(0, VAS - 1) | st.integers(0, 3)
PAGES, COUNTS = st.integers(0, IOVAS - 1), st.integers(1, 4)
NUMBERS = st.integers(0, 11)


class Iommufds(RuleBasedStateMachine):
    """Every rule does the same to both and compares the outcome."""

    lab: MountedLab
    holder_node: Any
    copier_node: Any

    @initialize(places=st.tuples(*[st.integers(0, MAX_IOASES)] * 4))
    def start(self, places: tuple[int, ...]) -> None:
        """``places`` are the IOASes to which devices are attached at first, if there are so many."""
        self.stack = ExitStack()
        self.world = World()
        self.stack.callback(self.world.close)
        self.iommufd = self.stack.enter_context(Iommufd(self.lab.path))
        self.ids: set[int] = set()
        nodes = [cdev_of(self.lab, FIRST), cdev_of(self.lab, SECOND), self.copier_node]
        self.copiers = [self.stack.enter_context(Copier(node)) for node in nodes]
        self.holder = self.stack.enter_context(Holder(self.holder_node))
        self.device_ids = [self.given(device.ready(self.iommufd)) for device in self.copiers]
        self.given(self.holder.ready(self.iommufd))
        self.spaces: list[Space] = []
        self.at: list[Domain | Space | None] = [None] * 4
        """What each device is attached to: the functions to an HWPT, the others to an IOAS."""
        self.held: list[Held] = []
        for _ in range(MAX_IOASES):
            self.alloc()
        for device, number in enumerate(places):
            if number < MAX_IOASES:
                self.attach_to(device, self.spaces[number])
        for number in range(2):
            self.map(number, 4 * number, 4, 0, BOTH, of_file=False)

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def given(self, number: int) -> int:
        """An id that the server gave: the lowest that was free."""
        assert number == next(n for n in range(1, 99) if n not in self.ids)
        self.ids.add(number)
        return number

    def space(self, number: int) -> Space:
        return self.spaces[number % len(self.spaces)]

    def domain(self, number: int) -> Domain | None:
        manual = [one for space in self.spaces for one in space.domains if not one.automatic]
        return manual[number % len(manual)] if manual else None

    # ---- holds of pages ----

    def hold(self, pages: list[tuple[Shared, int]]) -> int:
        """Hold these pages once more. The errno, 0 for none, with nothing held."""
        frames = [self.world.frame(*page) for page in pages]
        if None in frames:
            return errno.EFAULT
        for (memory, index), frame in zip(pages, frames, strict=True):
            assert frame is not None
            memory.holds[index] += 1
            memory.pinned[index] = frame
        return 0

    def drop(self, pages: list[tuple[Shared, int]]) -> None:
        for memory, index in pages:
            memory.holds[index] -= 1

    @staticmethod
    def pages_of(areas: list[Area]) -> list[tuple[Shared, int]]:
        return [(area.memory, area.index + page) for area in areas for page in range(area.count)]

    def join(self, domain: Domain) -> int:
        """A new HWPT pins all that is mapped, unless it is pinned already. The errno, 0 for none."""
        space = domain.ioas
        error = 0 if space.domains else self.hold(self.pages_of(space.areas))
        if not error:
            space.domains.append(domain)
        return error

    def leave(self, domain: Domain) -> None:
        domain.ioas.domains.remove(domain)
        self.ids.discard(domain.id)
        if not domain.ioas.domains:
            self.drop(self.pages_of(domain.ioas.areas))

    def attached(self, domain: Domain | Space) -> bool:
        return any(one is domain for one in self.at)

    # ---- objects ----

    @rule(
        what=st.sampled_from(["alloc", "destroy", "alloc_hwpt", "destroy_hwpt", "track"]),
        number=NUMBERS,
        device=st.integers(0, 1),
        track=st.booleans(),
    )
    def change_objects(self, what: str, number: int, device: int, track: bool) -> None:
        if what == "alloc" and len(self.spaces) < MAX_IOASES:
            self.alloc()
        elif what == "destroy" and self.spaces:
            self.destroy(number)
        elif what == "alloc_hwpt" and self.spaces:
            self.alloc_hwpt(number, device, track)
        elif what == "destroy_hwpt":
            self.destroy_hwpt(number)
        elif what == "track":
            self.track(number)

    def alloc(self) -> None:
        self.spaces.append(Space(self.given(self.iommufd.ioas())))

    def destroy(self, number: int) -> None:
        space = self.space(number)
        if space.domains or self.attached(space):
            fails(errno.EBUSY, self.iommufd.destroy, space.id)
            return
        self.iommufd.destroy(space.id)
        self.spaces.remove(space)
        self.ids.remove(space.id)

    def alloc_hwpt(self, number: int, device: int, track: bool) -> None:
        space = self.space(number)
        if sum(not one.automatic for each in self.spaces for one in each.domains) == MAX_HWPTS:
            return
        made = Domain(0, space, automatic=False, can_track=track)
        arguments = self.device_ids[device], space.id, HWPT_DIRTY_TRACKING if track else 0
        error = self.join(made)
        if error:
            fails(error, self.iommufd.hwpt, *arguments)
        else:
            made.id = self.given(self.iommufd.hwpt(*arguments))

    def destroy_hwpt(self, number: int) -> None:
        domain = self.domain(number)
        if domain is None:
            return
        if self.attached(domain):
            fails(errno.EBUSY, self.iommufd.destroy, domain.id)
            return
        self.iommufd.destroy(domain.id)
        self.leave(domain)

    # ---- attachments ----

    @precondition(lambda self: self.spaces)
    @rule(device=st.integers(0, 3), number=NUMBERS, to=st.sampled_from(["IOAS", "IOAS", "HWPT", "nothing"]))
    def attach(self, device: int, number: int, to: str) -> None:
        domain = self.domain(number) if to == "HWPT" and device < 2 else None
        if to == "nothing":
            self.detach(device)
        elif domain is None:
            self.attach_to(device, self.space(number))
        else:
            assert self.copiers[device].attach(domain.id) == domain.id
            self.move(device, domain)

    def attach_to(self, device: int, space: Space) -> None:
        if device >= 2:
            cdev = self.copiers[2] if device == 2 else self.holder
            assert cdev.attach(space.id) == space.id
            if device == 3 and self.at[3] is not space:
                self.let_go(self.held)
            self.at[device] = space
            return
        found = [one for one in space.domains if one.automatic]
        domain = found[0] if found else Domain(0, space, automatic=True)
        error = 0 if found else self.join(domain)
        if error:
            fails(error, self.copiers[device].attach, space.id)
            return
        got = self.copiers[device].attach(space.id)
        domain.id = domain.id or self.given(got)
        assert got == domain.id
        self.move(device, domain)

    def detach(self, device: int) -> None:
        (*self.copiers, self.holder)[device].detach()
        if device == 3:
            self.let_go(self.held)
        self.move(device, None)

    def move(self, device: int, to: Domain | None) -> None:
        before, self.at[device] = self.at[device], to
        if isinstance(before, Domain) and before.automatic and not self.attached(before):
            self.leave(before)

    # ---- mappings ----

    @precondition(lambda self: self.spaces)
    @rule(
        number=NUMBERS,
        first=st.one_of(PAGES, st.none()),
        count=COUNTS,
        base=st.integers(0, VAS - 4) | st.just(0),
        prot=PROTS,
        of_file=st.booleans(),
    )
    def map(self, number: int, first: int | None, count: int, base: int, prot: int, of_file: bool) -> None:
        space = self.space(number)
        memory = Shared(of_file, base, bool(prot & MAP_WRITEABLE))
        iova = None if first is None else first * PAGE
        call: Any = self.iommufd.map
        arguments: tuple[int, ...] = (space.id, self.world.address + base * PAGE)
        if of_file:
            call, arguments = self.iommufd.map_file, (space.id, self.world.fd, base * PAGE)
        address = arguments[-1]
        first = self.lowest(space, count, address) if first is None else first
        new = [Area(first, count, memory, 0, prot)]
        self.made(space, new, lambda: call(*arguments, count * PAGE, iova, prot))

    @precondition(lambda self: any(space.areas for space in self.spaces))
    @rule(
        data=st.data(),
        number=NUMBERS,
        cut=st.integers(-1, 2),
        count=COUNTS,
        to=st.one_of(PAGES, st.none()),
        prot=PROTS,
    )
    def copy(self, data: st.DataObject, number: int, cut: int, count: int, to: int | None, prot: int) -> None:
        src, area = data.draw(st.sampled_from([(one, area) for one in self.spaces for area in one.areas]))
        dst, first = self.space(number), max(area.first + cut, 0)
        count = min(count, max(area.end - first, 1)) if number % 3 else count
        iova = None if to is None else to * PAGE
        asked = (dst.id, src.id, first * PAGE, count * PAGE, iova, prot)
        if not all(src.at(page) for page in range(first, first + count)):
            fails(errno.ENOENT, self.iommufd.copy, *asked)
            return
        pieces = src.touched(first, count)
        skipped = first - pieces[0].first
        address = (pieces[0].memory.base + pieces[0].index + skipped) * PAGE
        if not pieces[0].memory.of_file:
            address += self.world.address
        position = self.lowest(dst, count, address) if to is None else to
        new = []
        for area in pieces:
            low, high = max(first, area.first), min(first + count, area.end)
            new.append(Area(position, high - low, area.memory, area.index + low - area.first, prot))
            position += high - low
        self.made(dst, new, lambda: self.iommufd.copy(*asked))

    def made(self, space: Space, new: list[Area], call: Any) -> None:
        """The call makes these areas, or fails as it should."""
        first, end = new[0].first, new[-1].end
        error = 0
        if space.touched(first, end - first):
            error = errno.EEXIST
        elif any(area.prot & MAP_WRITEABLE and not area.memory.writable for area in new):
            error = errno.EPERM
        elif space.domains:
            error = self.hold(self.pages_of(new))
        if error:
            fails(error, call)
            return
        assert call() == first * PAGE
        space.areas = sorted([*space.areas, *new], key=lambda area: area.first)

    @staticmethod
    def lowest(space: Space, count: int, address: int) -> int:
        """The page of the iova that is chosen: aligned as the address is, up to the size."""
        size = 1 << (count - 1).bit_length()
        step = min(size, (address // PAGE & -(address // PAGE)) or size)
        return next(page for page in range(step, 999, step) if not space.touched(page, count))

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), number=NUMBERS, cut=st.integers(-1, 1), count=COUNTS, all=st.booleans())
    def unmap(self, data: st.DataObject, number: int, cut: int, count: int, all: bool) -> None:
        space = self.space(number)
        if all and cut:
            self.unmap_all(space)
            return
        starts = [area.first for area in space.areas] or [1]
        first = max(data.draw(st.sampled_from(starts)) + cut, 0)
        found = space.touched(first, count)
        whole = []
        for area in found:
            if area.first < first or area.end > first + count:
                break
            whole.append(area)
        asked = (space.id, first * PAGE, count * PAGE)
        if not found or len(whole) < len(found):  # what lies below is unmapped all the same
            fails(errno.ENOENT, self.iommufd.unmap, *asked)
        else:
            assert self.iommufd.unmap(*asked) == sum(area.count for area in whole) * PAGE
        self.forget(space, whole)

    def unmap_all(self, space: Space) -> None:
        assert self.iommufd.unmap(space.id) == sum(area.count for area in space.areas) * PAGE
        self.forget(space, list(space.areas))

    def forget(self, space: Space, gone: list[Area]) -> None:
        pages = {page for area in gone for page in range(area.first, area.end)}
        self.let_go([pin for pin in self.held if pin.space is space and pages & set(pin_pages(pin))])
        for area in gone:
            space.areas.remove(area)
        for domain in space.domains:
            if domain.dirty is not None:
                domain.dirty -= pages
        if space.domains:
            self.drop(self.pages_of(gone))

    # ---- the process, and its devices ----

    @rule(
        page=st.integers(0, VAS - 1) | st.integers(0, 3), frame=st.integers(0, FRAMES - 1), gone=st.booleans()
    )
    def remap(self, page: int, frame: int, gone: bool) -> None:
        self.world.remap(page, None if gone and frame % 2 else frame)
        self.change_process()

    def change_process(self) -> None:
        if all(area.memory.of_file for space in self.spaces for area in space.areas):
            self.iommufd.change_process()
        else:
            fails(errno.EINVAL, self.iommufd.change_process)

    @precondition(lambda self: any(self.at[:3]))
    @rule(data=st.data(), places=st.tuples(*[st.integers(-8, PAGE - 1)] * 2), size=st.integers(1, 2 * PAGE))
    def dma(self, data: st.DataObject, places: tuple[int, int], size: int) -> None:
        device = data.draw(st.sampled_from([one for one in range(3) if self.at[one] is not None]))
        reached = self.at[device]
        space = reached.ioas if isinstance(reached, Domain) else reached
        assert space is not None
        pages = [page for area in space.areas for page in range(area.first, area.end)] or [1]
        from_iova, to_iova = (max(data.draw(st.sampled_from(pages)) * PAGE + one, 0) for one in places)
        if self.is_half_there(reached, to_iova, size):
            return
        read = self.reach(reached, from_iova, size, MAP_READABLE)
        there = self.reach(reached, to_iova, size, MAP_WRITEABLE)
        status = self.copiers[device].copy(from_iova, to_iova, size)
        if read is None or there is None:
            assert status == FAULT
            return
        assert status == DONE
        taken = bytes(self.world.content[at] for at in read)
        for at, byte in zip(there, taken, strict=True):
            self.world.content[at] = byte
        if isinstance(reached, Domain) and reached.dirty is not None:
            reached.dirty |= set(range(to_iova // PAGE, (to_iova + size - 1) // PAGE + 1))

    def is_half_there(self, reached: Domain | Space | None, iova: int, size: int) -> bool:
        """Whether a write may be stored in part: the IOAS has the pages, but the process has not all of
        them."""
        space = reached.ioas if isinstance(reached, Domain) else reached
        if space is None:
            return False
        pages = range(iova // PAGE, (iova + size - 1) // PAGE + 1)
        areas = [(page, area) for page in pages if (area := space.at(page)) is not None]
        return len(areas) == len(pages) and any(
            self.world.frame(area.memory, area.index + page - area.first) is None for page, area in areas
        )

    def reach(self, reached: Domain | Space | None, iova: int, size: int, wanted: int) -> list[int] | None:
        """The offset in the frames of each byte, None if a device cannot reach all of them."""
        space = reached.ioas if isinstance(reached, Domain) else reached
        found = []
        for at in range(iova, iova + size):
            area = space.at(at // PAGE) if space is not None else None
            if area is None or not area.prot & wanted:
                return None
            frame = self.world.frame(area.memory, area.index + at // PAGE - area.first)
            if frame is None:
                return None
            found.append(frame * PAGE + at % PAGE)
        return found

    @rule(data=st.data(), cut=st.integers(-1, 1), count=st.integers(1, 3))
    def pin(self, data: st.DataObject, cut: int, count: int) -> None:
        if self.held and cut:
            self.store()
            return
        space = self.at[3]
        starts = [area.first for area in space.areas] if isinstance(space, Space) else []
        first = max(data.draw(st.sampled_from(starts or [1])) + cut, 0)
        error = self.holder.command(PIN, first * PAGE, count)
        if space is None:
            assert error
            return
        assert isinstance(space, Space)
        areas = [space.at(page) for page in range(first, first + count)]
        pages = [
            (area.memory, area.index + page - area.first)
            for page, area in enumerate(areas, first)
            if area is not None
        ]
        refused = next((area for area in areas if area is None or area.prot != BOTH), BOTH)
        if refused != BOTH:  # the first page that cannot be pinned decides
            assert error == (errno.ENOENT if refused is None else errno.EPERM)
        else:
            assert error == self.hold(pages)
            if not error:
                self.held.append(Held(space, first, pages))

    def store(self) -> None:
        """The holder writes to what it has pinned last."""
        pin = self.held[-1]
        assert self.holder.command(STORE, pin.first * PAGE, len(pin.pages)) == 0
        for memory, index in pin.pages:
            frame = memory.pinned[index]
            self.world.content[frame * PAGE : (frame + 1) * PAGE] = b"held" * (PAGE // 4)

    def let_go(self, pins: list[Held]) -> None:
        for pin in list(pins):
            self.held.remove(pin)
            self.drop(pin.pages)

    def track(self, number: int) -> None:
        domain = self.domain(number)
        if domain is None:
            return
        if not domain.can_track:
            fails(errno.EOPNOTSUPP, self.iommufd.set_dirty_tracking, domain.id)
            return
        self.iommufd.set_dirty_tracking(domain.id)
        domain.dirty = set()

    @precondition(lambda self: any(one.dirty for space in self.spaces for one in space.domains))
    @rule(number=NUMBERS)
    def report(self, number: int) -> None:
        """The bitmap of the pages before the first hole."""
        domain = self.domain(number)
        if domain is None or domain.dirty is None:
            return
        seen = next((page for page in range(IOVAS) if domain.ioas.at(page) is None), IOVAS)
        expected = sorted(page * PAGE for page in domain.dirty if page < seen)
        assert self.iommufd.dirty_pages(domain.id, 0, IOVAS * PAGE) == expected
        domain.dirty -= set(range(seen))

    @invariant()
    def memory_agrees(self) -> None:
        if hasattr(self, "world"):
            assert os.pread(self.world.fd, FRAMES * PAGE, 0) == self.world.content


def pin_pages(pin: Held) -> range:
    """The iova pages of a pin."""
    return range(pin.first, pin.first + len(pin.pages))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    holder = f'holder = "{ROOT}/tests/vfio/models/holder.py:Holder"\n'
    text = LAB.replace("[models]\n", f"[models]\n{holder}") + HOLDERS
    with described(tmp_path_factory.mktemp("machine"), text) as mounted, bound(mounted, FIRST, SECOND):
        yield mounted


def test_whatever_the_order(machine: MountedLab) -> None:
    with machine.create("holder-1", "holders") as holder, machine.create("copier-1", "copiers") as copier:
        nodes = {"lab": machine, "holder_node": holder.cdev, "copier_node": copier.cdev}
        kind = type("Iommufds", (Iommufds,), nodes)
        run_state_machine_as_test(
            kind, settings=settings(max_examples=60, stateful_step_count=60, deadline=None, database=None)
        )
