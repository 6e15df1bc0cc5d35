# SPDX-License-Identifier: Apache-2.0
"""Follows the trace of a lab: one that is mounted, until a signal comes, or that of a program, until it ends.

Single-threaded.  The records that have come are told in batches, so that a busy lab is read by few calls.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Protocol

from vfsfuse.cli.account import Account
from vfsfuse.cli.mountwatch import MountWatch
from vfsfuse.cli.output import complain
from vfsfuse.run.traced import TracedCommand, end_as
from vfsfuse.trace.reader import TraceReader
from vfsfuse.trace.record import Record, TraceError

BATCH_SECONDS = 0.02
"""How long records may wait for others before they are told."""

BATCH = 1000
"""Records that are told at once at most."""

QUIET_SECONDS = 0.05
"""A trace without a record for that long, after the last call, has no more of them."""

FINISH_SECONDS = 60.0
"""The time for the records that wait in the lab when the program has ended."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the trace of a mounted lab, as they end the attachment of a debugger."""


class Teller(Protocol):
    """Whom records are told: an Account, or what makes a recording of them."""

    @property
    def failure(self) -> str | None:
        """Why it wants no more of them; None while all is well."""

    def add(self, records: Iterable[Record]) -> int:
        """The next records.  Returns how many there were."""

    def end(self) -> None:
        """There are no more."""


class Follower:
    """Tells the records of `reader` to `account`.  `open` is False once there will be no more of them."""

    def __init__(self, reader: TraceReader, account: Teller) -> None:
        self._reader, self._account = reader, account
        self._latest = 0.0
        """When the call of the last record began."""
        self.open = True
        self.failure = ""
        """Why the trace is not read any more, one line; empty when the lab has ended."""

    def until(self, events: Mapping[int, int]) -> set[int]:
        """Tell records as they come, until some of `events` happen: by descriptor, those of poll(2).  Returns
        the descriptors: none when the trace is over before."""
        while self.open:
            trace = self._reader.fileno()
            ready = _poll({**events, trace: select.POLLIN})
            if trace in ready:
                self._tell(self._come())
            ready = (ready - {trace}) or _poll(events, BATCH_SECONDS)
            if ready:
                return ready
        return set()

    def finish(self, told: Callable[[], object] = lambda: None) -> None:
        """Tell the records of all calls that have been made, then the summary.  Calls `told` now and then."""
        now, end = time.time(), time.monotonic() + FINISH_SECONDS
        while self.open and self._latest < now and time.monotonic() < end:
            if not self._tell(self._come(QUIET_SECONDS)):
                break
            told()
        self._tell(self._rest())
        self._reader.close()
        self._account.end()

    def _come(self, wait: float = 0.0) -> Iterator[Record]:
        """Records that have come, BATCH at most.  It waits `wait` seconds for the first."""
        for _ in range(BATCH):
            if (record := self._reader.next(wait)) is None:
                return
            self._latest, wait = record.time, 0.0
            yield record

    def _rest(self) -> Iterator[Record]:
        """Records of what has ended by now.  It waits for the lab's answer."""
        if self.open:
            yield from self._reader.drain()

    def _tell(self, records: Iterable[Record]) -> int:
        """Tell records, and return how many."""
        count = 0
        try:
            count = self._account.add(records)
        except TraceError as error:
            self.open, self.failure = False, str(error)
        else:
            self.open = self._account.failure is None and not self._reader.ended
        return count


def _poll(events: Mapping[int, int], seconds: float | None = None) -> set[int]:
    """Wait until some of `events` happen.  Returns their descriptors, also those that hung up."""
    poll = select.poll()
    for fd, event in events.items():
        poll.register(fd, event)
    return {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}


def follow_lab(lab: str, mounts: MountWatch, reader: TraceReader, account: Account) -> int:
    """Tell the dialogue of the lab mounted at `lab`, and watched by `mounts`, until a signal comes or the lab
    ends.  Returns the exit status."""
    wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def end(number: int, frame: object) -> None:
        os.write(waker, b"\0")
        signal.signal(number, signal.SIG_DFL)  # the second one ends a trace that nobody reads

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    _say(f"following {lab} (Ctrl-C ends it)")
    follower = Follower(reader, account)
    events = {wake: select.POLLIN, mounts.fd: select.POLLPRI}
    while follower.open and mounts.there():
        if wake in follower.until(events):
            break
    follower.finish()
    return 1 if complained(follower, account) else 0


def follow_command(
    become: Callable[[socket.socket], int],
    read: Callable[[int], TraceReader],
    account: Account,
    devices: Collection[str],
) -> int:
    """Run a program (`become`, see TracedCommand) and tell its dialogue with `devices`, if there are any.
    `read` makes the reader of an open file `trace`.  Returns its exit status, or dies by its signal."""
    command = TracedCommand(become)
    file = command.trace()
    if file is None:
        return end_as(command.reap())
    try:
        follower = Follower(read(file), account)
    except TraceError as error:
        _say(f"{error}: the program runs without a trace")
        command.close()
        return end_as(command.reap())
    command.attached()
    follow(command, follower)
    follower.finish(command.reading)
    command.close()
    if not complained(follower, account) and devices and not account.count:
        _say(
            f"no record is about {', '.join(devices)} (a UUID and a PCI address are shown in a trace of all)"
        )
    return end_as(command.reap())


def follow(command: TracedCommand, follower: Follower) -> None:
    """Follow until the last process of the program has ended, or, after its first one, a signal comes."""
    waiting = {command.pid_fd, command.link_fd}
    while waiting:
        events = dict.fromkeys([*waiting, command.wake_fd], select.POLLIN)
        ready = follower.until(events) or _poll(events)
        if command.pid_fd in ready:
            command.reap()
        if command.wake_fd in ready:
            return
        waiting -= ready


def complained(follower: Follower, account: Account) -> bool:
    """Say on stderr what is missing in the account.  Returns whether that is a failure."""
    failure = follower.failure or account.failure or ""
    if account.lost:
        what = "1 record is" if account.lost == 1 else f"{account.lost} records are"
        mend = "filter more, use -o, or have it keep more with --keep"
        _say(f"{what} missing: they came faster than this reader took them ({mend})")
    if failure:
        _say(failure)
    return bool(failure)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        complain("trace", message)
        sys.stderr.flush()
