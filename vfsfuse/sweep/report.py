# SPDX-License-Identifier: Apache-2.0
"""What the user is told of a sweep: a line for each run, the counts, the progress, the folders of bad runs.

A line names the failed call as the trace writes it, and then what the program did.  What comes from a program
or a lab is printed without its escape sequences.  Single-threaded.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vfsfuse.printable import printable
from vfsfuse.sweep.sweeping import Reference, Result
from vfsfuse.sweep.verdicts import Outcome, Verdict
from vfsfuse.trace.asjson import as_json
from vfsfuse.trace.escaping import word
from vfsfuse.trace.record import Record
from vfsfuse.trace.telling import failure, parts_of

MOST_SHOWN = 60
"""Bytes of a program's output that a line quotes."""


def call_of(record: Record | None) -> str:
    """The failed call, as a line of the trace has it, without time, numbers of processes and duration."""
    if record is None:
        return "a call whose record is lost"
    told = parts_of(record)
    subject = "" if record.kind == "open" else word(record.subject.replace(" ", "-"))
    words = [word(record.comm), subject, told.what, told.details]
    return f"{' '.join(filter(None, words))} = {failure(record)}"


def ending_of(run: Outcome, verdict: Verdict, reference: Outcome) -> str:
    """What the program did then."""
    words = f": {printable(run.last_words)}" if run.last_words else ""
    if verdict is Verdict.HANGS:
        return f"no end after {run.seconds:.0f} s{words}"
    if verdict is Verdict.CRASHES:
        return f"{_signal_name(run.signal)}{words}"
    if verdict is Verdict.FAILS:
        return f"exit status {run.exit_status}{words}"
    if verdict is Verdict.COPES:
        return "exit status 0"
    return f"exit status 0, {_difference(run.stdout, reference.stdout)}{words}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _difference(found: bytes, wanted: bytes) -> str:
    """The first line of the output that differs."""
    lines, others = found.splitlines(), wanted.splitlines()
    for line, other in zip(lines, others, strict=False):
        if line != other:
            return f"prints {_quoted(line)} in place of {_quoted(other)}"
    if len(lines) > len(others):
        return f"prints {_quoted(lines[len(others)])} at the end"
    if len(lines) < len(others):
        return f"does not print {_quoted(others[len(lines)])}"
    return "other output"


def _quoted(line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    return json.dumps(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}...", ensure_ascii=False)


class Report:
    """Writes results to standard output, and the progress to standard error if that is a terminal."""

    def __init__(self, program: Sequence[str], json_lines: bool, keep: str | None) -> None:
        """`keep` is the folder for what bad runs leave."""
        self._program, self._json, self._keep = program, json_lines, keep
        self._is_terminal = sys.stderr.isatty()
        self._reference: Reference | None = None
        self.counts: Counter[Verdict] = Counter()

    def begin(self, reference: Reference) -> None:
        """The runs without a fault are over."""
        self._reference = reference
        run, again = reference.run, reference.again
        if run.calls != again.calls and min(run.calls, again.calls) >= 0:
            self.note(
                f"the program makes {run.calls} calls that can fail, and {again.calls} when it runs again: "
                "the number of a call is not always that of the same call"
            )
        if not reference.is_compared:
            self.note("the program's output is not the same when it runs again, and so it is not compared")

    def tell(self, result: Result) -> None:
        """A run with a fault is over."""
        assert self._reference is not None
        run, verdict = result.run, result.verdict
        self.counts[verdict] += 1
        ending = ending_of(run, verdict, self._reference.run)
        self._clear()
        if self._json:
            print(json.dumps(self._as_json(result, ending)), flush=True)
        else:
            print(f"{run.shot.number} {verdict.value}: {call_of(run.hit)}; then {ending}", flush=True)
        if self._keep and verdict.is_bad:
            self._save(result)

    def _as_json(self, result: Result, ending: str) -> dict[str, Any]:
        run = result.run
        return {
            **{"run": run.shot.number, "verdict": result.verdict.value, "bad": result.verdict.is_bad},
            **{"call": None if run.hit is None else as_json(run.hit), "line": call_of(run.hit)},
            **{"ending": ending, "exit_status": run.exit_status, "signal": run.signal},
            **{"seconds": round(run.seconds, 3), "stderr": run.last_words},
        }

    def _save(self, result: Result) -> None:
        """Leave the trace and the output of a run in a folder of its own.  Raises OSError."""
        run = result.run
        assert self._keep is not None
        folder = Path(self._keep) / "-".join(filter(None, (f"run-{run.shot.number}", run.shot.errno)))
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{line}\n" for line in result.kept.lines)
        (folder / "trace").write_text(text, encoding="utf-8", errors="surrogateescape")
        (folder / "stdout").write_bytes(run.stdout)
        (folder / "stderr").write_bytes(run.stderr)

    def end(self, was_cut: bool) -> int:
        """Print the counts, of what there is if a signal has ended the sweep.  Returns the exit status: 1 if
        the program has to be mended."""
        if self._reference is None:
            return 0
        bad = sum(number for verdict, number in self.counts.items() if verdict.is_bad)
        total = self.counts.total()
        self._clear()
        if self._json:
            said = {verdict.value: self.counts[verdict] for verdict in Verdict}
            print(json.dumps({"runs": total, "bad": bad, "counts": said, "complete": not was_cut}))
        else:
            each = ", ".join(f"{self.counts[verdict]} {verdict.value}" for verdict in Verdict)
            calls = "1 call" if total == 1 else f"{total} calls"
            print(f"{calls} failed, one in each run: {each}")
        sys.stdout.flush()
        return 1 if bad else 0

    def progress(self, made: int, expected: int) -> None:
        """So many runs are over."""
        if self._is_terminal:
            of = f" of {expected}" if expected >= made else ""
            runs = "run" if made == 1 and not of else "runs"
            program = shlex.join(self._program)[:MOST_SHOWN]
            print(f"\r\033[K{made}{of} {runs} of {program}", end="", file=sys.stderr)
            sys.stderr.flush()

    def note(self, text: str) -> None:
        self._clear()
        print(f"vfsfuse: sweep: {text}", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def folder_of(path: str) -> str:
    """A folder for what bad runs leave, made if it is not there.  Raises OSError."""
    os.makedirs(path, exist_ok=True)
    return path
