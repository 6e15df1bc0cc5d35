# SPDX-License-Identifier: Apache-2.0
"""bench/RESULTS.md: a summary, the targets, profiles that explain missed targets, and every figure."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.cases import ALONE, AMONG, BY_KEY, CASES, DEVICES, EIGHT, FLOOR, ONE, OURS, Case
from bench.counts import Counts
from bench.explain import Profile
from bench.measure import PINNED, UNPINNED
from bench.samples import Key, Results, Sample
from bench.targets import TARGETS, Facts, Found, missed, neighbours

US, MS = 1e3, 1e6
FEW = 100
"""The fewest samples for which a p99 is shown. With fewer it means nothing."""

CLIENTS: Mapping[str, str] = {
    ALONE: "a read every 0.5 ms, alone",
    AMONG: "a read every 0.5 ms, beside 7 busy clients of other devices",
    ONE: "reads by 1 client, mean time between two",
    EIGHT: "reads by 8 clients of 8 devices at once, mean time between two of any client",
}
INTRODUCTION = """\
`bench/run.sh` made this page. It ran vfsfuse, its floor (bench/floor.c, a minimal C libfuse server) and its
peers in turn. Each figure is the median of {pinned} with client and server on the same core, or
the median of {unpinned} unpinned, which means that every process may use every processor. The
targets apply to the same core; only the target for mounting is unpinned. A ratio compares two runs made
one after the other, and "relative to base" is the median of these ratios. A p99 is given if every run has
at least {few} samples. docs/performance.md explains what is measured, and how."""


@dataclass(frozen=True, slots=True)
class Report:
    """The contents of the report. `counts` has system calls by case and subject."""

    results: Results
    facts: Facts
    counts: Counts = field(default_factory=dict)
    profiles: Sequence[Profile] = ()

    def text(self) -> str:
        """RESULTS.md."""
        sections = {
            "Summary": self._summary(),
            "Machine": machine(),
            "Targets": self._targets(),
            "Not met": self._missed(),
            "Where the time goes": (line for profile in self.profiles for line in _profile(profile)),
            f"All figures, {PINNED}": self._figures(PINNED),
            f"All figures, {UNPINNED}": self._figures(UNPINNED),
            "Memory": (f"- {name}: {value / 1024:,.1f} KiB" for name, value in self.facts.items()),
            "System calls of the server for each call of the client": self._counted(),
        }
        lines = ["<!-- made by bench/run.sh -->", "# What vfsfuse costs", "", self._introduction()]
        lines += ["", "![The medians as bars](results.png)"]
        for title, body in sections.items():
            text = "\n".join(body).strip()
            if text:
                lines += ["", f"## {title}", "", text]
        return "\n".join(lines) + "\n"

    def _introduction(self) -> str:
        pinned, unpinned = (_repetitions(self.results.repetitions(mode)) for mode in (PINNED, UNPINNED))
        return INTRODUCTION.format(pinned=pinned, unpinned=unpinned, few=FEW)

    def _summary(self) -> Iterator[str]:
        """The summary that the README quotes."""
        ours, floor = (Key("read-hook", subject, PINNED) for subject in (OURS, FLOOR))
        ratio = self.results.ratio(ours, floor)
        if ratio is not None:
            spent = _time(self.results.median(ours))
            yield f"A register read that calls a Python hook takes {spent} on one core,"
            yield f"{ratio:.2f} times as long as the same read from a minimal FUSE server in C."
        measured = sum(target.measure(self.results, self.facts) is not None for target in TARGETS)
        if measured:
            met = measured - len(missed(self.results, self.facts))
            yield f"Of {measured} measured performance targets, vfsfuse meets {met}."

    def _targets(self) -> Iterator[str]:
        yield "| what | target | measured | met |"
        yield "|---|---|---|---|"
        for target in TARGETS:
            found = target.measure(self.results, self.facts)
            limit = (">= " if target.least else "<= ") + target.shown.format(target.limit)
            if found is None:
                yield f"| {target.what} | {limit} | not measured here | |"
            else:
                verdict = "yes" if target.met(found.value) else "**no**"
                yield f"| {target.what} | {limit} | {target.shown.format(found.value)} | {verdict} |"

    def _missed(self) -> Iterator[str]:
        explained = {profile.title for profile in self.profiles}
        for target, found in missed(self.results, self.facts):
            case = BY_KEY.get(found.of)
            title = case.title if case else CLIENTS.get(found.of, found.of)
            where = f"{title}, {found.mode}" if found.mode else title
            more = " The profile is below." if title in explained else ""
            yield f"- {target.what}: {target.shown.format(found.value)} ({where}).{more}"
            yield from self._spread(found, case)
            if found.of == AMONG:
                yield from self._round()

    def _spread(self, found: Found, case: Case | None) -> Iterator[str]:
        """The distribution of the samples, in the run with the median of all medians."""
        subjects = (OURS, case.base) if case else (OURS, FLOOR)
        for subject in subjects:
            runs = self.results.runs.get(Key(found.of, subject or "", found.mode))
            if runs:
                ordered = sorted(runs, key=lambda run: run.p50)
                yield f"  - {subject}: {_percentiles(ordered[len(ordered) // 2])}"

    def _round(self) -> Iterator[str]:
        """The duration of one turn of eight clients on one processor, which no server can avoid."""
        one = self.results.median(Key(ONE, OURS, PINNED))
        alone = self.results.median(Key(ALONE, OURS, PINNED), "p99")
        floor = neighbours(self.results, self.facts, FLOOR)
        if one and alone and floor:
            turn = one * DEVICES
            yield f"  - {FLOOR}: {floor.value:.2f} x. One turn of all {DEVICES} clients on one processor"
            yield f"    takes {turn / US:.2f} us, {turn / alone:.2f} times the quiet client's p99 alone."

    def _figures(self, mode: str) -> Iterator[str]:
        rows = [*self._rows(mode), *self._clients(mode)]
        if rows:
            yield "| what | subject | median | p99 | relative to base |"
            yield "|---|---|---|---|---|"
            yield from rows

    def _rows(self, mode: str) -> Iterator[str]:
        for case in CASES:
            for subject in case.runs:
                key = Key(case.key, subject, mode)
                if key not in self.results.runs:
                    continue
                ratio = self.results.ratio(key, Key(case.key, case.base, mode)) if case.base else None
                to_base = f"{ratio:.2f} x" if ratio is not None and subject != case.base else ""
                figures = [_figure(case, self.results.median(key)), _figure(case, self._p99(key))]
                yield f"| {case.title} | {subject} | {' | '.join(figures)} | {to_base} |"

    def _clients(self, mode: str) -> Iterator[str]:
        for case, title in CLIENTS.items():
            for subject in (OURS, FLOOR):
                key = Key(case, subject, mode)
                if key not in self.results.runs:
                    continue
                ratio = self.results.ratio(key, Key(case, FLOOR, mode))
                to_base = f"{ratio:.2f} x" if ratio is not None and subject == OURS else ""
                figures = [_time(self.results.median(key)), _time(self._p99(key))]
                yield f"| {title} | {subject} | {' | '.join(figures)} | {to_base} |"

    def _p99(self, key: Key) -> float | None:
        enough = min(run.calls for run in self.results.runs[key]) >= FEW
        return self.results.median(key, "p99") if enough else None

    def _counted(self) -> Iterator[str]:
        for (case, subject), text in self.counts.items():
            yield f"- {BY_KEY[case].title}, {subject}: {text}"


def machine() -> Iterator[str]:
    """The description of the machine that made the figures."""
    info = _text("/proc/cpuinfo").splitlines()
    models = (line.partition(": ")[2] for line in info if line.startswith("model name"))
    memory = int(_text("/proc/meminfo").split()[1]) / (1 << 20)
    ask = ["pkg-config", "--modversion", "fuse3"]
    fuse = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    processor = next(models, platform.machine())
    yield f"- processor: {processor}, {os.cpu_count()} of them; {memory:.0f} GiB of memory"
    yield f"- kernel: Linux {platform.release().partition('-')[0]}; libfuse {fuse or 'unknown'}"
    yield f"- Python {platform.python_version()} ({platform.python_compiler()})"
    yield f"- as {'an ordinary user' if os.geteuid() else 'root'}"


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _repetitions(count: int) -> str:
    return "one repetition" if count == 1 else f"{count} repetitions"


def _percentiles(run: Sample) -> str:
    named = {
        "min": run.min,
        "p10": run.p10,
        "median": run.p50,
        "p90": run.p90,
        "p99": run.p99,
        "max": run.max,
    }
    return ", ".join(f"{name} {_time(value)}" for name, value in named.items()) + f" ({run.calls:,} samples)"


def _time(nanoseconds: float | None) -> str:
    if nanoseconds is None:
        return ""
    if nanoseconds < 100:
        return f"{nanoseconds:.2f} ns"
    return f"{nanoseconds / US:.2f} us" if nanoseconds < MS else f"{nanoseconds / MS:.2f} ms"


def _figure(case: Case, nanoseconds: float | None) -> str:
    spent = None if nanoseconds is None else nanoseconds / case.per
    return _time(spent) + (f" ({case.size / spent:.1f} GB/s)" if spent and case.size else "")


def _profile(profile: Profile) -> Iterator[str]:
    whole = sum(spent for _, spent in profile.parts)
    yield f"### {profile.title}"
    yield ""
    yield f"| part | {profile.unit} | share |"
    yield "|---|---|---|"
    for part, spent in (*profile.parts, ("whole", whole)):
        yield f"| {part} | {spent:.2f} | {spent / whole if whole else 0:.0%} |"
    if profile.details:
        yield from ("", profile.detail, "", f"| {' | '.join(profile.columns)} |")
        yield "|" + "---|" * len(profile.columns)
        yield from (f"| {' | '.join(row)} |" for row in profile.details)
    yield ""
