# SPDX-License-Identifier: Apache-2.0
"""Explains the time or the memory of a case, by differences of measured figures and by profilers."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.cases import BY_KEY, FLOOR, OURS, Case
from bench.instrument import MOST, begin, client, observed, place, table
from bench.machine import EACH, Machine
from bench.measure import PINNED, UNPINNED
from bench.profiled import Calls, difference, load
from bench.samples import Key, Results, with_warmup
from bench.servers import ROOT, Server, create_idle, say, start_lab
from bench.targets import KIB, US

HOT = ("read-hook", "write-hook", "ioctl-struct", "attr-read")
"""The hottest paths. They are always profiled. The cases of missed targets are added."""

CALLS, DMAS, IDLE, MS = 4000, 100, 500, 1e6
STRUCTS = ("ioctl-struct", "map", "unmap", "ioas-map", "ioas-unmap")
"""The floor of these cases is an ioctl without a struct. The part that moves the struct includes its cost."""

_IMPORT = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)
INTO_PYTHON = "the rest: entering and leaving Python (GIL, locks), caches"
PUMP = "the rest: other work of the pump"
ELSEWHERE = "the rest: waking and running trio or the device's task"
FUNCTIONS = ("function", "calls for each", "share of Python's time")
DISTORTED = "Measured by cProfile, which overstates small functions:"
PREPARED = f"{DISTORTED[:-1]} and includes the map before each call:"


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile of one case: parts in `unit` that add up to the whole, and a table of details."""

    title: str
    unit: str
    parts: Sequence[tuple[str, float]]
    detail: str = ""
    columns: Sequence[str] = ()
    details: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class Explainer:
    """Makes profiles on a machine that has its results."""

    machine: Machine
    results: Results

    def profiles(self, missed: Iterable[str], only: Collection[str] = ()) -> list[Profile]:
        """Profiles of the hottest paths and of missed targets, in the order of the cases, or of `only`."""
        wanted = {key for key in (*HOT, *missed) if not only or key in only}
        return [self._profile(key) for key in (*BY_KEY, EACH) if key in wanted and self._maker(key)]

    def _profile(self, key: str) -> Profile:
        say(f"profiling: {key}")
        maker = self._maker(key)
        assert maker is not None
        return maker()

    def _maker(self, key: str) -> Callable[[], Profile] | None:
        if key == EACH:
            return self._memory
        case = BY_KEY[key]
        if not self.machine.has(case.runs[OURS]):
            return None
        if key == "mount":
            return self._mount
        if key.startswith("dma-"):
            return lambda: self._dma(case)
        if key.startswith("run-"):  # the supervisor answers, and not the server
            return None
        return None if case.size or case.per > 1 else lambda: self._call(case)

    def _median(self, case: str, subject: str | None, unit: float = US, mode: str = PINNED) -> float:
        """The median of the case. 0 when it was not measured."""
        return (self.results.median(Key(case, subject or "", mode)) or 0) / unit

    def _call(self, case: Case) -> Profile:
        """A call of a client: the floor's time for it, Python's time, and the rest."""
        calls = min(self.machine.calls or CALLS, CALLS)
        words = case.runs[OURS]
        spent: Mapping[str, list[int]] = client(self.machine, "callbacks", words, calls)
        # Only the last ones count: some clients prepare something before each call.
        lasting = [times[-calls:] for times in spent.values() if len(times) > 0.1 * calls]
        python = sum(statistics.median(times) * len(times) / calls for times in lasting) / US
        seen = table(client(self.machine, "functions", words, calls), calls)
        detail = PREPARED if case.key in ("unmap", "ioas-unmap") else DISTORTED
        return Profile(case.title, "us", self._parts(case, python), detail, FUNCTIONS, seen)

    def _parts(self, case: Case, python: float) -> list[tuple[str, float]]:
        """The parts of a call, of which `python` microseconds are spent in Python (0: none)."""
        bare = BY_KEY["ioctl-value"]
        least = bare if case.key in STRUCTS and self._median(bare.key, FLOOR) else case
        which = "the same call" if least is case else least.title
        parts = [(f"{least.base}, {which}", self._median(least.key, least.base))]
        if least.base == FLOOR and not case.key.startswith("attr-"):  # those are several requests
            parts += [("the pump instead of libfuse, measured by a memory read", self._pump())]
        if python:
            parts += [("Python, from the pump's call to its return", python)]
        rest = self._median(case.key, OURS) - sum(spent for _, spent in parts)
        in_c = case.key.startswith(("read-", "write-"))
        return [*parts, (INTO_PYTHON if python else PUMP if in_c else ELSEWHERE, rest)]

    def _pump(self) -> float:
        """The pump's time minus libfuse's, in microseconds; 0 if it was not measured."""
        ours, theirs = (Key("read-memory", subject, PINNED) for subject in (OURS, FLOOR))
        return (self.results.beyond(ours, theirs) or 0) / US

    def _dma(self, case: Case) -> Profile:
        """DMA, which makes no request to a server: bench/dma.py under cProfile, minus a run of one call."""
        counts = (1, self.machine.calls or DMAS)
        before, after = (self._seen(replace(self.machine, calls=calls), case) for calls in counts)
        seen = table(difference(before, after), with_warmup(counts[1]) - with_warmup(counts[0]))
        base = self._median(case.key, case.base)
        parts = [
            (f"{case.base}", base),
            ("the rest: Python, system calls, memory", self._median(case.key, OURS) - base),
        ]
        return Profile(case.title, "us", parts, DISTORTED, FUNCTIONS, seen)

    def _seen(self, machine: Machine, case: Case) -> Calls:
        file = str(machine.folder / "dma.profile")
        python, *rest = machine.command(case.runs[OURS])
        profiler = [python, "-m", "cProfile", "-o", file]
        subprocess.run([*profiler, *rest], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        return load(file)

    def _mount(self) -> Profile:
        """From exec until the tree answers: the interpreter, the imports, the rest."""
        nothing = [sys.executable, "-c", "pass"]
        start = min(_seconds(nothing) for _ in range(5)) * 1000
        imports = sorted(self._imports(), key=lambda one: one[1], reverse=True)
        importing = sum(spent for _, spent in imports)
        whole = self._median("mount", OURS, MS, UNPINNED)
        parts = [
            ("an interpreter that does nothing", start),
            ("importing modules", importing),
            ("the rest: mount(2), the lab, the tree's first answer", whole - start - importing),
        ]
        detail = "Measured by `-X importtime`, which slows imports down:"
        details = [(f"`{name}`", f"{spent:.1f} ms") for name, spent in imports[:MOST]]
        return Profile(BY_KEY["mount"].title, "ms", parts, detail, ("module", "by itself"), details)

    def _imports(self) -> list[tuple[str, float]]:
        """(module, milliseconds without its own imports) of each module that a server imports."""
        log = self.machine.folder / "imports"
        program = ["sh", "-c", f'exec "$0" "$@" 2>{log}', sys.executable, "-X", "importtime", "-m", "vfsfuse"]
        start_lab(self.machine.folder / "profiled", program=program).stop()
        return [(name, int(spent) / 1000) for spent, name in _IMPORT.findall(log.read_text())]

    def _memory(self) -> Profile:
        """An idle vGPU: the memory that Python allocates for it, by source file."""

        def grow(server: Server) -> None:
            begin(self.machine, server)
            create_idle(server, IDLE)

        found: list[tuple[str, int]] = observed(self.machine, "memory", grow)
        each = sorted(((size / IDLE, file) for file, size in found), reverse=True)
        traced = sum(size for size, _ in each)
        whole = self.machine.facts[EACH]
        parts = [
            ("Python's objects", traced / KIB),
            ("the rest: memory of C, and unused gaps", (whole - traced) / KIB),
        ]
        details = [(place(file), f"{size:,.0f} B") for size, file in each[:MOST]]
        detail = f"Measured by tracemalloc, over {IDLE:,} vGPUs:"
        return Profile(EACH, "KiB", parts, detail, ("allocated in", "each vGPU"), details)


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start
