# SPDX-License-Identifier: Apache-2.0
"""Records what a program does with the VFIO devices of this machine, from the program's side alone.

The program and all that it starts are traced by ptrace.  A seccomp filter chooses the calls at which they
stop.  A filter with a listener, such as that of `vfsfuse run`, has precedence: under one, they stop at every
call.  They end with the recorder, because calls that a filter leaves to a tracer fail without one.

Single-threaded but for a thread that watches interrupts.  Source: ptrace(2), seccomp(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from vfsfuse.asking import Refusal
from vfsfuse.recording.host import syscalls
from vfsfuse.recording.host.dialogue import Dialogue
from vfsfuse.recording.host.syscalls import MACHINES, Machine
from vfsfuse.recording.host.tracees import Tracees
from vfsfuse.recording.recording import Recording, RecordingError
from vfsfuse.requirements import check_calls, check_proc
from vfsfuse.run.command import EXIT_SETUP, become

_TERMINALS = (signal.SIGINT, signal.SIGQUIT)
"""Signals that a terminal sends to the program as well."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_MEND = "sysctl kernel.yama.ptrace_scope=1, or be root; not under strace or gdb; --cap-add SYS_PTRACE"
_Handler = Callable[[int, FrameType | None], object] | int | None


class _Interrupted(BaseException):
    """A signal asks the recorder to end while only processes in the background are left."""


def record(
    argv: Sequence[str], *, shows_mmap: bool, complain: Callable[[str], None]
) -> tuple[Recording, int]:
    """Record a program until all that it has started has ended.  Returns the recording and the wait status of
    the program.

    `shows_mmap` lets the program know which regions can be mapped.  `complain` gets lines for the user, on
    any thread.  For the main thread of a process with no other one.  Raises RecordingError when the program
    cannot be traced."""
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise RecordingError(f"{platform.machine()}: only {' and '.join(MACHINES)} can be recorded")
    _check_requirements()
    of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would leave no status
    filtered = syscalls.can_filter(machine)
    child = _Child(list(argv), machine if filtered else None, of_children)
    dialogue = Dialogue(machine, shows_mmap, complain)
    dialogue.recording.command = tuple(argv)
    try:
        syscalls.seize(child.pid)
    except OSError as error:
        child.give_up()
        why = error.strerror or str(error)
        mend = f" ({_MEND})" if error.errno == errno.EPERM else ""
        raise RecordingError(f"the program cannot be traced: {why}{mend}") from None
    tracees = Tracees(child.pid, machine, dialogue, every_call=not filtered)
    _raise_limit()
    dialogue.interrupts.start()
    try:
        with _handling(tracees):
            child.go()
            tracees.run()
    except _Interrupted:
        complain("what the program has left in the background is ended")
    return dialogue.finish(), tracees.status or 0


def _check_requirements() -> None:
    """Raises RecordingError."""
    try:
        check_proc()
        check_calls()
    except Refusal as error:
        raise RecordingError(str(error)) from None


def _raise_limit() -> None:
    """Each eventfd of the program needs a copy."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Child:
    """A child that waits until it is traced, and then becomes the program."""

    def __init__(self, argv: list[str], machine: Machine | None, of_children: _Handler) -> None:
        """With `machine`, it is under a filter.  `of_children` is what SIGCHLD does to the program."""
        begun, self._start = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._start)
            signal.signal(signal.SIGCHLD, of_children)
            _be(argv, begun, machine)
        os.close(begun)

    def go(self) -> None:
        """Let it become the program."""
        os.write(self._start, b"\0")
        os.close(self._start)

    def give_up(self) -> None:
        """It is not traced, and ends."""
        os.close(self._start)
        os.waitpid(self.pid, 0)


def _be(argv: list[str], begun: int, machine: Machine | None) -> NoReturn:
    """In the child.  Never returns."""
    status = EXIT_SETUP
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if os.read(begun, 1):  # the recorder has not died
            if machine is not None:
                syscalls.install(machine)
            status = become(argv, "record")
            sys.stderr.flush()
    except OSError as error:
        print(f"vfsfuse: record: the seccomp filter: {error.strerror}", file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextlib.contextmanager
def _handling(tracees: Tracees) -> Iterator[None]:
    """A terminal's signals reach the program by themselves, others are passed on to it.  Once it has ended,
    the first one ends the recorder.  It writes what it has then, whichever of _FORWARDED come meanwhile:
    timeout(1) sends each of its signals twice."""
    is_ending = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_ending
        if is_ending:
            return
        if tracees.status is not None:
            is_ending = True
            raise _Interrupted
        if number in _FORWARDED:
            os.kill(tracees.pid, number)

    numbers = [each for each in (*_TERMINALS, *_FORWARDED) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    before[signal.SIGTTOU] = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if is_ending and number in _FORWARDED else handler)
