# SPDX-License-Identifier: Apache-2.0
"""Runs the cases: vfsfuse and its peers in turn, on one processor and on all, in repetitions."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from bench.cases import (
    ALONE,
    AMONG,
    BUSY,
    CASES,
    CLIENTS,
    DEVICES,
    EIGHT,
    NEIGHBOURS,
    ONE,
    PEERS,
    QUIET,
    READING,
    WINDOW_MS,
)
from bench.machine import Machine
from bench.samples import Key, Results, Sample, parse
from bench.servers import ROOT, say

PINNED, UNPINNED = "same core", "unpinned"
REPETITIONS: Mapping[str, int] = {PINNED: 5, UNPINNED: 3}
"""The repetitions of each mode. The targets are for the mode with one processor."""

CLIENT_SECONDS = 120
BEFORE_ALL_MS = 400
"""Milliseconds in which all of several clients must have started."""

MS = 1_000_000


class Step(NamedTuple):
    """One run. For CLIENTS it is several clients, and `words` is the file of each."""

    mode: str
    case: str
    subject: str
    words: str


def on(cpus: Collection[int], command: list[str]) -> list[str]:
    """The command on these processors."""
    return ["taskset", "-c", ",".join(map(str, cpus)), *command]


def modes() -> Mapping[str, Collection[int]]:
    """The processors of each mode. The last one is used alone, because the first has most of the kernel's
    interrupts."""
    allowed = os.sched_getaffinity(0)
    return {PINNED: {max(allowed)}, UNPINNED: allowed}


def run(command: list[str]) -> Sample:
    """Run a client. Returns its measurement."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT, timeout=CLIENT_SECONDS
    )
    return parse(done.stdout.splitlines()[-1])


def plan(machine: Machine, only: Collection[str], quick: bool) -> list[Step]:
    """All runs in order. `only` names the cases; an empty `only` means all."""
    most = 1 if quick else max(REPETITIONS.values())
    return [
        step
        for repetition in range(most)
        for mode, count in REPETITIONS.items()
        if repetition < count
        for step in _steps(machine, mode)
        if not only or step.case in only
    ]


def _steps(machine: Machine, mode: str) -> Iterator[Step]:
    for case in CASES:
        for subject, words in case.runs.items():
            if machine.has(words) and (case.pinned or mode == UNPINNED):
                yield Step(mode, case.key, subject, words)
    for subject, words in NEIGHBOURS.items():
        if machine.has(words.format(0)):
            yield Step(mode, CLIENTS, subject, words)


class Progress:
    """The remaining time, from the duration of each run at the last time."""

    def __init__(self, steps: list[Step]) -> None:
        self.todo = steps[::-1]
        self.total = len(steps)
        self.took: dict[tuple[str, str], float] = {}

    def left(self) -> float:
        """The remaining seconds."""
        mean = statistics.fmean(self.took.values()) if self.took else 0
        return sum(self.took.get((step.case, step.subject), mean) for step in self.todo)

    def done(self, seconds: float) -> str:
        """Note the duration of the next run. Returns the text to print."""
        step = self.todo.pop()
        self.took[step.case, step.subject] = seconds
        minutes, rest = divmod(round(self.left()), 60)
        place = f"[{self.total - len(self.todo)}/{self.total}, {minutes}:{rest:02} left]"
        return f"{place} {step.mode}: {step.case}, {step.subject}"


def measure(machine: Machine, results: Results, steps: list[Step]) -> None:
    """Run all steps."""
    progress, processors = Progress(steps), modes()
    for step in steps:
        began, cpus = time.monotonic(), processors[step.mode]
        machine.pin(cpus)
        if step.case == CLIENTS:
            _clients(machine, results, step, cpus)
            shown = f"{DEVICES} clients"
        else:
            shown = _one(machine, results, step, cpus)
        say(f"{progress.done(time.monotonic() - began)}: {shown}")
    machine.pin(processors[UNPINNED])


def _one(machine: Machine, results: Results, step: Step, cpus: Collection[int]) -> str:
    try:
        sample = run(on(cpus, machine.command(step.words)))
    except subprocess.CalledProcessError:
        if step.subject not in PEERS:
            raise
        return "failed, and is left out"
    results.add(Key(step.case, step.subject, step.mode), sample)
    return f"{sample.p50 / 1000:.2f} us"


def _clients(machine: Machine, results: Results, step: Step, cpus: Collection[int]) -> None:
    """Run a quiet client, alone and beside seven busy ones; then one busy client; then eight at once."""
    files = [step.words.format(number) for number in range(DEVICES)]

    def command(words: str, number: int) -> list[str]:
        return on(cpus, machine.command(words.format(files[number])))

    def add(case: str, sample: Sample) -> None:
        results.add(Key(case, step.subject, step.mode), sample)

    quiet = command(QUIET, 0)
    add(ALONE, run(quiet))
    with ExitStack() as stack:
        for number in range(1, DEVICES):
            process = stack.enter_context(subprocess.Popen(command(BUSY, number)))
            stack.callback(process.kill)
        add(AMONG, run(quiet))
    for case, count in ((ONE, 1), (EIGHT, DEVICES)):
        machine.places["start"] = str(time.monotonic_ns() + BEFORE_ALL_MS * MS)
        add(case, together([command(READING, number) for number in range(count)]))


def together(commands: list[list[str]]) -> Sample:
    """Run clients that read during the same WINDOW_MS. p50 and mean are the time of a read over all clients,
    computed from the throughput. p99 is the greatest p99 of a client."""
    clients = [subprocess.Popen(one, stdout=subprocess.PIPE, text=True) for one in commands]
    samples = [parse(client.communicate(timeout=CLIENT_SECONDS)[0]) for client in clients]
    reads = sum(sample.calls for sample in samples) * 10 / 9  # with the warm-up tenth, which is not counted
    each = WINDOW_MS * MS / reads
    return samples[0]._replace(p50=each, mean=each, p99=max(sample.p99 for sample in samples))
