# SPDX-License-Identifier: Apache-2.0
"""The sweep: which runs are made, in which order, how many at once.

First the program runs twice without a fault: its output has to be the same, and its calls are counted.  Then
the first, second, ... call fails, until a run ends before it gets to its call.  Single-threaded; each run is
a process (vfsfuse.sweep.single).
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from errno import errorcode
from types import FrameType

from vfsfuse.faults import plausible
from vfsfuse.sweep import family
from vfsfuse.sweep.single import END_SECONDS, Child, Kept, Plan
from vfsfuse.sweep.verdicts import Outcome, Shot, Verdict, judge
from vfsfuse.trace.record import Record

LEAST_SECONDS = 10.0
"""The time of a run unless the user gives one: this or TIMES_LONGER of a run without a fault."""
TIMES_LONGER = 10
FIRST_SECONDS = 300.0
"""The time of a run without a fault unless the user gives one."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SweepError(Exception):
    """There is nothing to sweep.  str() is one line for the user."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to fail: the calls with the numbers `first` to `last` (None: to the end) of these `kinds` (all
    if empty), with each of `errnos` (empty: the usual one, and with `all_errnos` each that Linux gives)."""

    first: int = 1
    last: int | None = None
    kinds: tuple[str, ...] = ()
    errnos: tuple[str, ...] = ()
    all_errnos: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """The two runs without a fault.  `is_compared` says whether outputs can be compared, `timeout` is that of
    the other runs."""

    run: Outcome
    again: Outcome
    timeout: float

    @property
    def is_compared(self) -> bool:
        return self.run.output == self.again.output


@dataclass(frozen=True, slots=True)
class Result:
    """A run with a fault, and what it shows."""

    run: Outcome
    verdict: Verdict
    kept: Kept = field(repr=False)


class Sweep:
    """One sweep.  `tell` gets each result, in the order of the calls."""

    def __init__(
        self,
        plan: Plan,
        choice: Choice,
        jobs: int,
        tell: Callable[[Result], None],
        progress: Callable[[int, int], None],
    ) -> None:
        """`progress` gets the number of runs that are over, and how many there will be as far as that is
        known."""
        self._plan, self._choice, self._jobs, self._tell, self._progress = plan, choice, jobs, tell, progress
        self._stop = os.pipe2(os.O_CLOEXEC)
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ending: set[int] = set()
        self._others = family.members()
        """Processes below this one that are not the sweep's."""
        family.gather()
        self.signal = 0
        """The signal that has ended the sweep; 0 for none."""
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal = number
            os.write(self._waker, b"\0")

    def reference(self) -> Reference:
        """Make the runs without a fault.  Raises SweepError if the program fails, and KeyboardInterrupt when
        a signal ends the sweep."""
        plan = replace(self._plan, timeout=self._plan.timeout or FIRST_SECONDS)
        shot = Shot(0, "", self._choice.kinds)
        runs = [kept.outcome for _ in range(2) for kept in self._make(plan, iter([shot]), 1)]
        if self.signal:
            raise KeyboardInterrupt
        for run in runs:
            _check_well(run, plan.timeout or 0)
        longest = max(run.seconds for run in runs)
        return Reference(runs[0], runs[1], self._plan.timeout or max(LEAST_SECONDS, TIMES_LONGER * longest))

    def go(self, reference: Reference) -> None:
        """Make the runs with a fault, until there is no call left or a signal comes.  Raises SweepError when
        a run cannot be made."""
        plan = replace(self._plan, timeout=reference.timeout)
        shots = _Shots(self._choice)
        compared = reference.run if reference.is_compared else None
        waiting: dict[int, Kept] = {}
        told = 0
        for made, kept in enumerate(self._make(plan, shots, self._jobs), start=1):
            if kept.outcome.problem:
                raise SweepError(f"run {kept.outcome.shot.number}: {kept.outcome.problem}")
            shots.over(kept.outcome)
            self._progress(made, max(reference.run.calls, 0) - self._choice.first + 1)
            waiting[shots.place(kept.outcome.shot)] = kept
            while told in waiting:
                self._say(waiting.pop(told), compared)
                told += 1
        for place in sorted(waiting):
            self._say(waiting[place], compared)

    def _say(self, kept: Kept, reference: Outcome | None) -> None:
        run = kept.outcome
        if run.is_hit:
            self._tell(Result(run, judge(run, reference), kept))

    def _make(self, plan: Plan, shots: Iterator[Shot], jobs: int) -> Iterator[Kept]:
        """Make runs, `jobs` at once, and give each that is over."""
        running: dict[int, Child] = {}
        try:
            while not self.signal:
                while len(running) < jobs and (shot := next(shots, None)) is not None:
                    child = Child(plan, shot, self._stop)
                    running[child.fd] = child
                if not running:
                    return
                poll = select.poll()
                for fd in (self._wake, *running):
                    poll.register(fd, select.POLLIN)
                for fd, _ in poll.poll():
                    kept = running[fd].read() if fd in running else None
                    if kept is not None:
                        self._ending.add(running.pop(fd).pid)
                        yield kept
                self._reap(os.WNOHANG)
        finally:
            self._ending.update(child.pid for child in running.values())

    def _reap(self, flags: int) -> None:
        for pid in list(self._ending):
            if os.waitpid(pid, flags)[0]:
                self._ending.discard(pid)

    def close(self) -> None:
        """End the runs that are under way, and wait until all that belongs to them has ended, also what a
        program has left that has killed the process which watches it."""
        os.close(self._stop[1])
        self._reap(0)
        family.kill(self._others, END_SECONDS)


class _Shots:
    """The runs to make, in the order of their calls."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._next = choice.first
        self._waiting: deque[Shot] = deque()
        self._places: dict[Shot, int] = {}
        self._is_over = False

    def __iter__(self) -> Iterator[Shot]:
        return self

    def __next__(self) -> Shot:
        if not self._waiting:
            self._refill()
        shot = self._waiting.popleft()
        self._places[shot] = len(self._places)
        return shot

    def _refill(self) -> None:
        choice = self._choice
        if self._is_over or (choice.last is not None and self._next > choice.last):
            raise StopIteration
        self._waiting.extend(Shot(self._next, name, choice.kinds) for name in choice.errnos or ("",))
        self._next += 1

    def over(self, run: Outcome) -> None:
        """A run is over: there are no more calls, or the call may fail in other ways."""
        if not run.is_hit:
            self._is_over = True
        elif self._choice.all_errnos and not run.shot.errno and run.hit is not None:
            self._waiting.extend(replace(run.shot, errno=name) for name in other_errnos(run.hit))

    def place(self, shot: Shot) -> int:
        return self._places[shot]


def other_errnos(call: Record) -> list[str]:
    """The names of the errnos with which Linux may fail this call besides the one that it failed with."""
    given = plausible.errnos(call.kind, call.name, call.subject)
    return [errorcode[number] for number in given if number != call.errno]


def _check_well(run: Outcome, timeout: float) -> None:
    """Raises SweepError for a program that fails by itself."""
    if run.problem:
        raise SweepError(run.problem)
    words = f": {run.last_words}" if run.last_words else ""
    if run.status is None:
        raise SweepError(f"the program does not end within {timeout:g} s, without a fault{words}")
    if run.exit_status:
        how = f"signal {run.signal}" if run.signal else f"exit status {run.exit_status}"
        raise SweepError(f"the program fails without a fault ({how}){words}")
