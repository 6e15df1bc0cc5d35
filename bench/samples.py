# SPDX-License-Identifier: Apache-2.0
"""Samples in nanoseconds: their printed form (one line, as bench/client.c prints it), and the results."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

PARTS = (0, 0.1, 0.5, 0.9, 0.99, 0.999, 1)


class Sample(NamedTuple):
    """One run: the number of calls, and the nanoseconds of one."""

    calls: int
    min: float
    p10: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    mean: float


def clock_cost() -> int:
    """The nanoseconds of a sample that measures nothing."""
    return min(-(time.perf_counter_ns() - time.perf_counter_ns()) for _ in range(1000))


def with_warmup(calls: int) -> int:
    """The number of calls together with the tenth that warms up."""
    return calls + max(1, calls // 10)


def timed(call: Callable[[], object], calls: int) -> None:
    """Time each of `calls`, after a tenth of them that warm up, and print a Sample. The time to read the
    clock is subtracted, as bench/client.c does."""
    cost = clock_cost()
    spent = []
    for number in range(with_warmup(calls)):
        start = time.perf_counter_ns()
        call()
        if number >= with_warmup(calls) - calls:
            spent.append(max(time.perf_counter_ns() - start - cost, 0))
    show(spent)


def show(spent: list[int]) -> None:
    """Print a Sample of these times."""
    spent.sort()
    parts = [spent[int(part * (len(spent) - 1))] for part in PARTS]
    print(len(spent), *parts, f"{statistics.fmean(spent):.1f}")


def parse(line: str) -> Sample:
    """The Sample of a printed line. Raises ValueError for another line."""
    count, *rest = line.split()
    if len(rest) != len(Sample._fields) - 1:
        raise ValueError(f"no sample: {line!r}")
    return Sample(int(count), *map(float, rest))


@dataclass(frozen=True, slots=True)
class Key:
    """The identity of a run: a case, a subject, and the mode (its processors)."""

    case: str
    subject: str
    mode: str


class Results:
    """All runs. Each repetition has one run of each key."""

    def __init__(self) -> None:
        self.runs: dict[Key, list[Sample]] = defaultdict(list)

    def add(self, key: Key, sample: Sample) -> None:
        self.runs[key].append(sample)

    def repetitions(self, mode: str) -> int:
        """The largest number of repetitions of a key."""
        return max((len(runs) for key, runs in self.runs.items() if key.mode == mode), default=0)

    def median(self, key: Key, field: str = "p50") -> float | None:
        """The median of the repetitions in nanoseconds. None when the key was not measured."""
        runs = self.runs.get(key)
        return statistics.median(getattr(run, field) for run in runs) if runs else None

    def ratio(self, key: Key, base: Key, field: str = "p50") -> float | None:
        """The ratio of `key` to `base`: the median of the ratios of each repetition."""
        ratios = [one / max(other, 1) for one, other in self._pairs(key, base, field)]
        return statistics.median(ratios) if ratios else None

    def beyond(self, key: Key, base: Key, field: str = "p50") -> float | None:
        """The difference of `key` and `base` in nanoseconds: the median of the differences of each
        repetition."""
        differences = [one - other for one, other in self._pairs(key, base, field)]
        return statistics.median(differences) if differences else None

    def _pairs(self, key: Key, base: Key, field: str) -> Iterator[tuple[float, float]]:
        """The values of both keys, by repetition."""
        for one, other in zip(self.runs.get(key, ()), self.runs.get(base, ()), strict=False):
            yield getattr(one, field), getattr(other, field)
