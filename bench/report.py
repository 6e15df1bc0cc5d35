# SPDX-License-Identifier: Apache-2.0
"""bench/RESULTS.md: what is to be reached and is, and every figure."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cases import (
    BARE,
    CASES,
    DMA_SIZES,
    EVENTFD,
    FLOOR,
    MEMCPY,
    NOTHING,
    OURS,
    VMREAD,
    Case,
)
from bench.samples import Key, Results

PINNED, UNPINNED = "same core", "unpinned"
US, MS = 1e3, 1e6
MIB = 1 << 20
Facts = Mapping[str, float]
Value = float | None


@dataclass(frozen=True, slots=True)
class Reach:
    """A line of the table of aims: `measure` gives at most `limit`, or at least where `least` is set."""

    what: str
    limit: float
    measure: Callable[[Results, Facts], Value]
    explained: str = ""
    shown: str = "{:.2f} x"
    least: bool = False

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit


def _worst(cases: Sequence[str], base: str) -> Callable[[Results, Facts], Value]:
    """The greatest ratio of some cases to their base."""

    def measure(results: Results, facts: Facts) -> Value:
        found = [results.ratio(Key(case, OURS, PINNED), Key(case, base, PINNED)) for case in cases]
        known = [ratio for ratio in found if ratio is not None]
        return max(known) if known else None

    return measure


def _speed(cases: Sequence[str], base: str) -> Callable[[Results, Facts], Value]:
    """The least share of the base's speed."""

    def measure(results: Results, facts: Facts) -> Value:
        worst = _worst(cases, base)(results, facts)
        return None if worst is None else 1 / worst

    return measure


def _beyond(cases: Sequence[str], base: str) -> Callable[[Results, Facts], Value]:
    """The most microseconds above the base."""

    def measure(results: Results, facts: Facts) -> Value:
        pairs = [
            (results.median(Key(case, OURS, PINNED)), results.median(Key(case, base, PINNED)))
            for case in cases
        ]
        known = [(ours - theirs) / US for ours, theirs in pairs if ours is not None and theirs is not None]
        return max(known) if known else None

    return measure


def _seconds(case: str) -> Callable[[Results, Facts], Value]:
    def measure(results: Results, facts: Facts) -> Value:
        median = results.median(Key(case, OURS, UNPINNED))
        return None if median is None else median / 1e9

    return measure


def _fact(name: str, unit: float) -> Callable[[Results, Facts], Value]:
    return lambda results, facts: facts[name] / unit if name in facts else None


def _neighbours(results: Results, facts: Facts) -> Value:
    return results.ratio(Key("quiet-among-7", OURS, PINNED), Key("quiet-alone", OURS, PINNED), "p99")


def _dma(kind: str) -> list[str]:
    return [f"dma-{kind}-{how}-{size}" for how in ("read", "write") for size in DMA_SIZES if size >= 65536]


REACHES: tuple[Reach, ...] = (
    Reach(
        "trapped 4-byte read or write, Python hook, to the C libfuse floor",
        1.25,
        _worst(["read-hook", "write-hook"], FLOOR),
        "read-hook",
    ),
    Reach(
        "read of a plain register, no hook, to the floor",
        1.05,
        _worst(["read-plain"], FLOOR),
        "read-plain",
    ),
    Reach("memory read by pread, to the floor", 1.05, _worst(["read-memory"], FLOOR)),
    Reach(
        "ioctl with a 32-byte struct, to the floor",
        1.6,
        _worst(["ioctl-struct"], FLOOR),
        explained="ioctl-struct",
    ),
    Reach("attribute open+read+close, to the floor", 1.8, _worst(["attr-read"], FLOOR), "attr-read"),
    Reach("mmap BAR memset, of a bare memfd's speed", 0.97, _speed(["memset"], BARE), least=True),
    Reach(
        "mmap BAR load and store, of a bare memfd's speed", 0.97, _speed(["load", "store"], BARE), least=True
    ),
    Reach("DMA of shared memory from 64 KiB, of memcpy", 0.9, _speed(_dma("shared"), MEMCPY), least=True),
    Reach(
        "DMA of private memory from 64 KiB, of process_vm_*",
        0.9,
        _speed(_dma("private"), VMREAD),
        least=True,
    ),
    Reach(
        "interrupt, device raise to client epoll, to an eventfd",
        1.25,
        _worst(["interrupt"], EVENTFD),
        "interrupt",
    ),
    Reach(
        "65,535 mappings: map or unmap beyond the bare ioctl",
        3,
        _beyond(["map", "unmap"], NOTHING),
        shown="{:.2f} us",
    ),
    Reach("mount to ready, warm", 0.35, _seconds("mount"), shown="{:.3f} s"),
    Reach("resident memory, empty lab", 60, _fact("resident, empty", MIB), shown="{:.1f} MiB"),
    Reach(
        "resident memory of each of 10,000 idle vGPUs",
        4,
        _fact("resident, each vGPU", 1024),
        shown="{:.2f} KiB",
    ),
    Reach("p99 of one quiet device, 7 busy neighbours, to alone", 3, _neighbours),
)


def _machine() -> Iterator[str]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(": ")[2] for line in info if line.startswith("model name"))
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // (1 << 20)
    ask = ["pkg-config", "--modversion", "fuse3"]
    fuse = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    yield f"- processor: {next(models, platform.machine())}, {os.cpu_count()} of them; {memory} GiB of memory"
    yield f"- kernel: Linux {platform.release().partition('-')[0]}; libfuse {fuse or 'unknown'}"
    yield f"- Python {platform.python_version()} ({platform.python_compiler()})"
    yield f"- as {'an ordinary user' if os.geteuid() else 'root'}"


def _reach_table(results: Results, facts: Facts) -> Iterator[str]:
    yield "| what | reach | measured | reached |"
    yield "|---|---|---|---|"
    for reach in REACHES:
        value = reach.measure(results, facts)
        limit = (">= " if reach.least else "<= ") + reach.shown.format(reach.limit)
        if value is None:
            yield f"| {reach.what} | {limit} | not measured here | |"
        else:
            verdict = "yes" if reach.reached(value) else "**no**"
            yield f"| {reach.what} | {limit} | {reach.shown.format(value)} | {verdict} |"


def _missed(results: Results, facts: Facts, calls: Mapping[tuple[str, str], str]) -> Iterator[str]:
    for reach in REACHES:
        value = reach.measure(results, facts)
        if value is None or reach.reached(value):
            continue
        ours, floor = (calls.get((reach.explained, one), "not counted") for one in (OURS, FLOOR))
        yield f"- {reach.what}: {reach.shown.format(value)}."
        if reach.explained:
            yield f"  System calls of the server for one call: {ours}; of the floor: {floor}."


def _time(case: Case, nanoseconds: float | None) -> str:
    if nanoseconds is None:
        return ""
    spent = nanoseconds / case.per
    if spent < 100:
        return f"{spent:.2f} ns"
    text = f"{spent / US:.2f} us" if spent < MS else f"{spent / MS:.2f} ms"
    return text + (f" ({case.size / spent:.1f} GB/s)" if case.size else "")


def _rows(results: Results, mode: str) -> Iterator[str]:
    yield "| what | subject | median | p99 | to its base |"
    yield "|---|---|---|---|---|"
    for case in CASES:
        for subject in case.runs:
            key = Key(case.key, subject, mode)
            if key not in results.runs:
                continue
            ratio = results.ratio(key, Key(case.key, case.base, mode)) if case.base else None
            cells = [_time(case, results.median(key)), _time(case, results.median(key, "p99"))]
            to_base = f"{ratio:.2f} x" if ratio is not None and subject != case.base else ""
            yield f"| {case.title} | {subject} | {' | '.join(cells)} | {to_base} |"


CLIENTS: Mapping[str, str] = {
    "quiet-alone": "a read each 0.5 ms, alone",
    "quiet-among-7": "a read each 0.5 ms, beside 7 busy clients of other devices",
    "one-client": "reads by 1 client, time of each",
    "eight-clients": "reads by 8 clients of 8 devices at once, time of each",
}


def _clients(results: Results, mode: str) -> Iterator[str]:
    for case, title in CLIENTS.items():
        for subject in (OURS, FLOOR):
            key = Key(case, subject, mode)
            cells = [f"{(results.median(key, field) or 0) / US:.2f} us" for field in ("p50", "p99")]
            ratio = results.ratio(key, Key(case, FLOOR, mode))
            to_base = f"{ratio:.2f} x" if ratio is not None and subject == OURS else ""
            yield f"| {title} | {subject} | {' | '.join(cells)} | {to_base} |"


INTRODUCTION = (
    "Made by `bench/run.sh`: vfsfuse, its floor (bench/floor.c, a C libfuse server that does the least) and",
    "peers in turn, in one run; a figure is the median of 3 repetitions. What is to be reached counts with",
    "client and server on the same processor, but for the mount. DMA counts as a model does it: a read gives",
    "bytes that it has allocated, memcpy and process_vm_readv fill a buffer that is there.",
)


def write(path: Path, results: Results, facts: Facts, calls: Mapping[tuple[str, str], str]) -> None:
    """Write the report."""
    lines = [
        "<!-- made by bench/run.sh -->",
        "# What vfsfuse costs",
        "",
        *INTRODUCTION,
        "",
        "![](results.png)",
        "",
        "## Machine",
        "",
        *_machine(),
        "",
        "## Reach",
        "",
        *_reach_table(results, facts),
        "",
    ]
    missed = list(_missed(results, facts, calls))
    if missed:
        lines += ["Not reached:", "", *missed, ""]
    for mode in (PINNED, UNPINNED):
        lines += [f"## All figures, {mode}", "", *_rows(results, mode), *_clients(results, mode), ""]
    lines += ["## Memory", "", *(f"- {name}: {value / 1024:,.1f} KiB" for name, value in facts.items()), ""]
    lines += ["## System calls of the server for one call of the client", ""]
    lines += [f"- {case}, {subject}: {text}" for (case, subject), text in calls.items()]
    path.write_text("\n".join(lines) + "\n")
