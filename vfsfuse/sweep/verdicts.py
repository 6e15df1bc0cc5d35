# SPDX-License-Identifier: Apache-2.0
"""What a run was (Outcome), and what it shows of the program (Verdict).  Values without state."""

from __future__ import annotations

import enum
import os
import signal
from dataclasses import dataclass

from vfsfuse.trace.record import Record

SHELL_SIGNALS = 128
"""A shell exits with this and the number of the signal that has ended its last command."""

CRASHES = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)
"""Signals by which a program ends that does what it must not."""


class Verdict(enum.Enum):
    """What a program does when a call fails."""

    FAILS = "fails"
    """It ends with another exit status than 0, by itself: it has noticed."""
    COPES = "copes"
    """It ends with 0, and its output is that of a run without a fault."""
    CRASHES = "crashes"
    """A signal ends it."""
    HANGS = "hangs"
    """It does not end in time."""
    WRONG = "succeeds wrongly"
    """It ends with 0, and its output is another one."""

    @property
    def is_bad(self) -> bool:
        """Whether the program has to be mended."""
        return self in (Verdict.CRASHES, Verdict.HANGS, Verdict.WRONG)


@dataclass(frozen=True, slots=True)
class Shot:
    """What is to fail in a run: the call with this `number` among those that can fail, 0 for none, with
    `errno`, a name or empty for the usual one.  `kinds` are those of the calls that are counted, all if
    empty."""

    number: int
    errno: str = ""
    kinds: tuple[str, ...] = ()

    def rule(self) -> str:
        """The keys of the fault rule."""
        number = self.number or NEVER
        return f"call={','.join(self.kinds) or 'any'} nth={number} errno={self.errno or 'plausible'}"


NEVER = 10**9
"""The number of a call that no program gets to. Such a rule only counts."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that is over."""

    shot: Shot
    seconds: float
    status: int | None
    """The wait status of the program, None for one that was ended because it hung."""
    calls: int
    """How many calls that can fail it has made, -1 if that is not known."""
    hit: Record | None
    """The call that failed, as the trace has it."""
    is_hit: bool
    output: str
    """A digest of what it has written to standard output, and to the files that are compared."""
    stdout: bytes
    """The beginning of what it has written."""
    stderr: bytes
    """The end of what it has said."""
    problem: str = ""
    """Why there was no run.  One line."""

    @property
    def exit_status(self) -> int | None:
        """As a shell has it; None for a hang."""
        if self.status is None:
            return None
        code = os.waitstatus_to_exitcode(self.status)
        return code if code >= 0 else SHELL_SIGNALS - code

    @property
    def signal(self) -> int:
        """The signal that has ended the program, also by what a shell says; 0 for none."""
        if self.status is None:
            return 0
        code = os.waitstatus_to_exitcode(self.status)
        return -code if code < 0 else code - SHELL_SIGNALS if code - SHELL_SIGNALS in CRASHES else 0

    @property
    def last_words(self) -> str:
        """The last line on standard error that is not empty."""
        lines = self.stderr.decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def judge(run: Outcome, reference: Outcome | None) -> Verdict:
    """What `run` shows.  `reference` is a run without a fault, None if outputs cannot be compared."""
    if run.status is None:
        return Verdict.HANGS
    if run.signal:
        return Verdict.CRASHES
    if run.exit_status:
        return Verdict.FAILS
    return Verdict.COPES if reference is None or run.output == reference.output else Verdict.WRONG
