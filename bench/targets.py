# SPDX-License-Identifier: Apache-2.0
"""The performance targets, as a table, with the function that measures each one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.cases import ALONE, AMONG, BY_KEY, DMA_SIZES, OURS, TRACED
from bench.machine import EACH, EACH_FUNCTION, EMPTY
from bench.measure import PINNED, UNPINNED
from bench.samples import Key, Results

US, SECOND = 1e3, 1e9
KIB, MIB = 1 << 10, 1 << 20
Facts = Mapping[str, float]


class Found(NamedTuple):
    """A measured value and the case it belongs to (the worst of several), or a fact, whose mode is empty."""

    value: float
    of: str
    mode: str = PINNED


Measure = Callable[[Results, Facts], Found | None]


@dataclass(frozen=True, slots=True)
class Target:
    """One target: the measured value is at most `limit`, or at least `limit` if `least` is set."""

    what: str
    limit: float
    measure: Measure
    shown: str = "{:.2f} x"
    least: bool = False

    def met(self, value: float) -> bool:
        """Whether the value, rounded as it is shown, meets the target."""
        seen = float(self.shown.format(value).split()[0])
        return seen >= self.limit if self.least else seen <= self.limit


def _most(found: Iterable[Found | None]) -> Found | None:
    return max((one for one in found if one is not None), default=None)


def _ratio(results: Results, case: str, mode: str = PINNED) -> Found | None:
    base = BY_KEY[case].base
    ratio = None if base is None else results.ratio(Key(case, OURS, mode), Key(case, base, mode))
    return None if ratio is None else Found(ratio, case, mode)


def _worst(*cases: str) -> Measure:
    """The greatest ratio between a case and its base."""
    return lambda results, facts: _most(_ratio(results, case) for case in cases)


def _speed(cases: Sequence[str]) -> Measure:
    """The lowest speed relative to the base."""

    def measure(results: Results, facts: Facts) -> Found | None:
        found = _worst(*cases)(results, facts)
        return None if found is None else found._replace(value=1 / found.value)

    return measure


def _beyond(*cases: str) -> Measure:
    """The greatest difference to the base, in microseconds."""

    def one(results: Results, case: str) -> Found | None:
        beyond = results.beyond(Key(case, OURS, PINNED), Key(case, BY_KEY[case].base or "", PINNED))
        return None if beyond is None else Found(beyond / US, case)

    return lambda results, facts: _most(one(results, case) for case in cases)


def _microseconds(*cases: str) -> Measure:
    """The greatest time of a call."""

    def one(results: Results, case: str) -> Found | None:
        median = results.median(Key(case, OURS, PINNED))
        return None if median is None else Found(median / US, case)

    return lambda results, facts: _most(one(results, case) for case in cases)


def _seconds(case: str) -> Measure:
    def measure(results: Results, facts: Facts) -> Found | None:
        median = results.median(Key(case, OURS, UNPINNED))
        return None if median is None else Found(median / SECOND, case, UNPINNED)

    return measure


def _fact(name: str, unit: float) -> Measure:
    return lambda results, facts: Found(facts[name] / unit, name, "") if name in facts else None


def neighbours(results: Results, facts: Facts, subject: str = OURS) -> Found | None:
    """The ratio between a quiet client's p99 beside busy neighbours and its p99 alone."""
    ratio = results.ratio(Key(AMONG, subject, PINNED), Key(ALONE, subject, PINNED), "p99")
    return None if ratio is None else Found(ratio, AMONG)


def _dma(kind: str) -> list[str]:
    return [f"dma-{kind}-{how}-{size}" for how in ("read", "write") for size in DMA_SIZES if size >= 65536]


TARGETS: tuple[Target, ...] = (
    Target(
        "trapped 4-byte read or write, Python hook, relative to the C libfuse floor",
        1.25,
        _worst("read-hook", "write-hook"),
    ),
    Target("read of a plain register, no hook, relative to the floor", 1.05, _worst("read-plain")),
    Target("memory read by pread, relative to the floor", 1.05, _worst("read-memory")),
    Target("ioctl with a 32-byte struct, relative to the floor", 1.6, _worst("ioctl-struct")),
    Target("attribute open+read+close, relative to the floor", 1.8, _worst("attr-read")),
    Target("mmap BAR memset, speed relative to a bare memfd", 0.97, _speed(["memset"]), least=True),
    Target(
        "mmap BAR load and store, speed relative to a bare memfd", 0.97, _speed(["load", "store"]), least=True
    ),
    Target(
        "DMA of shared memory from 64 KiB, speed relative to memcpy", 0.9, _speed(_dma("shared")), least=True
    ),
    Target(
        "DMA of private memory from 64 KiB, speed relative to /proc/PID/mem",
        0.9,
        _speed(_dma("private")),
        least=True,
    ),
    Target("interrupt, device raise to client epoll, relative to an eventfd", 1.25, _worst("interrupt")),
    Target(
        "65,535 mappings: time of a map or unmap beyond a bare ioctl",
        3,
        _beyond("map", "unmap"),
        shown="{:.2f} us",
    ),
    Target(
        "65,535 areas of an IOAS: time of a map or unmap beyond a bare ioctl",
        3,
        _beyond("ioas-map", "ioas-unmap"),
        shown="{:.2f} us",
    ),
    Target("mount to ready, warm", 0.35, _seconds("mount"), shown="{:.3f} s"),
    Target("mount to ready of 10,240 PCI functions", 2, _seconds("mount-functions"), shown="{:.2f} s"),
    Target("resident memory, empty lab", 60, _fact(EMPTY, MIB), shown="{:.1f} MiB"),
    Target("resident memory of each of 10,000 idle vGPUs", 4, _fact(EACH, KIB), shown="{:.2f} KiB"),
    Target(
        "resident memory of each of 10,240 idle PCI functions",
        4,
        _fact(EACH_FUNCTION, KIB),
        shown="{:.2f} KiB",
    ),
    Target(
        "a call while a program reads the lab's trace, relative to untraced",
        3,
        _worst(*(f"traced-{key}" for key in TRACED)),
    ),
    Target("fstat under `vfsfuse run`", 5, _microseconds("run-fstat", "run-fstat-node"), shown="{:.2f} us"),
    Target("start and end of python3 under `vfsfuse run`, relative to outside", 1.1, _worst("run-python")),
    Target("p99 of one quiet device with 7 busy neighbours, relative to alone", 3, neighbours),
)


def missed(results: Results, facts: Facts) -> list[tuple[Target, Found]]:
    """The targets that are not met."""
    found = [(target, target.measure(results, facts)) for target in TARGETS]
    return [(target, one) for target, one in found if one is not None and not target.met(one.value)]
