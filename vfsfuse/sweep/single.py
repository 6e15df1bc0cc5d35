# SPDX-License-Identifier: Apache-2.0
"""One run of a sweep: a process that starts the program in a private lab, and leaves nothing behind.

The sweep forks it (`Child`).  It has a session of its own, so it hears nothing of the terminal, and so has
the program.  It is the subreaper of all that comes from it.  The rule is written when the lab answers and
before the program starts, so only calls of the program count.  The outcome goes to the sweep by a pipe.  The
process ends once the program, the lab and their supervisor have ended; if the sweep ends before that, it
kills all of them.

Single-threaded.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pickle
import re
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from vfsfuse.asking import NoAnswer, Patience
from vfsfuse.run import command as run
from vfsfuse.run.traced import EXIT_SETUP, TracedCommand
from vfsfuse.sweep import family
from vfsfuse.sweep.verdicts import Outcome, Shot
from vfsfuse.trace.filters import KEEP, Filter
from vfsfuse.trace.reader import TraceReader
from vfsfuse.trace.record import Record, TraceError

RULE = "sweep"
"""The name of the rule in the lab."""

PATIENCE = 10.0
"""Seconds in which the lab answers a reader of its trace."""
END_SECONDS = 15.0
"""How long the lab and its supervisor may take to end by themselves."""
BATCH = 1000
"""Records that are read before something else is looked at."""
MOST_RECORDS = 20_000
"""Records of a run that are kept, the last ones."""
MOST_OUTPUT = 1 << 20
"""Bytes of standard output that are kept, the first ones; of standard error, the last ones."""
_CHUNK = 1 << 16
_HITS = re.compile(rb"^name=%b .*# (\d+) hits? of (\d+) calls?" % RULE.encode(), re.MULTILINE)
"""The line of the rule in the list of the lab's rules."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs of a sweep have in common: the arguments of `vfsfuse run`, the program's time in seconds
    (None: as long as it takes), the files whose contents belong to its output, and whether the trace is
    kept."""

    args: argparse.Namespace
    timeout: float | None
    files: tuple[str, ...] = ()
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run leaves for its folder: the outcome, and the lines of its trace."""

    outcome: Outcome
    lines: Sequence[str]


class Child:
    """The sweep's end of a run."""

    def __init__(self, plan: Plan, shot: Shot, stop: tuple[int, int]) -> None:
        """Start it.  `stop` is a pipe of the sweep's: the run ends when its writing end is closed."""
        self.shot = shot
        self.fd, theirs = os.pipe2(os.O_CLOEXEC)
        """Readable once the outcome is there, or when the process has ended."""
        self._said = bytearray()
        self.pid = os.fork()
        if not self.pid:
            os.close(stop[1])
            os.close(self.fd)
            _be(plan, shot, stop[0], theirs)
        os.close(theirs)

    def read(self) -> Kept | None:
        """Take what has come.  The outcome once it is there whole, None before."""
        part = os.read(self.fd, _CHUNK)
        self._said += part
        if part:
            return None
        os.close(self.fd)
        try:
            kept: Kept = pickle.loads(self._said)
        except (EOFError, pickle.UnpicklingError):
            return Kept(_no_run(self.shot, "the process that watches it was killed"), ())
        return kept


def _be(plan: Plan, shot: Shot, stop: int, output: int) -> NoReturn:
    """In the forked process."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        family.gather()
        kept = _Run(plan, shot, stop).go()
        with contextlib.suppress(BrokenPipeError), os.fdopen(output, "wb") as file:
            pickle.dump(kept, file)
        status = 0 if family.await_end(END_SECONDS) else 1
    except _Stopped:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        family.kill((), END_SECONDS)
        os._exit(status)


def _no_run(shot: Shot, problem: str) -> Outcome:
    return Outcome(shot, 0.0, None, -1, None, False, "", b"", b"", problem)


class _Stopped(BaseException):
    """The sweep has ended."""


class _Pipe:
    """What the program writes to a descriptor: a digest of all, the beginning, and the end."""

    def __init__(self) -> None:
        self.fd, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self.digest = hashlib.sha256()
        self.head, self.tail = bytearray(), bytearray()

    def read(self) -> bool:
        """Take what is there.  False at the end, and when there is nothing."""
        try:
            part = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return False
        self.digest.update(part)
        self.head += part[: MOST_OUTPUT - len(self.head)]
        self.tail += part
        del self.tail[:-MOST_OUTPUT]
        return bool(part)


class _Run:
    """The run, in its own process.  `stop` is readable once the sweep has ended."""

    def __init__(self, plan: Plan, shot: Shot, stop: int) -> None:
        self._plan, self._shot, self._stop = plan, shot, stop
        self._out, self._err = _Pipe(), _Pipe()
        self._records: deque[Record] = deque(maxlen=MOST_RECORDS)
        self._hit: Record | None = None
        self._before = [_stamp(path) for path in plan.files]

    def go(self) -> Kept:
        """Make the run, and end what is left of the program.  The lab may end a little later.  Raises
        _Stopped."""
        try:
            command = self._start()
            return Kept(self._follow(*command), self._lines())
        except _Failure as failure:
            family.kill((), END_SECONDS)
            return Kept(_no_run(self._shot, str(failure)), ())

    # ---- the start ----

    def _start(self) -> tuple[TracedCommand, TraceReader, set[int]]:
        """The program before its first instruction, the reader of its trace, and the processes of the lab."""
        command = TracedCommand(self._become)
        for pipe in (self._out, self._err):
            os.close(pipe.theirs)
        self._wait_for(command.link_fd)
        trace = command.trace()
        if trace is None:
            command.reap()
            while self._err.read():
                pass
            raise _Failure(_last_line(self._err.tail) or "the lab did not start")
        self._write_rule(command)
        try:
            reader = TraceReader(trace, self._filter(), KEEP, PATIENCE)
        except TraceError as error:
            raise _Failure(f"the trace of the lab: {error}") from None
        lab = family.members() - {command.pid}
        command.attached()
        return command, reader, lab

    def _filter(self) -> Filter:
        return Filter() if self._plan.keep else Filter(injected=[RULE])

    def _become(self, tracer: socket.socket) -> int:
        """In the child that becomes the program.  A signal to its process group (`kill 0`) is not for us."""
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (self._out.theirs, 1), (self._err.theirs, 2)):
            os.dup2(source, target)
        most = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))
        return run.main(self._plan.args, tracer)

    def _wait_for(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        if self._stop in dict(poll.poll()):
            raise _Stopped

    def _write_rule(self, command: TracedCommand) -> None:
        if command.faults is None:
            raise _Failure("the lab has no file `faults` that is ours to write")
        try:
            os.write(command.faults, f"add name={RULE} {self._shot.rule()}\n".encode())
        except OSError as error:
            why = os.pread(command.faults, _CHUNK, 0).decode("utf-8", "replace").strip()
            raise _Failure(f"the fault rule: {why or error.strerror}") from None

    # ---- the program ----

    def _follow(self, command: TracedCommand, reader: TraceReader, lab: set[int]) -> Outcome:
        """Follow the program to its end, or to the end of its time."""
        begun = time.monotonic()
        ended = self._until_ended(command, reader, begun)
        seconds = time.monotonic() - begun
        calls, is_hit = self._account(command, reader)
        status = command.reap() if ended else None
        for pipe in (self._out, self._err):
            while pipe.read() and ended:  # a program that has not ended may write for ever
                pass
        if not ended:  # what a shell says of a child that was killed is no output of the run
            family.kill(lab, END_SECONDS)
        reader.close()
        command.close()
        return Outcome(
            *(self._shot, seconds, status, calls, self._hit, is_hit or self._hit is not None),
            *(self._digest(), bytes(self._out.head), bytes(self._err.tail)),
            _setup_failure(status, self._err.tail),
        )

    def _until_ended(self, command: TracedCommand, reader: TraceReader, begun: float) -> bool:
        """Return True once the last process of the program has ended, False at the end of its time."""
        end = None if self._plan.timeout is None else begun + self._plan.timeout
        pipes = {pipe.fd: pipe for pipe in (self._out, self._err)}
        while end is None or time.monotonic() < end:
            poll = select.poll()
            trace = -1 if reader.ended else reader.fileno()
            for fd in (self._stop, command.link_fd, *pipes, *(() if reader.ended else (trace,))):
                poll.register(fd, select.POLLIN)
            ready = dict(poll.poll(None if end is None else max(0.0, end - time.monotonic()) * 1000))
            if self._stop in ready:
                raise _Stopped
            if trace in ready:
                self._take(reader)
            for fd in [fd for fd in pipes if fd in ready]:
                if not pipes[fd].read():
                    del pipes[fd]
            if command.link_fd in ready:
                return True
        return False

    def _take(self, reader: TraceReader) -> None:
        """Read records that have come.  A trace that breaks off is a lab that has ended."""
        with contextlib.suppress(TraceError):
            for _ in range(BATCH):
                record = reader.next(0)
                if record is None:
                    return
                self._keep(record)

    def _keep(self, record: Record) -> None:
        if RULE in record.fault.split(",") and record.duration is not None:
            self._hit = record
        if self._plan.keep:
            self._records.append(record)

    def _account(self, command: TracedCommand, reader: TraceReader) -> tuple[int, bool]:
        """The rest of the trace; how many calls were counted, and whether one was hit."""
        with contextlib.suppress(TraceError):
            for record in reader.drain():
                self._keep(record)
        try:
            faults = command.faults
            found = None
            if faults is not None:
                found = Patience(PATIENCE).ask(lambda: _listed(faults), keep=[faults])
        except (OSError, NoAnswer):  # the lab has ended
            found = None
        return (found[1], found[0] > 0) if found else (-1, False)

    def _digest(self) -> str:
        digest = self._out.digest
        for path, before in zip(self._plan.files, self._before, strict=True):
            written = _stamp(path) != before
            digest.update(f"\0{path} {written}\0".encode("utf-8", "surrogateescape"))
            with contextlib.suppress(OSError), open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _lines(self) -> list[str]:
        from vfsfuse.trace.text import Lines

        lines = Lines()
        return [lines.line(record) for record in self._records]


def _listed(faults: int) -> tuple[int, int] | None:
    """The hits and the calls of the rule, as the lab's file `faults` lists them.  It is asked through the
    open file: only users in the lab's own user namespace can open it.  Raises OSError."""
    os.write(faults, b"list\n")
    found = _HITS.search(os.pread(faults, MOST_OUTPUT, 0))
    return (int(found[1]), int(found[2])) if found else None


class _Failure(Exception):
    """There is no run.  str() is one line."""


def _stamp(path: str) -> tuple[int, ...]:
    """What differs once a file has been written."""
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _last_line(text: bytes | bytearray) -> str:
    lines = text.decode("utf-8", "replace").splitlines()
    return lines[-1].removeprefix("vfsfuse: run: ") if lines else ""


def _setup_failure(status: int | None, stderr: bytearray) -> str:
    """What `run` says when it has not become the program."""
    last = stderr.rsplit(b"\n", 2)[-2:][0] if stderr else b""
    failed = status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_SETUP
    return _last_line(last) if failed and last.startswith(b"vfsfuse: run: ") else ""
