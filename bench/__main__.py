# SPDX-License-Identifier: Apache-2.0
"""Runs all cases, ours and theirs in turn, and writes bench/RESULTS.md and bench/results.png.

    python -m bench BUILD [--quick]

BUILD has the programs that bench/run.sh has compiled. --quick is one repetition, for work on the benchmark.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from bench.cases import BUSY, CASES, NEIGHBOURS, OURS, QUIET, READING
from bench.chart import draw
from bench.profile import system_calls
from bench.report import PINNED, UNPINNED, write
from bench.samples import Key, Results, Sample, parse
from bench.servers import DEVICES, ROOT, Machine, say, start_all

REPETITIONS = 3
CLIENT_SECONDS = 120
ALONE, AMONG, ONE, EIGHT = "quiet-alone", "quiet-among-7", "one-client", "eight-clients"


def on(cpus: Collection[int], command: list[str]) -> list[str]:
    """The command on these processors."""
    return ["taskset", "-c", ",".join(map(str, cpus)), *command]


def run(command: list[str]) -> Sample:
    """Run a client; what it measured."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT, timeout=CLIENT_SECONDS
    )
    return parse(done.stdout.splitlines()[-1])


def steps(machine: Machine) -> Iterator[tuple[str, str, str]]:
    """(case, subject, words) of all that can be run here."""
    for case in CASES:
        for subject, words in case.runs.items():
            if machine.has(words):
                yield case.key, subject, words


def shown(sample: Sample) -> str:
    return f"{sample.p50 / 1000:.2f} us (p99 {sample.p99 / 1000:.2f})"


def neighbours(machine: Machine, results: Results, mode: str, cpus: Collection[int]) -> None:
    """One client that does little, alone and beside seven busy ones; and eight busy ones at once."""
    for subject, file in NEIGHBOURS.items():
        files = [file.format(number) for number in range(DEVICES)]
        quiet, *busy = (
            on(cpus, machine.command(words.format(one)))
            for words, one in zip((QUIET, *[BUSY] * (DEVICES - 1)), files, strict=True)
        )
        results.add(Key(ALONE, subject, mode), run(quiet))
        with ExitStack() as stack:
            for command in busy:
                process = stack.enter_context(subprocess.Popen(command))
                stack.callback(process.kill)
            results.add(Key(AMONG, subject, mode), run(quiet))
        for case, count in ((ONE, 1), (EIGHT, DEVICES)):
            commands = [on(cpus, machine.command(READING.format(one))) for one in files[:count]]
            results.add(Key(case, subject, mode), together(commands))
        say(f"    {subject}: {DEVICES} clients")


def together(commands: list[list[str]]) -> Sample:
    """All clients at once: what a read takes when what all of them did is counted."""
    clients = [subprocess.Popen(one, stdout=subprocess.PIPE, text=True) for one in commands]
    samples = [parse(client.communicate()[0]) for client in clients]
    each = 1 / sum(1 / sample.mean for sample in samples)
    return samples[0]._replace(p50=each, mean=each, p99=max(sample.p99 for sample in samples))


def measure(machine: Machine, results: Results, repetitions: int) -> None:
    allowed = os.sched_getaffinity(0)
    modes: Mapping[str, Collection[int]] = {PINNED: {max(allowed)}, UNPINNED: allowed}
    todo = list(steps(machine))
    total, done, began = repetitions * len(modes) * len(todo), 0, time.monotonic()
    for repetition in range(1, repetitions + 1):
        for mode, cpus in modes.items():
            machine.pin(cpus)
            for case, subject, words in todo:
                done += 1
                sample = run(on(cpus, machine.command(words)))
                results.add(Key(case, subject, mode), sample)
                clock = f"{time.monotonic() - began:4.0f} s"
                say(f"[{done}/{total} {clock}] {repetition} {mode}: {case}, {subject}: {shown(sample)}")
            neighbours(machine, results, mode, cpus)
    machine.pin(allowed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    results = Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        machine = Machine(folder, stack)
        machine.places |= {"build": args.build, "python": sys.executable, "folder": str(folder)}
        start_all(machine)
        measure(machine, results, 1 if args.quick else REPETITIONS)
        calls = system_calls(machine, [case for case in CASES if OURS in case.runs])
        facts = machine.facts
    write(ROOT / "bench/RESULTS.md", results, facts, calls)
    draw(ROOT / "bench/results.png", results)
    say("wrote bench/RESULTS.md and bench/results.png")


if __name__ == "__main__":
    main()
