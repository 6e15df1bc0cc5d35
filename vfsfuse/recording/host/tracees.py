# SPDX-License-Identifier: Apache-2.0
"""A program and all that it starts, stopped by ptrace where they enter and leave system calls.

One thread starts the program and runs the loop, because ptrace answers no other one.  It decides nothing of
what a call means: a `Watcher` does.  A thread may be killed at any moment, so every request of ptrace can
fail with ESRCH, which its exit explains.
Source: ptrace(2), especially "Attaching and detaching" and "Group-stop".
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Protocol

from ioctl_shim.procfs import tgid_of
from vfsfuse.recording.host import syscalls
from vfsfuse.recording.host.syscalls import Entered, Left, Machine

Ending = Callable[[int], None]
"""Told what a call returned, a negative errno for a failure, while its thread is stopped."""

_CALL = signal.SIGTRAP | 0x80
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_RESTARTS = range(-516, -511)
"""ERESTARTSYS to ERESTART_RESTARTBLOCK: a signal came first, and the call is made again or fails later."""


class Watcher(Protocol):
    """What is told of the program, on the thread of the loop."""

    def stopped(self) -> None:
        """A thread has stopped, and it is told next why."""

    def entered(self, tid: int, tgid: int, name: str, args: tuple[int, ...]) -> Ending | None:
        """A thread is about to make a call.  None if nobody wants to know what it returns."""

    def forked(self, tgid: int, child: int) -> None:
        """A process has another one as its copy, which has not run yet."""

    def replaced(self, tid: int, tgid: int) -> None:
        """A process has another program."""

    def ended(self, tgid: int) -> None:
        """A process has ended."""


class Tracees:
    """The program with process number `pid`, which is seized already, and all that it starts."""

    def __init__(self, pid: int, machine: Machine, watcher: Watcher, every_call: bool) -> None:
        """`every_call` stops at all calls, because there is no filter that chooses."""
        self.pid = pid
        self.status: int | None = None
        """The wait status of the program once it has ended."""
        self._machine, self._watcher, self._every = machine, watcher, every_call
        self._names = machine.named()
        self._processes: dict[int, int] = {pid: pid}
        """By thread, the process."""
        self._early: set[int] = set()
        """New threads that have stopped before the stop of the one that made them."""
        self._endings: dict[int, Ending] = {}

    def run(self) -> None:
        """Return when all have ended."""
        while self._processes:
            try:
                tid, status = os.waitpid(-1, syscalls.WALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                self._watcher.stopped()
                try:
                    self._stopped(tid, status)
                except OSError as error:
                    if error.errno != errno.ESRCH:
                        raise
            else:
                self._ended(tid, status)

    def _ended(self, tid: int, status: int) -> None:
        if tid == self.pid:
            self.status = status
        self._endings.pop(tid, None)
        self._early.discard(tid)
        if self._processes.pop(tid, tid) == tid:
            self._watcher.ended(tid)
        for child in list(self._early):  # perhaps the one that made it was killed before it could stop
            self._add(None, child)

    def _stopped(self, tid: int, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        if tid not in self._processes:
            self._early.add(tid)  # the thread that made it has not stopped yet
        elif number == _CALL or event == syscalls.EVENT_SECCOMP:
            self._at_call(tid)
        elif event == syscalls.EVENT_STOP:
            if number in _STOPS:
                syscalls.listen(tid)
            else:
                self._go_on(tid)
        elif event:
            self._at_event(tid, event)
        else:
            self._go_on(tid, number)

    def _go_on(self, tid: int, number: int = 0) -> None:
        syscalls.go_on(tid, self._every or tid in self._endings, number)

    def _at_event(self, tid: int, event: int) -> None:
        try:
            told = syscalls.message(tid)
            if event in syscalls.NEW_TASK:
                self._add(tid, told)
            elif event == syscalls.EVENT_EXEC:
                self._replace(tid, told)
        finally:
            self._go_on(tid)

    def _add(self, parent: int | None, child: int) -> None:
        try:
            process = tgid_of(child)
        except OSError:  # killed already
            process = child
        self._processes[child] = process
        if process == child and parent in self._processes:
            self._watcher.forked(self._processes[parent], child)
        if child in self._early:
            self._early.remove(child)
            try:
                self._go_on(child)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise

    def _replace(self, tid: int, former: int) -> None:
        """All other threads of the process are gone, and the one that called exec has its number."""
        if former != tid:
            ending = self._endings.pop(former, None)
            self._endings.pop(tid, None)
            if ending:
                self._endings[tid] = ending
            self._processes.pop(former, None)
        for other in [each for each, process in self._processes.items() if process == tid and each != tid]:
            del self._processes[other]
            self._endings.pop(other, None)
        self._processes[tid] = tid
        self._watcher.replaced(tid, tid)

    def _at_call(self, tid: int) -> None:
        try:
            call = syscalls.call_of(tid, self._machine)
            if isinstance(call, Left):
                ending = self._endings.pop(tid, None)
                if ending and call.result not in _RESTARTS:
                    ending(call.result)
            elif isinstance(call, Entered):
                self._endings.pop(tid, None)
                name = self._names.get(call.nr)
                ending = self._watcher.entered(tid, self._processes[tid], name, call.args) if name else None
                if ending:
                    self._endings[tid] = ending
        finally:
            self._go_on(tid)
