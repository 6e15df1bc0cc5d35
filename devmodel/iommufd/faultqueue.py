# SPDX-License-Identifier: Apache-2.0
"""Fault queues: a client learns from one which pages its functions ask for, and answers there.

A function that is attached to an HWPT with a fault queue may ask for pages that are not mapped (PCI Express:
Page Request Services).  The client reads such a request, maps the pages, and writes a response, which the
function gets.  A request that nobody can answer any more gets the response INVALID.

A request that a read has taken has a cookie until it is answered.  The file of a queue keeps it, and so does
each HWPT: DESTROY is EBUSY until they are gone.

State: under a lock of the queue's own, which nobody holds while a function or a client is called.  It comes
after that of a :class:`DeviceGroup`.  Any thread.
Source: <linux/iommufd.h> (struct iommu_fault_alloc, struct iommu_hwpt_pgfault, struct
iommu_hwpt_page_response); PCI Express Base 4.0 chapter 10.4.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from devmodel.ida import Ida
from devmodel.iommu.api import PAGE_SIZE, PageAnswer, PageRequest, PageResponse
from devmodel.iommufd.context import Context
from devmodel.iommufd.objects import IommufdObject, ObjectType

FAULT = struct.Struct("=IIIIIIQII")
"""struct iommu_hwpt_pgfault: flags, dev_id, pasid, grpid, perm, reserved, addr, length, cookie."""
RESPONSE = struct.Struct("=II")
"""struct iommu_hwpt_page_response: cookie, code."""
LAST_PAGE = 2
"""IOMMU_PGFAULT_FLAGS_LAST_PAGE: the last page of a group."""
MAX_GROUPS = 512
"""Requests of a function that wait for an answer: the index of a page request group has nine bits."""


class _Group(NamedTuple):
    """The pages that ``device``, attached to ``hwpt``, asks for at once: its request ``number``."""

    device: IommufdObject
    hwpt: IommufdObject
    number: int
    request: PageRequest
    answer: PageAnswer

    def encoded(self, cookie: int) -> bytes:
        first, count, prot = self.request
        pages = range(first & -PAGE_SIZE, (first & -PAGE_SIZE) + count * PAGE_SIZE, PAGE_SIZE)
        flags = (LAST_PAGE if page == pages[-1] else 0 for page in pages)
        return b"".join(
            FAULT.pack(flag, self.device.id, 0, self.number, prot, 0, page, 0, cookie)
            for flag, page in zip(flags, pages, strict=True)
        )


class FaultQueue(IommufdObject):
    """One queue.  It is an object of ``context``, which it keeps, from :meth:`publish` on."""

    __slots__ = ("_answered", "_context", "_cookies", "_indexes", "_lock", "_published", "_waiting", "wake")
    type = ObjectType.FAULT_QUEUE

    def __init__(self, context: Context) -> None:
        """It has an id, and is used by its file: :meth:`close` follows.

        Raises ``OSError``: ENOMEM as :meth:`ObjectTable.add`, EBADFD when the context has ended."""
        super().__init__()
        self._context = context
        self._lock = threading.Lock()
        self._waiting: deque[_Group] = deque()
        self._answered: dict[int, _Group] = {}
        """Requests that have been read, by cookie."""
        self._cookies = Ida()
        self._cookies.take()  # no request has cookie 0
        self._indexes: dict[IommufdObject, set[int]] = {}
        """Of the requests of each function that have no answer yet."""
        self._published = False
        self.wake: Callable[[], None] = lambda: None
        """Called without a lock when there is something to read."""
        context.get()
        try:
            context.objects.reserve(self)
        except BaseException:
            context.put()
            raise
        self.users = 1

    def publish(self) -> None:
        """The client has the file, and can name the queue from now on."""
        self._published = True
        self._context.objects.publish(self)

    def close(self) -> None:
        """The file is closed.  A queue that was never published ends."""
        objects = self._context.objects
        objects.drop(self)
        if not self._published:
            objects.cancel(self)
        self._context.put()

    def destroyed(self) -> None:
        with self._lock:
            left = [*self._waiting, *self._answered.values()]
            self._waiting.clear()
            self._answered.clear()
        self._refuse(left)

    # ---- functions ----

    def ask(
        self, device: IommufdObject, hwpt: IommufdObject, request: PageRequest, answer: PageAnswer
    ) -> None:
        """``device``, which is attached to ``hwpt``, asks for pages.  FAILURE is the answer if too many of
        its requests wait for one.  Does not wait."""
        with self._lock:
            taken = self._indexes.get(device, ())
            index = next((each for each in range(MAX_GROUPS) if each not in taken), None)
            if index is not None:
                self._indexes.setdefault(device, set()).add(index)
                self._waiting.append(_Group(device, hwpt, index, request, answer))
        if index is None:
            answer(PageResponse.FAILURE)
        else:
            self.wake()

    def leave(self, device: IommufdObject, hwpt: IommufdObject) -> None:
        """``device`` is detached from ``hwpt``: nobody answers its requests any more."""

        def made(group: _Group) -> bool:
            return group.device is device and group.hwpt is hwpt

        with self._lock:
            left = [group for group in self._waiting if made(group)]
            self._waiting = deque(group for group in self._waiting if not made(group))
            read = [cookie for cookie, group in self._answered.items() if made(group)]
            left += [self._take(cookie) for cookie in read]
            for group in left:
                self._end(group)
        self._refuse(left)

    # ---- its file ----

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return bool(self._waiting)

    def read(self, size: int) -> bytes:
        """The oldest requests, as far as each fits in whole; none if there are none.  Does not wait.  Raises
        ``OSError(ESPIPE)`` for a size that is no multiple of a fault's."""
        if size % FAULT.size:
            raise OSError(errno.ESPIPE, f"{size} bytes are no number of faults")
        data = bytearray()
        with self._lock:
            while self._waiting and len(data) + self._waiting[0].request.pages * FAULT.size <= size:
                group = self._waiting.popleft()
                cookie = self._cookies.take()
                self._answered[cookie] = group
                data += group.encoded(cookie)
        return bytes(data)

    def write(self, data: bytes) -> int:
        """Give responses to their functions.  Returns how many bytes were taken.

        Raises ``OSError``: ESPIPE for a size that is no multiple of a response's; EINVAL if the first one has
        an unknown code or the cookie of no request.  A later one that has ends the write before it."""
        if len(data) % RESPONSE.size:
            raise OSError(errno.ESPIPE, f"{len(data)} bytes are no number of responses")
        done = 0
        for cookie, code in RESPONSE.iter_unpack(data):
            with self._lock:
                known = code in (PageResponse.SUCCESS, PageResponse.INVALID) and cookie in self._answered
                group = self._take(cookie) if known else None
                if group is not None:
                    self._end(group)
            if group is None:
                if not done:
                    raise OSError(errno.EINVAL, f"response {code:#x} to request {cookie}")
                break
            group.answer(PageResponse(code))
            done += RESPONSE.size
        return done

    # ---- under the lock ----

    def _take(self, cookie: int) -> _Group:
        """A request that has been read, which is over."""
        self._cookies.give(cookie)
        return self._answered.pop(cookie)

    def _end(self, group: _Group) -> None:
        """The number of a request that is over may be given again."""
        indexes = self._indexes[group.device]
        indexes.discard(group.number)
        if not indexes:
            del self._indexes[group.device]

    # ---- without the lock ----

    @staticmethod
    def _refuse(left: list[_Group]) -> None:
        for group in left:
            group.answer(PageResponse.INVALID)
