# SPDX-License-Identifier: Apache-2.0
"""type1 beside a plain dictionary of pages: whatever the order of map, unmap, pin, DMA and dirty tracking.

Now and then the client does not answer a map, a pin or an attach for a while. Then the call waits in a thread
of its own, and the other rules go on.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import PAGE_SIZE, Prot
from devmodel.iommu.type1 import Type1
from tests.unit.clients import Call, Unhurried
from tests.unit.fakes import fails
from tests.unit.test_iommu import Bitmap, Driver, Group

RW = Prot.READ | Prot.WRITE
LIMIT = 5
MEMLOCK = 14
PAGES = st.integers(0, 15)
COUNTS = st.integers(1, 6)
DISTURBANCES = st.sampled_from(["pin", "unmap", "map anew", "come and go"])
PROTS = st.sampled_from([Prot.READ, Prot.WRITE, RW])


@dataclass(eq=False)
class Page:
    """One page of iova: its mapping (first page, pages), what is behind it, what was done to it.

    ``held`` is whether the physical function has pinned it. Without a protection it is being mapped."""

    mapping: tuple[int, int]
    frame: int
    prot: Prot
    pins: int = 0
    dirty: bool = False
    held: bool = False

    @property
    def charged(self) -> bool:
        return self.held or self.pins > 0


@dataclass
class Waiting:
    """A call whose client does not answer: the pages that it is about, and what the model says of them now.

    ``charged`` is how many pages it has charged in advance."""

    name: str
    call: Call
    args: tuple[int, int, Prot]
    pages: list[Page]
    charged: int = 0
    seen: object = None
    cancelled: bool = False


@dataclass
class Model:
    """The dictionary, and what is the same for all of it."""

    v2: bool
    pages: dict[int, Page] = field(default_factory=dict)
    tracking: bool = False
    physical: bool = False
    waiting: Waiting | None = None

    @property
    def mappings(self) -> set[tuple[int, int]]:
        return {page.mapping for page in self.pages.values()}

    @property
    def locked(self) -> int:
        """Pages that are accounted to the client."""
        ahead = self.waiting.charged if self.waiting is not None else 0
        return ahead + sum(page.charged for page in self.pages.values())

    def add(self, first: int, count: int, frame: int, prot: Prot, held: bool) -> list[Page]:
        made = [Page((first, count), frame + n, prot, held=held) for n in range(count)]
        self.pages |= dict(enumerate(made, first))
        return made

    def alive(self, pages: list[Page]) -> bool:
        """Whether these pages have not been unmapped."""
        return all(self.pages.get(page.mapping[0] + n) is page for n, page in enumerate(pages))

    def pin_error(self, first: int, count: int, prot: Prot) -> int:
        """The errno of a pin now, 0 for none. The first page that cannot be pinned decides."""
        if not self.v2:
            return errno.EACCES
        pages = []
        for number in range(first, first + count):
            page = self.pages.get(number)
            if page is None or not page.prot:
                return errno.EINVAL
            if prot & ~page.prot:
                return errno.EPERM
            pages.append(page)
        return errno.ENOMEM if self.locked + sum(not page.charged for page in pages) > MEMLOCK else 0

    def pin(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.pages[number].pins += 1
            self.pages[number].dirty |= self.tracking

    def pin_view(self, first: int, count: int) -> object:
        """What a pin looks at before and after it asks the client."""
        pages = [self.pages[number] for number in range(first, first + count) if number in self.pages]
        mappings = {page.mapping for page in pages}
        new = [(m, sum(not page.charged for page in pages if page.mapping == m)) for m in sorted(mappings)]
        return [id(page) for page in pages], [page.held for page in pages], new

    def take_over(self) -> int:
        """Pin all that is mapped, for the physical function. The errno, 0 for none."""
        made = [page for page in self.pages.values() if page.prot]
        if self.locked + sum(not page.charged for page in made) > MEMLOCK:
            self.let_go()
            return errno.ENOMEM
        for page in made:
            page.held = True
        return 0

    @property
    def attached(self) -> bool:
        """Whether the physical function is attached, and all that is mapped is pinned for it."""
        waiting = self.waiting
        return self.physical and not (waiting and waiting.name == "attach" and not waiting.cancelled)

    def let_go(self) -> None:
        """The physical function has left, or could not come."""
        self.physical = False
        for page in self.pages.values():
            page.held = False

    def touched(self, first: int, count: int) -> set[tuple[int, int]]:
        return {self.pages[n].mapping for n in range(first, first + count) if n in self.pages}

    def splits(self, first: int, count: int) -> bool:
        """Whether the range has a mapping in part."""
        return any(
            start < first or start + size > first + count for start, size in self.touched(first, count)
        )


class PageDictionary(RuleBasedStateMachine):
    """Every rule does the same to both and compares the outcome."""

    @initialize(v2=st.booleans())
    def start(self, v2: bool) -> None:
        self.locked = LockedMemory()
        self.iommu = Type1(v2=v2, limit=LIMIT, locked=self.locked)
        self.driver = Driver(self.iommu)
        self.client = Unhurried(memlock=MEMLOCK * PAGE_SIZE)
        self.client.watch(self.iommu, self.locked)
        self.model = Model(v2)

    def teardown(self) -> None:
        if hasattr(self, "model") and self.model.waiting is not None:
            self.answer(broken=False)
            self.counts_agree()

    @rule(first=PAGES, count=COUNTS, frame=st.integers(0, 2**30), prot=PROTS)
    def map(self, first: int, count: int, frame: int, prot: Prot) -> None:
        model = self.model
        args = (self.client, first * PAGE_SIZE, frame * PAGE_SIZE, count * PAGE_SIZE, prot)
        if model.touched(first, count):
            fails(errno.EEXIST, self.iommu.map, *args)
        elif len(model.mappings) == LIMIT:
            fails(errno.ENOSPC, self.iommu.map, *args)
        elif model.physical and model.locked + count > MEMLOCK:
            fails(errno.ENOMEM, self.iommu.map, *args)
        else:
            self.iommu.map(*args)
            model.add(first, count, frame, prot, held=model.physical)

    @precondition(lambda self: self.model.physical and self.model.waiting is None)
    @rule(first=PAGES, count=COUNTS, frame=st.integers(0, 2**30), prot=PROTS)
    def map_that_waits(self, first: int, count: int, frame: int, prot: Prot) -> None:
        model = self.model
        if model.touched(first, count) or len(model.mappings) == LIMIT or model.locked + count > MEMLOCK:
            return
        args = (self.client, first * PAGE_SIZE, frame * PAGE_SIZE, count * PAGE_SIZE, prot)
        call = self.begin(lambda: self.iommu.map(*args))
        made = model.add(first, count, frame, Prot(0), held=False)
        model.waiting = Waiting("map", call, (first, count, prot), made, charged=count)

    @precondition(lambda self: self.model.v2 and self.model.waiting is None and self.model.pages)
    @rule(number=PAGES, cut=st.integers(0, 1), prot=PROTS)
    def pin_that_waits(self, number: int, cut: int, prot: Prot) -> None:
        model = self.model
        start, size = sorted(model.mappings)[number % len(model.mappings)]
        first, count = start + cut, size
        pages = [model.pages[number] for number in range(first, first + count) if number in model.pages]
        if model.pin_error(first, count, prot) in (errno.EINVAL, errno.EPERM) or pages[0].held:
            return
        call = self.begin(lambda: self.iommu.space.pin_pages(first * PAGE_SIZE, count, prot))
        model.waiting = Waiting("pin", call, (first, count, prot), pages, seen=model.pin_view(first, count))

    @precondition(lambda self: not self.model.physical and self.model.waiting is None and self.model.pages)
    @rule()
    def attach_that_waits(self) -> None:
        model = self.model
        first = min(model.pages)
        start, count = model.pages[first].mapping
        pages = [model.pages[number] for number in range(start, start + count)]
        new = sum(not page.charged for page in pages)
        if model.locked + new > MEMLOCK:
            return
        call = self.begin(lambda: self.iommu.attach(Group(1)))
        model.physical = True
        seen = sum(page.pins > 0 for page in pages)
        model.waiting = Waiting("attach", call, (start, count, RW), pages, charged=new, seen=seen)

    def begin(self, call: Callable[[], object]) -> Call:
        self.client.hold("pin")
        begun = Call(call)
        assert self.client.begun.wait(60)
        return begun

    @precondition(lambda self: self.model.waiting is None)
    @rule(
        kind=st.sampled_from(["map", "pin", "attach"]),
        number=PAGES,
        disturbances=st.lists(st.tuples(DISTURBANCES, st.integers(0, 1)), max_size=2),
        broken=st.booleans(),
    )
    def disturbed(self, kind: str, number: int, disturbances: list[tuple[str, int]], broken: bool) -> None:
        """A call that waits while what it is about changes."""
        model = self.model
        if model.physical is not (kind == "map"):
            self.attach_or_detach_a_physical_function()
        if kind == "map" and model.physical:
            self.map_that_waits(number, 2, 7, RW)
        elif kind != "map" and not model.pages:
            self.map(number, 2, 7, RW)
        if kind == "attach" and not model.physical:
            self.attach_that_waits()
        elif kind == "pin" and model.v2:
            self.pin_that_waits(number, 0, min(page.prot for page in model.pages.values()))
        for how, page in disturbances if model.waiting is not None else ():
            self.disturb(how, page)
        if model.waiting is not None:
            self.answer(broken)

    def disturb(self, how: str, page: int) -> None:
        assert self.model.waiting is not None
        first, count, prot = self.model.waiting.args
        if how == "pin":
            self.pin(first + page, 1, prot)
        elif how == "come and go":
            self.attach_or_detach_a_physical_function()
        else:
            self.unmap(first, count, False)
            if how == "map anew":
                self.map(first, count, page, RW)

    @precondition(lambda self: self.model.waiting is not None)
    @rule(broken=st.booleans())
    def answer(self, broken: bool) -> None:
        """The client answers. ``broken``: that it has no such memory."""
        waiting, self.model.waiting = self.model.waiting, None
        assert waiting is not None
        expected = getattr(self, f"end_of_{waiting.name}")(waiting, broken)
        self.client.answer(fails=broken)
        if expected:
            fails(expected, waiting.call.result)
        else:
            waiting.call.result()

    def end_of_map(self, waiting: Waiting, broken: bool) -> int:
        first, count, prot = waiting.args
        if not self.model.alive(waiting.pages):
            return 0
        if broken:
            self.forget({(first, count)})
            return errno.EFAULT
        for page in waiting.pages:
            page.prot, page.held = prot, self.model.physical
        return 0

    def end_of_pin(self, waiting: Waiting, broken: bool) -> int:
        first, count, prot = waiting.args
        error = self.model.pin_error(first, count, prot)
        if error in (errno.EINVAL, errno.EPERM):
            return error
        if broken and self.model.pin_view(first, count) == waiting.seen:
            return errno.EFAULT
        if not error:
            self.model.pin(first, count)
        return error

    def end_of_attach(self, waiting: Waiting, broken: bool) -> int:
        if waiting.cancelled:
            return 0
        same = self.model.alive(waiting.pages) and sum(p.pins > 0 for p in waiting.pages) == waiting.seen
        if broken and same:
            self.model.let_go()
            return errno.EFAULT
        return self.model.take_over()

    @rule(first=PAGES, count=COUNTS, dirty=st.booleans())
    def unmap(self, first: int, count: int, dirty: bool) -> None:
        model, bitmap = self.model, Bitmap() if dirty else None
        asked = (first * PAGE_SIZE, count * PAGE_SIZE)
        if (dirty and not model.tracking) or (model.v2 and model.splits(first, count)):
            fails(errno.EINVAL, self.iommu.unmap, *asked, bitmap=bitmap)
            return
        gone = model.touched(first, count)
        if any(start < first for start, _ in gone):
            gone = set()
        expected = self.expected_bits(gone, first)
        assert self.iommu.unmap(*asked, bitmap=bitmap) == sum(size for _, size in gone) * PAGE_SIZE
        if bitmap is not None:
            self.compare_bits(bitmap, gone, first, expected)
        self.forget(gone)

    @rule()
    def unmap_all(self) -> None:
        assert self.iommu.unmap(0, 0, all=True) == len(self.model.pages) * PAGE_SIZE
        self.forget(self.model.mappings)

    @rule(first=PAGES, count=COUNTS, prot=PROTS)
    def pin(self, first: int, count: int, prot: Prot) -> None:
        args = (first * PAGE_SIZE, count, prot)
        error = self.model.pin_error(first, count, prot)
        if error:
            fails(error, self.iommu.space.pin_pages, *args)
        else:
            self.iommu.space.pin_pages(*args)
            self.model.pin(first, count)

    @rule(first=PAGES, count=COUNTS)
    def unpin(self, first: int, count: int) -> None:
        self.iommu.space.unpin_pages(first * PAGE_SIZE, count)
        for number in range(first, first + count):
            if number in self.model.pages:
                self.model.pages[number].pins = max(self.model.pages[number].pins - 1, 0)

    @rule()
    def attach_or_detach_a_physical_function(self) -> None:
        if self.model.physical:
            self.iommu.detach(Group(1))
            for page in self.model.pages.values():  # nobody has seen where it wrote
                page.dirty |= self.model.tracking and self.model.attached
            self.model.let_go()
            if self.model.waiting is not None:
                self.model.waiting.cancelled = True
            return
        self.model.physical = True
        error = self.model.take_over()
        if error:
            fails(error, self.iommu.attach, Group(1))
        else:
            self.iommu.attach(Group(1))

    @precondition(lambda self: self.model.v2)
    @rule()
    def start_or_stop_tracking(self) -> None:
        if self.model.tracking:
            self.iommu.stop_tracking()
            for page in self.model.pages.values():
                page.dirty = False
        else:
            self.iommu.start_tracking()
            for page in self.model.pages.values():
                page.dirty = page.pins > 0
        self.model.tracking = not self.model.tracking

    @rule(first=PAGES, count=st.integers(1, 22))
    def report_dirty(self, first: int, count: int) -> None:
        bitmap, asked = Bitmap(), (first * PAGE_SIZE, count * PAGE_SIZE)
        if not self.model.v2:
            fails(errno.EACCES, self.iommu.report_dirty, *asked, bitmap)
        elif not self.model.tracking or self.model.splits(first, count):
            fails(errno.EINVAL, self.iommu.report_dirty, *asked, bitmap)
        else:
            whole = self.model.touched(first, count)
            expected = self.expected_bits(whole, first)
            self.iommu.report_dirty(*asked, bitmap)
            self.compare_bits(bitmap, whole, first, expected)
            for number in range(first, first + count):
                if number in self.model.pages:
                    self.model.pages[number].dirty = self.model.pages[number].pins > 0

    @rule(
        first=PAGES,
        offset=st.integers(0, PAGE_SIZE - 1),
        size=st.integers(1, 3 * PAGE_SIZE),
        write=st.booleans(),
    )
    def dma(self, first: int, offset: int, size: int, write: bool) -> None:
        iova = first * PAGE_SIZE + offset
        numbers = range(first, (iova + size - 1) // PAGE_SIZE + 1)
        pages = [self.model.pages.get(number) for number in numbers]
        wanted = Prot.WRITE if write else Prot.READ
        data = bytes(i % 251 for i in range(size))
        if not all(page is not None and page.prot & wanted for page in pages):
            fails(errno.EFAULT, self.iommu.space.dma_rw, iova, bytearray(size), write)
        elif write:
            self.iommu.space.dma_write(iova, data)
            assert self.through_pages(iova, size) == data
            for page in pages:
                assert page is not None
                page.dirty = page.dirty or self.model.tracking
        else:
            assert self.iommu.space.dma_read(iova, size) == self.through_pages(iova, size)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "model"):
            assert self.iommu.dma_avail == LIMIT - len(self.model.mappings)
            assert self.locked.of(self.client) == self.model.locked
            assert [m.iova // PAGE_SIZE for m in self.iommu.space.mappings] == sorted(
                f for f, _ in self.model.mappings
            )

    def expected_bits(self, mappings: set[tuple[int, int]], base: int) -> int:
        numbers = (number for start, size in mappings for number in range(start, start + size))
        return sum(1 << number - base for number in numbers if self.is_dirty(self.model.pages[number]))

    def is_dirty(self, page: Page) -> bool:
        return page.dirty or (page.held and self.model.attached)

    @staticmethod
    def compare_bits(bitmap: Bitmap, mappings: set[tuple[int, int]], base: int, expected: int) -> None:
        for start, size in mappings:
            mask = ((1 << size) - 1) << start - base
            assert bitmap.bits & mask == expected & mask
        if not mappings:
            assert bitmap.bits == 2**64 - 1

    def forget(self, mappings: set[tuple[int, int]]) -> None:
        self.model.pages = {n: page for n, page in self.model.pages.items() if page.mapping not in mappings}

    def through_pages(self, iova: int, size: int) -> bytes:
        """Byte for byte by the dictionary."""
        places = (
            self.model.pages[at // PAGE_SIZE].frame * PAGE_SIZE + at % PAGE_SIZE
            for at in range(iova, iova + size)
        )
        return bytes(self.client.bytes.get(place, 0) for place in places)


TestPageDictionary = PageDictionary.TestCase
TestPageDictionary.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
