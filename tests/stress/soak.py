# SPDX-License-Identifier: Apache-2.0
"""Campaign `soak`: all kinds of load in rounds; between them the server holds no more than before."""

from __future__ import annotations

import os
import statistics
import time

from tests.stress.campaign import Campaign, Run
from tests.stress.churn import churn_once
from tests.stress.engines import start as start_engines
from tests.stress.fuzz import start as start_fuzz
from tests.stress.killed_clients import compare, nurse, settled
from tests.stress.lab import GPUS, Figures

PART = 0.5
"""The part of a run that the soak takes."""
WARM_UP_ROUNDS = 3
LEAK_BYTES = 4 << 20
"""Growth of private memory that is a fault: more than what malloc(3) keeps in spare."""
MIB = 1 << 20


def _round(run: Run, number: int) -> None:
    """Fuzz, engine, kills and churn, one after the other; then all vGPUs but the bystander's are removed."""
    part = f"round {number} "
    run.supervise(start_fuzz(run, 6000, part), 60, run.lab.keep_populated)
    run.lab.clear()
    made = run.lab.populate()
    run.supervise([*start_engines(run, made[GPUS[0]], 1200, part), *nurse(run, made[GPUS[1]], 4, part)], 60)
    run.report.counts["changes"] += churn_once(run, part, 200, processes=4).total()
    run.lab.clear()


def _growth(samples: list[Figures]) -> int:
    """By how much the private memory of the last third is above that of the first, in bytes."""
    third = max(len(samples) // 3, 1)
    first, last = ([figures.anonymous for figures in part] for part in (samples[:third], samples[-third:]))
    return int(statistics.median(last) - statistics.median(first))


def soak(run: Run) -> None:
    seconds = run.setting.seconds * PART
    for gpu in GPUS:  # a function's memory is made at its first open, and stays
        os.close(os.open(run.lab.path / "sys/bus/pci/devices" / gpu / "resource0", os.O_RDWR | os.O_CLOEXEC))
    end = time.monotonic() + seconds
    samples: list[Figures] = []
    rounds = 0
    before: Figures | None = None
    while time.monotonic() < end or rounds < WARM_UP_ROUNDS + 2:
        _round(run, rounds)
        rounds += 1
        if not run.lab.alive:
            return
        if rounds == WARM_UP_ROUNDS:
            before = settled(run)
        elif rounds > WARM_UP_ROUNDS:
            samples.append(run.lab.figures())
    assert before is not None
    run.bystander.stop(run.report)
    compare(run, before, settled(run, before))
    for text in run.lab.left():
        run.fault(text)
    growth = _growth(samples)
    if run.setting.sanitized:
        run.left_out.append("the growth of memory (sanitizers keep freed memory)")
    elif growth > LEAK_BYTES:
        run.fault(f"the private memory of the server grew by {growth / MIB:.1f} MiB")
    last = samples[-1]
    run.figures = (
        f"{seconds:.0f} s, {rounds} rounds; private memory {last.anonymous / MIB:.1f} MiB "
        f"({growth / MIB:+.1f} since the warm-up), "
        f"{last.descriptors} descriptors, {last.threads} threads"
    )


CAMPAIGN = Campaign("soak", soak, "all kinds of load, with an eye on memory, descriptors and threads")
