# SPDX-License-Identifier: Apache-2.0
"""A program of `vfsfuse run` whose lab is traced: it is a child of its tracer, in the same process group.

A tracer and the supervisor of the run have a SOCK_SEQPACKET pair.  When the lab answers, the supervisor opens
the lab's files `trace` and `faults` and sends the descriptors, because the mount of a private lab is in a
namespace of its own.  The tracer says how the trace is to be read, may write fault rules, and answers
ATTACHED; only then the program starts.  When the last process of the program has ended, the supervisor shuts
its side down, and keeps a private lab until the tracer has read the rest and hangs up; while that takes long,
it says READING.

Neither holds up the other: each step of the supervisor's has its time, and a tracer that dies only hangs up.
Both ends are for single-threaded processes.  Source: unix(7), pidfd_open(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from vfsfuse.run.namespace import SetupError
from vfsfuse.run.privatelab import PrivateLab

TRACE = b"trace"
ATTACHED = b"attached"
READING = b"reading"

ATTACH_SECONDS = 2.0
"""How long the program waits for its tracer."""

DRAIN_SECONDS = 10.0
"""How long a private lab outlives its program for a tracer that has not read everything, and does not say
that it is reading."""

FILE, FAULTS = "trace", "faults"
EXIT_SETUP = 125

FORWARDED = (signal.SIGTERM, signal.SIGHUP)
"""Signals to the tracer that it passes on to the program."""

TERMINALS = (signal.SIGINT, signal.SIGQUIT)
"""Signals that a terminal sends to the program as well."""


class TracerLink:
    """The supervisor's end.  `file` is the lab's file that the tracer gets, beside `faults`."""

    def __init__(self, link: socket.socket, file: str = FILE) -> None:
        self._link, self._file = link, file

    def offer(self, root: int) -> None:
        """Hand over the file of the lab whose root directory is `root`.  Raises SetupError if it has none."""
        access = os.O_RDWR if self._file == FILE else os.O_RDONLY
        try:
            file = os.open(self._file, access | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
        except OSError as error:
            raise SetupError(f"the {self._file} of the lab: {_why(error)}") from None
        files = [file]
        with contextlib.suppress(OSError):  # a lab of an older vfsfuse
            files.append(os.open(FAULTS, os.O_RDWR | os.O_CLOEXEC, dir_fd=root))
        self._link.settimeout(ATTACH_SECONDS)
        try:
            socket.send_fds(self._link, [TRACE], files)
            self._link.recv(len(ATTACHED))
        except OSError:
            pass  # the tracer is stopped, or has died: the program goes on
        finally:
            for each in files:
                os.close(each)

    def drain(self, lab: PrivateLab | None) -> None:
        """Tell the tracer that the program has ended.  Returns when it needs `lab` no more."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)
        poll = select.poll()
        self._link.setblocking(False)
        poll.register(self._link, select.POLLIN)
        if lab:
            poll.register(lab.stderr_fd, select.POLLIN)
        deadline = time.monotonic() + DRAIN_SECONDS
        while lab and (left := deadline - time.monotonic()) > 0:
            events = dict(poll.poll(left * 1000))
            if self._link.fileno() in events:
                if not self._reads():
                    return
                deadline = time.monotonic() + DRAIN_SECONDS
            if lab.stderr_fd in events and not lab.relay():
                return  # its server has ended

    def _reads(self) -> bool:
        """Whether the tracer has just said something.  False when it has hung up."""
        try:
            return bool(self._link.recv(len(READING)))
        except BlockingIOError:
            return True
        except OSError:
            return False


def _why(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is none (its server is of an older vfsfuse: mount it anew)"
    mend = " (only the user of the lab's server may read it)" if error.errno == errno.EACCES else ""
    return f"{error.strerror or error}{mend}"


class TracedCommand:
    """The tracer's end: a child process that becomes the program.

    SIGINT and SIGQUIT of a terminal reach the program by themselves, so they do not end the tracer while
    the program runs.  SIGTERM and SIGHUP are passed on.  `wake_fd` is readable when one of the four has come
    after the program's end.
    """

    def __init__(self, become: Callable[[socket.socket], int]) -> None:
        """Start the child.  `become` runs in it, with the supervisor's end of the pair: it execs the program,
        or returns an exit status."""
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        handled = [*TERMINALS, *FORWARDED]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would leave no status
        self.pid = os.fork()
        if not self.pid:
            self._link.close()
            signal.signal(signal.SIGCHLD, of_children)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _be(become, theirs)
        theirs.close()
        self.status: int | None = None
        """The wait status of the program once it has ended."""
        self.pid_fd = os.pidfd_open(self.pid)
        self.faults: int | None = None
        """The lab's file `faults`, open for reading and writing, once :meth:`trace` has returned."""
        self.wake_fd, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a shell as the program takes the terminal
        for number in handled:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def link_fd(self) -> int:
        """Readable once the last process of the program has ended."""
        return self._link.fileno()

    def trace(self) -> int | None:
        """The lab's file `trace`, or the one that `run` was told, open; the caller closes it.  None when the
        program does not start: it has said why, and ends."""
        try:
            message, fds, _, _ = socket.recv_fds(self._link, len(TRACE), 2)
        except ConnectionError:
            return None
        if message != TRACE or not fds:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        self.faults = fds[1] if len(fds) > 1 else None
        return fds[0]

    def attached(self) -> None:
        """Let the program start."""
        with contextlib.suppress(OSError):
            self._link.send(ATTACHED)

    def reading(self) -> None:
        """Tell the supervisor that there is more to read."""
        with contextlib.suppress(OSError):
            self._link.send(READING, socket.MSG_DONTWAIT)

    def reap(self) -> int:
        """Wait for the program.  Returns its wait status."""
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
            os.close(self.pid_fd)
        return self.status

    def close(self) -> None:
        """Let the lab end."""
        self._link.close()
        if self.faults is not None:
            os.close(self.faults)
            self.faults = None

    def _on_signal(self, number: int, frame: object) -> None:
        if self.status is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._waker, b"\0")
        elif number in FORWARDED:
            os.kill(self.pid, number)  # not reaped yet, so the number is the program's


def _be(become: Callable[[socket.socket], int], link: socket.socket) -> NoReturn:
    """In the child.  Never returns."""
    status = EXIT_SETUP
    try:
        status = become(link)
        sys.stderr.flush()
    except KeyboardInterrupt:
        _die_by(signal.SIGINT)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def end_as(status: int) -> int:
    """End this process as the process with the wait status `status` did.  Returns the exit status, or dies
    by the same signal."""
    if os.WIFSIGNALED(status):
        _die_by(os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def _die_by(number: int) -> NoReturn:
    import resource

    # a core file would overwrite that of the program
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # SIGKILL
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)
