# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse` with an instrument in it, for bench/explain.py. The figures are never measured with it.

    python -m bench.profiled {callbacks|functions|memory} FILE mount ...

The command measures from one SIGUSR2 to the next. It writes FILE as JSON when it ends; FILE exists from the
first signal on.

callbacks   the duration of each call of the pump into Python: name -> nanoseconds, in order
functions   the report of cProfile on all threads: [[file, line, function, calls, seconds], ...]
memory      the report of tracemalloc: [[file, bytes], ...]
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
"""The number of calls of each function, and the seconds that it took by itself."""


class Instrument(Protocol):
    """Observes a server. Signal handlers take the marks, on the main thread."""

    def mark(self) -> object:
        """The state by now."""

    def between(self, before: Any, after: Any) -> object:
        """The difference between two marks, for JSON."""


class Callbacks:
    """A clock around each Python function that the pump calls (native/call.c). Make it before any lane."""

    def __init__(self) -> None:
        from ioctl_shim import pumped

        self._spent: dict[str, list[int]] = defaultdict(list)
        self._cost = clock_cost()
        self._address = pumped.address
        self._kept: list[object] = []
        vars(pumped)["address"] = self._clocked

    def _clocked(self, what: object) -> Any:
        """The address of `what`. For a Python function, the address of a wrapper with a clock."""
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
    """cProfile on this thread, and on each thread that starts from now on.

    Since Python 3.12 one profile sees all threads, and a second one cannot be enabled beside it.
    """

    def __init__(self) -> None:
        self._profiles: list[cProfile.Profile] = []
        if sys.version_info < (3, 12):
            threading.setprofile(self._begin)
        self._begin()

    def _begin(self, *_: object) -> None:
        profile = cProfile.Profile()
        self._profiles.append(profile)
        profile.enable()

    def mark(self) -> Calls:
        self._profiles[0].disable()  # this thread's profile should not contain this method
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
    """Read a file of `python -m cProfile -o FILE`."""
    stats: Any = pstats.Stats(file)
    return {place: (calls, own) for place, (_, calls, own, _, _) in stats.stats.items()}


def difference(before: Calls, after: Calls) -> list[tuple[str, int, str, int, float]]:
    """(file, line, name, calls, own seconds) of the calls between `before` and `after`."""
    none = (0, 0.0)
    return [
        (*place, calls - before.get(place, none)[0], seconds - before.get(place, none)[1])
        for place, (calls, seconds) in after.items()
    ]


class Memory:
    """The allocated memory, by the source file that allocates it."""

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
    from vfsfuse.cli import main as vfsfuse  # after the instrument, which must exist before a lane is made

    status = vfsfuse(arguments)
    Path(file).write_text(json.dumps(instrument.between(*marks)))
    return status


if __name__ == "__main__":
    sys.exit(main())
