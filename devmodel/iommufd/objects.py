# SPDX-License-Identifier: Apache-2.0
"""Objects of an iommufd context, which clients name by id, and the references that keep them.

A reference is of another object, for as long as that needs it, or of a call under way, for a moment. DESTROY
fails while the first kind exists, and waits for the second.

State: under ``ObjectTable.lock``, which is held to look and to count, never while a client is asked anything.
It comes after a group's lock and before that of an address space. Any thread.
Source: <linux/iommufd.h>, Documentation/userspace-api/iommufd.rst ("IOMMUFD User APIs").
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import ClassVar, TypeVar

from devmodel.ida import Ida
from devmodel.iommu.api import MustWait

MAX_OBJECTS = 4096
"""The most objects in a context: an IOAS takes 4 KiB of the server. Linux has no limit but the memory of the
client's control group."""
CALL_SECONDS = 10.0
"""Seconds for which DESTROY waits for calls under way. A call takes longer only if a client stops its own
memory."""


class ObjectType(Enum):
    """The types of objects that a client can name."""

    IOAS = "IOAS"
    HWPT = "HWPT"
    DEVICE = "device"
    """A physical function that is bound to the context."""
    ACCESS = "access"
    """A mediated device that is bound to the context."""
    FAULT_QUEUE = "fault queue"


class IommufdObject:
    """An object of a context. ``id`` is 0 until :meth:`ObjectTable.add`."""

    __slots__ = ("calls", "id", "users")
    type: ClassVar[ObjectType]
    destroy_waits: ClassVar[bool] = False
    """Whether :meth:`destroyed` may have to wait, so that the device lane must not call it."""

    def __init__(self) -> None:
        self.id = 0
        self.users = 0
        """References of other objects, of bound devices among them."""
        self.calls = 0
        """Calls under way that use it."""

    def destroyed(self) -> None:
        """A hook: nobody can name it any more, and nothing refers to it. Called with no lock held."""


T = TypeVar("T", bound=IommufdObject)


class ObjectTable:
    """The objects of one context by id. The lowest free id from 1 is given first, as in the kernel."""

    __slots__ = ("_done", "_ids", "_objects", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._done = threading.Condition(self.lock)
        self._objects: dict[int, IommufdObject] = {}
        self._ids = Ida()
        self._ids.take()  # no object has id 0

    def __len__(self) -> int:
        return len(self._objects)

    def add(self, made: IommufdObject) -> int:
        """Give ``made`` an id, which is returned. Raises ``OSError(ENOMEM)`` for too many objects."""
        with self.lock:
            self.reserve(made)
            self.publish(made)
            return made.id

    def reserve(self, made: IommufdObject) -> None:
        """Give ``made`` an id by which nobody finds it before :meth:`publish`. Raises ``OSError`` as
        :meth:`add`."""
        with self.lock:
            if len(self._objects) >= MAX_OBJECTS:
                raise OSError(errno.ENOMEM, f"{MAX_OBJECTS} objects in one context")
            made.id = self._ids.take()

    def publish(self, made: IommufdObject) -> None:
        """``made``, which has an id, is ready."""
        with self.lock:
            self._objects[made.id] = made

    def cancel(self, made: IommufdObject) -> None:
        """Take the id back of ``made``, which never was ready."""
        with self.lock:
            self._ids.give(made.id)

    def find(self, number: int, wanted: type[T]) -> T:
        """The object ``number``, which is a ``wanted``. Raises ``OSError(ENOENT)``. Under :attr:`lock`, or by
        who holds a reference, or for a call that does not wait and may come just before the object ends."""
        found = self._objects.get(number)
        if not isinstance(found, wanted):
            raise OSError(errno.ENOENT, f"there is no object {number} of the type {wanted.__name__}")
        return found

    def has(self, one: IommufdObject) -> bool:
        """Whether ``one`` is an object of this context now. Any thread."""
        return self._objects.get(one.id) is one

    def take(self, number: int, wanted: type[T]) -> T:
        """As :meth:`find`, for a call that ends with :meth:`put`. DESTROY waits for that."""
        with self.lock:
            found = self.find(number, wanted)
            found.calls += 1
            return found

    def put(self, used: IommufdObject) -> None:
        """The call that took ``used`` is over."""
        with self.lock:
            used.calls -= 1
            if not used.calls:
                self._done.notify_all()

    @contextmanager
    def using(self, number: int, wanted: type[T]) -> Iterator[T]:
        """:meth:`take` and :meth:`put` around a block."""
        found = self.take(number, wanted)
        try:
            yield found
        finally:
            self.put(found)

    def hold(self, used: IommufdObject) -> None:
        """Another object refers to ``used`` from now on: DESTROY is EBUSY."""
        with self.lock:
            used.users += 1

    def drop(self, used: IommufdObject) -> None:
        """The opposite of :meth:`hold`."""
        with self.lock:
            used.users -= 1

    def destroy(self, number: int, may_wait: bool = True) -> None:
        """DESTROY.

        Raises ``OSError``: ENOENT for no such object, EBUSY while another object refers to it or a call that
        uses it does not end. Raises :class:`MustWait` for a call under way unless it ``may_wait``.
        """
        with self.lock:
            found = self.find(number, IommufdObject)
            if found.calls and not found.users:
                if not may_wait:
                    raise MustWait
                self._done.wait_for(lambda: not found.calls, CALL_SECONDS)
                if self._objects.get(number) is not found:
                    raise OSError(errno.ENOENT, f"object {number} is gone")
            if found.users or found.calls:
                raise OSError(errno.EBUSY, f"object {number} is in use")
            if not may_wait and found.destroy_waits:
                raise MustWait
            self.remove(found)
        found.destroyed()

    def remove(self, gone: IommufdObject) -> None:
        """Take the object out of the table, whoever refers to it. Under :attr:`lock`."""
        del self._objects[gone.id]
        self._ids.give(gone.id)

    def all(self) -> list[IommufdObject]:
        """The objects, the newest first."""
        with self.lock:
            return list(reversed(self._objects.values()))
