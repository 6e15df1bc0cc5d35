# SPDX-License-Identifier: Apache-2.0
"""Clients that take their time: each answer may be held up, and is asked for without a lock."""

import errno
import threading
from collections.abc import Callable

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.type1 import Type1
from tests.unit.fakes import TOP, FakeClient, FakePages

SECONDS = 60


class Call:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._result: object = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def waits_for(self, seconds: float) -> bool:
        """Whether it has not come back after that time."""
        self._thread.join(seconds)
        return self.waits

    def result(self) -> object:
        """What it returns, or raises."""
        assert not self.waits_for(SECONDS)
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._call()
        except OSError as error:
            self._error = error


class Unhurried(FakeClient):
    """Its answer to ``held`` (the name of a method) comes only when told to, once. It is asked for nothing
    while a lock of ``watched`` is held by the thread that asks, or by any other one."""

    def __init__(self, tgid: int = 1, memlock: int = TOP, privileged: bool = False) -> None:
        super().__init__(tgid, memlock=memlock, privileged=privileged)
        self.begun, self.go = threading.Event(), threading.Event()
        self.held: str | None = None
        self.fails = False
        self.watched: list[threading.Lock] = []

    def watch(self, iommu: Type1, locked: LockedMemory) -> None:
        """No other thread may use these meanwhile."""
        self.watched = [iommu.space.lock, locked.lock]

    def hold(self, what: str) -> None:
        """Hold the next answer of this kind up, until :meth:`answer`."""
        self.begun.clear()
        self.go.clear()
        self.held, self.fails = what, False

    def answer(self, fails: bool = False) -> None:
        """Give the answer that is held up, or EFAULT."""
        self.fails = fails
        self.go.set()

    def read(self, vaddr: int, size: int) -> bytes:
        self._asked("read")
        return super().read(vaddr, size)

    def write(self, vaddr: int, data: bytes) -> None:
        self._asked("write")
        super().write(vaddr, data)

    def pin(self, vaddr: int, size: int, write: bool) -> FakePages:
        self._asked("pin")
        return super().pin(vaddr, size, write)

    def memlock_limit(self) -> int:
        self._asked("memlock_limit")
        return super().memlock_limit()

    def locked(self) -> int:
        self._asked("locked")
        return super().locked()

    def may_lock_any(self) -> bool:
        self._asked("may_lock_any")
        return super().may_lock_any()

    def _asked(self, what: str) -> None:
        assert not any(lock.locked() for lock in self.watched), f"{what} under a lock"
        if what != self.held:
            return
        self.held = None
        self.begun.set()
        assert self.go.wait(SECONDS)
        if self.fails:
            raise OSError(errno.EFAULT, "no such memory")
