# SPDX-License-Identifier: Apache-2.0
"""Eventfds of clients: those that we signal, from any thread, and those that a client signals and one thread
of ours waits for.

State: an :class:`Eventfd` belongs to its holder and is used under the holder's lock. A :class:`Watcher` has a
lock of its own, which is taken after every other and never held during a call back. Source: eventfd(2),
epoll(7).
"""

import contextlib
import errno
import os
import select
import threading
from collections.abc import Callable
from functools import partial

_LINK = "anon_inode:[eventfd]"
_COUNTER_BYTES = 8
Point = Callable[[Callable[[], None]], object]
"""Is called with what signals an eventfd: it does that at once, later or not at all."""


class Eventfd:
    """A descriptor of ours for a client's eventfd; it is open until :meth:`close`.

    ``signal()`` adds 1 to the counter, on any thread. A full counter stays full, as with the kernel's
    eventfd_signal().
    """

    __slots__ = ("_send", "fd", "signal")

    def __init__(self, fd: int, signal: Callable[[int], object]) -> None:
        """Takes ``fd`` over. ``signal(fd)`` is to add 1 to the counter of ``fd`` without a wait: a write(2)
        to a full counter would hold the thread for as long as the client likes (see shim_signal).

        Raises ``OSError(EINVAL)``, with ``fd`` closed, when ``fd`` is no eventfd.
        """
        if os.readlink(f"/proc/self/fd/{fd}") != _LINK:
            os.close(fd)
            raise OSError(errno.EINVAL, f"descriptor {fd} is not an eventfd")
        self.fd = fd
        self.signal: Callable[[], object] = partial(signal, fd)
        self._send = self.signal

    def take(self) -> int:
        """The counter, which is 0 afterwards (a semaphore's is 1 less, and 1 is returned). Never waits."""
        buffer = bytearray(_COUNTER_BYTES)
        try:
            # RWF_NOWAIT: another reader may be faster, and the client alone chooses O_NONBLOCK
            os.preadv(self.fd, [buffer], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        return int.from_bytes(buffer, "little")

    def send_through(self, point: Point | None, lock: threading.RLock) -> None:
        """From now on ``signal()`` calls ``point`` with what signals. With None it signals by itself.

        ``lock`` is the one that this is closed under, and it is held. A signal that comes after the close is
        lost.
        """
        if self.fd < 0:
            return
        if point is None:
            self.signal = self._send
            return
        send = self._send

        def signal() -> None:
            with lock:  # another file may have the number of a closed descriptor
                if self.fd >= 0:
                    send()

        self.signal = partial(point, signal)

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        if self.fd >= 0:
            self.signal = _nothing
            os.close(self.fd)
            self.fd = -1


def _nothing() -> None:
    """The signal of an eventfd that is closed: another file may have its number by now."""


class Watch:
    """An eventfd that a watcher waits for; :meth:`Watcher.watch` makes it."""

    __slots__ = ("_watcher", "eventfd", "notify")

    def __init__(self, watcher: "Watcher", eventfd: Eventfd, notify: Callable[[], None]) -> None:
        self._watcher = watcher
        self.eventfd = eventfd
        self.notify = notify

    def cancel(self) -> None:
        """Stop waiting, and close the eventfd. A call of ``notify`` that has begun may still be running."""
        self._watcher.drop(self)


class Watcher:
    """One thread that calls back whenever a client signals an eventfd. It starts with the first watch."""

    __slots__ = ("_end", "_epoll", "_lock", "_watches")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: dict[int, Watch] = {}
        self._epoll: select.epoll | None = None
        self._end = -1

    def watch(self, eventfd: Eventfd, notify: Callable[[], None]) -> Watch:
        """Call ``notify`` on the watcher's thread whenever the client signals ``eventfd``, and once if it is
        signalled already. Takes ``eventfd`` over. May be called with any lock held.

        Raises ``OSError``, with ``eventfd`` closed: ENOSPC or ENOMEM when the kernel can watch no more,
        EMFILE when this process has no descriptor left, EAGAIN when it can have no other thread.

        ``notify`` may take the locks of a device. An exception of it, of whatever kind, goes to
        threading.excepthook, and the thread goes on.
        """
        made = Watch(self, eventfd, notify)
        with self._lock:
            try:
                self._started().register(eventfd.fd, select.EPOLLIN)
            except BaseException:
                eventfd.close()
                raise
            self._watches[eventfd.fd] = made
        return made

    def drop(self, watch: Watch) -> None:
        """For :meth:`Watch.cancel`."""
        with self._lock:
            if self._watches.get(watch.eventfd.fd) is watch:
                del self._watches[watch.eventfd.fd]
                if self._epoll is not None:
                    self._epoll.unregister(watch.eventfd.fd)
            watch.eventfd.close()

    def close(self) -> None:
        """End the thread and close the eventfds. May be called twice."""
        with self._lock:
            if self._end >= 0:
                os.eventfd_write(self._end, 1)

    def _started(self) -> select.epoll:
        if self._epoll is None:
            with contextlib.ExitStack() as undo:
                epoll = undo.enter_context(select.epoll())
                end = os.eventfd(0, os.EFD_CLOEXEC)
                undo.callback(os.close, end)
                epoll.register(end, select.EPOLLIN)
                self._start(epoll, end)
                undo.pop_all()
            self._epoll, self._end = epoll, end
        return self._epoll

    def _start(self, epoll: select.epoll, end: int) -> None:
        thread = threading.Thread(target=self._run, args=(epoll, end), name="eventfds", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error

    def _run(self, epoll: select.epoll, end: int) -> None:
        while True:
            for fd, _ in epoll.poll():
                if fd == end:
                    self._finish()
                    return
                self._notify(fd)

    def _notify(self, fd: int) -> None:
        with self._lock:  # while it is held nobody closes the descriptor, and no other file gets its number
            watch = self._watches.get(fd)
            signalled = watch is not None and watch.eventfd.take()
        if watch is not None and signalled:
            try:
                watch.notify()
            except BaseException as error:  # others need the thread, whatever a model raises
                _report(error)

    def _finish(self) -> None:
        with self._lock:
            if self._epoll is not None:
                self._epoll.close()
            os.close(self._end)
            self._epoll, self._end = None, -1
            for watch in self._watches.values():
                with contextlib.suppress(OSError):
                    watch.eventfd.close()
            self._watches.clear()


def _report(error: BaseException) -> None:
    arguments = (type(error), error, error.__traceback__, threading.current_thread())
    threading.excepthook(threading.ExceptHookArgs(arguments))
