# SPDX-License-Identifier: Apache-2.0
"""Threads for calls that may wait: ioctls that wait for a client, and calls that a listener delays.

A call that is held up keeps no other one waiting, because each call under way has a thread of its own.  A
process that has very many calls under way waits for itself.
Any thread hands calls in; the state is under a lock of its own.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

from ioctl_shim.procfs import tgid_of

log = logging.getLogger(__name__)
IDLE_SECONDS = 5.0
"""How long a thread waits for another call before it ends."""
FREE = 64
"""So many calls can be under way, whoever makes them."""
SHARE = 16
"""While there are more than that, each process can have so many."""


class WaitingCall:
    """`run` for thread `tid` of a client, which waits for its answer."""

    __slots__ = ("_tgid", "run", "tid")

    def __init__(self, run: Callable[[], None], tid: int) -> None:
        self.run, self.tid = run, tid
        self._tgid: int | None = None

    @property
    def tgid(self) -> int:
        """The client's process, 0 when it has ended."""
        if self._tgid is None:
            try:
                self._tgid = tgid_of(self.tid)
            except OSError:
                self._tgid = 0
        return self._tgid


class CallThreads:
    """Threads that may wait: one for each call under way.  A thread that is idle is used again."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[WaitingCall] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._under_way: set[WaitingCall] = set()
        self._queued: dict[int, deque[WaitingCall]] = {}
        """By process, the calls that wait for other calls of the same process."""

    def submit(self, run: Callable[[], None], tid: int) -> None:
        """Make the call soon, whatever calls of other processes wait for.  `tid` is the client's thread.  It
        is 0 for work of our own, which waits for no other call.  Any thread.

        Raises OSError(ENOMEM), with nothing done, when there can be no more threads.
        """
        call = WaitingCall(run, tid)
        with self._lock:
            if tid and len(self._under_way) >= FREE and self._has_share(call):
                self._queued.setdefault(call.tgid, deque()).append(call)
                return
            if self._idle:
                self._idle -= 1
            else:
                self._start()
            self._under_way.add(call)
            self._calls.put(call)

    def _has_share(self, call: WaitingCall) -> bool:
        return sum(other.tgid == call.tgid for other in self._under_way) >= SHARE

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name="waiting-call", daemon=True).start()
        except RuntimeError:
            raise OSError(errno.ENOMEM, "no thread for a call that may wait") from None

    def _work(self) -> None:
        while True:
            try:
                call: WaitingCall | None = self._calls.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if self._ends():
                    return
                continue
            while call is not None:
                try:
                    call.run()
                except BaseException:
                    log.exception("a call on a thread that may wait failed")
                call = self._next(call)

    def _next(self, done: WaitingCall) -> WaitingCall | None:
        """The call that waited for `done`.  Without one, the thread is idle from now on."""
        with self._lock:
            self._under_way.remove(done)
            waiting = self._queued.get(done.tgid) if self._queued else None
            if not waiting:
                self._idle += 1
                return None
            following = waiting.popleft()
            if not waiting:
                del self._queued[done.tgid]
            self._under_way.add(following)
            return following

    def _ends(self) -> bool:
        """Whether a thread that had nothing to do for a while may end.  A call may have just been put."""
        with self._lock:
            if not self._idle or not self._calls.empty():
                return False
            self._idle -= 1
            return True
