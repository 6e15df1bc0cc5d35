# SPDX-License-Identifier: Apache-2.0
"""What is to be reached, as a table, and how each aim is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.cases import ALONE, AMONG, BY_KEY, DMA_SIZES, OURS
from bench.machine import EACH, EMPTY
from bench.measure import PINNED, UNPINNED
from bench.samples import Key, Results

US, SECOND = 1e3, 1e9
KIB, MIB = 1 << 10, 1 << 20
Facts = Mapping[str, float]


class Found(NamedTuple):
    """What was measured, and the case that it is of, the worst of several; or the fact, which has no mode."""

    value: float
    of: str
    mode: str = PINNED


Measure = Callable[[Results, Facts], Found | None]


@dataclass(frozen=True, slots=True)
class Reach:
    """One aim: `measure` gives at most `limit`, or at least that where `least` is set."""

    what: str
    limit: float
    measure: Measure
    shown: str = "{:.2f} x"
    least: bool = False

    def reached(self, value: float) -> bool:
        """Whether the value does, as it is shown."""
        seen = float(self.shown.format(value).split()[0])
        return seen >= self.limit if self.least else seen <= self.limit


def _most(found: Iterable[Found | None]) -> Found | None:
    return max((one for one in found if one is not None), default=None)


def _ratio(results: Results, case: str, mode: str = PINNED) -> Found | None:
    base = BY_KEY[case].base
    ratio = None if base is None else results.ratio(Key(case, OURS, mode), Key(case, base, mode))
    return None if ratio is None else Found(ratio, case, mode)


def _worst(*cases: str) -> Measure:
    """The greatest ratio of the cases to their bases."""
    return lambda results, facts: _most(_ratio(results, case) for case in cases)


def _speed(cases: Sequence[str]) -> Measure:
    """The least share of the base's speed."""

    def measure(results: Results, facts: Facts) -> Found | None:
        found = _worst(*cases)(results, facts)
        return None if found is None else found._replace(value=1 / found.value)

    return measure


def _beyond(*cases: str) -> Measure:
    """The most microseconds above the base."""

    def one(results: Results, case: str) -> Found | None:
        beyond = results.beyond(Key(case, OURS, PINNED), Key(case, BY_KEY[case].base or "", PINNED))
        return None if beyond is None else Found(beyond / US, case)

    return lambda results, facts: _most(one(results, case) for case in cases)


def _seconds(case: str) -> Measure:
    def measure(results: Results, facts: Facts) -> Found | None:
        median = results.median(Key(case, OURS, UNPINNED))
        return None if median is None else Found(median / SECOND, case, UNPINNED)

    return measure


def _fact(name: str, unit: float) -> Measure:
    return lambda results, facts: Found(facts[name] / unit, name, "") if name in facts else None


def neighbours(results: Results, facts: Facts, subject: str = OURS) -> Found | None:
    """How many times a quiet client's p99 is what it is alone."""
    ratio = results.ratio(Key(AMONG, subject, PINNED), Key(ALONE, subject, PINNED), "p99")
    return None if ratio is None else Found(ratio, AMONG)


def _dma(kind: str) -> list[str]:
    return [f"dma-{kind}-{how}-{size}" for how in ("read", "write") for size in DMA_SIZES if size >= 65536]


REACHES: tuple[Reach, ...] = (
    Reach(
        "trapped 4-byte read or write, Python hook, to the C libfuse floor",
        1.25,
        _worst("read-hook", "write-hook"),
    ),
    Reach("read of a plain register, no hook, to the floor", 1.05, _worst("read-plain")),
    Reach("memory read by pread, to the floor", 1.05, _worst("read-memory")),
    Reach("ioctl with a 32-byte struct, to the floor", 1.6, _worst("ioctl-struct")),
    Reach("attribute open+read+close, to the floor", 1.8, _worst("attr-read")),
    Reach("mmap BAR memset, of a bare memfd's speed", 0.97, _speed(["memset"]), least=True),
    Reach("mmap BAR load and store, of a bare memfd's speed", 0.97, _speed(["load", "store"]), least=True),
    Reach("DMA of shared memory from 64 KiB, of memcpy's speed", 0.9, _speed(_dma("shared")), least=True),
    Reach(
        "DMA of private memory from 64 KiB, of process_vm_*'s speed",
        0.9,
        _speed(_dma("private")),
        least=True,
    ),
    Reach("interrupt, device raise to client epoll, to an eventfd", 1.25, _worst("interrupt")),
    Reach(
        "65,535 mappings: map or unmap beyond the bare ioctl", 3, _beyond("map", "unmap"), shown="{:.2f} us"
    ),
    Reach("mount to ready, warm", 0.35, _seconds("mount"), shown="{:.3f} s"),
    Reach("resident memory, empty lab", 60, _fact(EMPTY, MIB), shown="{:.1f} MiB"),
    Reach("resident memory of each of 10,000 idle vGPUs", 4, _fact(EACH, KIB), shown="{:.2f} KiB"),
    Reach("p99 of one quiet device, 7 busy neighbours, to alone", 3, neighbours),
)


def missed(results: Results, facts: Facts) -> list[tuple[Reach, Found]]:
    """What is not reached."""
    found = [(reach, reach.measure(results, facts)) for reach in REACHES]
    return [(reach, one) for reach, one in found if one is not None and not reach.reached(one.value)]
