# SPDX-License-Identifier: Apache-2.0
"""The I/O address space of iommufd (IOAS): the rules of its mappings on an address space of devmodel.iommu.

Nothing is pinned, and any byte can be mapped, until a device is attached that needs more: a domain (HWPT) of
physical functions pins all memory, whole pages of it, and reserves what it cannot reach; a mediated device
needs whole pages if it pins some.

State: under the lock of ``Ioas.space``. Called from the device lane and threads that may wait, never by
devices. Source: <linux/iommufd.h>, Documentation/userspace-api/iommufd.rst; the order of checks is iommufd's.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from devmodel.client import Client
from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import ADDRESSES, PAGE_SIZE, DmaUser, IommuGroup, MustWait
from devmodel.iommu.holes import Holes, Room
from devmodel.iommu.mappings import NO_ACCESS, Mapping, is_mapped
from devmodel.iommu.space import IoAddressSpace, StillPinned
from devmodel.iommufd.areas import LEAST, Budget
from devmodel.iommufd.backends import BACKENDS
from devmodel.iommufd.iovas import LAST, Iovas, Range, without
from devmodel.iommufd.mapflags import MapFlags
from devmodel.iommufd.objects import IommufdObject, ObjectType

log = logging.getLogger(__name__)
EVERYTHING = (0, LAST)
"""All iovas. A function without an IOMMU can use them."""
APERTURE = (0, 2**48 - 1)
"""The iovas that a domain of the emulated IOMMU translates."""
HUGE_PAGE = 2**21
"""The largest alignment of an iova that is chosen: that of a transparent huge page."""
MANY = 4096
"""Mappings that are removed in one hold of the lock, and that the device lane looks at in one call."""


_FIXED = int(MapFlags.FIXED_IOVA)


class Ioas(IommufdObject):
    """An I/O address space. ``space`` is what devices use; ``iovas`` are those that its clients may use.
    ``alignment`` is that of iovas, lengths, and addresses within their page: 1 or 4096 bytes.

    ``automatic`` are its HWPTs that attachments have made (:mod:`devmodel.iommufd.hwpt`). Threads that attach
    or allocate hold ``attaching`` while memory is pinned, and nobody else does. It is taken first.
    """

    __slots__ = (
        "_areas",
        "_budget",
        "_holes",
        "_huge_pages",
        "_paged",
        "alignment",
        "attaching",
        "automatic",
        "iovas",
        "space",
    )
    type = ObjectType.IOAS
    destroy_waits = True

    def __init__(self, locked: LockedMemory | None = None, budget: Budget | None = None) -> None:
        """``locked`` accounts for pinned pages together with other address spaces, ``budget`` for the number
        of mappings together with other IOASes."""
        super().__init__()
        self.space = IoAddressSpace(locked, backends=BACKENDS)
        self._budget = budget or Budget()
        self._areas = 0  # taken from the budget: there may be so many mappings
        self.iovas = Iovas()
        self.alignment = 1
        self._holes = Holes(self.space.mappings)
        self._paged: set[IommuGroup] = set()  # those that need whole pages
        self._huge_pages = True
        self.attaching = threading.Lock()
        self.automatic: list[IommufdObject] = []

    # ---- mappings: device lane, and threads that may wait ----

    def map(
        self, client: Client, flags: int, user_va: int, length: int, iova: int, may_wait: bool = True
    ) -> int:
        """IOAS_MAP, after ``mapflags.check_map``. Returns the iova. Does not touch the memory unless a domain
        is attached. Without a right in ``flags`` no device can use the mapping.

        Raises ``OSError``, with nothing mapped: EOVERFLOW (wraps around), EINVAL (no length, misaligned,
        reserved), EEXIST (overlaps a mapping), ENOSPC (no hole to choose), ENOMEM (too many). With a domain
        also ENOMEM (RLIMIT_MEMLOCK) and EFAULT (no such memory), or, if ``may_wait`` is False,
        :class:`MustWait`.
        """
        end = user_va + length
        if end >= ADDRESSES:
            raise OSError(errno.EOVERFLOW, "the memory wraps around the end of the address space")
        allows = flags & 2 | flags >> 2 & 1 or NO_ACCESS  # access_of(), without the call
        mapping = Mapping(client, iova, user_va, length, allows)
        space = self.space
        with space.lock:
            mappings = space.mappings
            if not (
                self.iovas.reserved  # by domains, too
                or (length | iova | user_va) & (self.alignment - 1)
                or not flags & _FIXED
                or not length
                or iova + length > LAST - PAGE_SIZE  # near the end: place() looks at it
                or len(mappings.by_start) >= self._areas
            ):
                if mappings.add(mapping):
                    return iova
                raise is_mapped(iova)
            where = iova if flags & _FIXED else None
            mapping.iova = iova = self.place(length, user_va, where, may_wait=may_wait)
            mapping.end = iova + length
            space.enter(mapping, may_wait)
        if not mapping.allows:
            space.finish((mapping,), allows)
        return iova

    def place(
        self, length: int, address: int, iova: int | None, areas: int = 1, may_wait: bool = True
    ) -> int:
        """Where ``length`` bytes go that are mapped by so many ``areas``: at ``iova``, or at a chosen one,
        which depends on the ``address`` of what is mapped. Under the lock.

        Raises ``OSError``, in the kernel's order, as :meth:`map`, and :class:`MustWait` if it takes long and
        ``may_wait`` is False.
        """
        in_unit = self.alignment - 1
        if not 0 < length <= LAST - PAGE_SIZE or length & in_unit:
            raise OSError(errno.EINVAL, f"{length:#x} bytes cannot be mapped in units of {in_unit + 1}")
        if iova is None:
            iova = self._choose(length, address, may_wait)
        else:
            self._check_free(length, iova)
        if address & in_unit:
            raise OSError(errno.EINVAL, f"address {address:#x} is not aligned to {in_unit + 1}")
        self.make_room(areas)
        return iova

    def make_room(self, areas: int) -> None:
        """There will be so many mappings more. Under the lock. Raises ``OSError(ENOMEM)``."""
        missing = len(self.space.mappings) + areas - self._areas
        if missing > 0:
            self._areas += self._budget.take(missing, max(self._areas, LEAST))

    def unmap(self, iova: int, length: int, may_wait: bool = True) -> int:
        """IOAS_UNMAP. Returns the bytes unmapped. iova 0 and length 2**64-1 unmap all, which may be none.

        Raises ``OSError``: EOVERFLOW (the largest number, wraps around), EINVAL (no length), ENOENT (nothing
        is mapped there, or a mapping is only in part), EBUSY (a mapping is being made, or a DMA does not
        end), EDEADLOCK (a device does not unpin its pages). What lies below a mapping that fails is unmapped.
        Raises :class:`MustWait` if it has to wait and ``may_wait`` is False.
        """
        if self.space.unmap_exact(iova, length):
            return length
        removed, stopped = self.unmap_until(iova, length, may_wait)
        if stopped is not None:
            raise OSError(stopped.errno, stopped.strerror)  # itself it would keep this frame, and all callers
        if not removed and (iova, length) != (0, LAST):
            raise OSError(errno.ENOENT, f"nothing is mapped from {iova:#x}")
        return removed

    def unmap_until(self, iova: int, length: int, may_wait: bool = True) -> tuple[int, OSError | None]:
        """As :meth:`unmap`, which may also find nothing. Returns the bytes unmapped, and the error that ended
        it before the end of the range. Of very many mappings it removes some in each hold of the lock."""
        end = ADDRESSES if (iova, length) == (0, LAST) else _end_of_unmap(iova, length)
        if not may_wait and len(self.space.mappings) > MANY and length > MANY * self.alignment:
            raise MustWait
        removed = 0
        while True:
            found: list[Mapping] = []
            stopped: list[OSError] = []
            choose = partial(self._chosen, iova, end, found, stopped)
            try:
                removed += self.space.unmap((iova, end), choose, may_wait)
            except StillPinned as error:
                log.exception("IOAS_UNMAP")
                raise OSError(errno.EDEADLOCK, str(error)) from error
            if stopped or len(found) < MANY:
                return removed, stopped[0] if stopped else None
            iova = found[-1].end

    def destroyed(self) -> None:
        with suppress(OSError):  # the rest is of a call that has not ended
            self.unmap_until(0, LAST)
        self.space.clear()
        with self.space.lock:
            self._budget.give(self._areas)
            self._areas, self._budget = 0, Budget(0)  # a call that has found it maps nothing any more

    # ---- iovas ----

    def iova_ranges(self) -> list[Range]:
        """IOVA_RANGES: the first and the last address of each range that no device reserves. Any thread."""
        with self.space.lock:
            return self.iovas.usable()

    def allow(self, ranges: Iterable[Range]) -> None:
        """ALLOW_IOVAS. Raises ``OSError`` as :meth:`Iovas.allow`."""
        with self.space.lock:
            self.iovas.allow(ranges)
            self._holes.forget()

    def reserve(self, owner: object, ranges: Sequence[Range]) -> None:
        """A device of ``owner`` cannot use these iovas while it is attached. Raises ``OSError(EADDRINUSE)``
        when one is mapped or allowed to be chosen."""
        with self.space.lock:
            self._reserve(owner, ranges)

    def unreserve(self, owner: object) -> None:
        """The opposite of :meth:`reserve`."""
        with self.space.lock:
            self._unreserve(owner)

    # ---- what is attached: threads that may wait ----

    def add_domain(self, domain: IommuGroup, aperture: Range = APERTURE) -> None:
        """Pin all mappings, also new ones, for a domain, which waits for their clients. ``aperture`` has the
        first and the last iova that it translates.

        Raises ``OSError``, with nothing changed: EADDRINUSE (a mapping or an allowed range is misaligned or
        beyond its aperture), EFAULT and ENOMEM when the memory cannot be pinned.
        """
        with as_iommufd():
            self._attach(domain, partial(self._admit_domain, domain, aperture))

    def remove_domain(self, domain: IommuGroup) -> None:
        """The opposite of :meth:`add_domain`. Mappings stay."""
        self.space.detach(domain, keep=True)
        self._relax(domain)

    def add_access(self, access: IommuGroup, user: DmaUser | None = None) -> None:
        """A mediated device can reach the memory. If it pins pages, ``user`` is told of unmaps. Raises
        ``OSError(EADDRINUSE)`` when mappings are not of whole pages, which a device that pins needs."""
        self._attach(access, partial(self._need_pages, access) if user is not None else None)
        if user is not None:
            self.space.register(user)

    def remove_access(self, access: IommuGroup, user: DmaUser | None = None) -> None:
        """The opposite of :meth:`add_access`. ``user`` has unpinned all of its pages."""
        if user is not None:
            self.space.unregister(user)
        self.space.detach(access, keep=True)
        self._relax(access)

    @property
    def huge_pages(self) -> bool:
        """OPTION_HUGE_PAGES: whether mappings may be of any number of bytes. Any thread."""
        return self._huge_pages

    def set_huge_pages(self, value: int) -> None:
        """Set OPTION_HUGE_PAGES to 0 or 1.

        Raises ``OSError``: EINVAL for another number, and for 0 while a domain has mappings; EADDRINUSE
        when mappings are not of whole pages.
        """
        if value not in (0, 1):
            raise OSError(errno.EINVAL, f"huge pages are on (1) or off (0), not {value}")
        with self.space.lock:
            if not value and self._huge_pages:
                if self.space.attachments.strict and len(self.space.mappings):
                    raise OSError(errno.EINVAL, "a domain has mappings")
                self._check_pages()
            self._huge_pages = bool(value)
            self._align()

    def _attach(self, group: IommuGroup, admit: Callable[[], None] | None) -> None:
        try:
            self.space.attach(group, admit)
        except BaseException:
            self._relax(group)
            raise

    def _relax(self, group: IommuGroup) -> None:
        """Forget what :attr:`alignment` and :attr:`iovas` are for ``group``."""
        with self.space.lock:
            self._paged.discard(group)
            self._align()
            self._unreserve(group)

    # ---- under the lock of the space ----

    def _admit_domain(self, domain: IommuGroup, aperture: Range) -> None:
        self._need_pages(domain)
        self._reserve(domain, without([EVERYTHING], [aperture]))

    def _need_pages(self, group: IommuGroup) -> None:
        self._check_pages()
        self._paged.add(group)
        self._align()

    def _check_pages(self) -> None:
        if self.alignment == 1 and any(
            (mapping.iova | mapping.size | mapping.vaddr) % PAGE_SIZE for mapping in self.space.mappings
        ):
            raise OSError(errno.EADDRINUSE, "a mapping is not of whole pages")

    def _align(self) -> None:
        self.alignment = PAGE_SIZE if self._paged or not self._huge_pages else 1

    def _reserve(self, owner: object, ranges: Sequence[Range]) -> None:
        mappings = self.space.mappings
        if any(mappings.within(first, last + 1) for first, last in ranges):
            raise OSError(errno.EADDRINUSE, "a reserved iova is mapped")
        self.iovas.reserve(owner, ranges)
        self._holes.forget()

    def _unreserve(self, owner: object) -> None:
        self.iovas.unreserve(owner)
        self._holes.forget()

    def _check_free(self, length: int, iova: int) -> None:
        """Raises ``OSError`` unless ``length`` bytes can be mapped at ``iova``."""
        end = iova + length
        if iova & (self.alignment - 1):
            raise OSError(errno.EINVAL, f"iova {iova:#x} is not aligned to {self.alignment}")
        if end > ADDRESSES:
            raise OSError(errno.EOVERFLOW, "the iovas wrap around the end of the address space")
        if self.iovas.is_reserved(iova, end - 1):
            raise OSError(errno.EINVAL, f"iova {iova:#x} is reserved, or one behind it")
        if self.space.mappings.within(iova, end):
            raise is_mapped(iova)

    def _choose(self, length: int, address: int, may_wait: bool) -> int:
        """The lowest iova that is free and allowed. It is aligned as ``address`` is, up to the size."""
        if length >= LAST // 2:
            raise OSError(errno.EOVERFLOW, f"no iova is chosen for {length:#x} bytes")
        alignment = min(1 << (length - 1).bit_length(), address & -address or HUGE_PAGE, HUGE_PAGE)
        if alignment < self.alignment:
            raise OSError(errno.EINVAL, f"an iova for address {address:#x} is not aligned enough")
        wanted = Room(length, alignment, address % PAGE_SIZE)
        if not may_wait and len(self.space.mappings) > MANY and not self._holes.is_quick(wanted):
            raise MustWait
        found = self._holes.find(wanted, self.iovas.choices(wanted))
        if found is None:
            raise OSError(errno.ENOSPC, f"there is no hole of {length:#x} bytes")
        return found

    def _chosen(self, iova: int, end: int, found: list[Mapping], stopped: list[OSError]) -> list[Mapping]:
        """The next mappings that an unmap removes, which are ``found``. What ends it before the end of the
        range goes to ``stopped``."""
        found.clear()
        stopped.clear()
        for mapping in self.space.mappings.within(iova, end, MANY):
            if not mapping.allows:
                stopped.append(OSError(errno.EBUSY, f"iova {mapping.iova:#x} is being mapped"))
            elif mapping.iova < iova or mapping.end > end:
                stopped.append(OSError(errno.ENOENT, f"iova {mapping.iova:#x} is mapped beyond the range"))
            if stopped:
                break
            found.append(mapping)
        return found


@contextmanager
def as_iommufd() -> Iterator[None]:
    """For iommufd the memory of a process that has ended is memory that is not there: EFAULT."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
        raise OSError(errno.EFAULT, str(error)) from error


def _end_of_unmap(iova: int, length: int) -> int:
    """The address behind the range of an unmap. Raises ``OSError`` as :meth:`Ioas.unmap`."""
    if LAST in (iova, length):
        raise OSError(errno.EOVERFLOW, f"iova {iova:#x}, length {length:#x}")
    if not length:
        raise OSError(errno.EINVAL, "an unmap of no bytes")
    if iova + length > ADDRESSES:
        raise OSError(errno.EOVERFLOW, "the range wraps around the end of the address space")
    return iova + length
