# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse` with an instrument in it, for bench/explain.py; never what the figures are measured with.

    python -m bench.profiled {callbacks|functions|memory} FILE mount ...

says what was between two SIGUSR2, in FILE as JSON when the command ends; FILE is there from the first one on.

callbacks   how long each call of the pump into Python took: name -> nanoseconds, in order
functions   what cProfile saw on all threads: [[file, line, function, calls, seconds], ...]
memory      what tracemalloc saw: [[file, bytes], ...]
"""

from __future__ import annotations

import cProfile
import json
import pstats
import signal
import sys
import threading
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Protocol

from bench.samples import clock_cost

MARK = signal.SIGUSR2
Function = tuple[str, int, str]
"""(file, line, name)"""

Calls = dict[Function, tuple[int, float]]
"""How often each was called, and the seconds that it took by itself."""


class Instrument(Protocol):
    """What looks at a server. Signal handlers take the marks, so on the main thread."""

    def mark(self) -> object:
        """What there is by now."""

    def between(self, before: Any, after: Any) -> object:
        """What was between two marks, for JSON."""


class Callbacks:
    """A clock around each Python function that the pump calls (native/call.c). It has to be made before any
    lane is."""

    def __init__(self) -> None:
        from ioctl_shim import pumped

        self._spent: dict[str, list[int]] = defaultdict(list)
        self._cost = clock_cost()
        self._address = pumped.address
        self._kept: list[object] = []
        vars(pumped)["address"] = self._clocked

    def _clocked(self, what: object) -> Any:
        """The address of `what`, or of its like with a clock if Python runs when it is called."""
        if isinstance(what, FunctionType | MethodType):
            what = self._timed(what)
            self._kept.append(what)
        return self._address(what)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        times, now = self._spent[call.__qualname__], time.perf_counter_ns

        def run(*arguments: Any) -> Any:
            start = now()
            try:
                return call(*arguments)
            finally:
                times.append(now() - start)

        return run

    def mark(self) -> dict[str, int]:
        return {name: len(times) for name, times in self._spent.items()}

    def between(self, before: dict[str, int], after: dict[str, int]) -> dict[str, list[int]]:
        return {
            name: [max(spent - self._cost, 0) for spent in self._spent[name][before.get(name, 0) : count]]
            for name, count in after.items()
        }


class Functions:
    """cProfile on each thread that begins from now on, and on this one."""

    def __init__(self) -> None:
        self._profiles: list[cProfile.Profile] = []
        threading.setprofile(self._begin)
        self._begin()

    def _begin(self, *_: object) -> None:
        profile = cProfile.Profile()
        self._profiles.append(profile)
        profile.enable()

    def mark(self) -> Calls:
        self._profiles[0].disable()  # this thread's: it should not see what is done here
        found: Calls = {}
        for entry in (entry for profile in self._profiles for entry in profile.getstats()):
            place = _place(entry.code)
            calls, seconds = found.get(place, (0, 0.0))
            found[place] = calls + entry.callcount, seconds + entry.inlinetime
        self._profiles[0].enable()
        return found

    def between(self, before: Calls, after: Calls) -> object:
        return difference(before, after)


def _place(code: Any) -> Function:
    return ("~", 0, code) if isinstance(code, str) else (code.co_filename, code.co_firstlineno, code.co_name)


def load(file: str) -> Calls:
    """From a file of `python -m cProfile -o FILE`."""
    stats: Any = pstats.Stats(file)
    return {place: (calls, own) for place, (_, calls, own, _, _) in stats.stats.items()}


def difference(before: Calls, after: Calls) -> list[tuple[str, int, str, int, float]]:
    """(file, line, name, calls, own seconds) of what came to it."""
    none = (0, 0.0)
    return [
        (*place, calls - before.get(place, none)[0], seconds - before.get(place, none)[1])
        for place, (calls, seconds) in after.items()
    ]


class Memory:
    """What is allocated, by the file that does."""

    def __init__(self) -> None:
        tracemalloc.start()

    def mark(self) -> tracemalloc.Snapshot:
        return tracemalloc.take_snapshot()

    def between(self, before: tracemalloc.Snapshot, after: tracemalloc.Snapshot) -> object:
        return [(one.traceback[0].filename, one.size_diff) for one in after.compare_to(before, "filename")]


INSTRUMENTS: dict[str, type[Callbacks] | type[Functions] | type[Memory]] = {
    "callbacks": Callbacks,
    "functions": Functions,
    "memory": Memory,
}


def main() -> int:
    name, file, *arguments = sys.argv[1:]
    instrument: Instrument = INSTRUMENTS[name]()
    marks: list[object] = []

    def mark(*_: object) -> None:
        marks.append(instrument.mark())
        Path(file).touch()

    signal.signal(MARK, mark)
    from vfsfuse.cli import main as vfsfuse  # after the instrument: it has to be there when a lane is made

    status = vfsfuse(arguments)
    Path(file).write_text(json.dumps(instrument.between(*marks)))
    return status


if __name__ == "__main__":
    sys.exit(main())
